"""What a trace writes down before labels are final: tensors, kernels, values."""

from dataclasses import dataclass, field

from planner.graph import DType, IndexKind, OperatorKind, Reduction, TensorKind
from planner.tracing.atoms import Product, Rename


@dataclass(kw_only=True, slots=True, eq=False)
class TensorNote:
    """A storage: written once by a kernel, or a parameter, buffer or input."""

    number: int
    dims: list[Product]
    dtype: DType
    kind: TensorKind = "activation"
    producer: int | None = None
    requires_grad: bool = False
    name: str = ""
    """Parameter, buffer or input name."""
    savers: set[int] = field(default_factory=set)
    """Kernels that keep it for their backward."""


@dataclass(kw_only=True, slots=True, eq=False)
class Value:
    """A tensor as the program holds it: a note seen through views."""

    note: TensorNote
    dims: list[Product]
    weak: bool = False
    """Depends on neither inputs nor parameters (masks, position tables)."""


@dataclass(kw_only=True, slots=True, eq=False)
class Read:
    """A value as one kernel reads it."""

    note: TensorNote
    dims: list[Product]
    renames: list[Rename] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Role:
    """Atoms of a kernel in one role."""

    product: Product
    role: str
    kind: IndexKind = "free"
    reduction: Reduction | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class KernelNote:
    """One kernel that ran, in atoms."""

    number: int
    kind: OperatorKind
    target: str
    module_path: str
    element: int
    """Position of the chain element (future unit) it ran in."""
    reads: list[Read]
    outputs: list[TensorNote] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    flops: list[tuple[float, Product]] = field(default_factory=list)
    """Forward terms."""
    backward_factor: float = 0.0
    """Backward FLOPs over forward FLOPs."""
    roles_mn_k: tuple[Product, Product, Product, Product] = ((), (), (), ())
    traffic_scale: tuple[float, Product] = (1.0, ())
    extra_saved: list[tuple[Product, DType]] = field(default_factory=list)
    """Kept for backward without being a tensor of the graph (statistics, masks)."""
    saves: list[TensorNote] = field(default_factory=list)
    launches: int = 1
    writes_outputs: bool = True
    """False for a bias that the product's kernel adds in its epilogue."""
    filter_area: int = 1
    causal: bool = False
    dropout: bool = False
    sequential_steps: int = 1
    data_dependent: bool = False
    is_loss: bool = False

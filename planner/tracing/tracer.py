"""The notebook of a trace: which value is which tensor, and how kernels read them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from planner.graph import DType, OperatorKind, TensorKind, TraceWarning
from planner.tracing.atoms import Atoms, Product
from planner.tracing.notes import KernelNote, Read, Role, TensorNote, Value

DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "fp32",
    torch.float64: "fp32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int32",
    torch.uint8: "uint8",
    torch.int8: "uint8",
    torch.bool: "bool",
}


class Tracer:
    """Collects tensor and kernel notes while a model runs on fake tensors."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.kernels: list[KernelNote] = []
        self.tensors: list[TensorNote] = []
        self.warnings: dict[str, TraceWarning] = {}
        self.element = 0
        self.paths: list[str] = [""]
        self.in_loss = False
        self._values: dict[int, Value] = {}
        self._by_storage: dict[int, list[Value]] = {}
        self._kept_alive: list[torch.Tensor] = []
        self._pending: list[TensorNote] = []
        self.experts: dict[tuple[Product, int], Product] = {}
        """Expert index by (rows, number of experts): one for all products over the same tokens."""
        self.low_precision = torch.get_default_dtype() != torch.float32

    @property
    def path(self) -> str:
        """Path of the module that runs now."""
        return self.paths[-1]

    def warn(self, subject: str, message: str) -> None:
        """Keep one warning per subject."""
        self.warnings.setdefault(subject, TraceWarning(subject=subject, message=message))

    def dtype_of(self, tensor: torch.Tensor) -> DType:
        """Name an element type; 16-bit floats are the compute type."""
        if tensor.dtype == torch.float32 and not self.low_precision:
            return "compute"
        return DTYPES.get(tensor.dtype, "compute")

    # values

    def note(
        self,
        tensor: torch.Tensor,
        dims: list[Product],
        *,
        kind: TensorKind = "activation",
        name: str = "",
    ) -> TensorNote:
        """Write down a new storage."""
        note = TensorNote(
            number=len(self.tensors),
            dims=list(dims),
            dtype=self.dtype_of(tensor),
            kind=kind,
            requires_grad=tensor.requires_grad,
            name=name,
        )
        self.tensors.append(note)
        return note

    def bind(self, tensor: torch.Tensor, value: Value) -> Value:
        """Say what a tensor object stands for."""
        self._kept_alive.append(tensor)
        self._values[id(tensor)] = value
        self._by_storage.setdefault(storage_key(tensor), []).append(value)
        return value

    def value(self, tensor: torch.Tensor) -> Value:
        """Return what a tensor stands for; unseen tensors are weak constants."""
        found = self._values.get(id(tensor))
        if found is not None:
            return found
        same = self._by_storage.get(storage_key(tensor), [])
        for value in reversed(same):
            if self.shape(value.dims) == tuple(tensor.shape):
                return value
        dims = [self.atoms.fresh(size) for size in tensor.shape]
        return self.bind(tensor, Value(note=self.note(tensor, dims), dims=dims, weak=True))

    def shape(self, dims: Sequence[Product]) -> tuple[int, ...]:
        """Return the traced sizes of dimensions."""
        return tuple(self.atoms.total(self.atoms.resolve(dim)) for dim in dims)

    def rewrite(self, tensor: torch.Tensor, note: TensorNote) -> None:
        """After an in-place write every view of the storage stands for the new note."""
        for value in self._by_storage.get(storage_key(tensor), []):
            value.note, value.weak = note, False

    def base(self, tensor: torch.Tensor) -> Value:
        """Return the first value of the storage (the whole buffer)."""
        return self._by_storage.get(storage_key(tensor), [self.value(tensor)])[0]

    # saved tensors

    def saved(self, tensor: torch.Tensor) -> None:
        """Autograd keeps this tensor for a kernel that is about to run or just ran."""
        values = self._by_storage.get(storage_key(tensor))
        if not values or values[-1].weak or values[-1].note.kind in ("parameter", "buffer"):
            return
        note = values[-1].note
        last = self.kernels[-1] if self.kernels else None
        own = last is not None and note in last.outputs and last.target in SAVES_OUTPUT
        if last is not None and own and last.number not in note.savers:
            last.saves.append(note)
            note.savers.add(last.number)
        else:
            self._pending.append(note)

    # kernels

    def kernel(self, target: str, kind: OperatorKind, *tensors: torch.Tensor) -> "Draft":
        """Begin to describe a kernel that reads ``tensors``."""
        return Draft(self, target, kind, tensors)

    def finish(self, draft: "Draft") -> KernelNote:
        """Append a described kernel and mark its atoms as distinct."""
        kernel = draft.kernel
        kernel.number = len(self.kernels)
        self.kernels.append(kernel)
        for note in self._pending:
            kernel.saves.append(note)
            note.savers.add(kernel.number)
        self._pending.clear()
        for read in kernel.reads:
            for dim in read.dims:
                self.atoms.mark(dim, kernel.number)
        for role in kernel.roles:
            self.atoms.mark(role.product, kernel.number)
        for output in kernel.outputs:
            output.producer = kernel.number
            for dim in output.dims:
                self.atoms.mark(dim, kernel.number)
        return kernel


class Draft:
    """One kernel being described: operands are joined to roles, then outputs are written."""

    def __init__(
        self, tracer: Tracer, target: str, kind: OperatorKind, tensors: Iterable[torch.Tensor]
    ) -> None:
        self.tracer = tracer
        self.atoms = tracer.atoms
        self.values = [tracer.value(tensor) for tensor in tensors]
        self.weak = [value.weak for value in self.values]
        self.operands = [
            Read(note=value.note, dims=[self.atoms.resolve(dim) for dim in value.dims])
            for value in self.values
        ]
        self.kernel = KernelNote(
            number=-1,
            kind=kind,
            target=target,
            module_path=tracer.path,
            element=tracer.element,
            reads=[],
            is_loss=tracer.in_loss,
        )

    @property
    def is_weak(self) -> bool:
        """Whether every operand is a constant, so that nothing needs to be recorded."""
        return all(self.weak)

    def dims(self, operand: int) -> list[Product]:
        """Return the dims of an operand in present atoms."""
        read = self.operands[operand]
        read.dims = [self.atoms.resolve(dim) for dim in read.dims]
        return read.dims

    def join(self, operand: int, dim: int, reference: Product) -> None:
        """Read one dim of an operand as ``reference``: merge, or rename on the edge."""
        read = self.operands[operand]
        if self.is_weak or self.weak[operand]:
            return
        renames = self.atoms.join(reference, read.dims[dim])
        if renames is None:
            self.tracer.warn(
                f"dims of {self.tracer.path or 'model'}",
                f"{self.kernel.target}: extents do not share factors; not offered for splitting",
            )
            self.atoms.forbid_split(read.dims[dim])
            self.atoms.forbid_split(reference)
        else:
            self._rename(operand, renames)
        read.dims[dim] = self.atoms.resolve(reference)

    def _rename(self, operand: int, renames: list[tuple[Product, Product]]) -> None:
        read = self.operands[operand]
        mapping = {source[0]: target for source, target in renames}
        read.dims = [
            tuple(atom for old in self.atoms.resolve(dim) for atom in mapping.get(old, (old,)))
            for dim in read.dims
        ]
        read.renames.extend(renames)

    def separate(self, operand: int, dims: Iterable[int], used: Iterable[Product]) -> None:
        """Rename atoms of some dims of an operand that already stand in another role."""
        taken = {atom for product in used for atom in self.atoms.resolve(product)}
        read = self.operands[operand]
        for dim in dims:
            parts: list[int] = []
            for atom in self.atoms.resolve(read.dims[dim]):
                fresh = atom
                while fresh in taken:
                    fresh = self.atoms.alias(fresh)
                if fresh != atom:
                    read.renames.append(((atom,), (fresh,)))
                parts.append(fresh)
            read.dims[dim] = tuple(parts)

    def role(self, product: Product, role: str, **kind: Any) -> None:
        """Give atoms their role in this kernel."""
        self.kernel.roles.append(Role(product=product, role=role, **kind))

    def write(self, tensor: torch.Tensor, dims: list[Product], *, in_place: bool = False) -> None:
        """Write an output; a kernel on constants alone writes a weak value and is not kept."""
        dims = [self.atoms.resolve(dim) for dim in dims]
        note = self.note(tensor, dims)
        if in_place and not self.is_weak:
            self.tracer.rewrite(tensor, note)
        self.tracer.bind(tensor, Value(note=note, dims=dims, weak=self.is_weak))
        self.kernel.outputs.append(note)

    def note(self, tensor: torch.Tensor, dims: list[Product]) -> TensorNote:
        """Write down an output; below autograd its own flag is not set yet."""
        note = self.tracer.note(tensor, dims)
        note.requires_grad = (
            tensor.is_floating_point()
            and torch.is_grad_enabled()
            and any(value.note.requires_grad for value in self.values)
        )
        return note

    def save(self, *operands: int) -> None:
        """Keep activation operands for backward (for kernels described as a whole)."""
        for operand in operands:
            note = self.operands[operand].note
            if note.kind not in ("parameter", "buffer") and not self.weak[operand]:
                self.kernel.saves.append(note)

    def save_outputs(self) -> None:
        """Keep the outputs for this kernel's backward."""
        self.kernel.saves.extend(self.kernel.outputs)

    def end(self) -> None:
        """Record the kernel unless it computes a constant."""
        if self.is_weak:
            return
        self.kernel.reads = [
            read for read, weak in zip(self.operands, self.weak, strict=True) if not weak
        ]
        kernel = self.tracer.finish(self)
        for note in kernel.saves:
            note.savers.add(kernel.number)


SAVES_OUTPUT = frozenset(
    f"aten.{name}"
    for name in (
        "relu", "relu_", "sigmoid", "tanh", "exp", "rsqrt", "sqrt", "reciprocal", "_softmax",
        "_log_softmax", "native_dropout", "softplus", "max_pool2d_with_indices", "topk", "sort",
    )
)  # fmt: skip


def storage_key(tensor: torch.Tensor) -> int:
    """Return what views of one storage have in common."""
    return int(tensor.untyped_storage()._cdata)

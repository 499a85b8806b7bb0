"""FLOPs, traffic, launches and saved tensors of an operator, as terms over labels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.graph import DType, FlopTerm, TensorTerm
from planner.tracing.atoms import Product
from planner.tracing.chains import Group
from planner.tracing.naming import Labels
from planner.tracing.notes import KernelNote, Read, TensorNote

if TYPE_CHECKING:
    from planner.tracing.tracer import Tracer

FLASH_BACKWARD_KERNELS = 3
"""Row sums, the products, conversion of the query gradient (FlashAttention-2's own kernels)."""
LOOKUPS = ("embedding", "permutation")


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorCosts:
    """The cost fields of :class:`planner.graph.Operator`."""

    flops_forward: tuple[FlopTerm, ...]
    flops_backward: tuple[FlopTerm, ...]
    traffic_forward: tuple[TensorTerm, ...]
    traffic_backward: tuple[TensorTerm, ...]
    num_kernels_forward: int
    num_kernels_backward: int
    saved: tuple[TensorTerm, ...]
    saved_fused: tuple[TensorTerm, ...]


class Costs:
    """Derives the costs of groups from their kernels."""

    def __init__(
        self,
        tracer: "Tracer",
        labels: Labels,
        group_of: Mapping[int, Group],
        readers: Mapping[int, set[int]],
    ) -> None:
        self.labels, self.group_of, self.readers = labels, group_of, readers
        self.atoms = tracer.atoms
        self.inputs_of = _saved_inputs(tracer)
        self.fused = self._fused_notes(tracer.kernels)

    def of(self, group: Group) -> OperatorCosts:
        """Return the costs of one operator."""
        forward: list[TensorTerm] = []
        backward: list[TensorTerm] = []
        flops: list[FlopTerm] = []
        flops_backward: list[FlopTerm] = []
        launches_backward = 0
        for kernel in group.kernels:
            forward.extend(self._forward_traffic(kernel))
            flops.extend(self._flops(kernel, 1.0))
            if any(note.requires_grad for note in kernel.outputs):
                backward.extend(self._backward_traffic(kernel))
                flops_backward.extend(self._flops(kernel, kernel.backward_factor))
                launches_backward += _backward_launches(kernel)
        saved, saved_fused = self._saved(group)
        return OperatorCosts(
            flops_forward=tuple(flops),
            flops_backward=tuple(flops_backward),
            traffic_forward=combine(forward),
            traffic_backward=combine(backward),
            num_kernels_forward=sum(kernel.launches for kernel in group.kernels),
            num_kernels_backward=launches_backward,
            saved=combine(saved),
            saved_fused=combine(saved_fused),
        )

    def _flops(self, kernel: KernelNote, factor: float) -> list[FlopTerm]:
        return [
            FlopTerm(coefficient=coefficient * factor, labels=self.labels.product(product))
            for coefficient, product in kernel.flops
            if factor
        ]

    def _term(self, dims: Iterable[Product], dtype: DType, kernel: KernelNote) -> TensorTerm:
        times, extra = kernel.traffic_scale
        flat = tuple(atom for dim in dims for atom in self.atoms.resolve(dim))
        extra = self.atoms.resolve(extra)
        return TensorTerm(labels=self.labels.product(extra + flat), dtype=dtype, times=times)

    def _read(self, read: Read, kernel: KernelNote) -> TensorTerm:
        """Return what reading an operand moves: a broadcast operand is read once."""
        seen = [atom for dim in read.dims for atom in self.atoms.resolve(dim)]
        held = [atom for dim in read.note.dims for atom in self.atoms.resolve(dim)]
        smaller = read.dims
        if self.atoms.total(tuple(held)) < self.atoms.total(tuple(seen)):
            smaller = read.note.dims
        if read.note.kind == "parameter":
            return TensorTerm(
                labels=tuple(label for dim in self.labels.dims(smaller) for label in dim),
                dtype=read.note.dtype,
            )
        return self._term(smaller, read.note.dtype, kernel)

    def _forward_traffic(self, kernel: KernelNote) -> list[TensorTerm]:
        writes = [self._term(note.dims, note.dtype, kernel) for note in kernel.outputs]
        if not kernel.writes_outputs:
            return [self._read(read, kernel) for read in kernel.reads[1:]]
        if kernel.kind in LOOKUPS:
            return [*writes, *writes]
        return [*(self._read(read, kernel) for read in kernel.reads), *writes]

    def _backward_traffic(self, kernel: KernelNote) -> list[TensorTerm]:
        outs = [self._term(n.dims, n.dtype, kernel) for n in kernel.outputs if n.requires_grad]
        reads = [self._read(read, kernel) for read in kernel.reads]
        wanted = [
            term for term, read in zip(reads, kernel.reads, strict=True) if read.note.requires_grad
        ]
        if kernel.target == "aten.add_bias":
            return [*outs, *wanted[-1:]]
        match kernel.kind:
            case "matmul" | "convolution" | "recurrent":
                return [term for need in wanted for term in (*outs, *_others(reads, need), need)]
            case "attention":
                return [*reads, *outs, *outs, *wanted]
            case "embedding" | "permutation":
                return [*outs, *outs]
            case _:
                kept = [self._term(note.dims, note.dtype, kernel) for note in kernel.saves]
                extra = [self._term([p], dtype, kernel) for p, dtype in kernel.extra_saved]
                return [*outs, *kept, *extra, *wanted]

    def _fused_notes(self, kernels: list[KernelNote]) -> set[int]:
        """Return tensors kept when chains and norms recompute their inside in backward.

        Kept is what another operator keeps, and every activation that enters a chain whose inside
        is kept when its kernels run alone.
        """
        kept: set[int] = set()
        for kernel in kernels:
            group = self.group_of[kernel.number]
            inside = {member.number for member in group.kernels}
            recomputes = group.is_chain or group.is_norm
            for note in kernel.outputs:
                if not note.savers:
                    continue
                if note.savers - inside or not recomputes:
                    kept.add(note.number)
                else:
                    kept.update(self._entries(group, inside))
        return kept

    def _entries(self, group: Group, inside: set[int]) -> set[int]:
        return {
            read.note.number
            for kernel in group.kernels
            for read in kernel.reads
            if read.note.kind == "activation"
            and read.note.requires_grad
            and read.note.producer not in inside
        }

    def _saved(self, group: Group) -> tuple[list[TensorTerm], list[TensorTerm]]:
        eager: list[TensorTerm] = []
        fused: list[TensorTerm] = []
        for kernel in group.kernels:
            notes = [*kernel.outputs, *self.inputs_of.get(kernel.number, ())]
            for note in notes:
                term = TensorTerm(
                    labels=tuple(label for dim in self.labels.dims(note.dims) for label in dim),
                    dtype=note.dtype,
                )
                if note.savers:
                    eager.append(term)
                if note.number in self.fused or (note.producer is None and note.savers):
                    fused.append(term)
            extra = [
                TensorTerm(labels=self.labels.product(product), dtype=dtype)
                for product, dtype in kernel.extra_saved
            ]
            eager.extend(extra)
            fused.extend(extra)
        return eager, fused


def _saved_inputs(tracer: "Tracer") -> dict[int, list[TensorNote]]:
    """Model inputs kept for backward, at the first kernel that keeps them."""
    found: dict[int, list[TensorNote]] = {}
    for note in tracer.tensors:
        if note.kind == "input" and note.savers:
            found.setdefault(min(note.savers), []).append(note)
    return found


def _others(terms: list[TensorTerm], one: TensorTerm) -> list[TensorTerm]:
    rest = list(terms)
    rest.remove(one)
    return rest


def _backward_launches(kernel: KernelNote) -> int:
    match kernel.kind:
        case "matmul" | "convolution":
            return sum(read.note.requires_grad for read in kernel.reads[:2])
        case "attention":
            return FLASH_BACKWARD_KERNELS
        case "normalization" | "recurrent" | "loss":
            return 2
        case _:
            return 1


def combine(terms: Iterable[TensorTerm]) -> tuple[TensorTerm, ...]:
    """Add terms over the same labels and element type."""
    found: dict[tuple[tuple[str, ...], DType], float] = {}
    for term in terms:
        key = (term.labels, term.dtype)
        found[key] = found.get(key, 0.0) + term.times
    return tuple(
        TensorTerm(labels=labels, dtype=dtype, times=times)
        for (labels, dtype), times in found.items()
    )

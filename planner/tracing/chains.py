"""Group kernels into operators: element-wise chains and decomposed norms become one node."""

from dataclasses import dataclass, field

from planner.tracing.notes import KernelNote

NORM_PARTS = ("rsqrt", "sqrt")
NORM_MEANS = ("mean", "var", "var_mean", "linalg_vector_norm")


@dataclass(kw_only=True, slots=True, eq=False)
class Group:
    """Kernels of one operator, in execution order."""

    kernels: list[KernelNote]
    mask: int = 0
    above: int = 0
    """Bits of all kernels that this group depends on, itself left out."""
    is_norm: bool = False
    feeds: list[int] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        """Whether more element-wise kernels may join."""
        return not self.is_norm and self.kernels[0].kind == "elementwise"


def group_kernels(kernels: list[KernelNote]) -> list[Group]:
    """Return operators in an order that respects dependencies.

    A kernel joins the chain it reads from when both are element-wise, run in the same unit, the
    edge renames nothing and no path leaves the chain and comes back.
    """
    norms = _norm_runs(kernels)
    ancestors: list[int] = []
    group_of: dict[int, Group] = {}
    groups: list[Group] = []
    for kernel in kernels:
        producers = _producers(kernel)
        above = 0
        for producer in producers:
            above |= ancestors[producer] | (1 << producer)
        ancestors.append(above)
        group = _find_group(kernel, group_of, ancestors, norms)
        if group is None:
            group = Group(kernels=[], is_norm=kernel.number in norms)
            groups.append(group)
        _add(group, kernel, above)
        group_of[kernel.number] = group
        if group.is_chain:
            for other in _mergeable(kernel, group, group_of, ancestors):
                for member in other.kernels:
                    group_of[member.number] = group
                group.kernels = sorted([*group.kernels, *other.kernels], key=lambda k: k.number)
                group.mask |= other.mask
                groups.remove(other)
    return _ordered(groups, group_of)


def _add(group: Group, kernel: KernelNote, above: int) -> None:
    group.kernels.append(kernel)
    group.mask |= 1 << kernel.number
    group.above |= above


def _producers(kernel: KernelNote) -> list[int]:
    found = [read.note.producer for read in kernel.reads]
    return [producer for producer in found if producer is not None and producer < kernel.number]


def _find_group(
    kernel: KernelNote,
    group_of: dict[int, Group],
    ancestors: list[int],
    norms: dict[int, int],
) -> Group | None:
    if kernel.number in norms:
        return group_of.get(norms[kernel.number])
    if kernel.kind != "elementwise" or kernel.is_loss:
        return None
    for producer in sorted(_plain_edges(kernel), reverse=True):
        group = group_of[producer]
        if _may_join(group, [kernel], kernel.element, group_of, ancestors):
            return group
    return None


def _plain_edges(kernel: KernelNote) -> set[int]:
    return {
        read.note.producer
        for read in kernel.reads
        if read.note.producer is not None
        and not read.renames
        and read.note.producer < kernel.number
    }


def _may_join(
    group: Group,
    members: list[KernelNote],
    element: int,
    group_of: dict[int, Group],
    ancestors: list[int],
) -> bool:
    """Tell whether no path runs from the group through other operators to the new members."""
    if not group.is_chain or group.kernels[0].element != element or group.kernels[0].is_loss:
        return False
    new = sum(1 << member.number for member in members)
    for member in members:
        for producer in _producers(member):
            outside = not (group.mask | new) >> producer & 1
            if outside and (_above(producer, group_of, ancestors) & group.mask):
                return False
    return True


def _above(producer: int, group_of: dict[int, Group], ancestors: list[int]) -> int:
    """Return everything the producer's whole group depends on."""
    group = group_of.get(producer)
    mask = ancestors[producer]
    if group is not None:
        for member in group.kernels:
            mask |= ancestors[member.number]
    return mask


def _mergeable(
    kernel: KernelNote, group: Group, group_of: dict[int, Group], ancestors: list[int]
) -> list[Group]:
    found: list[Group] = []
    for producer in sorted(_plain_edges(kernel)):
        other = group_of[producer]
        if other is group or other in found:
            continue
        down = _may_join(other, group.kernels, kernel.element, group_of, ancestors)
        up = _may_join(group, other.kernels, kernel.element, group_of, ancestors)
        if down and up:
            found.append(other)
            break
    return found


def _norm_runs(kernels: list[KernelNote]) -> dict[int, int]:
    """Map kernels of decomposed norms to the first kernel of their run.

    A run is a stretch in one leaf module of element-wise kernels and reductions with a root and a
    mean: ``x * rsqrt(mean(x ** 2) + eps) * weight``.
    """
    found: dict[int, int] = {}
    start = 0
    while start < len(kernels):
        stop = start
        while stop < len(kernels) and _same_leaf(kernels[start], kernels[stop]):
            stop += 1
        run = kernels[start:stop]
        targets = {kernel.target.removeprefix("aten.") for kernel in run}
        if targets & set(NORM_PARTS) and targets & set(NORM_MEANS):
            found.update({kernel.number: kernels[start].number for kernel in run})
        start = max(stop, start + 1)
    return found


def _same_leaf(first: KernelNote, other: KernelNote) -> bool:
    return (
        first.module_path == other.module_path
        and first.element == other.element
        and first.module_path != ""
        and other.kind in ("elementwise", "reduction")
        and first.kind in ("elementwise", "reduction")
    )


def _ordered(groups: list[Group], group_of: dict[int, Group]) -> list[Group]:
    """Sort topologically, earliest first kernel first."""
    pending = sorted(groups, key=lambda group: (group.kernels[0].element, group.kernels[0].number))
    waits = {
        id(group): {
            id(group_of[producer])
            for kernel in group.kernels
            for producer in _producers(kernel)
            if group_of[producer] is not group
        }
        for group in pending
    }
    done: set[int] = set()
    result: list[Group] = []
    while pending:
        for at, group in enumerate(pending):
            if waits[id(group)] <= done:
                result.append(pending.pop(at))
                done.add(id(group))
                break
        else:
            raise RuntimeError("operators of the trace form a cycle")
    return result

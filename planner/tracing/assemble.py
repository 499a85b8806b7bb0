"""Turn the notes of a trace into a :class:`planner.graph.ModelGraph`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from planner.graph import (
    Index,
    ModelGraph,
    Operand,
    Operator,
    OperatorIndex,
    Tensor,
    Unit,
)
from planner.tracing.atoms import Product
from planner.tracing.blocks import Element
from planner.tracing.chains import Group, group_kernels
from planner.tracing.costs import Costs
from planner.tracing.naming import Labels
from planner.tracing.notes import Read, TensorNote
from planner.tracing.tracer import Tracer


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceFacts:
    """What the module itself tells, beside what ran."""

    name: str
    source: str
    content_key: str
    batch: Product
    sequence: Product
    sequence_length: int
    num_parameters: int
    active_parameters: int | None
    parameter_names: Mapping[str, tuple[str, ...]]


def assemble(tracer: Tracer, elements: list[Element], facts: TraceFacts) -> ModelGraph:
    """Group kernels, fix labels, and build the graph and its units."""
    groups = group_kernels(tracer.kernels)
    tracer.atoms.synchronise([r for k in tracer.kernels for read in k.reads for r in read.renames])
    labels = Labels(tracer.atoms, tracer.kernels)
    units = _unit_names(elements)
    names = _operator_names(groups)
    builder = _Builder(tracer, labels, groups, names, elements)
    operators = [builder.operator(group, units[group.kernels[0].element]) for group in groups]
    graph = nx.DiGraph()
    for operator in operators:
        graph.add_node(operator.name, operator=operator)
    _add_edges(graph, operators, builder.tensors)
    used = _used_labels(operators, builder.tensors.values())
    indices = {
        label: Index(
            label=label,
            size=tracer.atoms.sizes[atom],
            splittable=tracer.atoms.is_splittable(atom),
        )
        for atom, label in sorted(labels.names.items())
        if label in used
    }
    parameters = {
        name: _repeated_names(name, builder.unit_of_parameter.get(name), elements, facts)
        for name, tensor in builder.tensors.items()
        if tensor.kind == "parameter"
    }
    return ModelGraph(
        name=facts.name,
        graph=graph,
        tensors=builder.tensors,
        indices=indices,
        units=_units(elements, units, operators, groups, builder),
        batch_label=labels.product(facts.batch)[0],
        sequence_length=facts.sequence_length,
        num_parameters=facts.num_parameters,
        sequence_labels=tuple(label for label in labels.product(facts.sequence) if label in used)
        if facts.sequence
        else (),
        parameter_names=parameters,
        active_parameters=facts.active_parameters,
        warnings=tuple(tracer.warnings[key] for key in sorted(tracer.warnings)),
        source=facts.source,
        content_key=facts.content_key,
    )


def _used_labels(operators: list[Operator], tensors: Iterable[Tensor]) -> set[str]:
    used = {label for tensor in tensors for dim in tensor.dims for label in dim}
    for operator in operators:
        used.update(index.label for index in operator.indices)
        for operand in (*operator.inputs, *operator.parameters):
            used.update(label for dim in operand.dims for label in dim)
        for term in (*operator.saved, *operator.traffic_forward, *operator.traffic_backward):
            used.update(term.labels)
        for flops in operator.flops_forward:
            used.update(flops.labels)
    return used


def _operator_names(groups: list[Group]) -> dict[int, str]:
    """Name operators by module and what runs; kernel number -> name."""
    names: dict[int, str] = {}
    used: set[str] = set()
    for group in groups:
        first = group.kernels[0]
        short = "norm" if group.is_norm else first.target.removeprefix("aten.").strip("_")
        base = f"{first.module_path or ('loss' if first.is_loss else 'model')}:{short}"
        name, number = base, 2
        while name in used:
            name, number = f"{base}#{number}", number + 1
        used.add(name)
        names.update({kernel.number: name for kernel in group.kernels})
    return names


class _Builder:
    """Builds operators and the tensors between them."""

    def __init__(
        self,
        tracer: Tracer,
        labels: Labels,
        groups: list[Group],
        names: dict[int, str],
        elements: list[Element],
    ) -> None:
        self.labels, self.names = labels, names
        self.tensors: dict[str, Tensor] = {}
        self.unit_of_parameter: dict[str, int] = {}
        self.group_of = {k.number: group for group in groups for k in group.kernels}
        self.readers: dict[int, set[int]] = {}
        for kernel in tracer.kernels:
            for read in kernel.reads:
                self.readers.setdefault(read.note.number, set()).add(kernel.number)
        self.last = tracer.kernels[-1].number if tracer.kernels else -1
        self.carried = {exit_.number for element in elements for _, exit_ in element.carried}
        self.costs = Costs(tracer, labels, self.group_of, self.readers)

    def tensor_name(self, note: TensorNote) -> str:
        """Return (and register) the name of a tensor."""
        if note.producer is None:
            name = note.name or f"constant:{note.number}"
        else:
            operator = self.names[note.producer]
            outputs = [o for k in self.group_of[note.producer].kernels for o in k.outputs]
            at = outputs.index(note)
            name = f"{operator}>{at}"
        if name not in self.tensors:
            self.tensors[name] = Tensor(
                name=name,
                dims=self.labels.dims(note.dims),
                dtype=note.dtype,
                kind=note.kind,
                producer=None if note.producer is None else self.names[note.producer],
                requires_grad=note.requires_grad,
            )
        return name

    def operand(self, read: Read) -> Operand:
        """Return an operand with its relabelling."""
        return Operand(
            tensor=self.tensor_name(read.note),
            dims=self.labels.dims(read.dims),
            relabel=self.labels.renames(read.renames),
        )

    def _external(self, group: Group) -> list[Read]:
        """Return reads from outside the group, each way of reading once."""
        inside = {kernel.number for kernel in group.kernels}
        found: list[Read] = []
        seen: set[tuple[object, ...]] = set()
        for kernel in group.kernels:
            for read in kernel.reads:
                key = (
                    read.note.number,
                    self.labels.dims(read.dims),
                    self.labels.renames(read.renames),
                )
                if read.note.producer not in inside and key not in seen:
                    seen.add(key)
                    found.append(read)
        return found

    def _outputs(self, group: Group) -> list[TensorNote]:
        """Return what is read outside the group (the last one if nothing is)."""
        inside = {kernel.number for kernel in group.kernels}
        notes = [note for kernel in group.kernels for note in kernel.outputs]
        kept = [
            note
            for note in notes
            if self.readers.get(note.number, set()) - inside or note.number in self.carried
        ]
        return kept or notes[-1:]

    def operator(self, group: Group, unit: str) -> Operator:
        """Return the operator of one group."""
        first, outputs = group.kernels[0], self._outputs(group)
        reads = self._external(group)
        parameters = [read for read in reads if read.note.kind == "parameter"]
        for read in parameters:
            self.unit_of_parameter.setdefault(read.note.name, first.element)
        costs = self.costs.of(group)
        return Operator(
            name=self.names[first.number],
            kind="normalization" if group.is_norm else first.kind,
            target="+".join(dict.fromkeys(kernel.target for kernel in group.kernels)),
            module_path=first.module_path,
            unit=unit,
            indices=self._indices(group, reads, outputs),
            inputs=tuple(self.operand(r) for r in reads if r.note.kind != "parameter"),
            parameters=tuple(self.operand(read) for read in parameters),
            outputs=tuple(self.tensor_name(note) for note in outputs),
            flops_forward=costs.flops_forward,
            flops_backward=costs.flops_backward,
            traffic_forward=costs.traffic_forward,
            traffic_backward=costs.traffic_backward,
            num_kernels_forward=costs.num_kernels_forward,
            num_kernels_backward=costs.num_kernels_backward,
            saved=costs.saved,
            saved_fused=costs.saved_fused,
            roles_mn_k=tuple(self.labels.product(p) for p in first.roles_mn_k),  # type: ignore[arg-type]
            filter_area=first.filter_area,
            causal=first.causal,
            dropout=any(kernel.dropout for kernel in group.kernels),
            sequential_steps=first.sequential_steps,
            data_dependent=any(kernel.data_dependent for kernel in group.kernels),
        )

    def _indices(
        self, group: Group, reads: list[Read], outputs: list[TensorNote]
    ) -> tuple[OperatorIndex, ...]:
        """Return roles as the rule gave them; element-wise chains: outputs free, others coupled."""
        found: dict[str, OperatorIndex] = {}
        reduced = {
            label
            for kernel in group.kernels
            if kernel.kind == "reduction"
            for role in kernel.roles
            if role.kind != "free"
            for label in self.labels.product(role.product)
        }
        for kernel in group.kernels if not (group.is_norm or group.is_chain) else []:
            for role in kernel.roles:
                for label in self.labels.product(role.product):
                    found.setdefault(
                        label,
                        OperatorIndex(
                            label=label, role=role.role, kind=role.kind, reduction=role.reduction
                        ),
                    )
        if found:
            return tuple(found.values())
        written = [
            label for note in outputs for dim in self.labels.dims(note.dims) for label in dim
        ]
        read_labels = [
            label for read in reads for dim in self.labels.dims(read.dims) for label in dim
        ]
        for label in dict.fromkeys([*written, *read_labels]):
            mixes = label in reduced or label not in written
            found[label] = OperatorIndex(
                label=label,
                role=self._role(label, is_norm=group.is_norm and mixes),
                kind="coupled" if mixes else "free",
            )
        return tuple(found.values())

    def _role(self, label: str, *, is_norm: bool) -> str:
        return "batch" if label == "b" else "hidden" if is_norm else "m"


def _add_edges(graph: nx.DiGraph, operators: list[Operator], tensors: dict[str, Tensor]) -> None:
    for operator in operators:
        for operand in operator.inputs:
            producer = tensors[operand.tensor].producer
            if producer is None or producer == operator.name:
                continue
            carried = graph.get_edge_data(producer, operator.name, {"tensors": ()})["tensors"]
            if operand.tensor not in carried:
                graph.add_edge(producer, operator.name, tensors=(*carried, operand.tensor))


def _unit_names(elements: list[Element]) -> list[str]:
    names: list[str] = []
    for at, element in enumerate(elements):
        if not element.path:
            base = "pre" if at == 0 else "post" if at == len(elements) - 1 else f"between.{at}"
        elif element.count > 1:
            first, last = element.module_paths[0], element.module_paths[-1]
            base = f"{first}..{last.rpartition('.')[2]}"
        else:
            base = element.path
        while base in names:
            base = f"{base}'"
        names.append(base)
    return names


def _units(
    elements: list[Element],
    names: list[str],
    operators: list[Operator],
    groups: list[Group],
    builder: _Builder,
) -> tuple[Unit, ...]:
    del groups
    units = []
    for element, name in zip(elements, names, strict=True):
        inside = tuple(operator.name for operator in operators if operator.unit == name)
        carried = tuple(
            (builder.tensor_name(entry), builder.tensor_name(exit_))
            for entry, exit_ in element.carried
        )
        paths = tuple(element.module_paths) or ("",)
        units.append(
            Unit(
                name=name,
                operators=inside,
                count=element.count,
                module_paths=paths,
                carried=carried,
            )
        )
    return tuple(units)


def _repeated_names(
    name: str, element: int | None, elements: list[Element], facts: TraceFacts
) -> tuple[str, ...]:
    """Return a parameter's names: tied ones, or one per repetition of its block."""
    given = facts.parameter_names.get(name, (name,))
    if element is None or elements[element].count == 1:
        return tuple(given)
    first, *_ = paths = elements[element].module_paths
    if not name.startswith(f"{first}."):
        return tuple(given)
    return tuple(path + name.removeprefix(first) for path in paths)

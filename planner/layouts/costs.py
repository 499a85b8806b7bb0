"""Prices of one operator under one choice, computed once and remembered."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.graph import ModelGraph, Operator
from planner.host_time import framework_delay
from planner.layouts.choices import STATISTICS
from planner.layouts.flows import output_layout, tensor_flows
from planner.layouts.reshard import PARTIAL
from planner.layouts.sizes import (
    expert_labels,
    flat_labels,
    held_labels,
    item_bytes,
    local_sizes,
    num_elements,
)
from planner.layouts.terms import Axis, CollectiveUse
from planner.layouts.work import (
    Cut,
    backward_work,
    endpoint_bytes,
    forward_work,
    kept_terms,
    local_elements,
    own_copies_bytes,
    read_bytes,
    score_bytes,
    term_bytes,
    total_flops,
)
from planner.mesh import MeshShape
from planner.state_memory import state_bytes
from planner.workload import Workload
from simulator.collectives import collective_time
from simulator.groups import CollectiveKind
from simulator.operators import operator_time
from simulator.work import Work

_MAX_SETTINGS = 256
KEPT_PRODUCTS = 0.5
"""Share of matrix products whose results op-level recomputation keeps: every second one, and all of
attention (torchtitan's selective checkpointing with option ``op``, arXiv:2410.06511, section 2.1.3;
``torch.utils.checkpoint.create_selective_checkpoint_contexts``) [1]."""
_MODEL_BACKWARD = 2.0
"""Backward FLOPs of attention that the model asks for, over forward; what a fused kernel computes
again is no model work [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setting:
    """Everything a price depends on beside the choices, with the prices known so far."""

    graph: ModelGraph
    mesh: MeshShape
    microbatch_size: int
    workload: Workload
    cluster: Cluster
    software: SoftwareProfile
    sizes: dict[str, float]
    prices: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterShare:
    """One parameter of an operator as one rank holds it."""

    tensor: str
    num_parameters: float
    """Elements on one rank [1]."""
    is_partial: bool
    """Its gradient is a partial sum over the tensor axis."""
    is_expert: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorCost:
    """One operator, one choice, one microbatch, one rank."""

    forward_s: float
    backward_s: float
    weight_s: float
    """Part of the backward time that makes gradients of weights [s]."""
    recompute_s: float
    kept_s: float
    """Part of the forward time whose results op-level recomputation keeps [s]."""
    kept_flops: float
    kept_bytes: float
    """Results that it keeps [B]."""
    forward_calls: float
    """Kernels that the host launches [1]."""
    backward_calls: float
    weight_calls: float
    """Those of the backward pass that make gradients of weights [1]."""
    forward_flops: float
    backward_flops: float
    recompute_flops: float
    saved_bytes: float
    """Kept for backward, without scores and without what depends on the tensor's state [B]."""
    partial_saved_bytes: float
    """Kept of an output that is a partial sum: divided once its state is a shard [B]."""
    score_bytes: float
    workspace_bytes: float
    """Copies of its own that the operator makes while it runs [B]."""
    read_bytes: tuple[tuple[str, float], ...]
    """Activations it reads, as it reads them [B]."""
    written_bytes: float
    """Activations it writes [B]."""
    weight_gradient_bytes: float
    """A weight's gradient before it is added to its place [B]."""
    parameters: tuple[ParameterShare, ...]
    uses: tuple[CollectiveUse, ...]
    """Collectives of the operator itself: row statistics, keys and values over context ranks."""

    @property
    def num_parameters(self) -> float:
        """Elements of its parameters on one rank [1]."""
        return sum(share.num_parameters for share in self.parameters)


_SETTINGS: OrderedDict[tuple[Any, ...], Setting] = OrderedDict()
_PRICES: OrderedDict[tuple[Any, ...], tuple[ModelGraph, Cluster, SoftwareProfile, dict[Any, Any]]]
_PRICES = OrderedDict()
"""Prices that settings share which differ in replicas only; with what their ids stand for."""


def setting_of(
    graph: ModelGraph,
    *,
    mesh: MeshShape,
    microbatch_size: int,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> Setting:
    """Return the setting of these circumstances, the same object for the same circumstances.

    Graph, cluster and software count as the same when they are the same objects.
    """
    key = (id(graph), id(cluster), id(software), mesh, microbatch_size, workload)
    found = _SETTINGS.get(key)
    if found is None:
        found = Setting(
            graph=graph, mesh=mesh, microbatch_size=microbatch_size, workload=workload,
            cluster=cluster, software=software,
            sizes=local_sizes(
                graph, microbatch_size=microbatch_size, context_parallel_size=mesh.cp
            ),
            prices=_shared_prices(
                (*key[:3], replace(mesh, dp=1), *key[4:]), graph, cluster, software
            ),
        )  # fmt: skip
        _SETTINGS[key] = found
        if len(_SETTINGS) > _MAX_SETTINGS:
            _SETTINGS.popitem(last=False)
    return found


def _shared_prices(
    key: tuple[Any, ...], graph: ModelGraph, cluster: Cluster, software: SoftwareProfile
) -> dict[Any, Any]:
    """Return one table for all settings with this key: nothing in it depends on replicas."""
    if key not in _PRICES:
        _PRICES[key] = (graph, cluster, software, {})
        if len(_PRICES) > _MAX_SETTINGS:
            _PRICES.popitem(last=False)
    return _PRICES[key][-1]


def cut_of(setting: Setting, choice: str | None) -> Cut:
    """Return the cut of an operator that makes this choice."""
    return Cut(
        graph=setting.graph, sizes=setting.sizes, choice=choice, size=setting.mesh.tp,
        expert_size=setting.mesh.ep, workload=setting.workload, software=setting.software,
    )  # fmt: skip


def collective_seconds(
    setting: Setting, kind: CollectiveKind, num_bytes: float, *axes: Axis
) -> float:
    """Return the exposed time of a collective over some axes [s]."""
    group = setting.mesh.group(*axes)
    key = ("collective", kind, num_bytes, group, axes == ("tp",))
    seconds: float | None = setting.prices.get(key)
    if seconds is None:
        seconds = collective_time(kind, num_bytes, group=group, cluster=setting.cluster)
        if axes == ("tp",):
            seconds += framework_delay(group, software=setting.software)
            seconds *= 1 - setting.software.overlap_tensor_parallel
        setting.prices[key] = seconds
    return seconds


def whole_bytes(setting: Setting, tensor: str, labels: tuple[str, ...]) -> float:
    """Return the bytes of (a slice of) a tensor as one tensor group sees it whole [B]."""
    item = item_bytes(setting.graph.tensors[tensor].dtype, setting.workload)
    return num_elements(labels, setting.sizes) * item


def bytes_per_parameter(setting: Setting) -> float:
    """Return weight, gradient, optimizer state and master copy of one parameter [B]."""
    return state_bytes(setting.workload, software=setting.software).total


def gradient_item_bytes(setting: Setting) -> float:
    """Return the bytes of one element of an accumulated gradient [B]."""
    return state_bytes(setting.workload, software=setting.software).gradients


def operator_cost(setting: Setting, name: str, choice: str | None) -> OperatorCost:
    """Return the price of one operator under one choice.

    Parameters
    ----------
    setting : Setting
        Circumstances.
    name : str
        Operator.
    choice : str or None
        Label it splits over the tensor axis.

    Returns
    -------
    OperatorCost
        Times [s], FLOPs [FLOP] and bytes [B] of one microbatch on one rank.
    """
    key = ("operator", name, choice)
    cost: OperatorCost | None = setting.prices.get(key)
    if cost is None:
        cost = setting.prices[key] = _price(setting, name, choice)
    return cost


def _price(setting: Setting, name: str, choice: str | None) -> OperatorCost:
    operator = setting.graph.operator(name)
    cut = cut_of(setting, choice)
    is_training = setting.workload.is_training
    device, software = setting.cluster.device, setting.software
    forward = forward_work(operator, cut)
    backward = backward_work(operator, cut) if is_training else ()
    forward_s = sum(operator_time(work, device=device, software=software) for work in forward)
    backward_s = sum(operator_time(work, device=device, software=software) for work in backward)
    weight = [work for work in backward if _is_for_weights(operator, work)]
    forward_flops = total_flops(operator, operator.flops_forward, cut)
    backward_flops = total_flops(operator, operator.flops_backward, cut) if is_training else 0.0
    if operator.kind == "attention":
        backward_flops = min(backward_flops, _MODEL_BACKWARD * forward_flops)
    saved_bytes, partial_bytes = _saved(setting, name, choice) if is_training else (0.0, 0.0)
    parameters = _parameters(setting, name, choice)
    kept = _kept_share(operator) if is_training else 0.0
    is_core = is_training and operator.kind == "attention"
    return OperatorCost(
        forward_s=forward_s,
        backward_s=backward_s,
        weight_s=sum(operator_time(work, device=device, software=software) for work in weight),
        recompute_s=forward_s if is_core else 0.0,
        kept_s=kept * forward_s,
        kept_flops=kept * forward_flops,
        kept_bytes=kept * endpoint_bytes(operator, cut)[1] if kept else 0.0,
        forward_calls=sum(work.num_kernels for work in forward),
        backward_calls=sum(work.num_kernels for work in backward),
        weight_calls=sum(work.num_kernels for work in weight),
        forward_flops=forward_flops,
        backward_flops=backward_flops,
        recompute_flops=forward_flops if is_core else 0.0,
        saved_bytes=saved_bytes,
        partial_saved_bytes=partial_bytes,
        score_bytes=score_bytes(operator, cut) if is_training else 0.0,
        workspace_bytes=own_copies_bytes(operator, cut),
        read_bytes=read_bytes(operator, cut),
        written_bytes=endpoint_bytes(operator, cut)[1],
        weight_gradient_bytes=(
            sum(share.num_parameters for share in parameters) * setting.workload.compute_bytes
            if is_training and _copies_gradients(software)
            else 0.0
        ),
        parameters=parameters,
        uses=(*_statistics(setting, name, choice), *_key_exchange(setting, name, choice)),
    )


def _is_for_weights(operator: Operator, work: Work) -> bool:
    """Whether a kernel of the backward pass makes the gradient of a weight: what can wait.

    Norms make both gradients in one kernel, which the input's gradient needs.
    """
    return bool(operator.parameters) and (work.weight_gradient or operator.kind == "embedding")


def _kept_share(operator: Operator) -> float:
    """Return the share of an operator's results that op-level recomputation keeps [1]."""
    if operator.kind == "attention":
        return 1.0
    return KEPT_PRODUCTS if operator.kind in ("matmul", "convolution") else 0.0


def _copies_gradients(software: SoftwareProfile) -> bool:
    """Whether products write a weight's gradient beside its place, instead of adding to it."""
    return software.frees_gradients or software.gradient_accumulation_bytes > 0


def _saved(setting: Setting, name: str, choice: str | None) -> tuple[float, float]:
    """Return saved bytes, apart from and of outputs that are partial sums."""
    operator = setting.graph.operator(name)
    cut = cut_of(setting, choice)
    partial = {
        frozenset(flat_labels(setting.graph.tensors[tensor].dims))
        for tensor in operator.outputs
        if output_layout(setting.graph, operator, tensor, choice) == PARTIAL
        and tensor in tensor_flows(setting.graph)
    }
    saved = {False: 0.0, True: 0.0}
    for term in kept_terms(operator, cut):
        saved[frozenset(term.labels) in partial] += term_bytes(operator, term, cut)
    return saved[False], saved[True]


def _parameters(setting: Setting, name: str, choice: str | None) -> tuple[ParameterShare, ...]:
    operator = setting.graph.operator(name)
    cut = cut_of(setting, choice)
    experts = set(expert_labels(operator))
    shares = []
    for operand in operator.parameters:
        labels = held_labels(setting.graph, operand)
        shares.append(
            ParameterShare(
                tensor=operand.tensor,
                num_parameters=local_elements(operator, labels, cut, is_parameter=True),
                is_partial=choice is not None and choice not in labels,
                is_expert=bool(experts & set(labels)),
            )
        )
    return tuple(shares)


def _statistics(setting: Setting, name: str, choice: str | None) -> tuple[CollectiveUse, ...]:
    """Return the row statistics that ranks exchange when the split index is coupled."""
    operator = setting.graph.operator(name)
    split = next((index for index in operator.indices if index.label == choice), None)
    if split is None or choice is None or operator.kind not in STATISTICS:
        return ()
    if split.kind not in ("coupled", "lookup"):
        return ()
    forward, backward = STATISTICS[operator.kind]
    labels = next(
        flat_labels(operand.dims)
        for operand in operator.inputs
        if choice in flat_labels(operand.dims)
    )
    row_bytes = 4 * num_elements((label for label in labels if label != choice), setting.sizes)
    counts = {"forward": forward, "backward": backward if setting.workload.is_training else 0.0}
    return tuple(
        CollectiveUse(
            kind="all_reduce", axis="tp", phase=phase, message_bytes=row_bytes, count=counts[phase]
        )
        for phase in ("forward", "backward")
        if counts[phase]
    )


def _key_exchange(setting: Setting, name: str, choice: str | None) -> tuple[CollectiveUse, ...]:
    """Return what moves keys and values between ranks that hold different positions.

    A ring of sends moves as much as an all-gather (Liu et al. 2023, arXiv:2310.01889, section 3);
    backward they go round again with their gradients, which amounts to a reduce-scatter.
    """
    graph = setting.graph
    if setting.mesh.cp == 1:
        return ()
    operator = graph.operator(name)
    cut = cut_of(setting, choice)
    gathered = 0.0
    for operand in operator.inputs:
        tensor = graph.tensors[operand.tensor]
        is_key = any(old in graph.sequence_labels for old, _ in operand.relabel)
        if is_key and tensor.kind == "activation" and tensor.requires_grad:
            labels = flat_labels(operand.dims)
            item = item_bytes(tensor.dtype, setting.workload)
            gathered += local_elements(operator, labels, cut) * item
    if gathered == 0:
        return ()
    uses = [CollectiveUse(kind="all_gather", axis="cp", phase="forward", message_bytes=gathered)]
    if setting.workload.is_training:
        uses += [
            CollectiveUse(kind=kind, axis="cp", phase="backward", message_bytes=gathered)
            for kind in ("all_gather", "reduce_scatter")
        ]
    return tuple(uses)

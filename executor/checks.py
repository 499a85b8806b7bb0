"""Whether a plan can run here, told before anything starts."""

import os
from collections.abc import Collection

from executor.errors import RunError
from executor.shape import RunShape
from planner.models.source import ModelSource
from planner.plan import Plan
from planner.strategy import Strategy, parse_strategy
from simulator.zero_bubble import splits_backward


def check_plan_runs_here(plan: Plan, *, sharded_axes: tuple[str, ...]) -> None:
    """Refuse what the executor cannot do.

    Parameters
    ----------
    plan : Plan
        The plan.
    sharded_axes : tuple of str
        Axes that keep a size above 1 in this run.

    Raises
    ------
    RunError
        With the reason and the way out.
    """
    strategy = parse_strategy(plan.strategy)
    _check_experts(plan, strategy)
    is_split = splits_backward(strategy.schedule) and "pp" in sharded_axes
    if is_split and strategy.sharding == "parameters" and {"dp", "cp"} & set(sharded_axes):
        raise RunError(
            f"strategy {plan.strategy}: schedule={strategy.schedule} runs gradients of weights "
            "after FSDP has freed the weights of sharding=parameters; plan with sharding=optimizer"
        )
    if "tp" not in sharded_axes:
        return
    if not plan.layouts:
        raise RunError(
            f"strategy {plan.strategy}: tp={strategy.tensor_parallel_size} but the plan has no "
            "layouts; make the plan anew with 'paraplan plan'"
        )
    layout = plan.layouts[0]
    if len(plan.layouts) > 1 or layout.axis != "tp":
        axes = ", ".join(each.axis for each in plan.layouts)
        raise RunError(f"layouts on axes {axes}; the executor runs one layout, on axis tp")
    if not layout.executable:
        raise RunError(
            f"strategy {plan.strategy}: its layout cannot be run, only simulated: "
            f"{layout.not_executable_because}"
        )
    if strategy.sharding != "none" and layout.model_input == "S0":
        raise RunError(
            f"strategy {plan.strategy}: sharding={strategy.sharding} beside a layout that splits "
            "samples over tp cannot be run; plan with sharding=none"
        )


def _check_experts(plan: Plan, strategy: Strategy) -> None:
    ep = strategy.expert_parallel_size
    beside = [("tp", strategy.tensor_parallel_size), ("replicas", strategy.sharding_replicas)]
    for key, size in beside if ep > 1 else []:
        if size > 1:
            raise RunError(
                f"strategy {plan.strategy}: ep={ep} beside {key}={size} cannot be run, only "
                f"simulated; plan with ep=1 or {key}=1 to run it"
            )


def check_model_splits(source: ModelSource, shape: RunShape) -> None:
    """Refuse to cut samples or spread experts of a model that does not allow it.

    Parameters
    ----------
    source : ModelSource
        The model; it is built without data.
    shape : RunShape
        Of the run.

    Raises
    ------
    RunError
        With the reason and the way out.
    """
    if shape.size("cp") == 1 and shape.expert_size == 1:
        return
    import torch

    from executor.context_parallel import check_splits_positions
    from executor.expert_parallel import check_experts

    with torch.device("meta"):
        model = source.build()
    if shape.expert_size > 1:
        check_experts(model.named_modules(), size=shape.expert_size)
    if shape.size("cp") > 1:
        check_splits_positions(
            model, name=source.source, size=shape.size("cp"), length=shape.sequence_length
        )


def check_hardware(plan: Plan) -> None:
    """Refuse to run a plan at its own size on ranks that lack the plan's kind of device.

    For ranks that others started (torchrun); a run on this machine alone may prove a plan for GPUs
    on the CPU.

    Raises
    ------
    RunError
        With what the plan wants and what is there.
    """
    kind, ranks = plan.cluster.device_kind, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    where = f"plan for {plan.cluster.name} ({plan.cluster.device})"
    way_out = "run it where they are, or give --processes to prove the split on the CPU"
    if kind not in ("cpu", "gpu"):
        raise RunError(f"{where}: no backend for a {kind}, expected cpu or gpu; {way_out}")
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "gpu" and found < ranks:
        raise RunError(f"{where}: {found} CUDA devices for {ranks} ranks of this host; {way_out}")


def check_same_model(plan: Plan, *, parameters: Collection[str], modules: Collection[str]) -> None:
    """Refuse a plan whose names the model does not have: the model was changed after planning.

    Parameters
    ----------
    plan : Plan
        The plan, for the model at its own size.
    parameters, modules : collection of str
        Names in the model that was built.

    Raises
    ------
    RunError
        With the first name that is missing.
    """
    wanted = [name for layout in plan.layouts for name in layout.parameters]
    missing = next((name for name in wanted if name not in parameters), None)
    if missing is None:
        paths = [path for stage in plan.stages for path in stage.module_paths]
        missing = next((path for path in paths if path not in modules), None)
    if missing is not None:
        raise RunError(
            f"{plan.model.source}: the plan places {missing!r}, which the model does not have; "
            "the model changed since: make the plan anew with 'paraplan plan'"
        )

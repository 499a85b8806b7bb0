"""Whether a plan can run here, told before anything starts."""

from executor.errors import RunError
from planner.plan import Plan
from planner.strategy import parse_strategy


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
    for axis, size in (("cp", strategy.context_parallel_size),
                       ("ep", strategy.expert_parallel_size)):  # fmt: skip
        if size > 1:
            raise RunError(
                f"strategy {plan.strategy}: {axis}={size} cannot be run, only simulated; "
                f"plan with {axis}=1 to run it"
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

"""The front door: public names, each loaded when first used, and the command line."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Strategy": "planner.strategy",
    "Workload": "planner.workload",
    "Plan": "planner.plan",
    "load_plan": "planner.plan",
    "load_cluster": "hardware_profiles",
    "trace": "paraplan.planning",
    "plan": "paraplan.planning",
    "simulate": "paraplan.planning",
    "run": "paraplan.running",
    "compare": "paraplan.running",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use: importing this package is instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'paraplan' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)

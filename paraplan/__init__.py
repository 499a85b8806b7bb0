"""The front door: public names, each loaded when first used, and the command line."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Options": ("paraplan.planning", "Options"),
    "Plan": ("planner.plan", "Plan"),
    "Strategy": ("planner.strategy", "Strategy"),
    "compare": ("executor.compare", "compare"),
    "load_cluster": ("hardware_profiles", "load_cluster"),
    "load_plan": ("planner.plan", "load_plan"),
    "plan": ("paraplan.planning", "plan"),
    "run": ("executor.run", "run_plan"),
    "simulate": ("paraplan.planning", "simulate"),
    "trace": ("paraplan.planning", "trace"),
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use: importing this package is instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'paraplan' has no attribute '{name}'")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)

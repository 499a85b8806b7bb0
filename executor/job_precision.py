"""Mixed precision of a job: products in bf16, weights, sums and optimizer in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from executor.assemble import Assembly, Modes
from executor.job_settings import JobPrecision


def with_precision(
    assembly: Assembly, *, precision: JobPrecision, device: torch.device
) -> Assembly:
    """Return the assembly whose passes run in a precision.

    bf16 is torch's autocast: weights stay fp32 and are cast where they are used. Casts are not
    cached, which would keep a second copy of all weights.
    """
    if precision == "tf32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if precision != "bf16":
        return assembly
    return replace(assembly, modes=_autocast_modes(assembly.modes, device))


def _autocast_modes(modes: Modes, device: torch.device) -> Modes:
    @contextmanager
    def entered() -> Iterator[None]:
        cast = torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
        with modes(), cast:
            yield

    return entered

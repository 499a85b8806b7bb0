"""Memory that a rank holds: resident set of the process, or the CUDA allocator."""

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_KIB = 1024


def held_bytes(device: torch.device) -> float:
    """Return the memory in use now [B]."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return _status_field("VmRSS:")


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far; on systems without that facility the process's peak remains."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return


def peak_bytes(device: torch.device) -> float:
    """Return the peak since :func:`reset_peak` [B]."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _status_field("VmHWM:")


def _status_field(key: str) -> float:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return _rusage_peak_bytes()
    found = next((line for line in lines if line.startswith(key)), None)
    return float(found.split()[1]) * _KIB if found else _rusage_peak_bytes()


def _rusage_peak_bytes() -> float:
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * _KIB

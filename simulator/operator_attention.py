"""Arithmetic time of fused attention: blocks of queries, masked keys, head width."""

from hardware_profiles.device import AttentionEfficiency, DeviceProfile, FlashVersion
from simulator.work import Work

_BLOCK_ROWS = 128.0
"""Query rows per thread block (Dao 2023, arXiv:2307.08691, section 3.3) [elements]."""
_SMALLEST_ROWS = 16.0
"""Rows of one matrix instruction, the waste of a single-query step [elements]."""
_HALF_KEYS = 64.0
"""Keys that prologue and epilogue of a block are worth [elements]; fitted on the figures of the
flash-attention repository for A100 and H100 (benchmarks/fit_operators.py)."""
_TAIL = 0.6
"""Share of the longest block that is exposed when the queue of blocks runs dry [1]; fitted on the
SimuMax tables for A100 and B200, 4 to 128 heads of 4096 positions (benchmarks/fit_operators.py)."""
_REFERENCE_WIDTH = 128.0
"""Head width at which profiles state their rates [elements]."""
_PRODUCTS = {False: 2, True: 5}
"""Matrix products forward (scores, output) and backward (scores again and four gradients):
Dao 2023, section 3.1 [1]."""


def kernel_of(device: DeviceProfile, version: FlashVersion) -> AttentionEfficiency:
    """Return what a version of the fused kernel reaches on a device."""
    found = device.attention_kernels.get(version)
    if found is not None:
        return found
    return AttentionEfficiency(
        forward=device.attention_forward_efficiency,
        backward=device.attention_backward_efficiency,
        half_width=device.attention_half_width,
    )


def fused_attention_time(
    work: Work, *, device: DeviceProfile, kernel: AttentionEfficiency, peak_flops_per_s: float
) -> float:
    r"""Return the arithmetic time of fused attention.

    Each block of query rows walks over its keys; under a causal mask it walks over half of them on
    average and ends in a block of keys that is half masked. Blocks queue for the compute units,
    the longest first.

    Parameters
    ----------
    work : Work
        ``batch`` sequences times heads, ``m`` queries, ``n`` keys, width ``k``; the FLOPs tell how
        many keys a mask leaves.
    device : DeviceProfile
        The device that runs it.
    kernel : AttentionEfficiency
        What the kernel reaches on it.
    peak_flops_per_s : float
        Dense peak for the precision [FLOP/s].

    Returns
    -------
    float
        Duration without launch and memory traffic [s].

    Notes
    -----
    With :math:`u` units, :math:`b` blocks per unit, :math:`n'` keys per query on average and
    :math:`n` at most, a unit walks over :math:`b (n' + n_{1/2}) + \tau n` keys. An exponential per
    score costs as much as products over :math:`w` elements of the head, so the rate is
    :math:`\propto d / (d + w)` (J. Shah et al. 2024, arXiv:2407.08608, section 3.1).
    """
    share = kernel.backward if work.backward else kernel.forward
    rows = min(max(work.m, _SMALLEST_ROWS), _BLOCK_ROWS)
    per_key = _PRODUCTS[work.backward] * 2 * work.batch * work.m * work.k
    keys = min(work.n, work.num_flops / per_key)
    walked = min(work.n, keys + _BLOCK_ROWS / 2) if keys < work.n else work.n
    blocks = work.batch * max(1.0, work.m / _BLOCK_ROWS)
    units = device.num_compute_units
    steps = blocks / units * (walked + _HALF_KEYS) + _TAIL * work.n
    narrow = (1 + kernel.half_width / work.k) / (1 + kernel.half_width / _REFERENCE_WIDTH)
    work_per_step = per_key / (work.batch * work.m) * rows * units
    return steps * work_per_step * narrow / (peak_flops_per_s * share)

"""Arithmetic time of convolutions: as products, or by algorithms that multiply less."""

from hardware_profiles.device import DeviceProfile
from simulator.operator_products import tiled_product_time
from simulator.work import Work

FAST_AREAS = (9, 25)
"""Square filters, 3x3 and 5x5, for which Winograd or FFT algorithms exist in cuDNN [1]."""
_INPUT_GRADIENT = 0.85
"""Rate of the gradient of the input over that of the forward pass: 0.80 on P100, 0.97 on V100, 0.76
in 16 bits there and 0.86 on T4, medians of DeepBench's convolutions above 50 us [1]."""
_WEIGHT_GRADIENT = 0.60
"""The same of the gradient of the weight, whose inner loop runs over batch and image, in pieces
that are added up: 0.58, 0.53, 0.80 and 0.65 [1]."""
_TRANSFORM_COST = 15.0
"""Arithmetic of the transforms of tiles and filters in products per channel: they are shared by all
filters and all channels (A. Lavin, S. Gray 2015, arXiv:1509.09308, section 5.2). DeepBench: 22 on
P100, 8 on V100 [1]."""


def convolution_time(
    work: Work, *, device: DeviceProfile, rate_flops_per_s: float, stack_share: float = 1.0
) -> float:
    r"""Return the arithmetic time of a convolution or of one of its two gradients.

    Parameters
    ----------
    work : Work
        The equivalent product; ``filter_area`` says what one channel adds to its inner loop.
    device : DeviceProfile
        The device that runs it; ``convolution_share`` and ``convolution_gain`` are its own.
    rate_flops_per_s : float
        Rate of a large plain product [FLOP/s].
    stack_share : float
        How the stack's implicit products compare with the device's measured ones [1].

    Returns
    -------
    float
        Duration without launch and memory traffic [s].

    Notes
    -----
    Single precision takes the faster of the implicit product and
    :math:`F / (r g) \, (1 + c (1/C + 1/K))`, with gain :math:`g` of the fast algorithm, :math:`C`
    channels and :math:`K` filters: 3x3 filters run at 1.1, 1.5 and 2.2 times the direct-count peak
    with 64, 128 and 256 channels (DeepBench, P100 with cuDNN 6, V100 with cuDNN 7.6). Matrix units
    multiply too fast for the transforms to pay.
    """
    gradient = _gradient_share(work)
    rate = rate_flops_per_s * device.convolution_share * gradient * stack_share
    direct_s = tiled_product_time(work, device=device, rate_flops_per_s=rate)
    has_fast = device.convolution_gain > 1.0 and work.filter_area in FAST_AREAS
    if work.precision != "fp32" or not has_fast:
        return direct_s
    channels, filters = _channels(work)
    transforms = 1.0 + _TRANSFORM_COST * (1 / channels + 1 / filters)
    fast_rate = rate_flops_per_s * device.convolution_gain * max(gradient, _INPUT_GRADIENT)
    return min(direct_s, work.num_flops / fast_rate * transforms)


def _gradient_share(work: Work) -> float:
    if not work.backward:
        return 1.0
    return _WEIGHT_GRADIENT if work.weight_gradient else _INPUT_GRADIENT


def _channels(work: Work) -> tuple[float, float]:
    """Return the two widths that a convolution connects [1]."""
    inner = work.m if work.weight_gradient else work.k
    return max(1.0, inner / work.filter_area), max(1.0, work.n)

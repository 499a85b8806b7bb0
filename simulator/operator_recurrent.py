"""Time of a recurrent layer: products over all steps at once, and a chain of dependent steps."""

from dataclasses import replace

from hardware_profiles.device import DeviceProfile
from simulator.operator_products import tiled_product_time
from simulator.work import Work

_ITEM_BYTES = {"fp8": 1, "int8": 1, "fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4, "fp64": 8}


def recurrent_time(work: Work, *, device: DeviceProfile, rate_flops_per_s: float) -> float:
    r"""Return the time of all steps of a recurrent layer beside launch and activations.

    The product with the inputs runs over all steps at once; the product with the state runs once
    per step and reads its weights again. The gradient of the weights is one product over all
    steps.

    Parameters
    ----------
    work : Work
        Product of one step: ``m`` samples, ``n`` gates times hidden, ``k`` hidden; the FLOPs are
        those of all ``sequential_steps``.
    device : DeviceProfile
        The device that runs it; ``recurrent_step_s`` is what a step costs beside its product.
    rate_flops_per_s : float
        Rate of a large product [FLOP/s].

    Returns
    -------
    float
        Duration [s].

    Notes
    -----
    With :math:`T` steps, :math:`t = t_{all} + T (t_0 + \max(t_{step}, W / B))`, weights :math:`W`
    and sustained bandwidth :math:`B` (J. Appleyard, T. Kocisky, P. Blunsom 2016,
    arXiv:1604.01946, section 3: input products are batched over time, the state's are not). Not
    modelled: kernels that keep the weights in registers.
    """
    steps = work.sequential_steps
    if work.weight_gradient:
        together = replace(work, k=work.k * steps)
        return tiled_product_time(together, device=device, rate_flops_per_s=rate_flops_per_s)
    in_steps = min(work.num_flops, 2.0 * steps * work.m * work.n * work.k)
    step = replace(work, num_flops=in_steps / steps)
    step_s = tiled_product_time(step, device=device, rate_flops_per_s=rate_flops_per_s)
    bandwidth = device.memory_bandwidth_bytes_per_s * device.memory_efficiency
    weights_s = work.n * work.k * _ITEM_BYTES[work.precision] / bandwidth
    inputs = replace(work, num_flops=work.num_flops - in_steps, m=work.m * steps)
    inputs_s = tiled_product_time(inputs, device=device, rate_flops_per_s=rate_flops_per_s)
    return inputs_s + steps * (device.recurrent_step_s + max(step_s, weights_s))

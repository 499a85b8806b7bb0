"""Print how far the operator model is from measured kernels, before and after a fit."""

from math import exp
from statistics import median

from kernel_model import JUDGED_FROM_S, log_ratio

SIZES = ((20e-6, "< 20 us"), (50e-6, "20-50 us"), (1e-3, "50 us-1 ms"), (1e9, "> 1 ms"))


def errors(device, rows):
    """Return relative errors, predicted over measured less one [1]."""
    return [exp(log_ratio(device, row)) - 1 for row in rows]


def groups_of(rows):
    """Return rows by family, precision (or direction and version of attention) and source."""
    found = {}
    for row in rows:
        label = row.precision
        if row.family == "attention":
            label = (
                f"flash{row.version} {'+'.join('bwd' if w.backward else 'fwd' for w in row.works)}"
            )
        elif row.family == "convolution":
            label = f"{row.precision} {row.kind.removeprefix('conv_')}"
        elif row.family == "memory":
            label = row.kind
        found.setdefault((row.family, label, row.source), []).append(row)
    return dict(sorted(found.items()))


def summary(found):
    """Return median absolute error, bias, worst and count as text."""
    if not found:
        return f"{'-':>27}"
    worst = max(found, key=abs)
    middle = median(abs(error) for error in found)
    return f"{middle:7.1%}{median(found):+7.1%}{worst:+7.0%}{len(found):6d}"


def print_head():
    """Print what the columns are."""
    print("predicted / measured - 1: median |error|, bias (median), worst, rows; at the clock of")
    print("each measurement (sustained for kernels from 1 ms and for training products)")


def print_residuals(before, after, *, rows):
    """Print one line per kind and size class."""
    shape = after.matmul
    shares = ", ".join(f"{name} {share:.2f}" for name, share in shape.precision_shares.items())
    print(
        f"\n{after.name}: products {shape.sustained_efficiency:.3f} of peak (clock "
        f"{shape.sustained_clock:.2f}; {shares or 'one precision'}), half k {shape.half_k:.0f}, "
        f"operands {shape.operand_cost:.1f}, kernel {shape.kernel_time_s * 1e6:.1f} us, misaligned "
        f"{shape.misaligned_share:.2f}\n  attention {after.attention_forward_efficiency:.3f} "
        f"{after.attention_backward_efficiency:.3f} width {after.attention_half_width:.0f} "
        f"{dict(after.attention_kernels)}\n  convolutions {after.convolution_share:.2f}, fast "
        f"{after.convolution_gain:.2f}; recurrent step {after.recurrent_step_s * 1e6:.1f} us"
    )
    for (family, label, source), group in groups_of(rows).items():
        print(f"  {family} {label} ({source})")
        least_s = 0.0
        for limit_s, name in SIZES:
            own = [row for row in group if least_s <= row.time_s < limit_s]
            least_s = limit_s
            if own:
                was, now = summary(errors(before, own)), summary(errors(after, own))
                print(f"    {name:>11}  before{was}   after{now}")


def residual_note(device, rows):
    """Return the residual of kernels above 50 us as a note."""
    own = [row for row in rows if row.time_s >= JUDGED_FROM_S]
    found = errors(device, own)
    if not found:
        return "no kernel above 50 us"
    middle = median(abs(error) for error in found)
    return f"median |error| {middle:.0%} over {len(own)} kernels above 50 us"

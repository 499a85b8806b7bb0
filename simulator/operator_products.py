"""Arithmetic time of matrix products: tiles, waves, the ramp of the inner loop, alignment."""

from functools import lru_cache
from math import floor

from hardware_profiles.device import DeviceProfile
from simulator.work import Work

_RAMP = 0.25
"""Share of a quantisation step over which its cost rises, so that time is continuous [1]."""
_TILE_PARTS = (1.0, 0.5, 0.25)
"""Edges of the tiles that a library offers, as shares of the device's [1]."""
_SMALLEST_EDGE = 1 / 8
"""Narrowest edge that still saves arithmetic, as a share of the shorter edge of the tile: 16 of
128, one matrix instruction [1]."""
_VECTOR_TILE = 128.0
"""Longest edge of a tile where multiply-adds run on the vector units (CUTLASS, SIMT kernels)."""
ITEM_BYTES = {
    "fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1,
}  # fmt: skip
"""Bytes of an operand per precision [B]."""
_SPLIT_K = 4.0
"""Shortest piece of the inner loop after a split, in units of ``half_k`` [1]."""


def tiled_product_time(work: Work, *, device: DeviceProfile, rate_flops_per_s: float) -> float:
    r"""Return the arithmetic time of a product that is computed tile by tile.

    The output is cut into tiles, which are spread over the compute units in waves; the library is
    taken to choose the best of the tile shapes it has.

    Parameters
    ----------
    work : Work
        The product ``batch x (m x k) @ (k x n)``.
    device : DeviceProfile
        The device that runs it.
    rate_flops_per_s : float
        Rate of a large product [FLOP/s].

    Returns
    -------
    float
        Duration without launch, prologue and memory traffic [s].

    Notes
    -----
    A tile of :math:`a \times b` takes :math:`a b (k + k_{1/2}) / r_{ab}` with
    :math:`r_{ab} \propto 1 / (1 + c (1/a + 1/b))`: small tiles load more operands per product
    (NVIDIA, "Matrix multiplication background user's guide", section 4). Fewer tiles than units
    are split along the inner loop. Ramp and operands are times, those of first loads and of memory
    near the units: at a precision with a lower rate they are fewer multiply-adds. Quantised counts
    rise linearly within a quarter of a step, so that the time is continuous and never falls when a
    size grows.
    """
    shape = device.matmul
    units = device.num_compute_units
    smallest = _SMALLEST_EDGE * min(shape.tile_m, shape.tile_n)
    if work.batch > 1:  # the kernel of a group has one tile shape, whatever fills its last tiles
        smallest = float("inf")
    least = float("inf")
    longest = _VECTOR_TILE if work.precision in ("fp32", "fp64") else float("inf")
    pace = _pace(work, device)
    operand_cost = shape.operand_cost * min(1.0, pace * ITEM_BYTES[work.precision] / 2)
    tiles_on_offer = _tiles(min(shape.tile_m, longest), min(shape.tile_n, longest), operand_cost)
    half_k = pace * shape.half_k
    whole = work.batch * work.m * work.n * work.k
    edges = {edge for edge, _, _ in tiles_on_offer}
    side_m = {edge: _cut(work.m, edge, smallest) for edge in edges}
    side_n = {edge: _cut(work.n, edge, smallest) for edge in edges}
    for edge_m, edge_n, share in tiles_on_offer:
        if whole / share >= least:
            break  # nor would the smaller tiles be faster, even if they divided the product evenly
        rows, num_rows = side_m[edge_m]
        columns, num_columns = side_n[edge_n]
        waves = work.batch * num_rows * num_columns / units
        padded = rows * columns * _steps(waves, work.k, half_k) * units
        least = min(least, padded / share)
    return work.num_flops / rate_flops_per_s * least / whole


def _cut(size: float, edge: float, smallest: float) -> tuple[float, float]:
    """Return the length of a side of a tile that counts, and how many tiles cover the side."""
    return min(max(size, smallest), edge), _soft_ceil(size / edge)


def _pace(work: Work, device: DeviceProfile) -> float:
    """Return the rate at this precision over that in 16 bits, at most 1 [1].

    Other devices than GPUs have one ramp for all precisions.
    """
    if device.kind != "gpu":
        return 1.0
    peaks = device.peak_flops_per_s
    reference = max(peaks.get("fp16", 0.0), peaks.get("bf16", 0.0))
    return min(1.0, peaks.get(work.precision, reference) / reference) if reference else 1.0


@lru_cache(maxsize=256)
def _tiles(
    tile_m: float, tile_n: float, operand_cost: float
) -> tuple[tuple[float, float, float], ...]:
    """Return edges of the tiles on offer and their rates relative to the largest, fastest first."""
    edges = {
        (first * part_m, second * part_n)
        for first, second in ((tile_m, tile_n), (tile_n, tile_m))
        for part_m in _TILE_PARTS
        for part_n in _TILE_PARTS
    }
    largest = 1.0 + operand_cost * (1 / tile_m + 1 / tile_n)
    tiles = [(a, b, largest / (1.0 + operand_cost * (1 / a + 1 / b))) for a, b in edges]
    return tuple(sorted(tiles, key=lambda tile: (-tile[2], tile)))


def _steps(waves: float, length: float, half_length: float) -> float:
    """Return inner-loop iterations of the busiest unit.

    Tiles beyond one wave queue; tiles short of one wave are split along the inner loop, as far as
    the pieces stay long.
    """
    if waves >= 1:
        return _soft_ceil(waves) * (length + half_length)
    splits = min(1 / waves, max(1.0, length / max(1.0, _SPLIT_K * half_length)))
    return length / splits + half_length


def _soft_ceil(x: float) -> float:
    """Return the ceiling of a count, continuous: the step rises over its first quarter."""
    if x <= 1:
        return 1.0
    whole = floor(x)
    return whole + min(1.0, (x - whole) / _RAMP)

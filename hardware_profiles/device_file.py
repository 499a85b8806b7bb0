"""Device profiles: file to value object."""

from pathlib import Path
from typing import get_args

from hardware_profiles.catalog_index import profile_path
from hardware_profiles.device import DeviceKind, DeviceProfile, MatmulEfficiency, Precision
from hardware_profiles.document import (
    Table,
    check_keys,
    choice,
    integer,
    quantity,
    read_document,
    sub_table,
    text,
    whole_quantity,
)
from hardware_profiles.provenance import Provenance
from hardware_profiles.units import Dimension

HEAD_KEYS = ("name", "title", "vendor", "device_kind", "year")
"""Plain entries of a device profile."""
QUANTITIES: dict[str, tuple[str, Dimension, float]] = {
    "vector_flops": ("vector_flops_per_s", "flops_rate", 1e20),
    "memory": ("memory_bytes", "size", 1e16),
    "memory_bandwidth": ("memory_bandwidth_bytes_per_s", "bandwidth", 1e16),
    "launch_latency": ("launch_latency_s", "time", 1.0),
    "memory_efficiency": ("memory_efficiency", "ratio", 1.0),
    "memory_half_size": ("memory_half_bytes", "size", 1e12),
    "attention_forward_efficiency": ("attention_forward_efficiency", "ratio", 1.0),
    "attention_backward_efficiency": ("attention_backward_efficiency", "ratio", 1.0),
    "convolution_gain": ("convolution_gain", "ratio", 10.0),
}
"""Key in the file to field, dimension and largest value in SI."""
MATMUL_COUNTS = ("tile_m", "tile_n")
_TABLES = ("peak_flops", "matmul", "compute_units")


def load_device(name_or_path: str | Path) -> DeviceProfile:
    """Load one device profile and convert it to SI units.

    A bare name is looked up in the catalogue; anything ending in ``.toml`` is read as a file.

    Parameters
    ----------
    name_or_path : str or Path
        Catalogue name such as ``"a100-sxm4-80gb"``, or path of a TOML file.

    Returns
    -------
    DeviceProfile
        Immutable profile in seconds, bytes and FLOP/s.

    Raises
    ------
    ProfileError
        If the name is unknown or the file breaks a rule; the message names file, key, value
        found and what was expected.

    Notes
    -----
    Peak rates are dense. Data sheets often print the structured-sparsity figure, twice as high.

    Examples
    --------
    >>> device = load_device("a100-sxm4-80gb")
    >>> device.memory_bandwidth_bytes_per_s
    2039000000000.0
    >>> device.provenance["memory_bandwidth_bytes_per_s"].kind
    'datasheet'
    """
    document = read_document(profile_path(name_or_path, kind="device"), kind="device")
    return device_from_table(document, head=("schema", "kind", "sources"))


def device_from_table(table: Table, *, head: tuple[str, ...] = ()) -> DeviceProfile:
    """Build a device from its table, the top of a file or one embedded in a cluster file."""
    check_keys(
        table,
        required=(*HEAD_KEYS, *_TABLES, *QUANTITIES),
        optional=(*head, "price"),
    )
    provenance: dict[str, Provenance] = {}
    fields: dict[str, float] = {}
    for key, (name, dimension, maximum) in QUANTITIES.items():
        found = quantity(table, key, dimension=dimension, maximum=maximum)
        fields[name], provenance[name] = found.value, found.provenance
    units, provenance["num_compute_units"] = whole_quantity(table, "compute_units")
    price = None
    if "price" in table.data:
        found = quantity(table, "price", dimension="price", allow_zero=True)
        price, provenance["price_usd_per_hour"] = found.value, found.provenance
    return DeviceProfile(
        name=text(table, "name"),
        title=text(table, "title"),
        vendor=text(table, "vendor"),
        kind=choice(table, "device_kind", allowed=get_args(DeviceKind)),  # type: ignore[arg-type]
        year=integer(table, "year", minimum=1940),
        peak_flops_per_s=_peaks(sub_table(table, "peak_flops"), provenance),
        num_compute_units=units,
        matmul=_matmul(sub_table(table, "matmul"), provenance),
        price_usd_per_hour=price,
        provenance=provenance,
        **fields,
    )


def _peaks(table: Table, provenance: dict[str, Provenance]) -> dict[Precision, float]:
    """Read the peak per precision, in the fixed order of precisions."""
    check_keys(table, required=(), optional=get_args(Precision))
    if not table.data:
        raise table.fail("fp32", "is missing; a device needs at least one precision")
    peaks: dict[Precision, float] = {}
    for precision in get_args(Precision):
        if precision in table.data:
            found = quantity(table, precision, dimension="flops_rate")
            peaks[precision] = found.value
            provenance[f"peak_flops_per_s.{precision}"] = found.provenance
    return peaks


def _matmul(table: Table, provenance: dict[str, Provenance]) -> MatmulEfficiency:
    """Read how much of the peak a matrix product reaches."""
    check_keys(table, required=("sustained_efficiency", "half_k", *MATMUL_COUNTS))
    sustained = quantity(table, "sustained_efficiency", dimension="ratio", maximum=1.0)
    half_k = quantity(table, "half_k", dimension="ratio")
    tile_m, provenance["matmul.tile_m"] = whole_quantity(table, "tile_m")
    tile_n, provenance["matmul.tile_n"] = whole_quantity(table, "tile_n")
    provenance["matmul.sustained_efficiency"] = sustained.provenance
    provenance["matmul.half_k"] = half_k.provenance
    return MatmulEfficiency(
        sustained_efficiency=sustained.value, tile_m=tile_m, tile_n=tile_n, half_k=half_k.value
    )

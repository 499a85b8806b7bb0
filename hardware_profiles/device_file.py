"""Device profiles: file to value object."""

from pathlib import Path
from typing import get_args

from hardware_profiles.catalog_index import profile_path
from hardware_profiles.device import (
    AttentionEfficiency,
    DeviceKind,
    DeviceProfile,
    FlashVersion,
    MatmulEfficiency,
    Precision,
)
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
OPTIONAL_QUANTITIES: dict[str, tuple[str, Dimension, float]] = {
    "convolution_share": ("convolution_share", "ratio", 2.0),
    "convolution_time": ("convolution_time_s", "time", 1.0),
    "recurrent_step": ("recurrent_step_s", "time", 1.0),
    "attention_half_width": ("attention_half_width", "ratio", 1e4),
}
"""The same for quantities that have a neutral default."""
MATMUL_COUNTS = ("tile_m", "tile_n")
MATMUL_OPTIONS: dict[str, tuple[str, Dimension, float]] = {
    "operand_cost": ("operand_cost", "ratio", 1e4),
    "kernel_time": ("kernel_time_s", "time", 1.0),
    "sustained_clock": ("sustained_clock", "ratio", 1.0),
    "misaligned_share": ("misaligned_share", "ratio", 1.0),
}
"""Optional quantities of the product table."""
_TABLES = ("peak_flops", "matmul", "compute_units")
NEUTRAL = Provenance(
    source="not stated in the profile", kind="assumed", note="neutral value of paraplan"
)
"""Where an optional quantity comes from that a profile leaves out."""
_FLASH_VERSIONS: dict[str, FlashVersion] = {"flash1": 1, "flash2": 2, "flash3": 3}


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
        optional=(*head, *OPTIONAL_QUANTITIES, "attention", "price", "element_times"),
    )
    provenance: dict[str, Provenance] = {}
    fields: dict[str, float] = {}
    present = {key: known for key, known in OPTIONAL_QUANTITIES.items() if key in table.data}
    for key, (name, dimension, maximum) in (QUANTITIES | present).items():
        found = quantity(
            table, key, dimension=dimension, maximum=maximum, allow_zero=key in present
        )
        fields[name], provenance[name] = found.value, found.provenance
    provenance |= {
        name: NEUTRAL for key, (name, _, _) in OPTIONAL_QUANTITIES.items() if key not in present
    }
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
        attention_kernels=_attention(table, provenance),
        element_times_s=_element_times(table, provenance),
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
    check_keys(
        table,
        required=("sustained_efficiency", "half_k", *MATMUL_COUNTS),
        optional=(*MATMUL_OPTIONS, "precision_share"),
    )
    sustained = quantity(table, "sustained_efficiency", dimension="ratio", maximum=1.0)
    half_k = quantity(table, "half_k", dimension="ratio")
    tile_m, provenance["matmul.tile_m"] = whole_quantity(table, "tile_m")
    tile_n, provenance["matmul.tile_n"] = whole_quantity(table, "tile_n")
    provenance["matmul.sustained_efficiency"] = sustained.provenance
    provenance["matmul.half_k"] = half_k.provenance
    options: dict[str, float] = {}
    for key, (name, dimension, maximum) in MATMUL_OPTIONS.items():
        if key in table.data:
            found = quantity(table, key, dimension=dimension, maximum=maximum, allow_zero=True)
            options[name], provenance[f"matmul.{name}"] = found.value, found.provenance
        else:
            provenance[f"matmul.{name}"] = NEUTRAL
    for key in ("sustained_clock", "misaligned_share"):
        if options.get(key, 1.0) <= 0:
            raise table.fail(f"{key}.value", f"is {options[key]!r}; expected a number above 0")
    return MatmulEfficiency(
        sustained_efficiency=sustained.value, tile_m=tile_m, tile_n=tile_n, half_k=half_k.value,
        precision_shares=_precision_shares(table, provenance), **options,
    )  # fmt: skip


def _precision_shares(table: Table, provenance: dict[str, Provenance]) -> dict[Precision, float]:
    """Read the factors per precision, in the fixed order of precisions."""
    if "precision_share" not in table.data:
        return {}
    inner = sub_table(table, "precision_share")
    check_keys(inner, required=(), optional=get_args(Precision))
    shares: dict[Precision, float] = {}
    for precision in get_args(Precision):
        if precision in inner.data:
            found = quantity(inner, precision, dimension="ratio", maximum=2.0)
            shares[precision] = found.value
            provenance[f"matmul.precision_shares.{precision}"] = found.provenance
    return shares


def _element_times(table: Table, provenance: dict[str, Provenance]) -> dict[str, float]:
    """Read the times per element of memory-bound kernels, whatever their names."""
    if "element_times" not in table.data:
        return {}
    inner = sub_table(table, "element_times")
    times: dict[str, float] = {}
    for key in sorted(inner.data):
        found = quantity(inner, key, dimension="time", maximum=1e-3)
        times[key] = found.value
        provenance[f"element_times_s.{key}"] = found.provenance
    return times


def _attention(
    table: Table, provenance: dict[str, Provenance]
) -> dict[FlashVersion, AttentionEfficiency]:
    """Read the versions of the fused attention kernel that differ from the second."""
    if "attention" not in table.data:
        return {}
    kernels: dict[FlashVersion, AttentionEfficiency] = {}
    outer = sub_table(table, "attention")
    check_keys(outer, required=(), optional=_FLASH_VERSIONS)
    for name in sorted(outer.data):
        inner = sub_table(outer, name)
        check_keys(inner, required=("forward", "backward", "half_width"))
        found = {
            key: quantity(
                inner, key, dimension="ratio", allow_zero=key == "half_width",
                maximum=1e4 if key == "half_width" else 1.0,
            )
            for key in ("forward", "backward", "half_width")
        }  # fmt: skip
        for key, entry in found.items():
            provenance[f"attention_kernels.{name}.{key}"] = entry.provenance
        kernels[_FLASH_VERSIONS[name]] = AttentionEfficiency(
            **{key: entry.value for key, entry in found.items()}
        )
    return kernels

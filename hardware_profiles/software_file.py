"""Software profiles: file to value object."""

from pathlib import Path
from typing import Any, get_args

from hardware_profiles.catalog_index import profile_path
from hardware_profiles.device import FlashVersion, Precision
from hardware_profiles.document import (
    Table,
    boolean,
    check_keys,
    choice,
    integer,
    quantity,
    read_document,
    sub_table,
    text,
)
from hardware_profiles.errors import ProfileError
from hardware_profiles.pairs import read_pairs
from hardware_profiles.provenance import Provenance
from hardware_profiles.software import (
    AttentionKernel,
    GradientBuckets,
    SoftwareProfile,
    SplitBackward,
)
from hardware_profiles.software_overrides import overridden
from hardware_profiles.units import Dimension

SWITCHES = (
    "fuses_elementwise",
    "fuses_normalization",
    "fuses_attention_softmax",
    "master_weights",
    "scatters_pipeline",
)
OPTIONAL_SWITCHES = (
    "autocasts",
    "fuses_norm_activation",
    "keeps_gathered",
    "keeps_output",
    "frees_gradients",
    "fully_shards",
    "keeps_dummy_gradients",
    "copies_messages",
    "fuses_split_loss",
    "fuses_cross_entropy",
    "pure_low_precision",
)
"""Off where a profile leaves them out."""
QUANTITIES: dict[str, tuple[str, Dimension, float]] = {
    "kernel_overhead": ("kernel_overhead_s", "time", 1.0),
    "host_call": ("host_call_s", "time", 1.0),
    "collective_call": ("collective_call_s", "time", 1.0),
    "optimizer_tensor": ("optimizer_tensor_s", "time", 1.0),
    "sharded_unit": ("sharded_unit_s", "time", 1.0),
    "checkpoint": ("checkpoint_s", "time", 1.0),
    "first_bucket": ("first_bucket_bytes", "size", 1e12),
    "gradient_accumulation": ("gradient_accumulation_bytes", "size", 100.0),
    "sharded_operator_overhead": ("sharded_operator_overhead_s", "time", 1.0),
    "overlap_gradient_sync": ("overlap_gradient_sync", "ratio", 1.0),
    "overlap_parameter_gather": ("overlap_parameter_gather", "ratio", 1.0),
    "overlap_tensor_parallel": ("overlap_tensor_parallel", "ratio", 1.0),
    "overlap_tensor_backward": ("overlap_tensor_backward", "ratio", 1.0),
    "overlap_pipeline": ("overlap_pipeline", "ratio", 1.0),
    "compute_slowdown": ("compute_slowdown", "ratio", 10.0),
    "gradient_bucket": ("gradient_bucket_bytes", "size", 1e12),
    "gradient_bucket_per_rank": ("gradient_bucket_per_rank_bytes", "size", 1e9),
    "product_share": ("product_share", "ratio", 1.2),
    "fixed_memory": ("fixed_memory_bytes", "size", 1e12),
    "optimizer_temporary": ("optimizer_temporary_bytes", "size", 100.0),
    "allocator_overhead": ("allocator_overhead", "ratio", 1.0),
    "straggler_share": ("straggler_share", "ratio", 1.0),
}
"""Key in the file to field, dimension and largest value in SI."""
_OPTIONAL = {
    "product_share",
    "optimizer_tensor",
    "sharded_unit",
    "checkpoint",
    "first_bucket",
    "collective_call",
    "host_call",
    "gradient_accumulation",
    "overlap_tensor_backward",
    "gradient_bucket_per_rank",
    "optimizer_temporary",
}
"""Zero where a profile leaves it out."""
_POSITIVE = {"compute_slowdown", "gradient_bucket"}
_OPTIONAL_CHOICES = {
    "gradient_buckets": get_args(GradientBuckets),
    "split_backward": get_args(SplitBackward),
}
_CHOICES = {"attention": get_args(AttentionKernel), "gradient_precision": ("compute", "fp32")}


def load_software(name_or_path: str | Path) -> SoftwareProfile:
    """Load one software profile and convert it to SI units.

    Parameters
    ----------
    name_or_path : str or Path
        Catalogue name such as ``"megatron-core"``, with changes as in
        ``"megatron-core?flash_version=2&overlap_tensor_parallel=0"``, or path of a TOML file.

    Returns
    -------
    SoftwareProfile
        Immutable profile.

    Raises
    ------
    ProfileError
        If the name is unknown or the file breaks a rule.

    Examples
    --------
    >>> load_software("megatron-2021").attention
    'unfused'
    >>> load_software("no-overlap").overlap_gradient_sync
    0.0
    >>> load_software("no-overlap?overlap_gradient_sync=0.5").overlap_gradient_sync
    0.5
    """
    name, query = name_or_path, ""
    if isinstance(name_or_path, str):
        name, _, query = name_or_path.partition("?")
    document = read_document(profile_path(name, kind="software"), kind="software")
    if not query:
        return _software(document, name=text(document, "name"))
    try:
        overrides = read_pairs(query)
    except ProfileError as error:
        raise ProfileError(f"{name_or_path}: {error}") from None
    dimensions = {key: dimension for key, (_, dimension, _) in QUANTITIES.items()}
    words = (*SWITCHES, *OPTIONAL_SWITCHES, *_CHOICES, *_OPTIONAL_CHOICES, "flash_version")
    document = overridden(document, overrides, quantities=dimensions, words=words)
    return _software(document, name=str(name_or_path))


def _software(document: Table, *, name: str) -> SoftwareProfile:
    """Build a profile from the top table of its file."""
    check_keys(
        document,
        required=(
            *("schema", "kind", "name", "title"),
            *SWITCHES,
            *_CHOICES,
            *(key for key in QUANTITIES if key not in _OPTIONAL),
        ),
        optional=(
            *("sources", "flash_version", "convolution_share"),
            *(*OPTIONAL_SWITCHES, *_OPTIONAL_CHOICES, *_OPTIONAL),
        ),
    )
    given = [key for key in OPTIONAL_SWITCHES if key in document.data]
    fields: dict[str, Any] = {key: boolean(document, key) for key in (*SWITCHES, *given)}
    choices = _CHOICES | {k: v for k, v in _OPTIONAL_CHOICES.items() if k in document.data}
    fields |= {key: choice(document, key, allowed=words) for key, words in choices.items()}
    if "flash_version" in document.data:
        fields["flash_version"] = _flash_version(document)
    provenance: dict[str, Provenance] = {}
    for key, (field, dimension, maximum) in QUANTITIES.items():
        if key in _OPTIONAL and key not in document.data:
            continue
        found = quantity(
            document, key, dimension=dimension, allow_zero=key not in _POSITIVE, maximum=maximum
        )
        fields[field], provenance[field] = found.value, found.provenance
    fields["convolution_shares"] = _convolution_shares(document, provenance)
    slowdown = fields["compute_slowdown"]
    if slowdown < 1.0:
        raise document.fail("compute_slowdown.value", f"is {slowdown!r}; expected at least 1")
    return SoftwareProfile(
        name=name, title=text(document, "title"), provenance=provenance, **fields
    )


def _convolution_shares(
    document: Table, provenance: dict[str, Provenance]
) -> dict[Precision, float]:
    """Read the factors per precision."""
    if "convolution_share" not in document.data:
        return {}
    table = sub_table(document, "convolution_share")
    check_keys(table, required=(), optional=get_args(Precision))
    found = {key: quantity(table, key, dimension="ratio", maximum=2.0) for key in table.data}
    provenance |= {f"convolution_shares.{key}": one.provenance for key, one in found.items()}
    return {key: found[key].value for key in get_args(Precision) if key in found}


def _flash_version(document: Table) -> int:
    """Read the version of the fused attention kernel."""
    version = integer(document, "flash_version")
    if version not in get_args(FlashVersion):
        raise document.fail("flash_version", f"is {version}; expected one of 1, 2, 3")
    return version

"""Which devices resemble each other: generations, by the name of the profile."""

from collections.abc import Mapping

from hardware_profiles.device import DeviceProfile

_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "Kepler": ("k20", "k40", "k80"),
    "Pascal": ("p100", "p40"),
    "Volta": ("v100",),
    "Turing": ("t4",),
    "Ampere": ("a100", "a10", "a10g", "a30", "a40", "rtx-3090"),
    "Ada": ("l4", "l40s", "rtx-4090"),
    "Hopper": ("h100", "h200", "h800", "h20", "gh200"),
    "Blackwell": ("b200", "b300", "gb200", "gb300", "rtx-pro-6000"),
    "CDNA": ("mi100", "mi250x", "mi300x", "mi325x", "mi355x"),
    "Gaudi": ("gaudi2", "gaudi3"),
    "TPU": ("tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7"),
}


def generation_of(device: DeviceProfile) -> str:
    """Return the generation of a device; a device of no known one is called after its kind."""
    for generation, members in _MEMBERS.items():
        if any(device.name == name or device.name.startswith(f"{name}-") for name in members):
            return generation
    return device.kind.upper()

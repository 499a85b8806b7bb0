"""Write what a fit found into a device profile, with source and residual."""

from fit_report import residual_note
from profile_text import SOURCES, ProfileText, entry

FIT_TITLE = "paraplan: python benchmarks/fit_operators.py on {}"


def write_values(path, device, *, rows, notes, of=None):
    """Write all fitted values of a device into its profile, or into one of its generation."""
    text = ProfileText(path)
    writer = Writer(text, device, rows, of)
    if notes.get("products"):
        _products(writer, device, notes)
    if notes.get("attention"):
        _attention(writer, device, notes)
    if writer.rows_of("convolution"):
        writer.put("", "convolution_share", device.convolution_share, "convolution")
        time_us = device.convolution_time_s * 1e6
        writer.put("", "convolution_time", time_us, "convolution", unit="us")
        if any(row.precision == "fp32" for row in writer.rows_of("convolution")):
            writer.put("", "convolution_gain", device.convolution_gain, "convolution")
    if writer.rows_of("recurrent"):
        writer.put("", "recurrent_step", device.recurrent_step_s * 1e6, "recurrent", unit="us")
    text.save()


def _products(writer, device, notes):
    shape = device.matmul
    burst = shape.sustained_efficiency / shape.sustained_clock
    note = f"{burst:.2f} in short measurements x {shape.sustained_clock:.2f} sustained"
    writer.put("matmul", "sustained_efficiency", shape.sustained_efficiency, "product", note=note)
    for key in ("half_k", "operand_cost"):
        writer.put("matmul", key, getattr(shape, key), "product")
    writer.put("matmul", "kernel_time", shape.kernel_time_s * 1e6, "product", unit="us")
    writer.put("matmul", "sustained_clock", shape.sustained_clock, "product",
               note=notes["clock"], kind=notes["clock_kind"])  # fmt: skip
    for key in ("tile_m", "tile_n"):
        note = "largest output tile of the library"
        writer.put("matmul", key, getattr(shape, key), "product", note=note, kind="assumed")
    if notes["misaligned"]:
        writer.put("matmul", "misaligned_share", shape.misaligned_share, "product")
    for precision, share in shape.precision_shares.items():
        writer.put("matmul.precision_share", precision, share, "product")


def _attention(writer, device, notes):
    for key in ("forward_efficiency", "backward_efficiency", "half_width"):
        name = f"attention_{key}"
        is_derived = key == "backward_efficiency" and not notes["backward"].get(2)
        writer.put("", name, getattr(device, name), "attention",
                   kind="derived" if is_derived else None)  # fmt: skip
    for version, kernel in sorted(device.attention_kernels.items()):
        for key in ("forward", "backward", "half_width"):
            is_derived = key == "backward" and not notes["backward"].get(version)
            writer.put(f"attention.flash{version}", key, getattr(kernel, key), "attention",
                       kind="derived" if is_derived else None)  # fmt: skip


class Writer:
    """Puts values with the provenance of their family of kernels."""

    def __init__(self, text, device, rows, of):
        self.text, self.device, self.rows, self.of = text, device, rows, of

    def rows_of(self, family):
        return [row for row in self.rows if row.family == family]

    def put(self, table, key, value, family, *, unit="1", note="", kind=None):
        """Set one quantity."""
        own = self.rows_of(family)
        words = [note] if note else []
        if own and kind is None:
            words.append(residual_note(self.device, own))
        if self.of:
            words.insert(0, f"as {self.of}")
        source = f"fit_{family}"
        self.text.source(source, FIT_TITLE.format(self._sources(own)))
        known = "derived" if self.of and kind != "assumed" else (kind or "measured")
        self.text.set(table, key, entry(value, unit, source, known, "; ".join(words)))

    def _sources(self, rows):
        names = sorted({row.source for row in rows})
        return "; ".join(SOURCES[name] for name in names) or "tables of a like device"

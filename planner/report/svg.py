"""Figures as SVG inside a page: they take the page's colours and width."""

import base64
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG_DPI = 150
_IDS = re.compile(r'(\bid="|href="#|url\(#)')
_FAMILY = re.compile(r"font-family: [^;\"]*")
_SHORT_FONT = re.compile(r"font: (\w+ )?([\d.]+px) [^;\"]*")
_OVERHEAD = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)


def inline_svg(figure: "Figure", *, name: str, label: str) -> str:
    """Return a figure as an ``<svg>`` element for a page.

    Black and the grid's grey become ``currentColor`` and ``var(--rule)``, so that the figure reads
    on light and on dark pages. Element ids start with ``name``. The same figure gives the
    same text.

    Parameters
    ----------
    figure : Figure
        Any figure; its background becomes transparent.
    name : str
        Unique within the page.
    label : str
        What a screen reader says.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = _OVERHEAD.sub("", text)
    opening, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="([^"]*)"', opening)
    box = view_box.group(1) if view_box else "0 0 576 288"
    rest = _IDS.sub(rf"\g<1>{name}-", rest)
    rest = rest.replace("#000000", "currentColor").replace("#dddddd", "var(--rule)")
    rest = _FAMILY.sub("font-family: var(--sans)", rest)
    rest = _SHORT_FONT.sub(r"font: \1\2 var(--sans)", rest)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="{box}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
    )


def inline_png(figure: "Figure", *, label: str) -> str:
    """Return a figure as an ``<img>`` element with its data inside, for figures of many parts."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return f'<img class="raster" alt="{label}" src="data:image/png;base64,{data}">'

"""Where a number comes from."""

from dataclasses import dataclass
from typing import Literal

SourceKind = Literal["datasheet", "measured", "derived", "assumed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Source of one quantity of a profile."""

    source: str
    kind: SourceKind
    note: str = ""

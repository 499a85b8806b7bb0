"""Which known names a misspelt one may mean."""

import difflib
from collections.abc import Iterable

_MOST = 3
_CLOSE = 0.6
"""Share of common letters from which two words are near [1]."""


def nearest_names(word: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that begin with a word, or else are written much like it.

    Examples
    --------
    >>> nearest_names("GPT2", ["gpt2", "gpt2-xl", "vgg16"])
    ['gpt2', 'gpt2-xl']
    >>> nearest_names("vgg-16", ["gpt2", "gpt2-xl", "vgg16"])
    ['vgg16']
    >>> nearest_names("nope", ["compiled"])
    []
    """
    written = {name.lower(): name for name in sorted(known)}
    wanted = word.lower()
    begins = [name for name in written if wanted and name.startswith(wanted)]
    near = begins or difflib.get_close_matches(wanted, written, n=_MOST, cutoff=_CLOSE)
    return [written[name] for name in near[:_MOST]]

"""The cases of the comparison matrix: small models of many kinds, two processes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixCase:
    """One model under one strategy."""

    model: str
    global_batch_size: int
    sequence_length: int | None
    strategy: str


_DATA = (
    "dp=2,microbatch={half}",
    "dp=2,sharding=parameters,microbatch={half}",
    "dp=2,sharding=gradients,microbatch={quarter}",
)
_BLOCKS = (
    *_DATA,
    "tp=2,microbatch={whole}",
    "pp=2,microbatch={quarter},schedule=1f1b",
    "dp=2,microbatch={half},recompute=full",
)
_MODELS: tuple[tuple[str, int, int | None, tuple[str, ...]], ...] = (
    ("gpt2?scale_down=8", 8, 64, _BLOCKS),
    ("gpt2?scale_down=4", 4, 64, _BLOCKS),
    ("llama3-8b?scale_down=32", 4, 64, (*_DATA[:2], *_BLOCKS[3:])),
    ("bert-base?scale_down=8", 8, 64, _BLOCKS),
    ("vit-large?scale_down=8", 8, None, (*_DATA[:2], _BLOCKS[3])),
    ("mlp", 64, None, (*_DATA[:2], *_BLOCKS[3:5])),
    ("resnet50?scale_down=8", 16, None, _DATA),
)
"""Text of the model, samples per step, tokens per sample, strategies."""


def matrix_cases() -> tuple[MatrixCase, ...]:
    """Return every case, model by model.

    None of them takes part in a calibration, which knows kernels and messages alone.

    Examples
    --------
    >>> matrix_cases()[0].strategy
    'dp=2,microbatch=4'
    """
    return tuple(
        MatrixCase(
            model=model, global_batch_size=batch, sequence_length=length,
            strategy=form.format(whole=batch, half=batch // 2, quarter=max(1, batch // 4)),
        )
        for model, batch, length, forms in _MODELS
        for form in forms
    )  # fmt: skip

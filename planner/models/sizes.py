"""Sizes of our own models: torch-free value objects that know how to shrink themselves."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from planner.errors import ModelError

_HEADS = 4
"""Heads, layers and channels of a scaled-down model stay divisible by this, so that it runs
with dp, tp and pp of up to 4."""
_VOCABULARY_MULTIPLE = 64
_HEAD_SIZE_MULTIPLE = 8
_SHORTEST_SEQUENCE = 32
_SEQUENCE_MULTIPLE = 16
_ALEXNET_CONVOLUTIONS = 5


def shrink(count: int, *, divisor: int, multiple: int, at_least: int | None = None) -> int:
    """Divide a count, rounded to a multiple and never below ``at_least`` (one multiple).

    Examples
    --------
    >>> shrink(50257, divisor=8, multiple=64), shrink(12, divisor=8, multiple=4)
    (6272, 4)
    """
    smallest = multiple if at_least is None else at_least
    return max(smallest, round(count / divisor / multiple) * multiple)


def shrink_sequence(length: int, *, divisor: int) -> int:
    """Shorten a sequence with its model; a model without sequence (length 1) keeps 1.

    Examples
    --------
    >>> shrink_sequence(1024, divisor=8), shrink_sequence(1, divisor=8)
    (128, 1)
    """
    if length == 1:
        return 1
    short = shrink(
        length, divisor=divisor, multiple=_SEQUENCE_MULTIPLE, at_least=_SHORTEST_SEQUENCE
    )
    return min(length, short)


def _require_divides(number: int, *, of: int, names: str) -> None:
    if number < 1 or of < 1 or of % number:
        raise ModelError(f"{names} = {number} and {of}: expected the first to divide the second")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSize:
    """Sizes that every transformer here has."""

    num_layers: int
    hidden_size: int
    num_heads: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ModelError(f"num_layers = {self.num_layers}: expected at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ModelError(f"dropout = {self.dropout}: expected a probability below 1")
        _require_divides(self.num_heads, of=self.hidden_size, names="num_heads, hidden_size")

    @property
    def head_size(self) -> int:
        """Width of one attention head [1]."""
        return self.hidden_size // self.num_heads

    def shrunk(self, divisor: int) -> Self:
        """Fewer layers, heads and a narrower width; no dropout, so that runs are comparable."""
        heads = shrink(self.num_heads, divisor=divisor, multiple=_HEADS)
        return replace(
            self,
            num_layers=max(_HEADS, self.num_layers // divisor),
            num_heads=heads,
            hidden_size=shrink(
                self.hidden_size, divisor=divisor, multiple=heads * _HEAD_SIZE_MULTIPLE
            ),
            dropout=0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GptSize(TransformerSize):
    """A GPT-2 style decoder: learned positions, LayerNorm, GELU, biases everywhere."""

    vocab_size: int
    max_positions: int
    ffn_multiple: int = 4
    tied: bool = True
    """Whether the output projection is the token embedding."""

    def shrunk(self, divisor: int) -> Self:
        """See :meth:`TransformerSize.shrunk`; vocabulary and positions shrink as well."""
        return replace(
            TransformerSize.shrunk(self, divisor),
            vocab_size=shrink(self.vocab_size, divisor=divisor, multiple=_VOCABULARY_MULTIPLE),
            max_positions=shrink_sequence(self.max_positions, divisor=divisor),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaSize(TransformerSize):
    """A Llama decoder: grouped queries, RMSNorm, SwiGLU, rotary positions, no biases."""

    num_kv_heads: int
    ffn_size: int
    vocab_size: int
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    tied: bool = False

    def __post_init__(self) -> None:
        TransformerSize.__post_init__(self)
        _require_divides(self.num_kv_heads, of=self.num_heads, names="num_kv_heads, num_heads")

    def shrunk(self, divisor: int) -> Self:
        """See :meth:`TransformerSize.shrunk`; queries per key-value head may grow fewer."""
        heads = shrink(self.num_heads, divisor=divisor, multiple=_HEADS)
        kv_heads = shrink(self.num_kv_heads, divisor=divisor, multiple=_HEADS)
        return replace(
            TransformerSize.shrunk(replace(self, num_kv_heads=1), divisor),
            num_kv_heads=kv_heads if heads % kv_heads == 0 else heads,
            ffn_size=shrink(self.ffn_size, divisor=divisor, multiple=_VOCABULARY_MULTIPLE),
            vocab_size=shrink(self.vocab_size, divisor=divisor, multiple=_VOCABULARY_MULTIPLE),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BertSize(TransformerSize):
    """A BERT encoder with a masked-language head tied to the embedding."""

    vocab_size: int
    max_positions: int = 512
    num_token_types: int = 2
    num_predictions: int = 0
    """Masked positions per sequence that the head sees; 0 for all positions [1]."""
    num_labels: int = 0
    """Classes per position of a linear head in place of the masked-language head, 2 for the ends
    of an answer (SQuAD); 0 for the masked-language head [1]."""

    def shrunk(self, divisor: int) -> Self:
        """See :meth:`TransformerSize.shrunk`; vocabulary and positions shrink as well."""
        return replace(
            TransformerSize.shrunk(self, divisor),
            vocab_size=shrink(self.vocab_size, divisor=divisor, multiple=_VOCABULARY_MULTIPLE),
            max_positions=shrink_sequence(self.max_positions, divisor=divisor),
            num_predictions=-(-self.num_predictions // divisor),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VitSize(TransformerSize):
    """A vision transformer with a class token and learned positions."""

    image_size: int = 224
    patch_size: int = 16
    num_classes: int = 1000

    def __post_init__(self) -> None:
        TransformerSize.__post_init__(self)
        _require_divides(self.patch_size, of=self.image_size, names="patch_size, image_size")

    def shrunk(self, divisor: int) -> Self:
        """See :meth:`TransformerSize.shrunk`; a smaller image and fewer classes as well."""
        return replace(
            TransformerSize.shrunk(self, divisor),
            image_size=4 * self.patch_size,
            num_classes=shrink(self.num_classes, divisor=divisor, multiple=_HEADS),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvolutionSize:
    """A convolutional network of torchvision's structure, all widths divided by one number."""

    image_size: int = 224
    num_classes: int = 1000
    width_divisor: int = 1
    """Channels and fully connected widths are the published ones divided by this [1]."""
    dropout: float = 0.0
    smallest_image: ClassVar[int] = 64
    """Height and width below which nothing is left for the last layers [pixel]."""

    def __post_init__(self) -> None:
        if self.width_divisor < 1 or self.num_classes < 1:
            raise ModelError(
                f"width_divisor = {self.width_divisor}, num_classes = {self.num_classes}: "
                "expected at least 1 of each"
            )
        if self.image_size < self.smallest_image:
            raise ModelError(
                f"image_size = {self.image_size}: expected at least {self.smallest_image}"
            )

    def width(self, published: int) -> int:
        """Return a published width divided by ``width_divisor`` (a multiple of 4 if divided)."""
        if self.width_divisor == 1:
            return published
        return shrink(published, divisor=self.width_divisor, multiple=_HEADS)

    def shrunk(self, divisor: int) -> Self:
        """Narrower layers and a small image; the depth stays, for it names the network."""
        return replace(
            self,
            image_size=self.smallest_image,
            num_classes=shrink(self.num_classes, divisor=divisor, multiple=_HEADS),
            width_divisor=self.width_divisor * divisor,
            dropout=0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResnetSize(ConvolutionSize):
    """A ResNet of bottleneck blocks."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    strides_first: bool = False
    """Whether the first 1x1 convolution of a block strides, as in arXiv:1512.03385 ("v1"), and not
    the 3x3 one ("v1.5")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlexnetSize(ConvolutionSize):
    """Five convolutions and three fully connected layers."""

    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    """Output channels of the convolutions, arXiv:1404.5997."""

    def __post_init__(self) -> None:
        ConvolutionSize.__post_init__(self)
        if len(self.channels) != _ALEXNET_CONVOLUTIONS:
            raise ModelError(
                f"channels = {list(self.channels)}: expected {_ALEXNET_CONVOLUTIONS} numbers"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class InceptionSize(ConvolutionSize):
    """An Inception-v3, whose stem leaves a fourteenth of the image."""

    smallest_image: ClassVar[int] = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class LstmSize:
    """A recurrent language model."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    dropout: float = 0.0
    gated_units: bool = False
    """Whether the cells are gated recurrent units (arXiv:1406.1078), of three gates, not four."""

    def shrunk(self, divisor: int) -> Self:
        """Narrower; four layers at least would change its nature, so the depth stays."""
        return replace(
            self,
            hidden_size=shrink(self.hidden_size, divisor=divisor, multiple=_HEADS),
            vocab_size=shrink(self.vocab_size, divisor=divisor, multiple=_VOCABULARY_MULTIPLE),
            dropout=0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DlrmSize:
    """A recommendation model: embedding tables, two MLPs, pairwise dot products between."""

    table_rows: tuple[int, ...]
    embedding_size: int
    num_dense: int
    bottom_widths: tuple[int, ...]
    """Hidden widths of the dense-feature MLP; its output is ``embedding_size`` wide."""
    top_widths: tuple[int, ...]

    def shrunk(self, divisor: int) -> Self:
        """Narrower MLPs; table rows shrink by the square, for they hold nearly all parameters."""
        return replace(
            self,
            table_rows=tuple(
                shrink(rows, divisor=divisor * divisor, multiple=_HEADS) for rows in self.table_rows
            ),
            embedding_size=shrink(self.embedding_size, divisor=divisor, multiple=_HEADS),
            bottom_widths=_shrink_all(self.bottom_widths, divisor),
            top_widths=_shrink_all(self.top_widths, divisor),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpSize:
    """A plain stack of linear layers with ReLU between."""

    num_inputs: int
    num_layers: int
    hidden_size: int
    num_classes: int

    def shrunk(self, divisor: int) -> Self:
        """Narrower, the depth stays."""
        return replace(
            self,
            num_inputs=shrink(self.num_inputs, divisor=divisor, multiple=_HEADS),
            hidden_size=shrink(self.hidden_size, divisor=divisor, multiple=_HEADS),
            num_classes=shrink(self.num_classes, divisor=divisor, multiple=_HEADS),
        )


def _shrink_all(widths: tuple[int, ...], divisor: int) -> tuple[int, ...]:
    return tuple(shrink(width, divisor=divisor, multiple=_HEADS) for width in widths)


Size = GptSize | LlamaSize | BertSize | VitSize | ConvolutionSize | LstmSize | DlrmSize | MlpSize

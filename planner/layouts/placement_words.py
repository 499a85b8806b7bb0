"""Layouts in the words of the executor: ``R``, ``P``, ``S<dim>``."""

from planner.graph import Dims
from planner.layouts.flows import Reader
from planner.layouts.reshard import Layout, shard, shard_label
from planner.plan import Placement


def placement_of(layout: Layout, dims: Dims) -> Placement | None:
    """Return a layout as ``R``, ``P`` or ``S<dim>`` of a tensor with these dims.

    None where the label is not the leading factor of its dim: a contiguous shard of the dim is
    then no shard of the label.

    Examples
    --------
    >>> placement_of("S:heads", (("b",), ("s",), ("heads", "d")))
    'S2'
    >>> placement_of("S:heads", (("b",), ("s",), ("three", "heads", "d"))) is None
    True
    """
    label = shard_label(layout)
    if label is None:
        return layout
    for place, dim in enumerate(dims):
        if dim and dim[0] == label:
            return f"S{place}"
    return None


def as_read(layout: Layout, reader: Reader) -> Layout:
    """Return a layout in the labels of a reader."""
    label = shard_label(layout)
    return layout if label is None else shard(dict(reader.operand.relabel).get(label, label))

"""Atoms: refine, merge, aliases, and views that cut them."""

import pytest
import torch

from planner.tracing.atoms import Atoms
from planner.tracing.rules_view import cut
from planner.tracing.tracer import Tracer


def test_equal_extents_become_one_atom():
    atoms = Atoms()
    a, b = atoms.fresh(12), atoms.fresh(12)
    assert atoms.join(a, b) == []
    assert atoms.resolve(a) == atoms.resolve(b)


def test_a_head_split_refines_both_sides():
    atoms = Atoms()
    hidden, heads, width = atoms.fresh(12), atoms.fresh(3), atoms.fresh(4)
    assert atoms.join(hidden, (*heads, *width)) == []
    assert atoms.resolve(hidden) == atoms.resolve((*heads, *width))


def test_extents_without_common_factors_conflict():
    atoms = Atoms()
    assert (
        atoms.join((*atoms.fresh(2), *atoms.fresh(15)), (*atoms.fresh(3), *atoms.fresh(10))) is None
    )
    assert atoms.join(atoms.fresh(4), atoms.fresh(5)) is None


def test_atoms_of_one_operator_never_merge():
    atoms = Atoms()
    m, n = atoms.fresh(8), atoms.fresh(8)
    atoms.mark(m, 0)
    atoms.mark(n, 0)
    assert atoms.join(m, n) == [(n, m)]
    assert atoms.resolve(m) != atoms.resolve(n)


def test_parts_of_distinct_atoms_stay_distinct():
    atoms = Atoms()
    m, n = atoms.fresh(8), atoms.fresh(8)
    atoms.mark(m, 0)
    atoms.mark(n, 0)
    atoms.refine(m[0], 4)
    renames = atoms.join(m, n)
    assert len(renames) == 2
    assert not set(atoms.resolve(m)) & set(atoms.resolve(n))


def test_an_alias_is_refined_with_its_partner():
    atoms = Atoms()
    s = atoms.fresh(16)
    key = (atoms.alias(s[0]),)
    atoms.refine(s[0], 4)
    atoms.synchronise([])
    assert [atoms.sizes[a] for a in atoms.resolve(key)] == [4, 4]
    assert not set(atoms.resolve(key)) & set(atoms.resolve(s))


def test_the_sample_index_is_never_cut():
    atoms = Atoms()
    b = atoms.declared(4, hint="b")
    assert not atoms.refine(b[0], 2)
    other = atoms.fresh(4)
    assert atoms.join(other, b) == []
    assert atoms.resolve(other) == b


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((6, 4), (24,)), ((24,), (2, 3, 4)), ((6, 4), (2, 12)), ((5, 1, 6), (5, 6)), ((2, 6), (4, 3))],
)
def test_a_view_keeps_the_order_of_elements(shape, sizes):
    """Walk every element: its position through the atoms of both shapes is the same."""
    tracer = Tracer()
    dims = [tracer.atoms.fresh(size) for size in shape]
    after = cut(tracer, dims, sizes)
    assert tracer.shape(after) == sizes
    before = [atom for dim in dims for atom in tracer.atoms.resolve(dim)]
    assert before == [atom for dim in after for atom in tracer.atoms.resolve(dim)]


def test_a_view_across_factors_is_opaque():
    tracer = Tracer()
    dims = [tracer.atoms.fresh(6), tracer.atoms.fresh(5)]
    after = cut(tracer, dims, (10, 3))
    assert tracer.shape(after) == (10, 3)
    assert not any(tracer.atoms.is_splittable(atom) for dim in after for atom in dim)
    assert not tracer.atoms.is_splittable(tracer.atoms.resolve(dims[0])[0])


def test_unequal_pieces_are_segments_not_factors():
    """A weight of q 384, k 128, v 128 rows: no factor of 640 describes the first piece."""
    from planner.tracing.notes import Value
    from planner.tracing.rules_view import split

    tracer = Tracer()
    whole = torch.empty(640)
    dims = [tracer.atoms.fresh(640)]
    tracer.bind(whole, Value(note=tracer.note(whole, dims), dims=dims))
    pieces = whole.split((384, 128, 128))
    split(tracer, (whole, (384, 128, 128)), {}, pieces)
    atoms = [tracer.value(piece).dims[0][0] for piece in pieces]
    assert len(set(atoms)) == 3
    assert not any(tracer.atoms.is_splittable(atom) for atom in (*atoms, dims[0][0]))

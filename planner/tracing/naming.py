"""Readable, unique, deterministic labels for atoms."""

import re
from collections.abc import Iterable

from planner.graph import Dims
from planner.tracing.atoms import Atoms, Product, Rename
from planner.tracing.notes import KernelNote, Read

FFN_PATH = re.compile(r"mlp|ffn|feed_?forward|intermediate|fc\d|experts?|dense", re.IGNORECASE)
PLAIN = frozenset({"hidden", "vocab"})
ROLE_NAMES: dict[str, dict[str, str]] = {
    "attention": {"query": "query", "head_dim": "head_dim", "value_dim": "head_dim"},
    "embedding": {"vocab": "vocab", "hidden": "hidden", "token": "token"},
    "loss": {"vocab": "vocab"},
    "convolution": {
        "filters": "filters", "filter": "filter", "spatial": "spatial", "channels": "channels",
        "groups": "groups",
    },
    "recurrent": {"hidden": "hidden", "gate": "gate", "k": "in", "time": "time"},
    "pooling": {"spatial": "spatial"},
    "normalization": {"hidden": "hidden"},
    "matmul": {"expert": "experts", "m": "rows"},
    "permutation": {"k": "choices"},
}  # fmt: skip
RANKS = ("attention", "embedding", "loss", "convolution", "recurrent")


class Labels:
    """Final labels of atoms."""

    def __init__(self, atoms: Atoms, kernels: list[KernelNote]) -> None:
        self.atoms = atoms
        self.names = label_atoms(atoms, kernels)

    def product(self, product: Product) -> tuple[str, ...]:
        """Return the labels of a product."""
        return tuple(self.names[atom] for atom in self.atoms.resolve(product))

    def dims(self, dims: Iterable[Product]) -> Dims:
        """Return the labels of tensor dims."""
        return tuple(self.product(dim) for dim in dims)

    def renames(self, renames: Iterable[Rename]) -> tuple[tuple[str, str], ...]:
        """Return (label of the tensor, label of the reader) pairs."""
        found: dict[str, str] = {}
        for source, target in renames:
            found.update(zip(self.product(source), self.product(target), strict=False))
        return tuple(sorted((a, b) for a, b in found.items() if a != b))


def label_atoms(atoms: Atoms, kernels: list[KernelNote]) -> dict[int, str]:
    """Return a unique label per atom in use, from the role in which it is best known."""
    offers: dict[int, tuple[int, int, str]] = {}
    order = 0
    for kernel in kernels:
        for product, rank, name in _names(atoms, kernel):
            for at, atom in enumerate(atoms.resolve(product)):
                order += 1
                plain, _, path = name.partition("@")
                if at and plain == "kv_heads":
                    plain = "head_group"
                offer = (rank, order, f"{plain}@{path}")
                offers[atom] = min(offers.get(atom, offer), offer)
    return _unique(atoms, offers)


def _unique(atoms: Atoms, offers: dict[int, tuple[int, int, str]]) -> dict[int, str]:
    chooser = _Chooser()
    labels: dict[int, str] = {}
    aliases = _partners(atoms)
    for atom in sorted(atoms.protected):
        for part in atoms.resolve((atom,)):
            if part not in labels:
                labels[part] = chooser.choose(atoms.hints[atom])
    for atom, (_, _, name) in sorted(offers.items(), key=lambda item: item[1][1]):
        if atom not in labels and atom not in aliases:
            labels[atom] = chooser.choose(name)
    for alias, base in sorted(aliases.items()):
        if alias not in labels:
            labels[alias] = chooser.choose(f"{labels.get(base, 'index')}_key")
    return labels


class _Chooser:
    """Hands out names once; a second asker gets a number."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def choose(self, name: str) -> str:
        """Return the name, or the nearest free one."""
        plain, mark, path = name.partition("@")
        if mark and not path:
            name = f"{plain}@model"
        if plain in PLAIN and plain not in self.used:
            name = plain
        candidate, number = name, 2
        while candidate in self.used:
            candidate, number = f"{name}#{number}", number + 1
        self.used.add(candidate)
        return candidate


def _partners(atoms: Atoms) -> dict[int, int]:
    """Map each alias atom to the atom it stands beside."""
    return {
        alias: base
        for whole, partner in atoms.alias_pairs()
        for base, alias in zip(whole, partner, strict=False)
        if alias != base
    }


def _names(atoms: Atoms, kernel: KernelNote) -> list[tuple[Product, int, str]]:
    """Return (atoms, rank, name) that one kernel offers; low ranks win."""
    path, names = kernel.module_path, ROLE_NAMES.get(kernel.kind, {})
    rank = RANKS.index(kernel.kind) + 1 if kernel.kind in RANKS else 20
    found: list[tuple[Product, int, str]] = []
    for role in kernel.roles:
        if kernel.target == "aten.topk" and role.role == "k":
            found.append((role.product, 2, f"routes@{path}"))
        elif kernel.kind == "attention" and role.role == "heads":
            many = len(atoms.resolve(role.product)) > 1
            found.append((role.product, rank, f"{'kv_heads' if many else 'heads'}@{path}"))
        elif role.role in names:
            found.append((role.product, rank, f"{names[role.role]}@{path}"))
        elif kernel.kind == "matmul" and role.role == "n":
            found.append((role.product, 10, _output_name(path)))
    for read in kernel.reads:
        found.extend(_hinted(atoms, read, path))
    for tensor in kernel.outputs:
        found.extend((dim, 40, f"index@{path}") for dim in tensor.dims)
    found.extend((role.product, 40, f"{role.role}@{path}") for role in kernel.roles)
    return found


def _output_name(path: str) -> str:
    parent, _, leaf = path.rpartition(".")
    if FFN_PATH.search(path):
        owner = parent if FFN_PATH.search(parent) else path
        return f"ffn@{owner}"
    return f"out@{path if leaf else 'model'}"


def _hinted(atoms: Atoms, read: Read, path: str) -> list[tuple[Product, int, str]]:
    found: list[tuple[Product, int, str]] = []
    for dims in (read.dims, read.note.dims):
        for dim in dims:
            for atom in atoms.resolve(dim):
                hint = atoms.hints[atom]
                if hint and not hint.endswith("_key"):
                    found.append(((atom,), 30, f"{hint}@{path}"))
                else:
                    found.append(((atom,), 50, f"index@{path}"))
    for source, target in read.renames:
        found.extend(((*source, *target), 60, f"index@{path}") for _ in (0,))
    return found

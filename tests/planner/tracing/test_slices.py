"""Numeric check of labels: each recorded operator is rerun on slices of each of its indices.

A free index must give shards of the output, a reduced one partial results that add up (or average)
to it, a looked-up one partial sums of masked lookups. Tiny real models on CPU, no fake tensors.
"""

import itertools

import pytest
import torch

from planner.models.resolve import resolve_model
from planner.tracing.rules_kernel import tensors_in
from planner.tracing.session import run_recorded
from tests.planner.tracing.user_modules import GROUPED, SOURCES

MODELS = {
    "gpt2?scale_down=16&num_layers=1": 150,
    "llama3-8b?scale_down=32&num_layers=1": 380,
    "bert-large?scale_down=16&num_layers=1": 170,
    "t5-large?scale_down=32": 700,
    "vit-large?scale_down=16&num_layers=1": 110,
    "resnet50?scale_down=8": 250,
    "alexnet?scale_down=8": 36,
    "dlrm?scale_down=256": 110,
}
SKIPPED_KINDS = ("coupled", "halo", "sequential", "permuted")


class Checker:
    """Observes a run and reruns every call on halves of every index."""

    def __init__(self):
        self.tracer = None
        self.seen = 0
        self.checked = {}

    def __call__(self, func, args, kwargs, out):
        kernels = self.tracer.kernels[self.seen :]
        self.seen = len(self.tracer.kernels)
        name = getattr(func, "__name__", str(func)).split(".")[0]
        if not kernels or name.endswith("_") or not isinstance(out, torch.Tensor):
            return
        for atom, kind, reduction in list(self.indices(kernels)):
            if kind in SKIPPED_KINDS or self.tracer.atoms.sizes[atom] % 2:
                continue
            if self.is_set_aside(kernels[0], atom):
                continue
            result = self.compare(func, args, kwargs, out, kernels, atom, kind, reduction)
            if result is not None:
                key = (kernels[0].kind, kind)
                self.checked[key] = self.checked.get(key, 0) + 1
                assert result, (func, kernels[0].target, kernels[0].module_path, kind, atom)

    def indices(self, kernels):
        atoms, given = self.tracer.atoms, {}
        for role in kernels[0].roles:
            for atom in atoms.resolve(role.product):
                given.setdefault(atom, (role.kind, role.reduction))
        for dim in kernels[-1].outputs[0].dims if not given else ():
            for atom in atoms.resolve(dim):
                given[atom] = ("free", None)
        for atom, (kind, reduction) in given.items():
            if atoms.is_splittable(atom):
                yield atom, kind, reduction

    def is_set_aside(self, kernel, atom):
        """Causal attention needs an offset for its queries; groups are an argument too."""
        roles = {a: r.role for r in kernel.roles for a in self.tracer.atoms.resolve(r.product)}
        if roles.get(atom) == "groups":
            return True
        return kernel.kind == "attention" and kernel.causal and roles.get(atom) == "query"

    def compare(self, func, args, kwargs, out, kernels, atom, kind, reduction):
        dims_of = {}
        used = []
        for tensor in tensors_in([args, kwargs]):
            value = self.tracer.value(tensor)
            fits = [r for r in self.reads_of(kernels, value) if len(r.dims) == tensor.dim()]
            position = sum(other is value.note for other in used)
            if fits:
                dims_of[id(tensor)] = fits[min(position, len(fits) - 1)].dims
            elif value.weak and tensor.numel() > 1:
                return None
            used.append(value.note)
        dims = kernels[-1].outputs[0].dims
        parts = []
        for half in range(2):
            arguments = self.shard(args, dims_of, atom, half)
            keywords = self.shard(kwargs, dims_of, atom, half)
            if kind == "lookup":
                arguments = self.look_up(arguments, half)
            if kind == "reduced" and half and len(kernels) > 1:
                arguments = without_bias(func, arguments)
            with torch.no_grad():
                part = func(*arguments, **keywords)
            if kind == "lookup":
                part = part * self.mask.unsqueeze(-1)
            parts.append(part)
        if kind == "free":
            return all(
                same(part, self.slice(out, dims, atom, half)) for half, part in enumerate(parts)
            )
        whole = parts[0] + parts[1]
        return same(whole / 2 if reduction == "mean" else whole, out)

    def reads_of(self, kernels, value):
        return [read for kernel in kernels for read in kernel.reads if read.note is value.note]

    def shard(self, item, dims_of, atom, half):
        if isinstance(item, torch.Tensor):
            dims = dims_of.get(id(item))
            return item if dims is None else self.slice(item, dims, atom, half)
        if isinstance(item, (list, tuple)):
            return type(item)(self.shard(one, dims_of, atom, half) for one in item)
        if isinstance(item, dict):
            return {key: self.shard(one, dims_of, atom, half) for key, one in item.items()}
        return item

    def slice(self, tensor, dims, atom, half):
        atoms = self.tracer.atoms
        for at, dim in enumerate(dims):
            product = atoms.resolve(dim)
            if atom not in product:
                continue
            place = product.index(atom)
            sizes = [atoms.sizes[one] for one in product]
            folded = tensor.unflatten(at, sizes)
            piece = folded.chunk(2, dim=at + place)[half]
            tensor = piece.flatten(at, at + len(sizes) - 1)
        return tensor.detach()

    def look_up(self, arguments, half):
        table, index = arguments[:2]
        rows = table.shape[0]
        shifted = index - half * rows
        self.mask = (shifted >= 0) & (shifted < rows)
        return (table, shifted.clamp(0, rows - 1), *arguments[2:])


def without_bias(func, arguments):
    if getattr(func, "__name__", "") == "linear":
        return (*arguments[:2], None)
    if "addmm" in str(func):
        return (torch.zeros_like(arguments[0]), *arguments[1:])
    return (*arguments[:2], None, *arguments[3:])


def same(a, b):
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)


def run_checked(model, monkeypatch):
    source = resolve_model(model) if isinstance(model, str) else model
    torch.manual_seed(0)
    module = source.build().eval()
    batch = source.make_batch(2, source.default_sequence_length, 0)
    checker = Checker()
    from planner.tracing import session

    class Watched(session.Tracer):
        def __init__(self):
            super().__init__()
            checker.tracer = self

    monkeypatch.setattr(session, "Tracer", Watched)
    run_recorded(
        module, batch, source, source.default_sequence_length, fold=False, observer=checker
    )
    return checker.checked


@pytest.mark.parametrize("text", MODELS)
def test_every_operator_agrees_with_its_slices(text, monkeypatch):
    checked = run_checked(text, monkeypatch)
    assert sum(checked.values()) >= MODELS[text], checked


@pytest.mark.parametrize("name", [*SOURCES, "grouped"])
def test_operators_of_user_modules_agree_with_their_slices(name, monkeypatch):
    checked = run_checked(SOURCES.get(name, GROUPED), monkeypatch)
    assert sum(checked.values()) >= 10, checked


def test_all_kinds_are_covered(monkeypatch):
    kinds = set(
        itertools.chain.from_iterable(
            run_checked(text, monkeypatch)
            for text in ("gpt2?scale_down=16&num_layers=1", "alexnet?scale_down=8")
        )
    )
    assert kinds >= {
        ("matmul", "free"), ("matmul", "reduced"), ("convolution", "free"),
        ("convolution", "reduced"), ("attention", "free"), ("normalization", "free"),
        ("elementwise", "free"), ("embedding", "free"), ("embedding", "lookup"),
        ("pooling", "free"), ("loss", "reduced"),
    }  # fmt: skip


def test_a_wrong_label_is_noticed(monkeypatch):
    """The check can fail: exchange the roles of a product's output and sum."""
    from planner.tracing import rules_product

    product = rules_product.product

    def confused(draft, out, **keywords):
        note = product(draft, out, **keywords)
        for role in draft.kernel.roles:
            if role.role == "m":
                role.kind, role.reduction = "reduced", "sum"
        return note

    monkeypatch.setattr(rules_product, "product", confused)
    with pytest.raises((AssertionError, RuntimeError)):
        run_checked("gpt2?scale_down=16&num_layers=1", monkeypatch)

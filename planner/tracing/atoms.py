"""Atoms: the indices of iteration spaces while a trace is being read.

A tensor dimension is a product of atoms. Views *refine* an atom into a (high, low) pair, operators
*merge* atoms of their operands. Two atoms that once stood in one operator in different roles (``m``
and ``n`` of a square product, queries and keys) are never merged: the reader renames instead.
"""

Product = tuple[int, ...]
"""Atoms of one tensor dimension, major first; the empty product has size 1."""
Rename = tuple[Product, Product]


class Atoms:
    """A table of atoms with sizes, refinements, merges and the operators they appear in."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.hints: list[str] = []
        self._splittable: list[bool] = []
        self._definition: dict[int, Product] = {}
        self._appears: list[set[int]] = []
        self._aliases: dict[int, int] = {}
        self.links: list[Rename] = []
        self.protected: set[int] = set()

    def fresh(self, size: int, *, hint: str = "", splittable: bool = True) -> Product:
        """Return a new one-atom product, or the empty one for size 1."""
        return () if size == 1 else (self._new(size, hint=hint, splittable=splittable),)

    def declared(self, size: int, *, hint: str) -> Product:
        """Return a new protected atom (batch, sequence) even for size 1."""
        atom = self._new(size, hint=hint, splittable=True)
        self.protected.add(atom)
        return (atom,)

    def _new(self, size: int, *, hint: str, splittable: bool) -> int:
        self.sizes.append(size)
        self.hints.append(hint)
        self._splittable.append(splittable)
        self._appears.append(set())
        return len(self.sizes) - 1

    def resolve(self, product: Product) -> Product:
        """Return the product in present atoms, after all refinements and merges."""
        if not any(atom in self._definition for atom in product):
            return product
        parts: list[int] = []
        for atom in product:
            if atom in self._definition:
                definition = self.resolve(self._definition[atom])
                self._definition[atom] = definition
                parts.extend(definition)
            else:
                parts.append(atom)
        return tuple(parts)

    def total(self, product: Product) -> int:
        """Return the number of values of a product."""
        size = 1
        for atom in product:
            size *= self.sizes[atom]
        return size

    def is_splittable(self, atom: int) -> bool:
        """Tell whether an atom may be offered for splitting."""
        return self._splittable[atom]

    def forbid_split(self, product: Product) -> None:
        """Mark the atoms of a product as not splittable."""
        for atom in self.resolve(product):
            if atom not in self.protected:
                self._splittable[atom] = False

    def mark(self, product: Product, operator: int) -> None:
        """Note that the atoms of a product appear in an operator, each in its own role."""
        for atom in self.resolve(product):
            self._appears[atom].add(operator)

    def refine(self, atom: int, low: int) -> bool:
        """Split an atom into (size / low, low); False where it may not be split."""
        if atom in self.protected and self.hints[atom] == "b":
            return False
        size, hint = self.sizes[atom], self.hints[atom]
        pair = (
            self._new(size // low, hint=hint, splittable=self._splittable[atom]),
            self._new(low, hint=hint, splittable=self._splittable[atom]),
        )
        for part in pair:
            self._appears[part] = set(self._appears[atom])
        self._definition[atom] = pair
        return True

    def merge(self, kept: int, other: int) -> bool:
        """Make two atoms one; False where an operator tells them apart."""
        if self._appears[kept] & self._appears[other]:
            return False
        if other in self.protected or (kept not in self.protected and other < kept):
            kept, other = other, kept
        if other in self.protected:
            return False
        self._definition[other] = (kept,)
        self._appears[kept] |= self._appears[other]
        self._splittable[kept] = self._splittable[kept] and self._splittable[other]
        if kept not in self.protected and not self.hints[kept]:
            self.hints[kept] = self.hints[other]
        return True

    def join(self, reference: Product, other: Product) -> list[Rename] | None:
        """Make two equal extents one product; return renames of ``other``, None on conflict."""
        renames: list[Rename] = []
        done = 0
        while True:
            left, right = self.resolve(reference), self.resolve(other)
            if self.total(left) != self.total(right):
                return None
            if not renames and left == right:
                return []
            if done >= len(left) or done >= len(right):
                return renames if len(left) == len(right) else None
            kept, met = left[done], right[done]
            if kept == met or self.sizes[kept] == self.sizes[met]:
                if kept != met and not self.merge(kept, met):
                    renames.append(((met,), (kept,)))
                done += 1
            elif not self._align(kept, met):
                return None

    def _align(self, one: int, two: int) -> bool:
        """Refine the larger of two atoms so that its high part has the size of the smaller."""
        large, small = (one, two) if self.sizes[one] > self.sizes[two] else (two, one)
        quotient, rest = divmod(self.sizes[large], self.sizes[small])
        return rest == 0 and self.refine(large, quotient)

    def alias(self, atom: int) -> int:
        """Return the one partner of an atom that stands for it in a second role."""
        if atom not in self._aliases:
            partner = self._new(
                self.sizes[atom],
                hint=f"{self.hints[atom]}_key",
                splittable=self._splittable[atom],
            )
            self._aliases[atom] = partner
            self.links.append(((atom,), (partner,)))
        return self._aliases[atom]

    def alias_pairs(self) -> list[Rename]:
        """Return (atom, partner) products of all aliases, resolved."""
        return [
            (self.resolve((atom,)), self.resolve((partner,)))
            for atom, partner in self._aliases.items()
        ]

    def synchronise(self, renames: list[Rename]) -> None:
        """Refine both sides of every rename alike, until nothing changes."""
        changed = True
        while changed:
            changed = False
            for source, target in [*self.links, *renames]:
                changed = self._match_boundaries(source, target) or changed

    def _match_boundaries(self, source: Product, target: Product) -> bool:
        changed, done = False, 0
        while True:
            left, right = self.resolve(source), self.resolve(target)
            if done >= len(left) or done >= len(right):
                return changed
            if self.sizes[left[done]] != self.sizes[right[done]]:
                if not self._align(left[done], right[done]):
                    return changed
                changed = True
            done += 1

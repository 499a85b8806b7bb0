"""Write fitted values into a profile file, line by line, so that everything else stays."""

import re

RETRIEVED = "2026-11-21"
"""The day the tables were gathered."""
SOURCES = {
    "aiconfigurator": "aiconfigurator tables (Aug 2026), github.com/ai-dynamo/aiconfigurator",
    "Azure/AI-benchmarking-guide": "Azure AI benchmarking guide results (cublasLt after 10,000 "
    "products), github.com/Azure/AI-benchmarking-guide",
    "DeepBench": "DeepBench results, github.com/baidu-research/DeepBench",
    "DeepGEMM": "DeepGEMM README, github.com/deepseek-ai/DeepGEMM",
    "flash-attention": "flash-attention repository figures, github.com/Dao-AILab/flash-attention",
    "LLMCompass": "LLMCompass ae/figure5, github.com/PrincetonUniversity/LLMCompass",
    "SimuMax": "SimuMax system configurations, github.com/MooreThreads/SimuMax",
    "vidur": "Vidur compute profiles, github.com/microsoft/vidur",
}
"""First word of a table's source to what a reader can find."""


def round_to(value, digits=3):
    """Return a value with a few significant digits."""
    return float(f"{value:.{digits}g}")


def entry(value, unit, source, kind, note):
    """Return the inline table of a quantity."""
    text = f'{{ value = {round_to(value):g}, unit = "{unit}", source = "{source}", kind = "{kind}"'
    return f'{text}, note = "{note}" }}' if note else f"{text} }}"


class ProfileText:
    """Lines of a profile; keys are set where they stand or added to their table."""

    def __init__(self, path):
        self.path = path
        self.lines = path.read_text(encoding="utf-8").splitlines()

    def set(self, table, key, value):
        """Set ``key = value`` in a table, the top one for an empty name."""
        begin, end = self._table(table)
        line = f"{key} = {value}"
        for at in range(begin, end):
            if re.match(rf"{re.escape(key)}\s*=", self.lines[at]):
                self.lines[at] = line
                return
        last = max([at for at in range(begin, end) if self.lines[at].strip()], default=begin - 1)
        self.lines.insert(last + 1, line)

    def source(self, name, title):
        """Declare a source unless it is there."""
        if f"[sources.{name}]" in self.lines:
            return
        self.lines += ["", f"[sources.{name}]", f'title = "{title}"']
        self.lines.append(f"retrieved = {RETRIEVED}")

    def drop_unused_sources(self):
        """Remove the sources that no quantity names any more."""
        used = set(re.findall(r'source = "([^"]+)"', "\n".join(self.lines)))
        kept, skips = [], False
        for line in self.lines:
            if line.startswith("["):
                name = line.removeprefix("[sources.").rstrip("]")
                skips = line.startswith("[sources.") and name not in used
            if not skips:
                kept.append(line)
        self.lines = kept

    def save(self):
        self.drop_unused_sources()
        self.path.write_text("\n".join(self.lines).rstrip() + "\n", encoding="utf-8")

    def _table(self, name):
        """Return the range of lines of a table, made before the first source where it is new."""
        heads = [at for at, line in enumerate(self.lines) if line.startswith("[")]
        if not name:
            return 0, heads[0] if heads else len(self.lines)
        if f"[{name}]" not in self.lines:
            first = next(at for at in heads if self.lines[at].startswith("[sources."))
            self.lines[first:first] = [f"[{name}]", ""]
            return self._table(name)
        begin = self.lines.index(f"[{name}]") + 1
        return begin, next((at for at in heads if at >= begin), len(self.lines))

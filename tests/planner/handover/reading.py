"""Reading what was written with each format's own reader, into plain settings."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml


def read_toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def read_json(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(text)
    return settings


def read_yaml(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def read_shell(text: str, folder: Path) -> list[str]:
    """Source the file in a shell and return the words of its array."""
    file = folder / "arguments.sh"
    file.write_text(text, encoding="utf-8")
    script = f'set -eu; source "{file}"; printf "%s\\n" "${{MEGATRON_ARGUMENTS[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def settings_of(words: list[str]) -> dict[str, str]:
    """Return the value of each argument, an empty one for a flag; an argument stands once."""
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            assert word not in found
            found[word] = "" if following.startswith("--") else following
    return found

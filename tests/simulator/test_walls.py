"""Walls inside the room: one file imports SimPy, plots load late, torch never."""

import subprocess
import sys
from pathlib import Path

import simulator.engine

ROOM = Path(simulator.engine.__file__).parent


def test_one_file_imports_simpy():
    users = [path.name for path in ROOM.rglob("*.py") if "simpy import" in path.read_text()]
    assert users == ["engine.py"]


def test_importing_the_room_loads_no_heavy_library():
    modules = (
        "engine collectives operators schedules closed_form analysis exports.gantt exports.frame"
    )
    code = "import sys\n" + "".join(f"import simulator.{name}\n" for name in modules.split())
    code += "print([m for m in ('torch', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOM.parent
    )
    assert loaded.stdout.strip() == "[]"

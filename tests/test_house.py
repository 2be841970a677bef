"""Rules of the whole package: imports go down, files are short, commands start quickly."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import clir_jax

PACKAGE = Path(clir_jax.__file__).parent
# From the ground up; a room imports from itself and from rooms before it.
FLOORS = [
    {"tree", "files"},
    {"mesh", "processes"},
    {"ops"},
    {"models"},
    {"data"},
    {"objectives"},
    {"evaluation"},
    {"config", "config_parts", "config_works", "config_types", "config_files"},
    {"training"},
    {"command"},
    {"align", "export", "generate", "train", "evaluate", "mine", "prepare", "score", "search"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "clir_jax":
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {name[1] for name in names if name[0] == "clir_jax" and len(name) > 1}
    return rooms


def test_imports_go_down():
    files = [f for f in PACKAGE.rglob("*.py") if f.parent != PACKAGE or f.name != "__init__.py"]
    assert len(files) > 40
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {room}"
        for file in files
        for room in _imported_rooms(file)
        if FLOOR[room] > FLOOR[_room(file)]
    ]
    assert wrong == []


def test_files_are_of_a_readable_size():
    sizes = {f.name: len(f.read_text(encoding="utf-8").splitlines()) for f in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 410} == {}


def test_help_needs_no_devices():
    # A platform that does not exist: whoever asks for a device fails.
    environment = {**os.environ, "JAX_PLATFORMS": "none"}
    command = [sys.executable, "-m", "clir_jax.train", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def test_a_command_starts_without_torch_and_ott():
    code = "import sys, clir_jax.train; sys.exit('torch' in sys.modules or 'ott' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

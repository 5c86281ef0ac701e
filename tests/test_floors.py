"""An import goes to a lower floor or stays in its own folder; late and type-only imports count."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "aula"

FLOORS = {
    "core": 0,
    "audio": 1,
    "backends": 1,
    "scheduling": 1,
    "engine": 2,
    "serving": 2,
    "models": 3,
    "runtime": 4,
    "assistant": 5,
    "diagnosis": 5,
    "servers": 6,
    "deploy": 6,
    "bench": 6,
    "cli": 7,
    "__main__": 8,
}
MAY_SEE = {"bench": {"core", "backends", "engine", "models", "scheduling"}}
"""Rooms that may see these alone, whatever their floor. A bench opens the engines that it compares, and so knows their
models; its simulator runs the scheduler under a fake clock. It measures neither the runtime nor the assistant nor a
server from within."""


def _room(module: str) -> str:
    """`aula.models.bert` lives in the room `models`; the package root is the room ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _imports(path: Path, module: str) -> set[str]:
    """Modules of aula that the file names in an import statement, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, node.module or ""]).rstrip(".")
            # `from aula import models` names a room in the imported name
            found |= {f"{base}.{alias.name}" if base == "aula" else base for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return {name for name in found if name == "aula" or name.startswith("aula.")}


def _violations(module: str, imported: set[str]) -> list[str]:
    home = _room(module)
    if home == "":
        return [f"{module} imports {name}: the package root starts nothing" for name in sorted(imported)]
    faults = []
    for name in sorted(imported):
        other = _room(name)
        if other in (home, "", "__version__"):
            continue
        if other not in FLOORS:
            faults.append(f"{module} imports {name}, which stands on no floor of the plan")
        elif FLOORS[other] >= FLOORS[home] or other not in MAY_SEE.get(home, FLOORS):
            faults.append(f"{module} (floor {FLOORS[home]}) imports {name} (floor {FLOORS[other]})")
    return faults


def _modules() -> list[tuple[str, Path]]:
    rows = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["aula", *path.relative_to(SOURCE).with_suffix("").parts]
        rows.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return rows


@pytest.mark.parametrize(("module", "path"), _modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_down_or_stay_at_home(module: str, path: Path) -> None:
    if module != "aula":
        assert _room(module) in FLOORS, f"{module} stands on no floor: give it one in DESIGN and here"
    assert _violations(module, _imports(path, module)) == []


def test_the_check_itself_finds_late_typed_dynamic_and_relative_imports(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import importlib\n"
        "if TYPE_CHECKING:\n    from aula.cli import main\n"
        "def late():\n    from aula import assistant\n"
        "from ..runtime import Runtime\n"
        "importlib.import_module('aula.servers.app')\n"
    )
    imported = _imports(path, "aula.models.example")
    assert imported == {"aula.cli", "aula.assistant", "aula.runtime", "aula.servers.app"}
    assert len(_violations("aula.models.example", imported)) == 4


def test_assistant_and_servers_reach_models_only_through_the_runtime() -> None:
    for module, path in _modules():
        if _room(module) in ("assistant", "servers"):
            rooms = {_room(name) for name in _imports(path, module)}
            assert not rooms & {"models", "backends", "engine"}, f"{module} must ask the runtime"


def test_a_bench_sees_engines_and_never_what_serves_them() -> None:
    seen = {"aula.core.clock", "aula.backends.session", "aula.engine.build", "aula.models.bert"}
    assert _violations("aula.bench.example", seen) == []
    assert len(_violations("aula.bench.example", {"aula.runtime", "aula.assistant.turns", "aula.audio.devices"})) == 3

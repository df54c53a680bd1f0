"""Imports go one way, and only ray_jobs knows Ray.

contracts <- annotate, filters <- datasets <- evaluate, train <- ray_jobs; model knows the cameras alone.
Imports inside functions count too: a layer that is reached late is reached all the same.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = {"annotate.camera", "annotate.reconstruction", "datasets.schema"}
ALLOWED = {
    "model": {"annotate.camera", "model"},
    "annotate": {"annotate", "filters"} | CONTRACTS,
    "filters": {"annotate", "filters"} | CONTRACTS,
    "datasets": {"annotate", "filters", "datasets"},
    "evaluate": {"annotate", "filters", "datasets", "evaluate"},
    "train": {"annotate", "filters", "datasets", "evaluate", "model", "train"},
    "ray_jobs": {"annotate", "filters", "datasets", "evaluate", "model", "train", "ray_jobs"},
}
FILES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Every dotted name that a file imports; `from a.b import c` is a.b.c."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_under(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    layer = module.split(".")[0]
    allowed = CONTRACTS if module in CONTRACTS else ALLOWED[layer]
    for name in _imports(path):
        top, _, ours = name.partition(".")
        assert top != "ray" or layer == "ray_jobs", f"{module} imports {name}"
        assert top not in ALLOWED, f"{module} imports {name}; say worldline.{name}"
        if top == "worldline" and ours.split(".")[0] in ALLOWED:
            assert _is_under(ours, allowed), f"{module} imports {name}"


def test_root_folders_are_links_and_no_packages() -> None:
    """An `__init__.py` in a root folder would shadow other people's `datasets`."""
    for folder in ALLOWED:
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / "worldline" / folder).readlink() == Path("..") / folder

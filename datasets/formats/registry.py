"""The table of file formats: name -> the function that writes or reads it. docs/conventions.md states each
conversion."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from worldline.datasets.posed_clip import PosedClip
from worldline.datasets.schema import MissingBackend

FORMATS: dict[str, str] = {
    "tum": "worldline.datasets.formats.tum:write_tum",
}
"""Exporters, each (clip, out path) -> None."""

READERS: dict[str, str] = {
    "tum": "worldline.datasets.formats.tum:read_tum",
}
"""Importers, each (path) -> PosedClip."""

EXTRAS = {"open3d": "cloud"}
"""A package that a format needs -> the pip extra that brings it."""


def exporter(name: str) -> Callable[[PosedClip, Path], None]:
    """The writer of a format; ValueError for an unknown name, MissingBackend where its package is not
    installed."""
    return _load(name, FORMATS)


def importer(name: str) -> Callable[[Path], PosedClip]:
    """The reader of a format; raises as `exporter`."""
    return _load(name, READERS)


def _load(name: str, table: dict[str, str]) -> Callable:
    if name not in table:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(sorted(table))}")
    module_name, function_name = table[name].split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingBackend(f"format {name}: pip install 'worldline[{EXTRAS[package]}]'") from error
    return getattr(module, function_name)

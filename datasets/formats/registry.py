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
    "ply": "worldline.datasets.formats.ply:write_ply",
    "colmap": "worldline.datasets.formats.colmap:write_colmap",
    "colmap_text": "worldline.datasets.formats.colmap:write_colmap_text",
    "realestate10k": "worldline.datasets.formats.realestate10k:write_realestate10k",
    "nerfstudio": "worldline.datasets.formats.nerfstudio:write_nerfstudio",
    "vipe": "worldline.datasets.formats.vipe:write_vipe",
    "spatialvid": "worldline.datasets.formats.spatialvid:write_spatialvid",
    "sekai": "worldline.datasets.formats.sekai:write_sekai",
    "omniworld": "worldline.datasets.formats.omniworld:write_omniworld",
    "sana_wm": "worldline.datasets.formats.sana_wm:write_sana_wm",
    "sana_wm_bench": "worldline.datasets.formats.sana_wm:write_sana_wm_bench",
    "hugging_face": "worldline.datasets.formats.hugging_face:write_hugging_face",
    "rerun": "worldline.datasets.formats.rerun_recording:write_rerun",
}
"""Exporters, each (clip, out path) -> None."""

READERS: dict[str, str] = {
    "tum": "worldline.datasets.formats.tum:read_tum",
    "colmap": "worldline.datasets.formats.colmap:read_colmap",
    "colmap_text": "worldline.datasets.formats.colmap:read_colmap",
    "realestate10k": "worldline.datasets.formats.realestate10k:read_realestate10k",
    "nerfstudio": "worldline.datasets.formats.nerfstudio:read_nerfstudio",
    "vipe": "worldline.datasets.formats.vipe:read_vipe",
    "spatialvid": "worldline.datasets.formats.spatialvid:read_spatialvid",
    "sekai": "worldline.datasets.formats.sekai:read_sekai",
    "omniworld": "worldline.datasets.formats.omniworld:read_omniworld",
    "sana_wm": "worldline.datasets.formats.sana_wm:read_sana_wm",
    "sana_wm_bench": "worldline.datasets.formats.sana_wm:read_sana_wm_bench",
    "hugging_face": "worldline.datasets.formats.hugging_face:read_hugging_face",
    "rerun": "worldline.datasets.formats.rerun_recording:read_rerun",
}
"""Importers, each (path, *, fps=None, width=None, height=None) -> PosedClip; the keywords supply what a
format lacks."""

EXTRAS = {"open3d": "cloud", "rerun": "rerun"}
"""A package that a format needs -> the pip extra that brings it."""


def exporter(name: str) -> Callable[[PosedClip, Path], None]:
    """The writer of a format; ValueError for an unknown name, MissingBackend where its package is not
    installed."""
    return _load(name, FORMATS)


def importer(name: str) -> Callable[..., PosedClip]:
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

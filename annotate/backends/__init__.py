"""Loads an optional estimator by name: a stage's table of "module:Class" strings in, the class out.

Each stage has `BACKENDS: dict[str, "module:Class"]`; the module is imported on first use only, so that a
heavy package costs nothing until it is asked for. A backend's module imports its package at the top;
`EXTRAS` says how to get it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from worldline.datasets.schema import MissingBackend


def load_backend(name: str, backends: Mapping[str, str], how_to_install: Mapping[str, str]) -> Any:
    """The class behind `name`.

    `how_to_install`: name -> what to type, for backends that need an optional package. Raises ValueError
    for an unknown name, MissingBackend where the package is not installed; a missing module of worldline
    itself is a bug and passes through.
    """
    if name not in backends:
        raise ValueError(f"unknown backend {name!r}: known are {', '.join(sorted(backends))}")
    module, _, attribute = backends[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "worldline":
            raise
        remedy = how_to_install.get(name, "install that package")
        raise MissingBackend(f"backend {name!r} needs the package {error.name!r}: {remedy}") from error

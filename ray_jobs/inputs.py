"""What the user named in, one line per input file out; and what is known of a file before it is decoded.

Inputs are files, folders (searched in depth by extension), globs, text lists and fsspec URIs such as
s3://bucket/key. Nothing is left out in silence: a folder that cannot be listed or a name that no table can
hold is an input too, with the reason why it cannot be used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from worldline.annotate.clip import ClipConfig

EXTENSIONS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".ts", ".webm", ".wmv", ".y4m"}
)
"""What a folder is searched for; a file named by itself is taken whatever its name."""

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    path: str
    """Absolute local path or URI; undecodable bytes shown as escapes where `rejection` is set."""
    rejection: str | None = None
    """Why it cannot be used, where that is known from listing alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What the sidecar or the command line says of a video."""

    source: str | None
    licence: str | None
    geometry: dict[str, Any]
    """Fields of the geometry config set for this video alone."""


def list_inputs(specs: Iterable[str], base_dir: Path | None = None) -> Iterator[Input]:
    """Every input file that the specs name, in a stable order; relative paths start at `base_dir` (here)."""
    for spec in specs:
        if "://" in spec:
            yield from _list_uri(spec)
            continue
        path = os.path.abspath(os.path.join(base_dir or "", os.path.expanduser(spec)))
        if os.path.isdir(path):
            yield from _walk(path)
        elif path.lower().endswith(".txt"):
            yield from _read_list(Path(path))
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(glob.glob(path, recursive=True))
            for match in found:
                yield from _walk(match) if os.path.isdir(match) else [_input(match)]
            if not found:
                yield Input(path, "input: nothing matches this pattern")
        else:
            yield _input(path)


def signature(path: str) -> str:
    """Changes when the file or its sidecar changes; raises OSError where the file cannot be looked at."""
    parts = [_state(path)]
    for candidate in _sidecar_names(path):
        with contextlib.suppress(OSError):
            parts.append(_state(candidate))
    return "+".join(parts)


def content_id(path: str) -> str:
    """SHA-256 of the file's bytes, 32 hex digits; raises OSError where they cannot be read."""
    digest = hashlib.sha256()
    with fsspec.open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()[:32]


def provenance(path: str, source: str | None, licence: str | None) -> Provenance:
    """The command line's words, overruled by the video's sidecar (`name.mp4.json` or `name.json`) where it
    has one.

    Raises ValueError saying what is wrong with the sidecar: a wrong licence or focal length must not pass
    in silence.
    """
    content, name = _sidecar(path)
    for key in ("source", "licence"):
        if not isinstance(content.get(key), str | None):
            raise ValueError(f"{name}: {key} must be text")
    geometry = {key: value for key, value in content.items() if key not in ("source", "licence")}
    try:
        with_overrides(ClipConfig(), geometry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    return Provenance(
        source=content.get("source", source), licence=content.get("licence", licence), geometry=geometry
    )


def with_overrides(config: Any, geometry: dict[str, Any]) -> Any:
    """The config with a sidecar's fields, nested objects for nested configs; ValueError for a wrong one."""
    known = {item.name for item in dataclasses.fields(config)}
    if unknown := sorted(set(geometry) - known):
        raise ValueError(f"unknown keys {unknown}; known: {', '.join(sorted(known))}")
    plain = {}
    for key, value in geometry.items():
        usual = getattr(config, key)
        if dataclasses.is_dataclass(usual):
            if not isinstance(value, dict):
                raise ValueError(f"{key} must be a JSON object")
            value = with_overrides(usual, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif usual is not None and not isinstance(value, _accepted(usual)):
            raise ValueError(f"{key} must be of type {type(usual).__name__}, not {type(value).__name__}")
        plain[key] = value
    return dataclasses.replace(config, **plain)


def _accepted(usual: Any) -> tuple[type, ...]:
    return (float, int) if isinstance(usual, float) else (type(usual),)


def _input(path: str) -> Input:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return Input(shown, "input: the file's name is not valid UTF-8; rename it")
    return Input(path)


def _walk(folder: str) -> Iterator[Input]:
    unreadable: list[OSError] = []
    for root, folders, names in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield _input(os.path.join(root, name))
    for error in unreadable:
        shown = _input(str(error.filename))
        yield Input(shown.path, shown.rejection or f"input: folder cannot be listed ({error.strerror})")


def _read_list(path: Path) -> Iterator[Input]:
    """Entries of a text list: one a line, # comments, relative to the list's folder; lists do not nest."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield Input(
            str(path), f"input: list cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})"
        )
        return
    for line in lines:
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if entry.lower().endswith(".txt"):
            yield Input(os.path.join(path.parent, entry), "input: a list inside a list")
        else:
            yield from list_inputs([entry], path.parent)


def _list_uri(uri: str) -> Iterator[Input]:
    try:
        files, path = fsspec.core.url_to_fs(uri)
        if glob.has_magic(path):
            found = sorted(files.glob(path))
        elif files.isdir(path):
            found = sorted(
                name for name in files.find(path) if os.path.splitext(name)[1].lower() in EXTENSIONS
            )
        else:
            found = [path]
    except (ImportError, ValueError) as error:
        yield Input(uri, f"input: this kind of address needs a package or is unknown ({error})")
        return
    except OSError as error:
        yield Input(uri, f"input: cannot be listed ({error})")
        return
    if not found:
        yield Input(uri, "input: nothing matches this address")
    for name in found:
        yield _input(files.unstrip_protocol(name))


def _state(path: str) -> str:
    if "://" not in path:
        state = os.stat(path)
        return f"{state.st_size}:{state.st_mtime_ns}"
    files, name = fsspec.core.url_to_fs(path)
    return str(files.ukey(name))


def _sidecar_names(path: str) -> tuple[str, str]:
    return f"{path}.json", os.path.splitext(path)[0] + ".json"


def _sidecar(path: str) -> tuple[dict[str, Any], str]:
    for name in _sidecar_names(path):
        try:
            with fsspec.open(name, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
        try:
            content = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{name} is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name} must hold one JSON object")
        return content, name
    return {}, ""

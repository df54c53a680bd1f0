"""`worldline export`: one clip of a dataset folder in, a file or folder in another system's format out."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from worldline.datasets.formats.registry import exporter
from worldline.datasets.posed_clip import load_clip
from worldline.datasets.schema import MissingBackend
from worldline.datasets.shots import load_shot


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write one clip in another system's format."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    format: str
    """tum, ply, ...; an unknown name lists the known."""
    out: Path
    """File to write, or folder for formats that are one; it must not exist."""
    clip: str | None = None
    """Clip id or a unique start of it; may be left out where the folder has one clip with a path."""
    shot: str | None = None
    """Instead of a clip a whole shot, of which long videos have many clips: shot id or a unique start of it
    (`DIR/shots`); "" where the folder has only one."""

    def __post_init__(self) -> None:
        if self.clip is not None and self.shot is not None:
            raise ValueError("--clip and --shot: name one of them")


def export(config: ExportConfig) -> None:
    """Writes the clip under a temporary name, then renames it. Raises ValueError, FileExistsError,
    MissingBackend."""
    write = exporter(config.format)
    clip = (
        load_clip(config.dataset, config.clip)
        if config.shot is None
        else load_shot(config.dataset, config.shot)
    )
    if config.out.exists():
        raise FileExistsError(f"{config.out} exists; remove it or name another")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose their encoding by it.
    temporary = config.out.with_name(f".{os.getpid()}.{config.out.name}")
    try:
        write(clip, temporary)
        os.replace(temporary, config.out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def main(config: ExportConfig) -> int:
    """Exit status: 0 written, 1 not, with the reason on stderr."""
    try:
        export(config)
    except (ValueError, OSError, MissingBackend) as error:
        print(f"worldline export: {error}", file=sys.stderr)
        return 1
    print(f"{config.out}: {config.format}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ExportConfig)))

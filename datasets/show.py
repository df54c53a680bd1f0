"""`worldline show`: a dataset folder in, its counts and totals out; on request every finished unit checked."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from worldline.datasets.commit_log import broken_units
from worldline.datasets.table import summary


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowConfig:
    """Show what a dataset folder holds."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    json: bool = False
    """Print one JSON object instead of tables."""
    verify: bool = False
    """Also compare every finished unit with the checksum in its journal line; damaged ones are done again
    by the next run."""


def main(config: ShowConfig) -> int:
    """Exit status: 0 shown, 1 not a dataset folder, or a unit is damaged."""
    try:
        found = summary(config.dataset)
    except ValueError as error:
        print(f"worldline show: {error}", file=sys.stderr)
        return 1
    if config.verify:
        found["damaged_units"] = broken_units(config.dataset)
    if config.json:
        print(json.dumps(found))
    else:
        _print_tables(found, Console())
    return 1 if found.get("damaged_units") else 0


def _print_tables(found: dict[str, Any], console: Console) -> None:
    videos, clips = found["videos"], found["trajectories"]
    table = Table(title=found["dataset"], show_header=False)
    size_gb, hours = videos["size_bytes"] / 1e9, videos["duration_s"] / 3600
    table.add_row(
        "videos", _counts(videos["status"]), f"{hours:.2f} h, {size_gb:.2f} GB, {videos['copies']} copies"
    )
    share = f"{clips['num_registered']} of {clips['num_frames']} frames posed"
    table.add_row("scenes", _counts(clips["status"]), f"{clips['duration_s'] / 3600:.2f} h, {share}")
    for name in ("degeneracy", "scale_status", "licence"):
        table.add_row(name, _counts(clips[name]), "")
    console.print(table)
    reasons = [("video", *item) for item in videos["reasons"].items()]
    reasons += [("scene", *item) for item in clips["reasons"].items()]
    if reasons:
        table = Table("", "count", "reason", title="rejected and failed")
        for kind, reason, count in reasons:
            table.add_row(kind, str(count), reason)
        console.print(table)
    for unit in found.get("damaged_units", ()):
        console.print(f"damaged: {unit}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ShowConfig)))

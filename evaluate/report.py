"""`worldline report`: a dataset folder in, one HTML file out that a curator keeps open.

The page holds every score of every clip, the rules, paths and previews, and needs no network and no server: its own
script counts again when a threshold is dragged, and saves the thresholds as rules for `worldline decide`. What the
page says of a clip under untouched rules is what `decide` says.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import tyro
from rich.console import Console

import worldline
from worldline.datasets.commit_log import replace_file
from worldline.datasets.decisions import RulesConfig, open_duplicates
from worldline.datasets.posed_clip import open_table
from worldline.datasets.previews import PreviewConfig, preview_strip
from worldline.datasets.schema import FAILED, OK, TRAJECTORIES, VIDEOS
from worldline.filters.decide import explain
from worldline.filters.rule_sets import Rule, RuleSet

logger = logging.getLogger(__name__)

_WORDS = ("clip_id", "video_id", "source", "licence", "path", "status", "reason", "replay", "caption")
_PATH_COLUMNS = ("timestamps_s", "world_from_cam", "sigma_translation")
_HIDDEN = {*_WORDS, "error", "sidecar_path", "depth_path", "scale_cues", "given_id"}
_BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Make one self-contained page of a dataset for a curator."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    out: Path = Path("report.html")
    """The page."""
    rules: tyro.conf.OmitArgPrefixes[RulesConfig] = field(default_factory=RulesConfig)
    previews: PreviewConfig = field(default_factory=PreviewConfig)
    max_clips: int = 10_000
    """Of a larger table this many clips are shown, spread evenly over it; the page says so. 10,000 are some 15 MB."""
    path_points: int = 32
    """Points a path is drawn with."""

    def __post_init__(self) -> None:
        if self.max_clips < 1 or self.path_points < 2:
            raise ValueError("max_clips must be at least 1 and path_points at least 2")


def main(config: ReportConfig) -> int:
    """Exit status: 0 written, 1 not a dataset folder or wrong rules."""
    try:
        rules = config.rules.rule_set()
        content = report_content(config, rules)
    except ValueError as error:
        print(f"worldline report: {error}", file=sys.stderr)
        return 1
    config.out.parent.mkdir(parents=True, exist_ok=True)
    page = report_page(content)
    replace_file(config.out, page.encode())
    shown = f"{content['num_shown']} of {content['num_clips']} clips, {len(content['previews'])} previews"
    Console().print(f"{config.out}: {shown}, {len(page) / 1e6:.1f} MB", soft_wrap=True)
    return 0


def report_page(content: dict[str, Any]) -> str:
    """The HTML of a report's content; refers to nothing outside itself."""
    here = Path(__file__).parent
    # A script ends at the first "</", whatever string it stands in.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    page = (here / "report_page.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": (here / "report_page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join(
            (here / name).read_text(encoding="utf-8")
            for name in ("report_rules.js", "report_charts.js", "report_page.js")
        ),
        "DATA": data,
    }
    before, *rest = page.split("@@")
    # Alternately a name and the text after it: replaced in one pass, so that no clip's words are taken for a name.
    return before + "".join(parts[piece] if k % 2 == 0 else piece for k, piece in enumerate(rest))


def report_content(config: ReportConfig, rules: RuleSet) -> dict[str, Any]:
    """Everything the page shows, as JSON values: columns of all shown clips, coded words, paths, previews, rules."""
    table = pads.dataset(open_table(config.dataset).files, format="parquet", schema=TRAJECTORIES)
    total = table.count_rows()
    stride = max(1.0, total / config.max_clips)
    wanted = np.unique((np.arange(min(total, config.max_clips)) * stride).astype(np.int64))
    columns = {
        c.name: _Column(c) for c in TRAJECTORIES if not pa.types.is_list(c.type) and c.name not in _HIDDEN
    }
    columns |= {name: _Column(TRAJECTORIES.field(name)) for name in _WORDS}
    columns["duration_s"] = _Column(
        pa.field("duration_s", pa.float64(), metadata={"unit": "s", "about": "length"})
    )
    fixed = {rule.column for rule in _all_rules(rules) if rule.pattern}
    passes: dict[str, list[int]] = {name: [] for name in fixed}
    paths: list[str | None] = []
    candidates: list[dict[str, Any]] = []
    keep_every = max(1, len(wanted) // max(1, config.previews.count))
    for place, row in enumerate(_rows(table, wanted, columns)):
        row["duration_s"] = row["end_s"] - row["start_s"]
        for name, column in columns.items():
            column.add(row[name])
        if fixed:
            for verdict in explain(row, rules, source=config.rules.source):
                if verdict.rule.column in fixed:
                    passes[verdict.rule.column].append(int(verdict.reason is None))
        paths.append(_path(row, config.path_points))
        if place % keep_every == 0 and len(candidates) < config.previews.count:
            candidates.append({"place": place} | {k: row[k] for k in ("path", "start_s", "end_s")})
    return {
        "dataset": str(config.dataset),
        "version": worldline.__version__,
        "num_clips": total,
        "num_shown": len(wanted),
        "path_points": config.path_points,
        "columns": {name: column.content() for name, column in columns.items()},
        "passes": passes,
        "paths": paths,
        "previews": _previews(candidates, config.previews),
        "groups": _groups(config.dataset, columns["clip_id"]),
        "rules": _rules_content(rules, config.rules.source),
        "videos": _failed_videos(config.dataset),
    }


class _Column:
    """Values of one column, gathered row by row: numbers rounded to what a page can show, words as indices."""

    def __init__(self, column: pa.Field) -> None:
        facts = column.metadata or {}
        self.about, self.unit = facts.get(b"about", b"").decode(), facts.get(b"unit", b"").decode()
        self.is_text = pa.types.is_string(column.type)
        self.values: list[Any] = []
        self.words: dict[str, int] = {}

    def add(self, value: Any) -> None:
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            self.values.append(None)
        elif self.is_text:
            self.values.append(self.words.setdefault(value, len(self.words)))
        else:
            self.values.append(float(f"{value:.6g}") if isinstance(value, float) else int(value))

    def content(self) -> dict[str, Any]:
        content = {"about": self.about, "unit": self.unit, "values": self.values}
        return content | ({"words": list(self.words)} if self.is_text else {})


def _rows(table: pads.Dataset, wanted: np.ndarray, columns: dict[str, _Column]) -> Iterator[dict[str, Any]]:
    """The rows at the wanted places, with the columns of `columns` and those of the path."""
    names = [name for name in columns if name in TRAJECTORIES.names]
    start = 0
    for batch in table.to_batches(columns=[*names, *_PATH_COLUMNS], batch_size=_BATCH_ROWS):
        low, high = np.searchsorted(wanted, [start, start + len(batch)])
        if high > low:
            yield from batch.take(pa.array(wanted[low:high] - start)).to_pylist()
        start += len(batch)


def _path(row: dict[str, Any], points: int) -> str | None:
    """base64 of [points, 5] float32: centre, speed, sigma (NaN: unknown) at even steps of the posed frames; None
    without a path. Lengths in the row's unit."""
    if row["status"] != OK or not row["world_from_cam"] or not row["timestamps_s"]:
        return None
    poses = np.array(row["world_from_cam"], dtype=np.float64).reshape(-1, 3, 4)
    known = np.flatnonzero(np.isfinite(poses).all(axis=(1, 2)))
    if len(known) < 2:
        return None
    chosen = known[np.linspace(0, len(known) - 1, points).round().astype(int)]
    centres, times_s = poses[:, :, 3], np.array(row["timestamps_s"])
    found = np.full((points, 5), np.nan, dtype="<f4")
    found[:, :3] = centres[chosen]
    # Over a quarter of a second each way: single frames are noise.
    half = max(1, round(0.25 * (len(known) - 1) / max(times_s[known[-1]] - times_s[known[0]], 1e-9)))
    place = np.searchsorted(known, chosen)
    before, after = known[np.maximum(place - half, 0)], known[np.minimum(place + half, len(known) - 1)]
    found[:, 3] = np.linalg.norm(centres[after] - centres[before], axis=1) / (
        times_s[after] - times_s[before]
    )
    if row["sigma_translation"]:
        found[:, 4] = np.array(row["sigma_translation"], dtype=np.float64)[chosen]
    return base64.b64encode(found.tobytes()).decode()


def _previews(candidates: list[dict[str, Any]], config: PreviewConfig) -> dict[str, str]:
    """Place of a clip -> its strip, base64."""
    found = {}
    for row in candidates:
        if (strip := preview_strip(row, config)) is not None:
            found[str(row["place"])] = base64.b64encode(strip).decode()
    return found


def _groups(dataset_dir: Path, ids: _Column) -> dict[str, str]:
    """Shown clips that have near-duplicates -> their group."""
    table = open_duplicates(dataset_dir)
    if table is None:
        return {}
    found = table.to_table(
        columns=["clip_id", "group_id"], filter=pads.field("clip_id").isin(list(ids.words))
    )
    return dict(zip(found["clip_id"].to_pylist(), found["group_id"].to_pylist(), strict=True))


def _all_rules(rules: RuleSet) -> list[Rule]:
    return [rule for group in (rules.rules, *rules.by_source.values()) for rule in group]


def _rules_content(rules: RuleSet, source: str | None) -> dict[str, Any]:
    """The rules by source, the general ones under the empty name; with `source`, its rules for all."""
    if source is not None:
        return {
            "name": f"{rules.name} as {source}",
            "about": rules.about,
            "by_source": {"": _plain(rules, source)},
        }
    by_source = {name: _plain(rules, name) for name in ("", *rules.by_source)}
    return {"name": rules.name, "about": rules.about, "by_source": by_source}


def _plain(rules: RuleSet, source: str) -> list[dict[str, Any]]:
    return [asdict(rule) for rule in rules.of_source(source)]


def _failed_videos(dataset_dir: Path) -> list[dict[str, str | None]]:
    """Source files without a scene, each with why and how to try again; the failures first, 2,000 at most."""
    files = sorted(str(file) for file in (dataset_dir / "videos").glob("*.parquet"))
    if not files:
        return []
    names = ["path", "status", "reason", "replay", "source", "licence"]
    table = pads.dataset(files, format="parquet", schema=VIDEOS)
    found = table.head(2000, columns=names, filter=pads.field("status") == FAILED).to_pylist()
    others = ~pads.field("status").isin([OK, FAILED])
    found += table.head(2000 - len(found), columns=names, filter=others).to_pylist()
    return [row | {"path": os.fspath(row["path"] or "")} for row in found]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ReportConfig)))

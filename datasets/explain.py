"""`worldline explain`: a clip in, every one of its scores beside the range that is asked of it out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.types as kinds
import tyro
from rich.console import Console
from rich.table import Table

from worldline.datasets.decisions import RulesConfig
from worldline.datasets.posed_clip import find_row
from worldline.datasets.schema import TRAJECTORIES
from worldline.filters.decide import Verdict, explain, value_of

_NO_SCORES = {
    "clip_id",
    "video_id",
    "path",
    "error",
    "replay",
    "reason",
    "status",
    "tool_version",
    "config_hash",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainConfig:
    """Show every score of a clip against its range."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    clip: tyro.conf.Positional[str]
    """Clip id, or a unique start of it."""
    rules: tyro.conf.OmitArgPrefixes[RulesConfig] = field(default_factory=RulesConfig)
    json: bool = False
    """Print one JSON object instead of tables."""


def main(config: ExplainConfig) -> int:
    """Exit status: 0 kept, 3 not kept, 1 no such clip or wrong rules."""
    try:
        rules = config.rules.rule_set()
        row = find_row(config.dataset, config.clip)
    except ValueError as error:
        print(f"worldline explain: {error}", file=sys.stderr)
        return 1
    verdicts = explain(row, rules, source=config.rules.source)
    first = next((verdict.reason for verdict in verdicts if verdict.reason), None)
    others = other_scores(row, {verdict.rule.column for verdict in verdicts})
    if config.json:
        print(json.dumps(_as_json(row, verdicts, first, others), default=str))
    else:
        _print(row, verdicts, first, others, rules.name)
    return 0 if first is None else 3


def other_scores(row: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """The row's flat columns that no rule is about, in the table's order; None: unknown."""
    return {
        column.name: value_of(row, column.name)
        for column in TRAJECTORIES
        if not kinds.is_list(column.type) and column.name not in _NO_SCORES | asked
    }


def _as_json(
    row: dict[str, Any], verdicts: list[Verdict], first: str | None, others: dict[str, Any]
) -> dict[str, Any]:
    asked = [
        {"column": v.rule.column, "value": v.value, "min": v.rule.min, "max": v.rule.max, "reason": v.reason}
        for v in verdicts
    ]
    return {
        "clip_id": row["clip_id"],
        "keep": first is None,
        "reason": first,
        "rules": asked,
        "others": others,
    }


def _print(
    row: dict[str, Any], verdicts: list[Verdict], first: str | None, others: dict[str, Any], name: str
) -> None:
    console = Console()
    console.print(
        f"clip {row['clip_id']}, {row['path']}, {row['start_s']:.2f} to {row['end_s']:.2f} s", soft_wrap=True
    )
    console.print(f"{name}: {'kept' if first is None else f'not kept, {first}'}", soft_wrap=True)
    if row["status"] != "ok":
        console.print(f"{row['status']}: {row['reason']}\nagain: {row['replay']}", soft_wrap=True)
    table = Table("score", "value", "asked", "verdict", title=f"rules of {name}")
    for verdict in verdicts:
        table.add_row(
            verdict.rule.column,
            _shown(verdict.value),
            verdict.rule.range,
            verdict.reason or "ok",
            style=None if verdict.reason is None else "red",
        )
    console.print(table)
    table = Table("score", "value", "unit", "about", title="scores no rule asks for")
    for column, value in others.items():
        facts = TRAJECTORIES.field(column).metadata or {}
        table.add_row(column, _shown(value), facts.get(b"unit", b"").decode(), facts[b"about"].decode())
    console.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

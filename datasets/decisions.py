"""`worldline decide`: a dataset folder and a rule set in, `DIR/decisions/NAME.parquet` out, one row a clip.

The loader's `select(decisions=...)` and the shard planner's queries read that table. It is replaced whole by a rename,
and the rules that made it stand in its metadata.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import tyro
from rich.console import Console
from rich.table import Table

import worldline
from worldline.datasets.commit_log import parquet_bytes, replace_file
from worldline.datasets.posed_clip import open_table
from worldline.datasets.schema import TRAJECTORIES
from worldline.filters.balance import BalanceConfig
from worldline.filters.decide import decide
from worldline.filters.rule_sets import RuleSet, licence_rule, load_rules

RULES_KEY = b"worldline_rules"
"""Metadata of a decision table: the rule set as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RulesConfig:
    """Which rules count."""

    rules: str = "permissive"
    """sana_wm, spatialvid, permissive, strict, or a .toml or .json file of your own (docs/curation.md)."""
    source: str | None = None
    """Use this source's ranges for every clip; by default each clip has those of its own source."""
    licence: tuple[str, ...] = ()
    """Keep these licences alone; `permissive` stands for all that ask only to be named."""
    without: tuple[str, ...] = ()
    """Columns whose rules are left out, such as dover where no weights are at hand. Named in the table's rules."""

    def rule_set(self) -> RuleSet:
        """The rules that this asks for; ValueError for a wrong name, file or column."""
        found = load_rules(self.rules)
        if self.without:
            found = found.without(self.without)
            found = dataclasses.replace(found, name=f"{found.name} without {' '.join(self.without)}")
        return found.with_first(licence_rule(self.licence)) if self.licence else found


@dataclass(frozen=True, kw_only=True, slots=True)
class DecideConfig:
    """Say of every clip whether it is kept, and why not."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    rules: tyro.conf.OmitArgPrefixes[RulesConfig] = field(default_factory=RulesConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    out: Path | None = None
    """Where the table goes; by default DATASET/decisions/NAME.parquet."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(config: DecideConfig) -> int:
    """Exit status: 0 written, 1 not a dataset folder or wrong rules."""
    try:
        rules = config.rules.rule_set()
        table = decide_dataset(config.dataset, rules, source=config.rules.source, balance=config.balance)
        path = config.out or decisions_path(config.dataset, config.rules.rules)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_decisions(path, table, rules)
    except (ValueError, OSError) as error:
        print(f"worldline decide: {error}", file=sys.stderr)
        return 1
    counts = reason_counts(table)
    if config.json:
        print(json.dumps({"path": str(path), "clips": len(table), "reasons": counts}))
        return 0
    shown = Table("clips", "decision", title=f"{rules.name}: {len(table)} clips")
    for reason, count in counts.items():
        shown.add_row(str(count), reason)
    console = Console()
    console.print(shown)
    console.print(
        f"{path}\none clip: worldline explain {config.dataset} CLIP --rules {config.rules.rules}",
        soft_wrap=True,
    )
    return 0


def decide_dataset(
    dataset_dir: Path, rules: RuleSet, *, source: str | None = None, balance: BalanceConfig | None = None
) -> pa.Table:
    """The decision table (filters/decide.py) of a dataset folder, near-duplicates known from `DIR/duplicates/`."""
    rows = pads.dataset(open_table(dataset_dir).files, format="parquet", schema=TRAJECTORIES)
    return decide(
        rows,
        rules,
        source=source,
        balance=balance,
        duplicates=open_duplicates(dataset_dir),
        tool_version=worldline.__version__,
    )


def open_duplicates(dataset_dir: Path) -> pads.Dataset | None:
    """The groups of near-duplicates (clip_id, group_id); None where they were not looked for."""
    files = sorted(str(file) for file in (dataset_dir / "duplicates").glob("*.parquet"))
    return pads.dataset(files, format="parquet") if files else None


def decisions_path(dataset_dir: Path, rules: str) -> Path:
    """Where the decisions by a rule set, named or a file, lie."""
    return dataset_dir / "decisions" / f"{Path(rules).stem}.parquet"


def write_decisions(path: Path, table: pa.Table, rules: RuleSet) -> None:
    """Replaces the file whole."""
    replace_file(path, parquet_bytes(table.replace_schema_metadata({RULES_KEY: rules.as_json()})))


def reason_counts(table: pa.Table) -> dict[str, int]:
    """Reason, or "kept" -> clips, the most first."""
    counts = table.group_by("reason").aggregate([("clip_id", "count")])
    counts = counts.take(pc.sort_indices(counts, [("clip_id_count", "descending")]))
    return dict(_pairs(counts))


def _pairs(counts: pa.Table) -> Iterator[tuple[str, int]]:
    for row in counts.to_pylist():
        yield row["reason"] or "kept", row["clip_id_count"]

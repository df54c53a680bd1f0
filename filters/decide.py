"""Scores of many clips and a rule set in, one decision a clip out: kept or not, and the rule that did it.

The only place where a score becomes a verdict. It is a query over stored columns: nothing is decoded or measured
again, so a threshold is changed and asked anew in seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from worldline.datasets.schema import SCHEMA_VERSION
from worldline.filters.balance import BalanceConfig, weighted_sql
from worldline.filters.rule_sets import DERIVED, Rule, RuleSet

DECISIONS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("weight", pa.float64()),
        ("group_id", pa.string()),
        ("rules", pa.string()),
        ("rules_hash", pa.string()),
        ("schema_version", pa.int64()),
        ("tool_version", pa.string()),
    ]
)
"""`reason`: null where kept. `weight`: 0 where not kept, 1 on average where kept. `group_id`: of near-duplicates;
null: no duplicates known."""

_KEPT = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One rule asked of one clip."""

    rule: Rule
    value: Any
    """The clip's score; None: unknown."""
    reason: str | None
    """Why the rule is broken; None: it is not."""


def decide(
    rows: pa.Table | pads.Dataset,
    rules: RuleSet,
    *,
    source: str | None = None,
    balance: BalanceConfig | None = None,
    duplicates: pa.Table | pads.Dataset | None = None,
    tool_version: str = "",
) -> pa.Table:
    """One row of DECISIONS a clip, in the order of the rows.

    `source` applies its ranges to every clip; None: each clip has those of its own source. `duplicates`: clip_id and
    group_id of near-duplicates. Raises ValueError where the rows lack a column that a rule is about.
    """
    balance = balance or BalanceConfig()
    names = rows.schema.names
    needed = {column for rule in _all_rules(rules) for column in _columns_of(rule)} | {"clip_id", "source"}
    if missing := sorted((needed | set(balance.columns)) - set(names)):
        raise ValueError(f"the table lacks {', '.join(missing)}")
    table = _columns(rows, sorted(needed | set(balance.columns)))
    connection = duckdb.connect()
    try:
        connection.execute("SET enable_external_access = false")
        reason = _reasons_of(connection, table, rules, source)
        keep = pc.is_null(reason)
        groups = _groups(connection, duplicates, table["clip_id"])
        weight = _weights(connection, table.append_column("group_id", groups), keep, balance)
    finally:
        connection.close()
    facts = {
        "rules": rules.name,
        "rules_hash": rules.digest() + (f"@{source}" if source else ""),
        "schema_version": SCHEMA_VERSION,
        "tool_version": tool_version,
    }
    columns = {
        "clip_id": table["clip_id"],
        "keep": keep,
        "reason": reason,
        "weight": weight,
        "group_id": groups,
        **{name: pa.repeat(value, len(table)) for name, value in facts.items()},
    }
    return pa.table(columns).cast(DECISIONS)


def _columns(rows: pa.Table | pads.Dataset, names: list[str]) -> pa.Table:
    """These columns of all rows, in order.

    Files of many small row groups, as the job writes them, are read whole, column by column: a dataset's scanner
    takes twice as long, since it hands on every row group by itself.
    """
    if isinstance(rows, pa.Table):
        return rows.select(names)
    if not (isinstance(rows, pads.FileSystemDataset) and isinstance(rows.format, pads.ParquetFileFormat)):
        return rows.to_table(names)
    schema = pa.schema([rows.schema.field(name) for name in names])
    parts = [_columns_of_file(path, rows.filesystem, schema) for path in rows.files]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _columns_of_file(path: str, filesystem: pafs.FileSystem, schema: pa.Schema) -> pa.Table:
    """The schema's columns of a Parquet file, null where it lacks one."""
    with pq.ParquetFile(path, filesystem=filesystem, memory_map=True, pre_buffer=False) as file:
        known = set(file.schema_arrow.names)
        # Threads would wait for one another more than they read: a chunk of a column is a few kilobytes.
        found = file.read([name for name in schema.names if name in known], use_threads=False)
    columns = [
        found[field.name].cast(field.type) if field.name in known else pa.nulls(len(found), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _reasons_of(
    connection: duckdb.DuckDBPyConnection, table: pa.Table, rules: RuleSet, source: str | None
) -> pa.Array:
    """The first broken rule's reason of each row, null where none is."""
    # Numbers leave the query and become words afterwards: a million equal sentences are dear to hand over.
    numbers: dict[str, int] = {}
    sql = _reason_sql(rules, source, numbers)
    # A scan by several threads forgets the order.
    asked = table.drop_columns("clip_id").append_column("place", pa.array(np.arange(len(table))))
    connection.register("rows", asked)
    judged = connection.sql(f"SELECT place, ({sql})::SMALLINT AS number FROM rows").fetchnumpy()
    number = np.empty(len(table), dtype=np.int16)
    number[judged["place"]] = judged["number"]
    words = pa.array([*numbers, ""], pa.string())
    return words.take(pa.array(number, mask=number == _KEPT))


def _weights(
    connection: duckdb.DuckDBPyConnection, table: pa.Table, keep: pa.Array, balance: BalanceConfig
) -> np.ndarray:
    """[n] float64: 0 where not kept, 1 on average where kept."""
    places = np.flatnonzero(keep.to_numpy(zero_copy_only=False))
    kept = table.select([*dict.fromkeys(("group_id", *balance.columns))]).take(pa.array(places))
    connection.register("kept", kept.append_column("place", pa.array(places)))
    found = connection.sql(weighted_sql(balance)).fetchnumpy()
    weight = np.zeros(len(table))
    weight[found["place"]] = found["weight"]
    return weight


def _groups(
    connection: duckdb.DuckDBPyConnection,
    duplicates: pa.Table | pads.Dataset | None,
    clip_ids: pa.ChunkedArray,
) -> pa.Array | pa.ChunkedArray:
    """The group of near-duplicates of each clip, null where it has none or they were not looked for."""
    if duplicates is None:
        return pa.nulls(len(clip_ids), pa.string())
    connection.register("duplicates", duplicates)
    groups = connection.sql(
        "SELECT clip_id::VARCHAR AS clip_id, min(group_id::VARCHAR) AS group_id FROM duplicates GROUP BY 1"
    ).to_arrow_table()
    return groups["group_id"].take(pc.index_in(clip_ids, groups["clip_id"].combine_chunks()))


def explain(row: Mapping[str, Any], rules: RuleSet, *, source: str | None = None) -> list[Verdict]:
    """Every rule asked of one clip, in order; the first broken one is the reason that `decide` gives."""
    return [
        Verdict(rule=rule, value=(value := value_of(row, rule.column)), reason=_judge(rule, value))
        for rule in rules.of_source(source if source is not None else row.get("source"))
    ]


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The row's value of a column or of a name in DERIVED; None where it is unknown."""
    if column == "duration_s":
        known = row.get("start_s") is not None and row.get("end_s") is not None
        return row["end_s"] - row["start_s"] if known else None
    if column == "num_pixels":
        return row["width"] * row["height"] if row.get("width") and row.get("height") else None
    value = row.get(column)
    return None if isinstance(value, float) and math.isnan(value) else value


def _judge(rule: Rule, value: Any) -> str | None:
    unknown, low, high, other = _reasons(rule)
    if value is None:
        return unknown
    if rule.among:
        return None if value in rule.among else other
    if rule.pattern:
        plain = re.sub(r"[\s_]+", "-", str(value).strip().lower())
        return None if re.fullmatch(rule.pattern, plain) else other
    if rule.min is not None and value < rule.min:
        return low
    return high if rule.max is not None and value > rule.max else None


def _reasons(rule: Rule) -> tuple[str, str, str, str]:
    """What is said where the value is unknown, below, above, or another word. Without the value itself, so that equal
    reasons count together."""
    about = f"{rule.reason}: " if rule.reason else ""
    unknown = f"{about}{rule.column} unknown"
    low = f"{about}{rule.column} below {rule.min:g}" if rule.min is not None else ""
    high = f"{about}{rule.column} above {rule.max:g}" if rule.max is not None else ""
    words = rule.range if rule.among else "of the wanted kind"
    return unknown, low, high, f"{about}{rule.column} not {words}"


def _all_rules(rules: RuleSet) -> list[Rule]:
    return [rule for group in (rules.rules, *rules.by_source.values()) for rule in group]


def _columns_of(rule: Rule) -> list[str]:
    sql = DERIVED.get(rule.column)
    return re.findall(r"[a-z_]+", sql) if sql else [rule.column]


def _reason_sql(rules: RuleSet, source: str | None, numbers: dict[str, int]) -> str:
    """SQL of the number of the first broken rule's reason, _KEPT where none is; the reasons go into `numbers`."""
    if source is not None or not rules.by_source:
        return _chain(rules.of_source(source), numbers)
    cases = " ".join(
        f"WHEN {_text(name)} THEN ({_chain(rules.of_source(name), numbers)})" for name in rules.by_source
    )
    return f"CASE rows.source {cases} ELSE ({_chain(rules.of_source(None), numbers)}) END"


def _chain(rules: tuple[Rule, ...], numbers: dict[str, int]) -> str:
    whens = " ".join(
        f"WHEN {condition} THEN {numbers.setdefault(reason, len(numbers))}"
        for r in rules
        for condition, reason in _breaks(r)
    )
    return f"CASE {whens} ELSE {_KEPT} END"


def _breaks(rule: Rule) -> list[tuple[str, str]]:
    """(SQL condition, reason) of every way to break a rule; a null never reaches the comparisons."""
    unknown, low, high, other = _reasons(rule)
    column = f"({DERIVED[rule.column]})" if rule.column in DERIVED else f'rows."{rule.column}"'
    if rule.among:
        words = ", ".join(_text(word) for word in rule.among)
        return [(f"{column} IS NULL", unknown), (f"{column} NOT IN ({words})", other)]
    if rule.pattern:
        plain = rf"regexp_replace(lower(trim({column})), '[\s_]+', '-', 'g')"
        match = f"regexp_full_match({plain}, {_text(rule.pattern)})"
        return [(f"{column} IS NULL", unknown), (f"NOT {match}", other)]
    found = [(f"{column} IS NULL OR isnan({column}::DOUBLE)", unknown)]
    if rule.min is not None:
        found.append((f"{column} < {rule.min!r}::DOUBLE", low))
    if rule.max is not None:
        found.append((f"{column} > {rule.max!r}::DOUBLE", high))
    return found


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"

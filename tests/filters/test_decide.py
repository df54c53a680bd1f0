"""Decisions: the query against the same rules asked one by one in Python, ranges by source, licences, weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from worldline.datasets.schema import TRAJECTORIES
from worldline.filters.balance import BalanceConfig
from worldline.filters.decide import DECISIONS, decide, explain
from worldline.filters.rule_sets import RULE_SETS, Rule, RuleSet, licence_rule, load_rules

_GOOD: dict[str, Any] = {
    "status": "ok",
    "degeneracy": "ok",
    "scale_status": "metric",
    "start_s": 0.0,
    "end_s": 10.0,
    "vmaf_motion": 8.0,
    "flow_576x320_px": 20.0,
    "dover": 0.5,
    "saturation": 90.0,
    "num_cuts": 0,
    "num_entities": 3.0,
    "fov_x_deg": 70.0,
    "fov_y_deg": 45.0,
    "focal_mismatch": 0.01,
    "aesthetic": 5.0,
    "depth_scale_variation": 0.1,
    "luminance": 100.0,
    "text_area_share": 0.0,
    "registered_share": 1.0,
    "frozen_share": 0.0,
    "scale_sigma": 0.05,
    "reprojection_px": 0.5,
    "sigma_share": 0.01,
    "blur": 0.3,
    "jump_share": 0.0,
    "moving_share": 0.1,
    "clipped_share": 0.0,
    "border_share": 0.0,
    "split_screen": 0.0,
    "path_shape": "forward",
    "speed_mean": 1.0,
    "source": "somewhere",
}


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    named = [
        {"clip_id": f"c{k}", "video_id": "v", "tool_version": "t", "config_hash": "h", **row}
        for k, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(named, schema=TRAJECTORIES)


def _reasons(rows: list[dict[str, Any]], rules: RuleSet, **more: Any) -> list[str | None]:
    return decide(_table(rows), rules, **more)["reason"].to_pylist()


@pytest.mark.parametrize("name", RULE_SETS)
def test_query_says_what_the_rules_say_one_by_one(name: str) -> None:
    """On rows in which every column is good, at an end of its range, outside it, NaN or unknown."""
    rng, rules = np.random.default_rng(3), RULE_SETS[name]
    sources = ["somewhere", None, *rules.by_source]
    rows = []
    for _ in range(300):
        row = dict(_GOOD) | {"source": sources[rng.integers(len(sources))]}
        for rule in rules.of_source(row["source"]):
            if rule.column == "duration_s" or rng.random() > 0.15:
                continue
            if rule.among:
                row[rule.column] = [None, "rejected", "planar", *rule.among][rng.integers(3)]
                continue
            ends = [end for end in (rule.min, rule.max) if end is not None]
            wild = [None, math.nan, *ends, *(end + 0.1 for end in ends), *(end - 0.1 for end in ends)]
            value = wild[rng.integers(len(wild))]
            is_count = pa.types.is_integer(TRAJECTORIES.field(rule.column).type)
            row[rule.column] = (
                None if is_count and value != value else int(value) if is_count and value else value
            )
        if row["status"] is None:
            row["status"] = "failed"
        rows.append(row)
    table = _table(rows)
    expected = [next((v.reason for v in explain(row, rules) if v.reason), None) for row in table.to_pylist()]
    found = decide(table, rules)
    assert found.schema == DECISIONS
    assert found["clip_id"].to_pylist() == table["clip_id"].to_pylist()
    assert found["reason"].to_pylist() == expected
    assert found["keep"].to_pylist() == [reason is None for reason in expected]
    assert 10 < sum(found["keep"].to_pylist()) < 290


def test_files_say_what_the_table_says(tmp_path: Path) -> None:
    """Several files of small row groups, one written before a column was known, another with a narrower type."""
    rng = np.random.default_rng(0)
    rows = [_GOOD | {"luminance": value, "blur": 0.3} for value in rng.uniform(-20, 300, 500)]
    table, rules = _table(rows), RULE_SETS["strict"]
    narrow = table.slice(0, 200).set_column(
        table.schema.get_field_index("luminance"),
        "luminance",
        table["luminance"].slice(0, 200).cast("float32"),
    )
    old = table.slice(200, 100).drop_columns("blur")
    for k, part in enumerate((narrow, old, table.slice(300))):
        pq.write_table(part, tmp_path / f"{k}.parquet", row_group_size=7)
    files = [str(tmp_path / f"{k}.parquet") for k in range(3)]
    found = decide(pads.dataset(files, schema=TRAJECTORIES), rules)
    expected = decide(table, rules)
    assert found["clip_id"].equals(expected["clip_id"])
    assert found.slice(0, 200).equals(
        expected.slice(0, 200).set_column(3, "weight", found["weight"].slice(0, 200))
    )
    assert found["reason"].slice(300).equals(expected["reason"].slice(300))
    lights = {"light: luminance below 20", "light: luminance above 220"}
    assert set(found["reason"].slice(200, 100).to_pylist()) == lights | {"blurred: blur unknown"}


def test_sources_have_their_own_ranges() -> None:
    busy = _GOOD | {"num_entities": 20.0}
    walking = busy | {"source": "sekai_walking"}
    rules = RULE_SETS["sana_wm"]
    assert _reasons([busy, walking], rules) == ["crowded: num_entities above 10", None]
    assert _reasons([busy, walking], rules, source="sekai_walking") == [None, None]
    assert _reasons([walking | {"flow_576x320_px": 60.0}], rules) == ["motion: flow_576x320_px above 50"]
    game = _GOOD | {"source": "sekai_game", "dover": 0.3, "vmaf_motion": 90.0}
    assert _reasons([game, game | {"source": "x"}], rules) == [None, "motion: vmaf_motion above 50"]


def test_unknown_is_refused_and_a_rule_left_out_by_name() -> None:
    row = _GOOD | {"dover": None}
    rules = RULE_SETS["sana_wm"]
    assert _reasons([row], rules) == ["quality: dover unknown"]
    fewer = rules.without(("dover",))
    assert _reasons([row], fewer) == [None]
    assert fewer.digest() != rules.digest()
    assert all(r.column != "dover" for source in fewer.by_source for r in fewer.of_source(source))
    with pytest.raises(ValueError, match="no rule on blur"):
        rules.without(("blur",))


def test_permissive_licences() -> None:
    free = [
        "CC0-1.0",
        "CC BY 4.0",
        "cc-by-3.0",
        "MIT",
        "Apache-2.0",
        "public domain",
        "BSD-3-Clause",
        "MIT OR Apache-2.0",
    ]
    bound = [
        "CC-BY-NC-4.0",
        "CC BY-SA 4.0",
        "CC BY-ND 4.0",
        "YouTube",
        "GPL-3.0",
        "MIT research only",
        "non-commercial",
        "",
    ]
    rules = RULE_SETS["permissive"].with_first(licence_rule(("permissive",)))
    rows = [_GOOD | {"licence": licence} for licence in [*free, *bound, None]]
    refused = ["licence not permissive: licence not of the wanted kind"] * len(bound)
    expected = [None] * len(free) + refused + ["licence not permissive: licence unknown"]
    assert _reasons(rows, rules) == expected
    one_by_one = [next((v.reason for v in explain(row, rules) if v.reason), None) for row in rows]
    assert one_by_one == expected
    own = RULE_SETS["permissive"].with_first(licence_rule(("CC-BY-NC-4.0",)))
    assert _reasons([_GOOD | {"licence": "CC-BY-NC-4.0"}, _GOOD | {"licence": "MIT"}], own)[0] is None


def test_own_rules_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'base = "sana_wm"\n[[rules]]\ncolumn = "dover"\nmin = 0.6\nreason = "look"\n'
        '[[rules]]\ncolumn = "blur"\nmax = 0.2\n'
        '[[by_source.sekai_game]]\ncolumn = "dover"\nmin = 0.1\n'
    )
    mine = load_rules(str(tmp_path / "mine.toml"))
    assert mine.name == "mine"
    assert _reasons([_GOOD, _GOOD | {"dover": 0.7}], mine) == ["look: dover below 0.6", "blur above 0.2"]
    game = _GOOD | {"source": "sekai_game", "dover": 0.2, "blur": 0.1, "vmaf_motion": 90.0}
    assert _reasons([game], mine) == [None]
    content = {
        "name": "j",
        "rules": [{"column": "duration_s", "min": 5}, {"column": "path_shape", "among": ["loop"]}],
    }
    (tmp_path / "j.json").write_text(json.dumps(content))
    short = _GOOD | {"end_s": 2.0, "path_shape": "loop"}
    j = load_rules(str(tmp_path / "j.json"))
    assert _reasons([short, short | {"end_s": 6.0}, _GOOD, _GOOD | {"status": "failed"}], j) == [
        "duration_s below 5", None, "path_shape not loop", "not annotated: status not ok",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[rules]]\ncolumn = "blurr"\nmax = 1', "no such column"),
        ('[[rules]]\ncolumn = "blur"\nmaximum = 1', "maximum"),
        ('[[rules]]\ncolumn = "blur"\nmin = 2\nmax = 1', "no range"),
        ('[[rules]]\ncolumn = "world_from_cam"\nmax = 1', "cannot be compared"),
        ('[[rules]]\ncolumn = "degeneracy"\nmax = 1', "for numbers"),
        ('base = "lenient"', "to start from"),
        ('rule = 1', "unknown keys rule"),
        ("[[", "own.toml"),
    ],
)  # fmt: skip
def test_wrong_rules_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load_rules(str(path))


def test_words_with_quotes_are_only_words() -> None:
    rules = RuleSet(name="q", rules=(Rule(column="source", among=("it's",), reason="not 'its'"),))
    assert _reasons([_GOOD | {"source": "it's"}, _GOOD], rules) == [None, "not 'its': source not it's"]


def test_weights_temper_kinds_and_copies_share() -> None:
    """Eight clips forward, two loops, one of each refused; strength s gives n ** (1 - s) draws a kind."""
    kinds = ["forward"] * 8 + ["loop"] * 2
    rows = [_GOOD | {"path_shape": kind} for kind in kinds] + [_GOOD | {"luminance": 0.0}]
    rules = RULE_SETS["permissive"]
    for strength in (0.0, 0.5, 1.0):
        found = decide(_table(rows), rules, balance=BalanceConfig(strength=strength))
        weight = np.array(found["weight"].to_pylist())
        assert weight[-1] == 0
        assert weight[:-1].mean() == pytest.approx(1)
        assert weight[8:10].sum() / weight[:8].sum() == pytest.approx(0.25 ** (1 - strength))
    # The loops are copies of each other: one clip for the balance, its weight split in two.
    copies = pa.table({"clip_id": ["c8", "c9", "c10"], "group_id": ["g", "g", "g"]})
    found = decide(_table(rows), rules, balance=BalanceConfig(strength=0.0), duplicates=copies)
    weight = np.array(found["weight"].to_pylist())
    assert weight[8:10] / weight[0] == pytest.approx([0.5, 0.5])
    assert found["group_id"].to_pylist() == [None] * 8 + ["g"] * 3
    capped = decide(_table(rows), rules, balance=BalanceConfig(strength=1.0, max_boost=2.0))[
        "weight"
    ].to_pylist()
    assert capped[8] / capped[0] == pytest.approx(2)


def test_speeds_in_unknown_units_are_one_kind() -> None:
    slow = [_GOOD | {"speed_mean": speed} for speed in (1.0, 1.9, 2.1, 0.9)]
    unknown = [_GOOD | {"speed_mean": speed, "scale_status": "up_to_scale"} for speed in (1.0, 70.0, 900.0)]
    weight = decide(_table(slow + unknown), RULE_SETS["permissive"], balance=BalanceConfig(strength=1.0))[
        "weight"
    ]
    # Kinds: [1, 1.9], [2.1], [0.9], the three without metres.
    assert np.array(weight) / weight[4].as_py() == pytest.approx([1.5, 1.5, 3, 3, 1, 1, 1])


def test_no_rows_and_missing_columns() -> None:
    assert len(decide(_table([]), RULE_SETS["strict"])) == 0
    with pytest.raises(ValueError, match="lacks blur"):
        decide(_table([_GOOD]).drop_columns(["blur"]), RULE_SETS["strict"])

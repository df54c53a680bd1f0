"""`worldline decide` and `explain` on a small dataset folder, and the loader that reads the decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldline.datasets import decisions, explain
from worldline.datasets.decisions import DecideConfig, RulesConfig
from worldline.datasets.explain import ExplainConfig
from worldline.datasets.shard_index import select


@pytest.fixture(scope="module")
def judged(posed_folder: Path, posed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The posed folder's six clips, with light: four good, one dark, one unknown."""
    rows = [
        row
        for file in sorted((posed_folder / "trajectories").glob("*"))
        for row in pq.read_table(file).to_pylist()
    ]
    for row, luminance in zip(rows, (100.0, 90.0, 3.0, 80.0, None, 70.0), strict=True):
        row |= {"luminance": luminance, "frozen_share": 0.0, "num_cuts": 0}
    return posed.write_table(tmp_path_factory.mktemp("judged") / "d", rows)


def _ids(folder: Path) -> list[str]:
    return pq.read_table(folder / "trajectories", columns=["clip_id"])["clip_id"].to_pylist()


def test_decide_writes_what_the_loader_reads(
    judged: Path, shards_made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = _ids(judged)
    assert decisions.main(DecideConfig(dataset=judged, json=True)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reasons"] == {"kept": 4, "light: luminance below 10": 1, "light: luminance unknown": 1}
    path = judged / "decisions" / "permissive.parquet"
    assert printed["path"] == str(path)
    table = pq.read_table(path)
    assert [row["clip_id"] for row in table.to_pylist()] == ids
    assert json.loads(table.schema.metadata[decisions.RULES_KEY])["name"] == "permissive"
    chosen = select(shards_made, decisions=path, weight="decision_weight")
    expected = {ids[k] for k in (0, 1, 3, 5)}
    assert {key.decode() for key in chosen.records["clip_id"]} == expected
    assert chosen.cumulative_weight is not None
    assert chosen.cumulative_weight[-1] == pytest.approx(4)


def test_copies_are_read_from_the_folder(judged: Path) -> None:
    ids = _ids(judged)
    rules = RulesConfig().rule_set()
    (judged / "duplicates").mkdir()
    pq.write_table(
        pa.table({"clip_id": [ids[0], ids[1]], "group_id": [ids[0]] * 2}), judged / "duplicates" / "d.parquet"
    )
    weight = decisions.decide_dataset(judged, rules)["weight"].to_pylist()
    assert weight[0] == weight[1] == pytest.approx(weight[3] / 2)


def test_explain_names_the_value_and_the_range(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = _ids(judged)
    assert explain.main(ExplainConfig(dataset=judged, clip=ids[0])) == 0
    assert explain.main(ExplainConfig(dataset=judged, clip="nothing")) == 1
    capsys.readouterr()
    assert explain.main(ExplainConfig(dataset=judged, clip=ids[2], json=True)) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["reason"] == "light: luminance below 10"
    (light,) = [rule for rule in found["rules"] if rule["column"] == "luminance"]
    assert light == {"column": "luminance", "value": 3.0, "min": 10, "max": 245, "reason": found["reason"]}
    assert found["others"]["scale_sigma"] == 0.05
    assert explain.main(ExplainConfig(dataset=judged, clip=ids[4])) == 3
    text = capsys.readouterr().out
    assert "light: luminance unknown" in text
    assert "10 to 245" in text


def test_wrong_asks_are_told_in_a_line(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for config in (
        DecideConfig(dataset=judged, rules=RulesConfig(rules="lenient")),
        DecideConfig(dataset=judged, rules=RulesConfig(without=("nothing",))),
        DecideConfig(dataset=tmp_path),
    ):
        assert decisions.main(config) == 1
        assert capsys.readouterr().err.startswith("worldline decide: ")

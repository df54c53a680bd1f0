"""Groups of copies against a comparison of all pairs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldline.datasets.schema import TRAJECTORIES, table_from_rows
from worldline.filters import duplicates
from worldline.filters.duplicates import DUPLICATES, DuplicatesConfig, agreement, find_duplicates, main
from worldline.filters.fingerprint import CROPS

LOOKS = 6


def _random_hashes(rng, count=1):
    return rng.integers(-(2**63), 2**63, (count, LOOKS * len(CROPS)), dtype=np.int64)


def _flipped(hashes, rng, bits):
    """Each hash with `bits` of its bits turned over."""
    result = hashes.copy()
    for k in range(len(result)):
        for bit in rng.choice(64, bits, replace=False):
            result[k] ^= np.array(1, np.uint64).__lshift__(np.uint64(bit)).astype(np.int64)
    return result


def _row(name, hashes, **values):
    row = {"clip_id": name, "video_id": f"v{name}", "pixels_hash": f"p{name}", "start_s": 0.0, "end_s": 3.0}
    row |= {"width": 640, "height": 480, "status": "ok", "tool_version": "0", "config_hash": "0"}
    return row | {"fingerprint": None if hashes is None else hashes.tolist()} | values


def _dataset(folder, rows, num_files=2):
    (folder / "trajectories").mkdir()
    for k in range(num_files):
        pq.write_table(
            table_from_rows(rows[k::num_files], TRAJECTORIES), folder / "trajectories" / f"{k:02x}.parquet"
        )
    return DuplicatesConfig(dataset=folder)


def _groups(table):
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["group_id"], set()).add(row["clip_id"])
    return {frozenset(group) for group in found.values()}


def _all_pairs(rows, config):
    """The same groups the slow way: every pair compared, whatever half of a hash they share."""
    group = {row["clip_id"]: {row["clip_id"]} for row in rows}
    for first, second in itertools.combinations(rows, 2):
        hashes = (np.array(row["fingerprint"]) for row in (first, second))
        if agreement(*hashes, config.max_bits) >= config.min_share:
            joined = group[first["clip_id"]] | group[second["clip_id"]]
            group |= dict.fromkeys(joined, joined)
    return {frozenset(members) for members in group.values() if len(members) > 1}


def test_groups_are_those_of_all_pairs(tmp_path):
    rng = np.random.default_rng(0)
    hashes = _random_hashes(rng, 60)
    rows = [_row(f"c{k:03}", h) for k, h in enumerate(hashes)]
    for k in range(12):
        rows.append(_row(f"d{k:03}", _flipped(hashes[k], rng, 2)))
        rows.append(_row(f"e{k:03}", _flipped(hashes[k], rng, 9)))  # too far
    rows.append(_row("f", _flipped(np.array(rows[60]["fingerprint"]), rng, 2)))  # a copy of a copy
    config = _dataset(tmp_path, rows)
    found = find_duplicates(config)
    assert _groups(found.table) == _all_pairs(rows, config)
    assert len(_groups(found.table)) == 12
    assert found.num_clips == len(rows)
    assert found.num_pairs < 200  # of 3570


def test_sorting_in_parts_gives_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    hashes = _random_hashes(rng, 40)
    rows = [_row(f"c{k:03}", h) for k, h in enumerate([*hashes, *(_flipped(h, rng, 1) for h in hashes[:9])])]
    config = _dataset(tmp_path, rows)
    whole = find_duplicates(config)
    monkeypatch.setattr(duplicates, "_BYTES_PER_HASH", 16e6)  # as if 882 hashes took 14 GB
    parts = find_duplicates(config)
    assert parts.table.equals(whole.table)
    assert parts.num_pairs == whole.num_pairs == 9


def test_a_copy_may_be_longer_shorter_or_cropped(tmp_path):
    rng = np.random.default_rng(2)
    hashes = _random_hashes(rng)[0]
    part = hashes[3 : 3 * 5]  # four looks of the six
    cropped = _random_hashes(rng)[0]
    cropped[0::3] = hashes[2::3]  # its whole picture is the original's middle
    rows = [_row("whole", hashes), _row("part", part, end_s=2.0), _row("crop", cropped)]
    table = find_duplicates(_dataset(tmp_path, [*rows, _row("other", _random_hashes(rng)[0])])).table
    assert _groups(table) == {frozenset({"whole", "part", "crop"})}


def test_exact_copies_and_the_one_to_keep(tmp_path):
    rng = np.random.default_rng(3)
    first, second = _random_hashes(rng, 2)
    rows = [
        _row("a", first, pixels_hash="same"),
        _row("b", first, pixels_hash="same", end_s=4.0),
        _row("c", _flipped(second, rng, 1)),
        _row("d", second, width=1280, height=720),
        _row("e", None),
    ]
    table = {row["clip_id"]: row for row in find_duplicates(_dataset(tmp_path, rows)).table.to_pylist()}
    assert {name: row["kind"] for name, row in table.items()} == {
        "a": "exact",
        "b": "exact",
        "c": "near",
        "d": "near",
    }
    assert {name for name, row in table.items() if row["is_representative"]} == {"b", "d"}  # longer; larger
    assert table["a"]["group_id"] == "b"
    assert table["c"]["group_size"] == 2
    assert table["a"]["similarity"] == table["c"]["similarity"] == 1.0


def test_a_picture_that_all_share_joins_nobody_and_costs_no_square(tmp_path):
    """A title card in one look of six."""
    rng = np.random.default_rng(4)
    hashes = _random_hashes(rng, 300)
    hashes[:, :3] = hashes[0, :3]
    config = _dataset(tmp_path, [_row(f"c{k:03}", h) for k, h in enumerate(hashes)])
    found = find_duplicates(config)
    assert found.table.num_rows == 0
    assert found.num_pairs <= 300 * config.max_met


def test_command_writes_the_table_and_counts(tmp_path, capsys):
    rng = np.random.default_rng(5)
    hashes = _random_hashes(rng, 3)
    _dataset(tmp_path, [*(_row(f"c{k}", h) for k, h in enumerate(hashes)), _row("d", hashes[1])])
    assert main(DuplicatesConfig(dataset=tmp_path, json=True)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["clips"], printed["groups"], printed["copies"]) == (4, 1, 1)
    written = pq.read_table(printed["table"])
    assert written.schema.equals(DUPLICATES, check_metadata=False)
    assert set(written["clip_id"].to_pylist()) == {"c1", "d"}
    assert [path.name for path in (tmp_path / "duplicates").iterdir()] == ["duplicates.parquet"]


def test_no_dataset_and_no_fingerprints_are_said(tmp_path, capsys):
    assert main(DuplicatesConfig(dataset=tmp_path)) == 1
    assert "worldline annotate" in capsys.readouterr().err
    (tmp_path / "trajectories").mkdir()
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "trajectories" / "00.parquet")
    assert main(DuplicatesConfig(dataset=tmp_path)) == 1
    assert "fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [{"max_bits": 40}, {"min_share": 0.0}, {"max_met": 0}, {"memory_gb": 0.0}]
)
def test_senseless_settings_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DuplicatesConfig(dataset=tmp_path, **settings)

"""Commits: durable, whole, journalled before they appear, and safe against full disks and dying writers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from worldline.datasets import commit_log
from worldline.datasets.commit_log import CommitLog, broken_units, commits, parquet_bytes, read_unit


def _table(value: int) -> pa.Table:
    return pa.table({"value": [value], "text": ["x" * 1000]})


def _unit(out: Path, name: str) -> Path:
    return out / "stages" / "videos" / "ab" / "abcd" / f"{name}.parquet"


def test_a_commit_is_readable_and_has_its_line(tmp_path: Path) -> None:
    log = CommitLog(tmp_path, "run1")
    data = parquet_bytes(_table(7))
    log.commit(_unit(tmp_path, "one"), data, stage="clip", status="ok")
    table = read_unit(_unit(tmp_path, "one"))
    assert table is not None
    assert table.equals(_table(7))
    (line,) = commits(tmp_path)
    assert line["unit"] == "stages/videos/ab/abcd/one.parquet"
    assert line["sha256"] == hashlib.sha256(data).hexdigest()
    assert (line["stage"], line["status"]) == ("clip", "ok")
    assert broken_units(tmp_path) == []


def test_equal_rows_give_equal_bytes() -> None:
    assert parquet_bytes(_table(1)) == parquet_bytes(_table(1))
    assert parquet_bytes(_table(1)) != parquet_bytes(_table(2))


def test_the_line_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies at the rename leaves a line and no file: the unit is not done, and nothing is
    broken."""

    def die(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commit_log.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        CommitLog(tmp_path, "run1").commit(_unit(tmp_path, "one"), b"data")
    assert [line["unit"] for line in commits(tmp_path)] == ["stages/videos/ab/abcd/one.parquet"]
    assert list(_unit(tmp_path, "one").parent.iterdir()) == []
    assert broken_units(tmp_path) == []


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    log = CommitLog(tmp_path, "run1")
    for name in ("one", "two"):
        log.commit(_unit(tmp_path, name), b"data")
    (journal,) = (tmp_path / "commits").iterdir()
    journal.write_bytes(journal.read_bytes()[:-5])
    assert [line["unit"][-11:] for line in commits(tmp_path)] == ["one.parquet"]


@pytest.mark.parametrize("position", [0.1, 0.3, 0.5])
def test_a_damaged_unit_counts_as_not_done(tmp_path: Path, position: float) -> None:
    path = _unit(tmp_path, "one")
    CommitLog(tmp_path).commit(path, parquet_bytes(pa.table({"value": os.urandom(4000).hex(" ").split()})))
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 0x10
    path.write_bytes(data)
    assert read_unit(path) is None
    assert broken_units(tmp_path) == ["stages/videos/ab/abcd/one.parquet"]
    path.write_bytes(data[:-20])
    assert read_unit(path) is None


def test_a_file_without_a_line_is_reported(tmp_path: Path) -> None:
    path = _unit(tmp_path, "foreign")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")
    assert broken_units(tmp_path) == ["stages/videos/ab/abcd/foreign.parquet"]


def test_two_writers_have_two_journals(tmp_path: Path) -> None:
    for _ in range(2):
        CommitLog(tmp_path, "run1").commit(_unit(tmp_path, "one"), b"same")
    assert len(list((tmp_path / "commits").iterdir())) == 2


_FILL = """
import sys
from pathlib import Path
from worldline.datasets.commit_log import CommitLog
out = Path(sys.argv[1])
log = CommitLog(out, "run")
log.commit(out / "small", b"s" * 100)
for name, size in (("big", 50_000), ("after", 100)):
    try:
        log.commit(out / name, b"b" * size)
    except OSError as error:
        print(error.errno, Path(error.filename).name)
"""


def test_a_full_disk_names_the_file_and_spoils_nothing(tmp_path: Path) -> None:
    """A file size limit of the kernel stands for the full disk: writing fails half way, as it does there."""
    done = subprocess.run(
        [sys.executable, "-c", _FILL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    number, name = done.stdout.split()
    assert int(number) == errno.EFBIG
    assert name == "big"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "commits", "small"]
    assert [line["unit"] for line in commits(tmp_path)] == ["small", "after"]


def test_a_journal_that_cannot_grow_keeps_whole_lines(tmp_path: Path) -> None:
    script = _FILL.replace("50_000", "100").replace('"after", 100', '"last", 100')
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
    )
    (journal,) = (tmp_path / "commits").iterdir()
    lines = journal.read_text().splitlines()
    assert journal.read_text().endswith("\n")
    assert {json.loads(line)["unit"] for line in lines} == {p.name for p in tmp_path.iterdir()} - {"commits"}

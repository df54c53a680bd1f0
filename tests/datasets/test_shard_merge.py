"""Merging small shards: the same clips in fewer files, whatever kill comes between the steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from worldline.datasets.compact import CompactConfig, compact
from worldline.datasets.compact import main as compact_main
from worldline.datasets.loader import Loader, LoaderConfig
from worldline.datasets.sample_order import OrderConfig, SampleOrder
from worldline.datasets.shard_format import PLACE, ShardDir
from worldline.datasets.shard_index import select
from worldline.datasets.shard_plan import merge_state, planned_shards
from worldline.datasets.verify import verify
from worldline.datasets.withdraw import WithdrawConfig, withdraw

PLACES = [field.name for field in PLACE]


@pytest.fixture(scope="module")
def daily(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> tuple[Path, Path]:
    """A dataset and its shards after seven passes of one clip of 16 frames; 60 would go into a shard.

    The third clip has no path, so that its shard is empty and its row a rejected one.
    """
    root = tmp_path_factory.mktemp("daily")
    video = media.numbered(root / "v.mp4", count=210, fps=30)
    rows = posed.rows_of_video(video, [(k, k + 30) for k in range(0, 210, 30)])
    rows[2]["world_from_cam"] = None
    rows[4]["source"] = "other"
    for count in range(1, len(rows) + 1):
        dataset = posed.write_table(root / "dataset", rows[:count])
        posed.make_shards(dataset, root / "shards")
    return dataset, root / "shards"


@pytest.fixture
def shards(daily: tuple[Path, Path], tmp_path: Path) -> Path:
    return copied(daily[1], tmp_path / "copy")


def copied(folder: Path, target: Path) -> Path:
    """With the times of files, which the index's stamps name."""
    shutil.copytree(folder, target, copy_function=shutil.copy2)
    return target


@pytest.fixture(scope="module")
def merged(daily: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copied(daily[1], tmp_path_factory.mktemp("merged") / "copy")
    compact(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Everything but journals and stamps, which name times, and what a killed process had begun to write."""
    kept = ("shards", "parts", "plan", "index", "index.json")
    found = [path for name in kept for path in (folder / name).rglob("*") or []]
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in found if p.is_file() and p.suffix != ".tmp"
    }


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [row for path in sorted((folder / "index").iterdir()) for row in pq.read_table(path).to_pylist()]
    return sorted(found, key=lambda row: (row["start_s"], row["shard"] or ""))


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """Each selected clip's members, read and checked by the loader."""
    selection = select(folder)
    config = LoaderConfig(global_batch=1, epochs=1, max_replaced_share=0.0, max_replacements=1)
    samples = list(Loader(selection, config).samples())
    assert len(samples) == len(selection)
    return {s["__key__"]: {"json": json.dumps(s["json"]).encode(), "mp4": s["mp4"]} for s in samples}


def names(folder: Path) -> list[int]:
    return [int(path.stem.rsplit("-", 1)[1]) for path in sorted((folder / "shards").glob("w*"))]


def test_small_shards_become_few_with_the_same_clips(daily, merged) -> None:
    before = daily[1]
    assert names(before) == list(range(7))
    # 16 frames each and none of the third: four and three of them make 48 frames.
    assert names(merged) == [7, 8]
    assert [n for n, _ in planned_shards(ShardDir(merged))] == [7, 8]
    assert contents(merged) == contents(before)
    stripped = [
        [{name: value for name, value in row.items() if name not in PLACES} for row in rows(folder)]
        for folder in (before, merged)
    ]
    assert stripped[0] == stripped[1]
    assert [row["status"] for row in rows(merged)].count("rejected") == 1
    assert verify(merged) == []
    assert json.loads((merged / "index.json").read_text()) == ["index-000000.parquet"]
    with tarfile.open(ShardDir(merged).tar(7)) as tar:
        listed = [name.split(".")[0] for name in tar.getnames()]
    assert listed == [row["clip_id"] for row in rows(merged)[:4] if row["status"] == "ok" for _ in range(2)]


def test_the_same_folder_gives_the_same_files_and_a_second_run_nothing(merged, shards) -> None:
    gone = compact(shards)
    assert gone["shards"] == 5
    assert files(shards) == files(merged)
    assert compact(shards) == {"clips": 0, "shards": 0, "bytes": 0}
    assert files(shards) == files(merged)


def test_the_order_is_that_of_the_new_index(merged) -> None:
    selection = select(merged)
    config = LoaderConfig(global_batch=4, order=OrderConfig(seed=3))
    order = SampleOrder(len(selection), OrderConfig(seed=3)).samples(np.arange(24))
    expected = [key.decode() for key in selection.records["clip_id"][order]]
    for world_size in (1, 3):
        ranks = [
            Loader(selection, LoaderConfig(**facts(config) | {"rank": rank, "world_size": world_size}))
            for rank in range(world_size)
        ]
        steps = zip(*ranks, strict=False)
        found = [
            s["__key__"] for _, step in zip(range(6), steps, strict=False) for part in step for s in part
        ]
        assert found == expected


def facts(config: LoaderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("global_batch", "order")}


def test_passes_go_on_after_a_merge(merged, daily, tmp_path, media, posed) -> None:
    folder = copied(merged, tmp_path / "s")
    posed.make_shards(daily[0], folder)
    assert files(folder) == files(merged)  # What was planned once is not cut again.
    table = pq.read_table(next((daily[0] / "trajectories").iterdir())).to_pylist()
    newer = [row | {"config_hash": "newer"} for row in table[:2]]
    posed.write_table(tmp_path / "d", newer)
    posed.make_shards(tmp_path / "d", folder)
    assert names(folder) == [7, 8, 9]
    assert set(select(folder).records["shard"].tolist()) == {7, 8, 9}
    before = contents(folder)
    gone = compact(folder)
    assert gone["clips"] == 2
    # What is left of 7 is small now and 9 is not: 32 of 60 frames.
    assert names(folder) == [7, 8, 9]
    assert contents(folder) == before
    assert verify(folder) == []


def test_two_outcomes_of_a_clip_stay_two_rows(daily, shards, tmp_path, posed) -> None:
    table = pq.read_table(next((daily[0] / "trajectories").iterdir())).to_pylist()
    clip_id = table[5]["clip_id"]
    posed.write_table(tmp_path / "d", [table[5] | {"config_hash": "newer", "world_from_cam": None}])
    posed.make_shards(tmp_path / "d", shards)
    before = contents(shards)
    compact(shards)
    both = [row for row in rows(shards) if row["clip_id"] == clip_id]
    assert sorted(row["status"] for row in both) == ["ok", "rejected"]
    assert {row["shard"] for row in both if row["shard"]} == {"worldline-00000009.tar"}
    assert contents(shards) == before
    assert verify(shards) == []
    ShardDir(shards).part(9).unlink()
    verify(shards, repair=True)
    assert contents(shards) == before
    assert verify(shards) == []
    assert withdraw(WithdrawConfig(folder=shards, reason="asked to", source="other")).clips == 1
    assert contents(shards).keys() == before.keys() - {table[4]["clip_id"]}
    assert verify(shards) == []


KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from worldline.datasets.compact import compact

folder, target = Path(sys.argv[1]), Path(sys.argv[2])
for step in range(1000):
    copy = target / f"{step:03d}"
    shutil.copytree(folder, copy, copy_function=shutil.copy2)
    child = os.fork()
    if child == 0:
        steps = iter(range(1000))

        def stepping(call):
            def stepped(*arguments, **more):
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **more)

            return stepped

        os.replace, os.unlink = stepping(os.replace), stepping(os.unlink)
        Path.unlink = lambda self, missing_ok=False: os.path.lexists(self) and os.unlink(self)
        compact(copy)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_a_kill_between_any_two_steps_loses_nothing(daily, merged, tmp_path) -> None:
    """The process is killed before its n-th rename or deletion, for every n."""
    expected, before = files(merged), contents(daily[1])
    killed = tmp_path / "killed"
    killed.mkdir()
    command = [sys.executable, "-c", KILLER, str(daily[1]), str(killed)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=250)
    copies = sorted(killed.iterdir())
    # At least the plan, two tars, two parts, an index, and the deletion of seven tars and parts.
    assert len(copies) > 20
    states = set()
    for copy in copies:
        assert contents(copy) == before
        state = merge_state(ShardDir(copy))
        states.add((len(state.pending), len(state.retired), len(names(copy))))
        problems = {problem.kind for problem in verify(copy)}
        assert problems <= {"merge_unfinished", "index"}
        if state.pending:
            assert "merge_unfinished" in problems
        compact(copy)
        assert files(copy) == expected
        assert verify(copy) == []
        shutil.rmtree(copy)
    # Before and after the plan, one shard of two made, both made, and while the seven went.
    assert {(0, 0, 7), (2, 0, 7), (1, 4, 8), (0, 7, 9), (0, 7, 5), (0, 7, 2)} <= states


def test_a_damaged_shard_is_not_merged(daily, shards, merged, posed, capsys) -> None:
    path = ShardDir(shards).tar(5)
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    assert compact_main(CompactConfig(folder=shards)) == 1
    assert "worldline-00000005.tar is damaged" in capsys.readouterr().err
    assert {"merge_unfinished", "tar_damaged"} <= {problem.kind for problem in verify(shards)}
    verify(shards, repair=True)
    # The shards of the other merge, which was made before the damage was met, are still there too.
    assert {problem.kind for problem in verify(shards)} == {"not_written", "merge_unfinished"}
    posed.make_shards(daily[0], shards)
    compact(shards)
    assert files(shards) == files(merged)
    assert verify(shards) == []


def test_a_merged_shard_that_is_lost_is_made_again(daily, merged, tmp_path, posed) -> None:
    folder = copied(merged, tmp_path / "tar")
    path = ShardDir(folder).tar(7)
    path.write_bytes(path.read_bytes()[:5000])
    assert [problem.kind for problem in verify(folder)] == ["tar_damaged"]
    verify(folder, repair=True)
    assert [problem.kind for problem in verify(folder)] == 4 * ["not_written"]
    posed.make_shards(daily[0], folder)
    compact(folder)
    assert files(folder) == files(merged)

    folder = copied(merged, tmp_path / "part")
    ShardDir(folder).part(7).unlink()
    assert "index_rows" in {problem.kind for problem in verify(folder)}
    verify(folder, repair=True)
    assert verify(folder) == []
    assert contents(folder) == contents(merged)


def test_a_withdrawn_clip_is_in_no_file_of_an_unfinished_merge(daily, tmp_path) -> None:
    whole = select(daily[1], "source = 'other'")
    clip_id = whole.records["clip_id"][0]
    for cut in ("part", "nothing"):
        folder = copied(daily[1], tmp_path / cut)
        compact(folder)
        if cut == "part":  # As a kill between the merged tar and its index rows leaves it.
            shutil.copytree(daily[1] / "shards", folder / "shards", dirs_exist_ok=True)
            shutil.copytree(daily[1] / "parts", folder / "parts", dirs_exist_ok=True)
            for number in (7, 8):
                ShardDir(folder).part(number).unlink()
        assert withdraw(WithdrawConfig(folder=folder, reason="asked to", source="other")).clips == 1
        held = [path for path in (folder / "shards").iterdir() if clip_id in path.read_bytes()]
        assert held == []
        compact(folder)
        assert verify(folder) == []
        assert clip_id not in select(folder).records["clip_id"]
        assert len(select(folder)) == 5

"""Verify, append, compact, delete and schema versions, on folders that the job's own stages made."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import worldline
from worldline.datasets.append import append
from worldline.datasets.compact import CompactConfig, compact
from worldline.datasets.compact import main as compact_main
from worldline.datasets.dataset_dir import DatasetDir
from worldline.datasets.schema import SCHEMA_VERSION, TRAJECTORIES, VIDEOS
from worldline.datasets.schema_versions import upgraded, version_of
from worldline.datasets.shard_format import INDEX, ShardDir
from worldline.datasets.shard_index import select
from worldline.datasets.table import assemble_bucket
from worldline.datasets.verify import VerifyConfig, verify
from worldline.datasets.verify import main as verify_main
from worldline.datasets.withdraw import LEDGER, Withdrawal, WithdrawConfig, withdraw, withdrawals


def annotated(
    fake: Any, out: Path, videos: dict[str, str], *, max_pixels: int = 1000, **provenance: str
) -> Path:
    """A dataset folder from text files, one line a scene, through the true stages without Ray."""
    from worldline.annotate.clip import ClipConfig
    from worldline.ray_jobs.annotate import JobConfig, make_work
    from worldline.ray_jobs.stages import AnnotateClip, ScanVideo

    out.parent.mkdir(parents=True, exist_ok=True)
    config = JobConfig(inputs=(), out=out, engine=ClipConfig(max_pixels=max_pixels), **provenance)
    dataset = DatasetDir.open(out)
    buckets = set()
    run = f"run{len(list((out / 'commits').glob('*')))}"
    work = fake.with_fakes(make_work(config, run))
    scan, annotate = ScanVideo(work), AnnotateClip(work)
    for number, (name, lines) in enumerate(videos.items()):
        path = out.parent / f"{name}.mp4"
        path.write_text(lines)
        for row in scan({"input_idx": number, "path": str(path), "rejection": None}):
            assert not row.get("stopped"), row
            done = annotate(row)
            assert not done.get("stopped"), done
            buckets |= set(filter(None, row["buckets"].split(",")))
    for bucket in buckets:
        assemble_bucket(dataset, bucket, worldline.__version__)
    return out


def rows(out: Path, kind: str = "trajectories") -> list[dict[str, Any]]:
    return pq.read_table(out / kind).to_pylist()


def kinds(folder: Path, **more: Any) -> list[str]:
    return sorted(problem.kind for problem in verify(folder, **more))


# Dataset folders


def test_a_sound_dataset_has_no_problem_and_damage_is_found_and_mended(fake, tmp_path) -> None:
    out = annotated(fake, tmp_path / "d", {"a": "ok\nok\nreject", "b": "ok"})
    assert verify(out) == []
    before = {p: p.read_bytes() for p in out.glob("trajectories/*")}
    unit = next(out.glob("stages/videos/*/*/clip.*.parquet"))
    kept = unit.read_bytes()
    for damage, expected in (
        (lambda: next(iter(before)).write_bytes(b"broken"), ["table"]),
        (lambda: next(iter(before)).unlink(), ["table"]),
    ):
        damage()
        assert kinds(out) == expected
        assert kinds(out, repair=True) == expected
        assert verify(out) == []
        assert {p: p.read_bytes() for p in out.glob("trajectories/*")} == before
    unit.write_bytes(kept[:-9] + b"x" + kept[-8:])
    assert "unit_damaged" in kinds(out)
    verify(out, repair=True)
    assert "rows_missing" in kinds(out)  # What only the job itself can mend.
    annotated(fake, out, {"a": "ok\nok\nreject", "b": "ok"})
    assert kinds(out) in ([], ["orphan"])
    assert {p: p.read_bytes() for p in out.glob("trajectories/*")} == before


def test_orphans_and_leftovers(fake, tmp_path) -> None:
    out = annotated(fake, tmp_path / "d", {"a": "ok"})
    sidecar = next((out / "sidecars").glob("*/*"))
    orphan = sidecar.with_name("00000000-0000-0000-0000-000000000000.0123.npz")
    orphan.write_bytes(b"?")
    left, young = (out / "stages" / name for name in (".x.parquet.1.tmp", ".y.parquet.1.tmp"))
    left.write_bytes(b"")
    young.write_bytes(b"")
    os.utime(left, (0, 0))
    assert kinds(out) == ["orphan", "temporary"]
    verify(out, repair=True)
    assert verify(out) == []
    assert young.exists()
    assert not left.exists()
    assert [path.name.split("-", 1)[1] for path in (out / "quarantine").iterdir()] == [orphan.name]
    sidecar.unlink()
    assert kinds(out) == ["sidecar_missing"]


def test_append_is_as_if_annotated_here(fake, tmp_path) -> None:
    first, second = {"a": "ok\nok", "b": "ok\nreject"}, {"b": "ok\nreject", "c": "ok\nok\nok"}
    one = annotated(fake, tmp_path / "v" / "one", first)
    two = annotated(fake, tmp_path / "v" / "two", second)
    whole = annotated(fake, tmp_path / "v" / "whole", first | second)
    counts = append(one, two)
    assert counts == {"videos": 2, "copied": 4, "present": 3, "damaged": 0, "withdrawn": 0}
    for kind in ("trajectories", "videos"):
        # A replay command names the folder it was written for.
        found, expected = ([{**row, "replay": None} for row in rows(out, kind)] for out in (one, whole))
        assert found == expected
    assert verify(one) == []
    assert append(one, two)["copied"] == 0
    next(two.glob("stages/videos/*/*/clip.*.parquet")).write_bytes(b"broken")
    fresh = annotated(fake, tmp_path / "v" / "fresh", {})
    assert append(fresh, two)["damaged"] == 1
    with pytest.raises(ValueError, match=r"dataset\.json"):
        append(one, tmp_path)


def test_compact_keeps_the_rows_and_drops_what_they_replaced(fake, tmp_path) -> None:
    videos = {"a": "ok\nok", "b": "ok\nreject"}
    out = annotated(fake, tmp_path / "d", videos, max_pixels=1000)
    annotated(fake, out, videos, max_pixels=2000)
    before = rows(out)
    assert {row["width"] for row in before if row["status"] == "ok"} == {2000}
    num_units = len(list(out.glob("stages/videos/*/*/clip.*.parquet")))
    gone = compact(out, quiet_s=-1.0)
    assert gone["units"] == num_units / 2 == 4
    assert gone["journals"] >= 2
    assert len(list((out / "commits").iterdir())) == 1
    assert rows(out) == before
    assert verify(out) == []
    assert compact(out, quiet_s=-1.0)["units"] == 0
    assert compact_main(CompactConfig(folder=out)) == 0
    assert compact_main(CompactConfig(folder=tmp_path)) == 1


def test_a_withdrawn_source_is_gone_and_on_record(fake, tmp_path) -> None:
    out = annotated(fake, tmp_path / "d", {"a": "ok\nok"}, source="good", licence="CC0")
    annotated(fake, out, {"b": "ok\nreject", "copy of a": "ok\nok"}, source="bad", licence="unclear")
    assert len(rows(out)) == 4
    config = WithdrawConfig(folder=out, reason="letter of the 3rd", source="bad")
    planned = withdraw(WithdrawConfig(folder=out, reason="try", source="bad", dry_run=True))
    assert len(rows(out)) == 4
    assert not (out / LEDGER).exists()
    gone = withdraw(config)
    assert gone == planned
    assert (gone.videos, gone.clips) == (1, 2)
    # The content of a stays under its own path, whose source may still be used.
    assert {(row["source"], row["path"].rsplit("/", 1)[1]) for row in rows(out)} == {("good", "a.mp4")}
    assert len(rows(out)) == 2
    assert [row["source"] for row in rows(out, "videos")] == ["good"]
    assert verify(out) == []
    lines = [json.loads(line) for line in (out / LEDGER).read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"letter of the 3rd"}
    assert lines[0]["video_id"] is None  # what holds from now on
    assert sorted(line["is_kept"] for line in lines[1:]) == [False, True]
    assert withdraw(config).videos == 0
    assert len((out / LEDGER).read_text().splitlines()) == 3
    for wrong in ({"source": None}, {"source": "x", "reason": " "}):
        with pytest.raises(ValueError, match=r"name a source|reason"):
            WithdrawConfig(**({"folder": out, "reason": "r"} | wrong))


def test_what_was_withdrawn_does_not_come_back(fake, tmp_path) -> None:
    out = annotated(fake, tmp_path / "d", {"a": "ok"}, source="good", licence="CC0")
    annotated(fake, out, {"b": "ok\nreject"}, source="bad", licence="CC0")
    other = annotated(fake, tmp_path / "e", {"c": "ok\nok"}, source="bad", licence="CC0")
    annotated(fake, other, {"d": "reject\nok"}, source="good", licence="CC0")
    withdraw(WithdrawConfig(folder=out, reason="letter of the 3rd", source="bad"))
    assert withdrawals(out) == [Withdrawal("bad", None, "letter of the 3rd")]
    annotated(fake, out, {"b": "ok\nreject", "new": "ok\nok\nok"}, source="bad", licence="CC0")
    assert [row["source"] for row in rows(out)] == ["good"]
    refused = [row for row in rows(out, "videos") if row["status"] == "rejected"]
    assert len(refused) == 2
    assert {row["reason"] for row in refused} == {"withdrawn: letter of the 3rd"}
    counts = append(out, other)
    assert (counts["videos"], counts["withdrawn"]) == (2, 1)
    assert {row["source"] for row in rows(out)} == {"good"}
    assert len(rows(out)) == 3
    assert verify(out) == []
    # Until its lines are taken out; one that a crash tore is none.
    (out / LEDGER).write_text('{"source": "bad", "lic')
    annotated(fake, out, {"b": "ok\nreject"}, source="bad", licence="CC0")
    assert sorted(row["source"] for row in rows(out)) == ["bad", "bad", "good", "good", "good"]


# Shard folders


@pytest.fixture
def shards(shards_made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "shards_copy"
    shutil.copytree(shards_made, copy)
    for stamp in (copy / "stages" / "index").glob("*"):
        stamp.unlink()
    return copy


def damage_tar(root: Path) -> None:
    path = ShardDir(root).tar(1)
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)


def tear_tar(root: Path) -> None:
    path = ShardDir(root).tar(1)
    path.write_bytes(path.read_bytes()[:5000])


def wrong_index(root: Path) -> None:
    """The part states another offset; its own bytes are sound."""
    path = ShardDir(root).part(1)
    table = pq.read_table(path)
    at = table.schema.get_field_index("mp4_offset")
    pq.write_table(table.set_column(at, INDEX.field("mp4_offset"), pa.array([1, 2])), path)


def other_pose(root: Path) -> None:
    path = ShardDir(root).part(1)
    found = pq.read_table(path).to_pylist()
    found[0]["world_from_cam"][3] += 1.0
    pq.write_table(pa.Table.from_pylist(found, INDEX), path)


@pytest.mark.parametrize(
    ("damage", "kind", "is_mended_alone"),
    [
        (damage_tar, "tar_damaged", False),
        (tear_tar, "tar_damaged", False),
        (lambda root: ShardDir(root).tar(1).unlink(), "tar_missing", False),
        (wrong_index, "index_rows", True),
        (other_pose, "index_rows", True),
        (lambda root: ShardDir(root).part(1).write_bytes(b"broken"), "index_rows", True),
        (lambda root: ShardDir(root).part(1).unlink(), "index_rows", True),
        (lambda root: (root / "index" / "index-000000.parquet").unlink(), "index", True),
        (lambda root: (root / "shards" / "worldline-00000077.tar").write_bytes(b"?"), "orphan", True),
    ],
)
def test_damaged_shards_are_found_and_mended(
    shards, shards_made, posed_folder, posed, damage, kind, is_mended_alone
):
    assert verify(shards) == []
    damage(shards)
    assert kind in kinds(shards)
    verify(shards, repair=True)
    left = kinds(shards)
    assert left == ([] if is_mended_alone else ["not_written"])
    if not is_mended_alone:  # The job makes the shard again, byte for byte.
        posed.make_shards(posed_folder, shards)
        assert verify(shards) == []
    for name in ("shards", "index"):
        for path in (shards_made / name).iterdir():
            assert (shards / name / path.name).read_bytes() == path.read_bytes()
    assert select(shards).fingerprint == select(shards_made).fingerprint


def test_a_pickle_in_a_tar_is_found(shards) -> None:
    path = ShardDir(shards).tar(0)
    header = tarfile.TarInfo("9beca774-4f7b-52c7-8244-85b28471733a.pkl").tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(header + path.read_bytes())
    problems = verify(shards)
    assert [p.kind for p in problems] == ["tar_damaged"]
    assert "unsafe_member" in problems[0].detail


def test_clips_leave_the_shards_with_their_licence(tmp_path, media, posed) -> None:
    made = []
    for number, source in enumerate(("good", "bad")):
        video = media.numbered(tmp_path / f"{source}.mp4", count=60, fps=30, seed=number)
        made += posed.rows_of_video(video, [(0, 30), (30, 60)], source=source)
    folder = posed.write_table(tmp_path / "d", made)
    out = posed.make_shards(folder, tmp_path / "s", frames_per_shard=10_000)
    before = {row["clip_id"]: row for row in rows(out, "index")}
    old = ShardDir(out).tar(0).read_bytes()
    gone = withdraw(WithdrawConfig(folder=out, reason="asked to", source="bad"))
    assert gone.clips == 2
    assert gone.size_bytes == len(old) - ShardDir(out).tar(0).stat().st_size > 0
    bad = [row for row in before.values() if row["source"] == "bad"]
    data = ShardDir(out).tar(0).read_bytes()
    for row in bad:
        assert row["clip_id"].encode() not in data
        assert old[row["mp4_offset"] :][: row["mp4_size"]] not in data
    selection = select(out)
    assert {key.decode() for key in selection.records["clip_id"]} == before.keys() - {
        r["clip_id"] for r in bad
    }
    assert verify(out) == []
    assert [row["reason"] for row in rows(out, "index") if row["status"] == "rejected"] == 2 * [
        "withdrawn: asked to"
    ]
    assert json.loads((out / LEDGER).read_text())["clips"] == sorted(row["clip_id"] for row in bad)
    posed.make_shards(folder, out, frames_per_shard=10_000)
    assert len(select(out)) == 2  # The next run of the job does not bring them back.


def test_a_clip_annotated_anew_counts_once_and_compact_drops_the_old(tmp_path, media, posed) -> None:
    video = media.numbered(tmp_path / "v.mp4", count=60, fps=30)
    made = posed.rows_of_video(video, [(0, 30), (30, 60)])
    folder = posed.write_table(tmp_path / "d", made)
    out = posed.make_shards(folder, tmp_path / "s")
    posed.write_table(folder, [row | {"config_hash": "newer"} for row in made])
    posed.make_shards(folder, out)
    selection = select(out)
    assert len(selection) == 2
    assert set(selection.records["shard"].tolist()) == {1}
    gone = compact(out)
    assert gone["clips"] == 2
    assert select(out).fingerprint == selection.fingerprint
    assert verify(out) == []


def test_exit_statuses(shards, tmp_path, capsys) -> None:
    assert verify_main(VerifyConfig(folder=shards)) == 0
    tear_tar(shards)
    assert verify_main(VerifyConfig(folder=shards, json=True)) == 1
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["kind"] == "tar_damaged"
    assert verify_main(VerifyConfig(folder=tmp_path)) == 2


# Schema versions


COLUMNS_OF_VERSION_1 = {
    "clip_id": "string",
    "video_id": "string",
    "start_s": "double",
    "timestamps_s": "list<item: double>",
    "world_from_cam": "list<item: double>",
    "fxfycxcy_px": "list<item: double>",
    "is_registered": "list<item: bool>",
    "sigma_translation": "list<item: double>",
    "scale_status": "string",
    "scale_sigma": "double",
    "degeneracy": "string",
    "num_frames": "int64",
    "status": "string",
    "config_hash": "string",
}
"""Columns that readers of version 1 rely on."""


def test_a_column_that_changes_needs_a_new_version() -> None:
    """Raise SCHEMA_VERSION, add the step to schema_versions.STEPS and the new columns here."""
    assert SCHEMA_VERSION == 1
    stripped = TRAJECTORIES.remove_metadata()
    assert {
        name: str(stripped.field(name).type).replace("element", "item") for name in COLUMNS_OF_VERSION_1
    } == (COLUMNS_OF_VERSION_1)
    assert version_of(VIDEOS) == version_of(INDEX) == SCHEMA_VERSION


def test_older_and_newer_tables() -> None:
    old = pa.schema([("clip_id", pa.string()), ("n", pa.int32())], metadata={"worldline_schema": "1"})
    new = pa.schema(
        [pa.field("clip_id", pa.string(), nullable=False), ("count", pa.int64()), ("added", pa.float64())],
        metadata={"worldline_schema": "2"},
    )
    table = pa.table({"clip_id": ["a"], "n": [3]}, schema=old)
    steps = {1: lambda t: t.rename_columns(["clip_id", "count"])}
    found = upgraded(table, new, current=2, steps=steps)
    assert found.to_pylist() == [{"clip_id": "a", "count": 3, "added": None}]
    assert version_of(found.schema) == 2
    for current, known, message in (
        (0, steps, "update worldline"),
        (2, {}, "no way from"),
        (1, {}, "does not know"),
    ):
        with pytest.raises(ValueError, match=message):
            upgraded(table, new, current=current, steps=known)
    with pytest.raises(ValueError, match="may not be null"):
        upgraded(table.drop_columns(["clip_id", "n"]), new, current=1, steps={})
    with pytest.raises(ValueError, match="count"):
        upgraded(
            pa.table({"clip_id": ["a"], "count": ["x"]}, schema=None).replace_schema_metadata(old.metadata),
            new,
            current=1,
        )
    with pytest.raises(ValueError, match="no schema version"):
        version_of(pa.schema([]))

"""Shards: every frame beside its own pose, equal bytes, plain tar and webdataset, bad tars, plans."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from worldline.annotate.camera import Intrinsics, project
from worldline.annotate.video import probe
from worldline.datasets.clip_video import EncodeConfig, decode_video, encode_video, nearest_frames
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_format import (
    INDEX,
    TAR_END,
    ShardDir,
    json_bytes,
    row_from_json,
    scan_tar,
    shard_number,
    split_member_name,
    tar_member,
)
from worldline.datasets.shard_plan import PlanConfig, clips_of_shard, extend_plan, planned_shards
from worldline.datasets.shards import cut_clip, rows_of_tar, write_shard

ENCODE = EncodeConfig(width=160, height=96)
CLIP = "9beca774-4f7b-52c7-8244-85b28471733a"


@given(
    st.lists(st.floats(0.004, 0.3), min_size=1, max_size=60),
    st.sampled_from([8, 16, 24]),
    st.floats(0, 1e4),
)
def test_each_tick_gets_its_nearest_frame(gaps: list[float], fps: int, start: float) -> None:
    times = start + np.cumsum(gaps)
    chosen = nearest_frames(times, fps)
    ticks = times[0] + np.arange(len(chosen)) / fps
    distance = np.abs(times[None] - ticks[:, None])
    np.testing.assert_allclose(distance[np.arange(len(ticks)), chosen], distance.min(axis=1), atol=3e-6)
    assert ticks[-1] <= times[-1] + 1e-5 < ticks[-1] + 1 / fps + 2e-5
    assert np.all(np.diff(chosen) >= 0)


def test_frames_at_the_rate_itself_are_all_taken() -> None:
    for start in (0.0, 7.123, 3599.98):
        assert nearest_frames(start + np.arange(961) / 16, 16).tolist() == list(range(961))


def test_frame_k_of_the_mp4_is_frame_k(media) -> None:
    frames = [media.numbered_frame(k) for k in range(50)]
    data = encode_video(frames, ENCODE)
    # Many times: x264's AVX-512 differed once in a hundred.
    assert all(data == encode_video(frames, ENCODE) for _ in range(20))
    decoded = decode_video(data)
    assert decoded.shape == (50, 96, 160, 3)
    assert [media.number_of(image) for image in decoded] == list(range(50))
    assert np.abs(decoded.astype(int) - np.stack(frames)).mean() < 6
    for first, count, stride in ((0, 1, 1), (15, 2, 1), (16, 1, 1), (17, 5, 6), (49, 1, 1)):
        part = decode_video(data, first, count, stride)
        np.testing.assert_array_equal(part, decoded[first : first + (count - 1) * stride + 1 : stride])
    with pytest.raises(ClipRejected, match="too_few_frames"):
        decode_video(data, 45, 6)
    for damaged in (data[: len(data) // 2], b"", b"x" * 1000):
        with pytest.raises(ClipRejected):
            decode_video(damaged)


def test_decoding_equals_pyav_frame_by_frame(media) -> None:
    """At widths whose lines PyAV pads, and at all others."""
    for width, height in ((50, 34), (64, 48), (98, 18)):
        config = EncodeConfig(width=width, height=height, crf=30)
        rng = np.random.default_rng(width)
        data = encode_video(rng.integers(0, 256, (20, height, width, 3), dtype=np.uint8), config)
        with av.open(io.BytesIO(data)) as container:
            expected = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        np.testing.assert_array_equal(decode_video(data), expected)
        np.testing.assert_array_equal(decode_video(data, 3, 5, 3), expected[3:16:3])


def test_a_false_count_of_frames_costs_no_memory(media) -> None:
    data = encode_video([media.numbered_frame(k) for k in range(9)], ENCODE)
    at = data.index(b"stts") + 12
    assert int.from_bytes(data[at : at + 4], "big") == 9
    with pytest.raises(ClipRejected, match="does_not_decode"):
        decode_video(data[:at] + (2**31 - 1).to_bytes(4, "big") + data[at + 4 :])
    with pytest.raises(ClipRejected, match="does_not_decode"):
        decode_video(data[:at] + (5).to_bytes(4, "big") + data[at + 4 :])


@pytest.mark.parametrize("fps", [10, 30, 59.94])
def test_each_written_frame_shows_the_number_its_pose_states(tmp_path, media, posed, fps) -> None:
    video = media.numbered(tmp_path / "v.mp4", count=90, fps=fps)
    rows = posed.rows_of_video(video, [(20, 90)])
    clip = cut_clip(rows[0], probe(str(video)), ENCODE)
    shown = [media.number_of(image) for image in decode_video(clip.mp4)]
    poses = np.array(clip.columns["world_from_cam"]).reshape(-1, 3, 4)
    assert shown == poses[:, 0, 3].astype(int).tolist()
    assert shown == [20 + k for k in clip.columns["frame_idx"]]
    assert clip.columns["num_frames"] == len(shown) == len(clip.columns["timestamps_s"])
    np.testing.assert_allclose(np.diff(clip.columns["timestamps_s"]), 1 / 16, atol=1.01 / fps)
    assert (clip.columns["repeated_share"] > 0.3) == (fps == 10)
    np.testing.assert_allclose(clip.columns["sigma_translation"], 0.001 * (np.array(shown) - 20))


def test_variable_rate_keeps_pose_and_picture_together(tmp_path, media, posed) -> None:
    steady = media.numbered(tmp_path / "steady.mp4", count=80, fps=30)
    video = tmp_path / "vfr.mp4"
    media.ffmpeg("-i", steady, "-vf", "select='not(eq(mod(n,7),3))'", "-fps_mode", "vfr", video)
    row = posed.rows_of_video(video, [(5, 60)])[0]
    info = probe(str(video))
    numbers = [media.number_of(image) for image in decode_video(cut_clip(row, info, ENCODE).mp4)]
    # The number in the picture follows from the frame's time in the steady source.
    columns = cut_clip(row, info, ENCODE).columns
    assert numbers == [round(t * 30) for t in columns["timestamps_s"]]


def test_intrinsics_follow_resize_and_crop(tmp_path, media, posed) -> None:
    """A point that projects onto a mark in the source projects onto the same mark in the written picture."""
    row, col = 60, 101
    frames = np.full((40, 96, 160, 3), 30, dtype=np.uint8)
    frames[:, row - 3 : row + 3, col - 3 : col + 3] = 255  # centred on the pixel corner (101, 60)
    video = media.encode(tmp_path / "v.mp4", frames, 16, "-c:v libx264 -crf 4")
    source = posed.rows_of_video(video, [(0, 40)])[0]
    clip = cut_clip(source, probe(str(video)), EncodeConfig(width=128, height=128))
    lens = Intrinsics(fxfycxcy_px=np.array([200.0, 210, 80, 48]), width=160, height=96)
    point = np.array([[(col - 80) / 200, (row - 48) / 210, 1.0]])
    np.testing.assert_allclose(project(point, lens)[0], [col, row])
    written = Intrinsics(
        fxfycxcy_px=np.array(clip.columns["fxfycxcy_px"]).reshape(-1, 4)[0], width=128, height=128
    )
    image = decode_video(clip.mp4)[0].mean(axis=-1) - 30
    y, x = np.mgrid[:128, :128] + 0.5
    weight = np.where(image > 60, image, 0)
    centre = [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()]
    np.testing.assert_allclose(project(point, written)[0], centre, atol=0.15)
    assert clip.columns["reprojection_px"] == pytest.approx(0.5 * 128 / 96, rel=1e-2)


def test_a_clip_that_cannot_be_cut_says_why(tmp_path, media, posed) -> None:
    video = media.numbered(tmp_path / "v.mp4", count=60, fps=30)
    info = probe(str(video))
    row = posed.rows_of_video(video, [(0, 60)])[0]
    for change, reason in (
        ({"video_id": "0" * 32}, "content_changed"),
        ({"world_from_cam": None}, "no_camera_path"),
        ({"timestamps_s": [t + 0.01 for t in row["timestamps_s"]]}, "times_differ"),
        ({"timestamps_s": row["timestamps_s"][:5]}, "too_short"),
    ):
        with pytest.raises(ClipRejected, match=reason):
            cut_clip(row | change, info, ENCODE)
    gone = row | {"path": str(tmp_path / "gone.mp4"), "clip_id": CLIP}
    rows = write_shard([gone, row], tmp_path / "worldline-00000000.tar", ENCODE)
    assert [r["status"] for r in rows] == ["rejected", "ok"]
    assert "not_found" in rows[0]["reason"]


def test_plain_tar_and_webdataset_read_them(shards_made, media) -> None:
    tars = sorted((shards_made / "shards").glob("*.tar"))
    index = {row["clip_id"]: row for row in pq.read_table(shards_made / "index").to_pylist()}
    seen = 0
    for sample in webdataset.WebDataset([str(path) for path in tars], shardshuffle=False):
        row = index[sample["__key__"]]
        facts = row_from_json(sample["json"])
        assert facts["world_from_cam"] == row["world_from_cam"]
        shown = [media.number_of(image) for image in decode_video(sample["mp4"])]
        assert shown == (np.array(facts["world_from_cam"]).reshape(-1, 12)[:, 3] % 1000).astype(int).tolist()
        seen += 1
    assert seen == len(index) == 6
    with tarfile.open(tars[0]) as archive:
        for member in archive.getmembers():
            row = index[member.name.split(".")[0]]
            suffix = member.name.split(".", 1)[1]
            assert (row[f"{suffix}_offset"], row[f"{suffix}_size"]) == (member.offset_data, member.size)


def test_the_same_rows_give_the_same_bytes_and_a_second_run_writes_nothing(
    tmp_path, posed_folder, shards_made, posed
) -> None:
    again = posed.make_shards(posed_folder, tmp_path / "again")
    for kind in ("shards/*.tar", "parts/*/*.parquet", "index/*.parquet", "plan/*.parquet"):
        files = sorted(shards_made.glob(kind))
        assert files
        for path in files:
            assert (again / path.relative_to(shards_made)).read_bytes() == path.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*") if path.is_file()}
    posed.make_shards(posed_folder, again)
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*") if path.is_file()} == before


def test_new_clips_become_new_shards(tmp_path, media, posed) -> None:
    old = media.numbered(tmp_path / "old.mp4", count=40, fps=30)
    new = media.numbered(tmp_path / "new.mp4", count=40, fps=30, seed=5)
    rows = posed.rows_of_video(old, [(0, 40)])
    folder = posed.write_table(tmp_path / "d", rows)
    out = posed.make_shards(folder, tmp_path / "s")
    first = (out / "shards" / "worldline-00000000.tar").read_bytes()
    posed.write_table(folder, rows + posed.rows_of_video(new, [(0, 40)], 1))
    posed.make_shards(folder, out)
    assert len(list((out / "shards").glob("*.tar"))) == 2
    assert (out / "shards" / "worldline-00000000.tar").read_bytes() == first
    assert len(pq.read_table(out / "index")) == 2


def test_plan_keeps_order_and_size(tmp_path, posed_folder) -> None:
    shards = ShardDir(tmp_path)
    assert extend_plan(posed_folder, shards, PlanConfig(frames_per_shard=60), 16) == 6
    assert extend_plan(posed_folder, shards, PlanConfig(frames_per_shard=60), 16) == 0
    assert list(planned_shards(shards)) == [(0, 2), (1, 2), (2, 2)]
    for number in range(3):
        assert sum(clip["num_frames"] for clip in clips_of_shard(shards, number)) <= 60
    few = ShardDir(tmp_path / "few")
    assert extend_plan(posed_folder, few, PlanConfig(where="start_s > 1"), 16) == 3
    for wrong in ("start_s >", "no_such_column = 1", "1 = 1); DROP TABLE rows", "1 = 1) --"):
        with pytest.raises(ValueError, match=r"not one expression|query"):
            extend_plan(posed_folder, ShardDir(tmp_path / "wrong"), PlanConfig(where=wrong), 16)
    with pytest.raises(ValueError, match="query"):
        extend_plan(
            posed_folder,
            ShardDir(tmp_path / "wrong"),
            PlanConfig(where="(SELECT count(*) FROM read_text('/etc/hostname')) > 0"),
            16,
        )


def _tar(path, *members: tuple[str, bytes], kind=tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            archive.addfile(info, io.BytesIO(data))


class _Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/cron.d/x.json",
        "/etc/passwd",
        f"a/{CLIP}.json",
        f"{CLIP}.pkl",
        f"{CLIP}.pyd",
        f"{CLIP}.pth",
        "x.json",
    ],
)
def test_strange_members_are_refused(tmp_path, name) -> None:
    path = tmp_path / "worldline-00000000.tar"
    _tar(path, (name, pickle.dumps(_Trap())))
    with pytest.raises(ClipRejected, match="unsafe_member"):
        list(scan_tar(path))
    with pytest.raises(ValueError, match="not the name"):
        tar_member(name, b"")


def test_links_torn_tars_and_mismatched_members_are_refused(tmp_path) -> None:
    path = tmp_path / "worldline-00000000.tar"
    _tar(path, (f"{CLIP}.json", b""), kind=tarfile.SYMTYPE)
    with pytest.raises(ClipRejected, match="unsafe_member"):
        list(scan_tar(path))
    good = tar_member(f"{CLIP}.json", json_bytes({"clip_id": CLIP})) + tar_member(f"{CLIP}.mp4", b"v" * 700)
    path.write_bytes(good + TAR_END)
    assert next(iter(rows_of_tar(path)))["mp4_size"] == 700
    for length in (len(good), len(good) - 600, 700, 100):
        path.write_bytes(good[:length])
        with pytest.raises(ClipRejected, match="torn"):
            list(scan_tar(path))
    path.write_bytes(b"\x01" * 2048)
    with pytest.raises(ClipRejected, match="not_a_tar"):
        list(scan_tar(path))
    for members in (
        tar_member(f"{CLIP}.mp4", b"v"),
        tar_member(f"{CLIP}.json", json_bytes({"clip_id": CLIP[::-1]})),
        tar_member(f"{CLIP}.json", b"[]"),
    ):
        path.write_bytes(members + TAR_END)
        with pytest.raises(ClipRejected, match="bad_metadata"):
            list(rows_of_tar(path))


def test_a_latent_goes_along_and_a_pickled_one_does_not(tmp_path, posed_folder) -> None:
    row = pq.read_table(posed_folder / "trajectories").to_pylist()[0]
    latent = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    np.save(tmp_path / f"{row['clip_id']}.npy", latent)
    tar = tmp_path / "worldline-00000000.tar"
    written = write_shard([row], tar, ENCODE, latent_dir=tmp_path)[0]
    data = tar.read_bytes()[written["latent.npy_offset"] :][: written["latent.npy_size"]]
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), latent)
    np.save(tmp_path / f"{row['clip_id']}.npy", np.array([_Trap()], dtype=object))
    with pytest.raises(ValueError, match="not a plain"):
        write_shard([row], tar, ENCODE, latent_dir=tmp_path)


def test_names() -> None:
    assert shard_number("worldline-00000042.tar") == 42
    for name in ("../worldline-00000042.tar", "worldline-42.tar", "worldline-00000042.tar.x", ""):
        with pytest.raises(ValueError, match="shard"):
            shard_number(name)
    assert split_member_name(f"{CLIP}.latent.npy") == (CLIP, "latent.npy")


def test_json_keeps_every_bit_and_says_nan_as_null() -> None:
    row = {
        "clip_id": CLIP,
        "world_from_cam": [0.1, float("nan"), 1e-300],
        "scale": float("nan"),
        "caption": None,
    }
    data = json_bytes(row)
    assert json.loads(data)["world_from_cam"][1] is None
    back = row_from_json(data)
    np.testing.assert_array_equal(back["world_from_cam"], row["world_from_cam"])
    assert "caption" not in back


def test_index_columns_are_the_table_and_a_place() -> None:
    assert INDEX.names[0] == "clip_id"
    assert {"shard", "mp4_offset", "latent.npy_crc32", "frame_idx", "scale_sigma"} <= set(INDEX.names)

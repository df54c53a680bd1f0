"""The three modes and kept depth through `annotate_clip`, on rendered and real clips with their truth."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldline.annotate import depth as depth_module
from worldline.annotate.camera import umeyama
from worldline.annotate.clip import ClipConfig, annotate_clip
from worldline.annotate.clip_frames import ClipFrames
from worldline.annotate.depth import DepthConfig, DepthKind, DepthMap, FrameSource
from worldline.annotate.depth_files import DepthFile
from worldline.annotate.given import GivenConfig
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scenes import Scene
from worldline.annotate.video import Span, VideoInfo, probe, read_frames
from worldline.datasets.given_files import load_given
from worldline.datasets.schema import ClipRejected
from worldline.datasets.synthetic import SyntheticClip, SyntheticConfig, write_clip

pytest.importorskip("moderngl")

KITTI = Path(__file__).resolve().parents[3] / "shared" / "data" / "kitti_a"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> SyntheticClip:
    config = SyntheticConfig(
        width=320, height=180, num_frames=60, seed=3, scene="desk", path="orbiting", depth_every=1, crf=12
    )
    return write_clip(config, tmp_path_factory.mktemp("rendered"))


def _annotate(
    path: Path, config: ClipConfig, *, sidecar: Path | None = None, span: Span | None = None
) -> dict[str, Any]:
    info = probe(str(path))
    scene = Scene(span=span or info.span, overlap_s=0.0, num_cuts=0, shot_idx=0)
    return annotate_clip(info, scene, config, sidecar_path=sidecar, given=load_given(str(path), config))


def _centres(row: dict[str, Any]) -> np.ndarray:
    return np.array(row["world_from_cam"]).reshape(-1, 3, 4)[:, :, 3]


@pytest.mark.slow
def test_given_depth_puts_the_path_in_metres(clip: SyntheticClip) -> None:
    given = GivenConfig(depth_path="{folder}/depth_mm")
    row = _annotate(clip.video_path, ClipConfig(mode="gt_depth", given=given))
    assert (row.get("status", "ok"), row["scale_status"]) == ("ok", "metric")
    true = clip.truth.world_from_cam[:, :, 3]
    assert umeyama(true, _centres(row)).scale == pytest.approx(1, abs=0.01)
    assert abs(1 - umeyama(true, _centres(row)).scale) < 2 * row["scale_sigma"]
    assert row["depth_backend"] == "given"
    assert row["depth_frames"] >= 3
    assert row["depth_residuals"] > 300
    assert [cue["name"] for cue in json.loads(row["scale_cues"])] == ["given_depth"]
    relative = GivenConfig(depth_path="{folder}/depth_mm", depth_is_metric=False)
    row = _annotate(clip.video_path, ClipConfig(mode="gt_depth", given=relative))
    assert row["scale_status"] == "up_to_scale"
    assert row["depth_residuals"] > 300


@pytest.mark.slow
def test_given_depth_of_a_later_span_and_of_another_shape(clip: SyntheticClip, tmp_path: Path) -> None:
    """Depth is numbered by the frames of the video, not of the clip."""
    times = clip.truth.timestamps_s
    span = Span(start_s=float(times[20]), end_s=float(times[-1]) + 0.02)
    given = GivenConfig(depth_path="{folder}/depth_mm")
    row = _annotate(clip.video_path, ClipConfig(mode="gt_depth", given=given), span=span)
    true = clip.truth.world_from_cam[20:, :, 3]
    assert umeyama(true, _centres(row)).scale == pytest.approx(1, abs=0.01)
    (tmp_path / "square").mkdir()
    for frame in range(60):
        np.save(tmp_path / "square" / f"{frame:06d}.npy", np.ones((64, 64), np.float32))
    wrong = GivenConfig(depth_path=str(tmp_path / "square"))
    row = _annotate(clip.video_path, ClipConfig(mode="gt_depth", given=wrong))
    assert row["status"] == "rejected"
    assert "another shape" in row["reason"]
    (tmp_path / "late").mkdir()
    np.save(tmp_path / "late" / "000900.npy", np.ones((180, 320), np.float32))
    row = _annotate(
        clip.video_path, ClipConfig(mode="gt_depth", given=GivenConfig(depth_path=str(tmp_path / "late")))
    )
    assert "no given depth in the clip" in row["reason"]


@pytest.mark.slow
def test_a_given_trajectory_is_kept_to_the_last_digit(clip: SyntheticClip, tmp_path: Path) -> None:
    given = GivenConfig(poses_path="{folder}/groundtruth.tum")
    config = ClipConfig(mode="gt_pose", given=given, geometry=ClipConfig().geometry)
    sidecar = tmp_path / "a.npz"
    row = _annotate(clip.video_path, config, sidecar=sidecar)
    np.testing.assert_allclose(
        np.array(row["world_from_cam"]).reshape(-1, 3, 4), clip.truth.world_from_cam, atol=1e-8
    )
    assert (row["status"], row["scale_status"], row["scale"]) == ("ok", "metric", 1.0)
    assert row["given_deviation"] < 0.002
    assert row["given_rotation_deviation_rad"] < np.radians(0.3)
    # The lens is the images' own estimate: only the focal length is fitted again to the given poses.
    assert row["fxfycxcy_px"][0] == pytest.approx(clip.truth.intrinsics.fxfycxcy_px[0, 0], rel=0.04)
    structure = Reconstruction.load(sidecar)
    assert len(structure.points_in_world) > 300
    # The points lie on the rendered surfaces.
    ratio = []
    for frame in np.unique(structure.frame_idx)[:3]:
        here = structure.frame_idx == frame
        points = structure.points_in_world[structure.point_idx[here]]
        z = points @ structure.cam_from_world[frame, 2, :3] + structure.cam_from_world[frame, 2, 3]
        x, y = structure.xy_px[here].astype(int).T
        true = clip.depth_m(int(frame))[y, x]
        ratio.append(z[true > 0] / true[true > 0])
    assert np.median(np.concatenate(ratio)) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_the_metre_of_a_given_trajectory_is_claimed_only_where_something_states_it(
    clip: SyntheticClip,
) -> None:
    given = GivenConfig(poses_path="{folder}/groundtruth.tum", poses_are_metric=False)
    row = _annotate(clip.video_path, ClipConfig(mode="gt_pose", given=given))
    assert row["status"] == "ok"
    assert (row["scale_status"], row["scale"]) == ("up_to_scale", None)


@pytest.mark.slow
def test_trajectories_that_are_not_the_clips_are_refused(clip: SyntheticClip, tmp_path: Path) -> None:
    table = np.loadtxt(clip.groundtruth_path)

    def outcome(rows: np.ndarray) -> str:
        np.savetxt(tmp_path / "t.tum", rows)
        config = ClipConfig(mode="gt_pose", given=GivenConfig(poses_path=str(tmp_path / "t.tum")))
        row = _annotate(clip.video_path, config)
        assert row["status"] == "rejected"
        assert row.get("world_from_cam") is None
        return row["reason"]

    shifted = table.copy()
    shifted[:, 0] += 1000
    assert "do not cover the clip" in outcome(shifted)
    with pytest.raises(ClipRejected, match="is not there"):
        _annotate(clip.video_path, ClipConfig(mode="gt_pose"))
    (tmp_path / "t.tum").write_text("1 2 3\n")
    config = ClipConfig(mode="gt_pose", given=GivenConfig(poses_path=str(tmp_path / "t.tum")))
    with pytest.raises(ClipRejected, match="cannot be read"):
        _annotate(clip.video_path, config)


@pytest.mark.slow
@pytest.mark.skipif(not KITTI.is_dir(), reason=f"no {KITTI}")
def test_real_truth_is_kept_and_agrees_with_what_the_images_show() -> None:
    config = ClipConfig(mode="gt_pose", given=GivenConfig(poses_path="{folder}/groundtruth.tum"))
    row = _annotate(KITTI / "video.mp4", config)
    true = np.loadtxt(KITTI / "groundtruth.tum")
    np.testing.assert_allclose(_centres(row), true[:, 1:4], atol=1e-6)
    assert row["scale_status"] == "metric"
    assert row["given_deviation"] < 0.1
    assert row["given_rotation_deviation_rad"] < np.radians(0.5)
    assert row["num_points"] > 1000


class _Network:
    """Stands in for a metric network: the rendered depth, 4 % too deep, flickering by 5 %."""

    def __init__(self, config: DepthConfig) -> None:
        assert config.weights is not None
        self.folder = Path(config.weights)

    def __call__(
        self, frames: FrameSource, frame_idx: Sequence[int], reconstruction: Reconstruction | None
    ) -> Iterator[DepthMap]:
        import cv2

        assert reconstruction is not None
        for frame in frame_idx:
            image = frames[frame]
            stored = cv2.imread(str(self.folder / f"{frame:06d}.png"), cv2.IMREAD_UNCHANGED)
            assert stored is not None
            assert image.shape[:2] == stored.shape
            z = stored / 1000 * 1.04 * np.exp(0.05 * np.random.default_rng(frame).standard_normal())
            z = np.where(z > 0, z, np.nan).astype(np.float32)
            known = np.isfinite(z).astype(np.float32)
            yield DepthMap(frame_idx=frame, z=z, confidence=known, kind=DepthKind.METRIC, intrinsics=None)


@pytest.mark.slow
def test_a_named_estimator_gives_scale_and_kept_depth_in_the_unit_of_the_path(
    clip: SyntheticClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = types.ModuleType("stand_in_network")
    stand_in.Network = _Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_network", stand_in)
    monkeypatch.setitem(depth_module.BACKENDS, "stand_in", "stand_in_network:Network")
    depth = DepthConfig(backend="stand_in", weights=str(clip.folder / "depth_mm"), stride=20)
    sidecar = tmp_path / "a.npz"
    row = _annotate(clip.video_path, ClipConfig(depth=depth, keep_depth=True), sidecar=sidecar)
    assert row["scale_status"] == "metric"
    scale = umeyama(clip.truth.world_from_cam[:, :, 3], _centres(row)).scale
    assert 1 / scale == pytest.approx(1.04, abs=0.05)
    assert row["depth_backend"] == "stand_in"
    assert row["depth_scale_variation"] == pytest.approx(0.05, abs=0.035)
    with DepthFile(sidecar.with_suffix(".depth.zip")) as file:
        assert file.frame_idx.tolist() == [0, 20, 40]
        assert file.kind is DepthKind.TRAJECTORY
        for frame in file.frame_idx:
            z, true = file.read(int(frame)).z, clip.depth_m(int(frame))
            known = np.isfinite(z) & (true > 0)
            assert np.median(z[known] / true[known]) * scale == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_depth_is_kept_without_any_estimator_named(clip: SyntheticClip, tmp_path: Path) -> None:
    sidecar = tmp_path / "a.npz"
    plane_sweep = DepthConfig(backend="none", stride=25)
    row = _annotate(clip.video_path, ClipConfig(keep_depth=True, depth=plane_sweep), sidecar=sidecar)
    assert row["scale_status"] == "up_to_scale"
    assert row.get("depth_backend") is None
    scale = umeyama(clip.truth.world_from_cam[:, :, 3], _centres(row)).scale
    with DepthFile(sidecar.with_suffix(".depth.zip")) as file:
        assert file.frame_idx.tolist() == [0, 25, 50]
        one = file.read(25)
    import cv2

    true = cv2.resize(clip.depth_m(25), one.z.shape[::-1], interpolation=cv2.INTER_NEAREST)
    known = np.isfinite(one.z) & (true > 0)
    assert known.mean() > 0.4
    assert np.median(scale * one.z[known] / true[known]) == pytest.approx(1, abs=0.01)


def test_frames_by_index_are_those_of_the_decoder_in_any_order(clip: SyntheticClip) -> None:
    info: VideoInfo = probe(str(clip.video_path))
    expected = [frame.image for frame in read_frames(info, max_pixels=20_000)]
    frames = ClipFrames(info, info.timestamps_s, max_pixels=20_000)
    assert len(frames) == 60
    for frame in (5, 6, 59, 0, 30, 29, 31):
        np.testing.assert_array_equal(frames[frame], expected[frame])
    with pytest.raises(IndexError):
        frames[60]
    later = ClipFrames(info, info.timestamps_s[20:], max_pixels=20_000)
    np.testing.assert_array_equal(later[3], expected[23])

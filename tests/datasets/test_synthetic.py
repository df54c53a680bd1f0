"""Rendered clips: images agree with poses and depth, files hold the truth, options do what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from worldline.annotate.camera import (
    Intrinsics,
    compose,
    invert,
    project,
    rotation_from_quat_xyzw,
    transform,
    unproject,
)
from worldline.datasets.camera_paths import PATHS, CameraPath, scene_from_cam
from worldline.datasets.synthetic import (
    ClipRenderer,
    Job,
    SyntheticConfig,
    load_clip,
    main,
    render_clip,
    truth_of,
    write_clip,
)
from worldline.datasets.synthetic_renderer import Renderer
from worldline.datasets.synthetic_scenes import SCENES, build_scene

SMALL = SyntheticConfig(scene="plane", path="handheld", width=192, height=108, num_frames=6)


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def of_frame(intrinsics: Intrinsics, frame_idx: int) -> Intrinsics:
    return dataclasses.replace(intrinsics, fxfycxcy_px=intrinsics.fxfycxcy_px[frame_idx])


def tracking_errors_px(renderer: ClipRenderer, first: int, second: int) -> np.ndarray:
    """[N, 2] tracked minus reprojected positions of still points, by Lucas-Kanade with a backward check."""
    truth = renderer.truth
    image, depth_m, is_moving = renderer.frame(first)
    a, b = grey(image), grey(renderer.image(second))
    start = cv2.goodFeaturesToTrack(a, 300, 0.01, 5)
    options = {"winSize": (13, 13), "maxLevel": 3}
    end, found, _ = cv2.calcOpticalFlowPyrLK(a, b, start, None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(b, a, end, None, **options)
    start, end, back = start[:, 0], end[:, 0], back[:, 0]
    rows_columns = tuple(np.rint(start).astype(int)[:, ::-1].T)
    keep = (found[:, 0] > 0) & (found_back[:, 0] > 0) & (np.linalg.norm(start - back, axis=1) < 0.3)
    keep &= ~is_moving[rows_columns]
    rays = unproject(start[keep].astype(float) + 0.5, of_frame(truth.intrinsics, first))
    z_m = np.minimum(depth_m[rows_columns][keep], 1e6)  # the sky is inf away
    points = rays / rays[:, 2:] * z_m[:, None]
    second_from_first = compose(invert(truth.world_from_cam[second]), truth.world_from_cam[first])
    expected = project(transform(second_from_first, points), of_frame(truth.intrinsics, second))
    return end[keep] + 0.5 - expected


@pytest.mark.parametrize(
    "options",
    [
        {"scene": "plane", "path": "handheld"},
        {"scene": "plane", "path": "zooming", "principal_offset_px": (21.0, -13.0), "pixel_aspect": 1.1},
        {
            "scene": "plane",
            "path": "spline",
            "camera_model": "fisheye",
            "distortion": (0.02, -0.01),
            "fov_x_deg": 110.0,
        },
        {"scene": "corridor", "path": "walking", "num_moving": 2, "moving_share": 0.1},
        pytest.param({"scene": "room", "path": "spline"}, marks=pytest.mark.slow),
        pytest.param({"scene": "desk", "path": "orbiting"}, marks=pytest.mark.slow),
        pytest.param({"scene": "outdoor", "path": "dolly"}, marks=pytest.mark.slow),
        pytest.param({"scene": "street", "path": "driving", "fov_x_deg": 80.0}, marks=pytest.mark.slow),
    ],
    ids=lambda options: f"{options['scene']}-{options['path']}",
)
def test_tracked_points_move_as_depth_and_poses_say(options: dict[str, Any]) -> None:
    config = SyntheticConfig(width=448, height=252, num_frames=60, **options)
    with ClipRenderer(config) as renderer:
        errors = tracking_errors_px(renderer, 20, 23)
    assert len(errors) > 80
    assert np.median(np.linalg.norm(errors, axis=1)) < 0.3
    assert np.abs(np.median(errors, axis=0)).max() < 0.05  # no bias: the pixel origin and the lens are right


def test_frames_are_repeatable_in_any_order_and_differ_by_seed() -> None:
    config = dataclasses.replace(SMALL, noise=3.0, flicker=0.1, motion_blur=0.5)
    frames = list(render_clip(config))
    with ClipRenderer(config) as renderer:
        for frame_idx in (4, 1):
            for again, before in zip(renderer.frame(frame_idx), frames[frame_idx], strict=True):
                np.testing.assert_array_equal(again, before)
    with ClipRenderer(dataclasses.replace(SMALL, seed=1)) as other:
        assert np.abs(other.image(0).astype(int) - frames[0][0]).mean() > 10


def test_truth_starts_at_the_identity_and_knows_gravity() -> None:
    truth = truth_of(dataclasses.replace(SMALL, path="orbiting", num_frames=30))
    np.testing.assert_array_equal(truth.world_from_cam[0], np.eye(3, 4))
    np.testing.assert_allclose(np.linalg.norm(truth.gravity_in_world), 1)
    # The plane scene's camera looks level up to a tremor of the hands: down is the image's y axis.
    assert truth.gravity_in_world[1] > np.cos(np.radians(2))
    assert truth.intrinsics.fxfycxcy_px.shape == (30, 4)
    assert np.degrees(truth.intrinsics.fov_rad()[0, 0]) == pytest.approx(65.0)


@pytest.mark.parametrize(("model", "distortion"), [("radial", (-0.2, 0.03)), ("fisheye", (0.02, -0.01))])
def test_field_of_view_counts_the_lens(model: str, distortion: tuple[float, ...]) -> None:
    config = dataclasses.replace(SMALL, camera_model=model, distortion=distortion, fov_x_deg=90.0)
    assert np.degrees(truth_of(config).intrinsics.fov_rad()[0, 0]) == pytest.approx(90.0, abs=1e-6)


def test_zoom_multiplies_the_focal_length() -> None:
    fx = truth_of(dataclasses.replace(SMALL, path="zooming", num_frames=30)).intrinsics.fxfycxcy_px[:, 0]
    assert fx[-1] / fx[0] == pytest.approx(1.6)
    assert (np.diff(fx) > 0).all()


def test_files_hold_the_truth(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, fps=30_000 / 1001, num_frames=12, depth_every=5)
    clip = write_clip(config, tmp_path / "a clip")
    loaded = load_clip(tmp_path / "a clip")
    assert loaded.config == config
    for name in ("timestamps_s", "world_from_cam", "gravity_in_world"):
        np.testing.assert_array_equal(getattr(loaded.truth, name), getattr(clip.truth, name))
    np.testing.assert_array_equal(loaded.truth.intrinsics.fxfycxcy_px, clip.truth.intrinsics.fxfycxcy_px)
    with av.open(str(clip.video_path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        decoded = [
            (float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(stream)
        ]
    np.testing.assert_allclose([t for t, _ in decoded], clip.truth.timestamps_s, rtol=0, atol=1e-9)
    with ClipRenderer(config) as renderer:
        for frame_idx in (0, 11):
            error = grey(decoded[frame_idx][1]).astype(float) - grey(renderer.image(frame_idx))
            assert 10 * np.log10(255**2 / np.mean(error**2)) > 35
        depth_m = renderer.depth_and_mask(5)[0]
    np.testing.assert_allclose(loaded.depth_m(5), depth_m, atol=0.00051)
    with pytest.raises(ValueError, match="depth_every"):
        loaded.depth_m(4)


def test_tum_file_reads_back_as_the_poses(tmp_path: Path) -> None:
    clip = write_clip(dataclasses.replace(SMALL, path="orbiting", num_frames=8), tmp_path)
    table = np.loadtxt(clip.groundtruth_path)
    np.testing.assert_allclose(table[:, 0], clip.truth.timestamps_s, atol=1e-9)
    np.testing.assert_allclose(table[:, 1:4], clip.truth.world_from_cam[:, :, 3], atol=1e-8)
    rotations = rotation_from_quat_xyzw(table[:, 4:])
    np.testing.assert_allclose(rotations, clip.truth.world_from_cam[:, :, :3], atol=1e-7)


def test_equal_configs_write_equal_bytes(tmp_path: Path) -> None:
    first, second = (write_clip(SMALL, tmp_path / name).video_path.read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_sky_is_infinitely_far_and_stored_as_unknown(tmp_path: Path) -> None:
    config = SyntheticConfig(scene="outdoor", path="static", width=96, height=54, num_frames=1, depth_every=1)
    clip = write_clip(config, tmp_path)
    with ClipRenderer(config) as renderer:
        depth_m, is_moving = renderer.depth_and_mask(0)
    is_sky = np.isinf(depth_m)
    assert 0.05 < is_sky.mean() < 0.9
    assert not is_moving.any()
    np.testing.assert_array_equal(clip.depth_m(0)[is_sky], 0)


# Options


def test_motion_blur_blurs_only_what_moves() -> None:
    still = dataclasses.replace(SMALL, path="static", num_frames=2)
    with ClipRenderer(still) as sharp, ClipRenderer(dataclasses.replace(still, motion_blur=1.0)) as blurred:
        assert np.abs(sharp.image(1).astype(int) - blurred.image(1)).max() <= 1
    fast = dataclasses.replace(SMALL, path="walking", speed_m_s=3.0, num_frames=20)
    with ClipRenderer(fast) as sharp, ClipRenderer(dataclasses.replace(fast, motion_blur=1.0)) as blurred:
        before, after = grey(sharp.image(10)).astype(float), grey(blurred.image(10)).astype(float)
    along = [np.abs(np.diff(g, axis=1)).mean() for g in (before, after)]
    across = [np.abs(np.diff(g, axis=0)).mean() for g in (before, after)]
    assert along[1] < 0.6 * along[0]
    assert across[1] / across[0] > along[1] / along[0]  # the camera moves sideways


def test_noise_has_the_stated_deviation() -> None:
    with ClipRenderer(SMALL) as clean, ClipRenderer(dataclasses.replace(SMALL, noise=5.0)) as noisy:
        a, b = clean.image(2).astype(float), noisy.image(2).astype(float)
    is_mid = (a > 30) & (a < 225)  # clipping narrows the noise at black and white
    assert np.std((b - a)[is_mid]) == pytest.approx(5.0, rel=0.05)
    assert abs(np.mean((b - a)[is_mid])) < 0.2


def test_flicker_scales_whole_frames() -> None:
    still = dataclasses.replace(SMALL, path="static", num_frames=30)
    with ClipRenderer(still) as steady, ClipRenderer(dataclasses.replace(still, flicker=0.2)) as flickering:
        base = steady.image(0).astype(float)
        gains = []
        for frame_idx in range(0, 30, 3):
            frame = flickering.image(frame_idx).astype(float)
            is_mid = (base > 60) & (base < 200)
            gain = np.median(frame[is_mid] / base[is_mid])
            assert np.percentile(np.abs(frame[is_mid] / base[is_mid] - gain), 95) < 0.02
            gains.append(gain)
    assert 0.1 < np.ptp(gains) <= 0.4


def test_low_contrast_textures_leave_flat_surfaces() -> None:
    with ClipRenderer(SMALL) as full, ClipRenderer(dataclasses.replace(SMALL, texture_contrast=0.1)) as bare:
        sharpness = [cv2.Laplacian(grey(r.image(0)), cv2.CV_64F).var() for r in (full, bare)]
    assert sharpness[1] < 0.15 * sharpness[0]


def test_moving_objects_are_masked_and_nothing_else_changes() -> None:
    still = dataclasses.replace(SMALL, path="static", num_frames=31)
    people = dataclasses.replace(still, num_moving=2, moving_share=0.2)
    with ClipRenderer(still) as empty, ClipRenderer(people) as peopled:
        image, depth_m, _ = empty.frame(0)
        for frame_idx in (0, 30):
            with_image, with_depth_m, is_moving = peopled.frame(frame_idx)
            np.testing.assert_array_equal(is_moving, with_depth_m < depth_m - 1e-3)
            near_mask = cv2.dilate(is_moving.astype(np.uint8), np.ones((3, 3))) > 0
            np.testing.assert_array_equal(with_image[~near_mask], image[~near_mask])
            assert 0.05 < is_moving.mean() < 0.5
        assert (peopled.depth_and_mask(0)[1] != peopled.depth_and_mask(30)[1]).mean() > 0.01


@pytest.mark.parametrize(("num", "share"), [(1, 0.4), (2, 0.1)])
def test_moving_objects_cover_about_the_stated_share(num: int, share: float) -> None:
    config = dataclasses.replace(SMALL, num_frames=120, num_moving=num, moving_share=share)
    with ClipRenderer(config) as renderer:
        covered = np.mean([renderer.depth_and_mask(frame_idx)[1].mean() for frame_idx in range(0, 120, 6)])
    assert 0.6 * share < covered < 1.4 * share


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_no_camera_runs_into_anything(scene: str) -> None:
    camera = Intrinsics(fxfycxcy_px=np.array([70.0, 70, 48, 27]), width=96, height=54)
    built = build_scene(scene, seed=3, route_length_m=30.0)
    with Renderer(built.mesh.vertices(), built.mesh.textures()) as renderer:
        for kind in PATHS:
            if {"driving": "street", "excursions": "room"}.get(kind, scene) != scene:
                continue
            poses = scene_from_cam(
                CameraPath(kind, built.space, seed=3, duration_s=8.0)(np.linspace(0, 8, 12))
            )
            for frame_idx, pose in enumerate(poses):
                depth_m, _ = renderer.depth(camera, pose, np.zeros((0, 3, 4)))
                assert depth_m.min() > 0.15, (kind, frame_idx)


@pytest.mark.parametrize(
    "changes",
    [
        {"scene": "moon"},
        {"path": "teleport"},
        {"scene": "room", "path": "driving"},
        {"scene": "desk", "path": "excursions"},
        {"width": 191},
        {"height": 8},
        {"fps": 0.0},
        {"num_frames": 0},
        {"fov_x_deg": 175.0},
        {"camera_model": "radial"},
        {"distortion": (0.1, 0.0)},
        {"motion_blur": 1.5},
        {"noise": -1.0},
        {"moving_share": 1.0},
        {"zoom": 0.0},
    ],
    ids=str,
)
def test_bad_configs_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        SyntheticConfig(**changes)


def test_command_writes_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Job(out=tmp_path / "clip", clip=dataclasses.replace(SMALL, num_frames=2))) == 0
    assert load_clip(tmp_path / "clip").config.num_frames == 2
    assert "2 frames" in capsys.readouterr().out

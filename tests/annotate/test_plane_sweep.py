"""Semi-global aggregation against a slow reference; plane sweep and its depth maps against scenes of known
geometry."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, invert, pixel_centres, transform, unproject
from worldline.annotate.depth import DepthConfig, DepthKind, estimate_depth, iterate_depth
from worldline.annotate.plane_sweep import PlaneSweepConfig, View, sweep
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.semi_global import aggregate_cost
from worldline.annotate.view_selection import select_views

WIDTH, HEIGHT = 160, 120
SMALL = DepthConfig(plane_sweep=PlaneSweepConfig(max_side_px=WIDTH, parallax_px=12.0))


def slow_aggregate(cost, image, small_step, large_step):
    """Hirschmueller's recursion written out pixel by pixel."""
    height, num_labels, width = cost.shape
    total = np.zeros(cost.shape, np.int64)
    for dy, dx in [(1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1)]:
        path = np.zeros(cost.shape, np.int64)
        for y in range(height)[:: dy or 1]:
            for x in range(width)[:: dx or 1]:
                before_y, before_x = y - dy, x - dx
                if not 0 <= before_y < height:
                    path[y, :, x] = cost[y, :, x]
                    continue
                if not 0 <= before_x < width:
                    if dy == 0:
                        path[y, :, x] = cost[y, :, x]
                        continue
                    before_x = min(max(x - dx, 0), width - 1)
                before = path[before_y, :, before_x]
                contrast = abs(int(image[y, x]) - int(image[before_y, before_x]))
                jump = max(small_step, large_step * 16 // (16 + contrast))
                for label in range(num_labels):
                    choices = [before[label], before.min() + jump]
                    if label > 0:
                        choices.append(before[label - 1] + small_step)
                    if label < num_labels - 1:
                        choices.append(before[label + 1] + small_step)
                    path[y, label, x] = cost[y, label, x] + min(choices) - before.min()
        total += path
    return total


def test_aggregation_equals_the_pixelwise_recursion():
    rng = np.random.default_rng(0)
    cost = rng.integers(0, 200, (7, 5, 9)).astype(np.int16)
    image = rng.integers(0, 256, (7, 9)).astype(np.uint8)
    fast = aggregate_cost(cost, image, small_step=11, large_step=90)
    np.testing.assert_array_equal(fast, slow_aggregate(cost, image, 11, 90))


def test_aggregation_refuses_costs_that_overflow():
    cost = np.full((2, 3, 4), 4000, np.int16)
    with pytest.raises(ValueError, match="int16"):
        aggregate_cost(cost, np.zeros((2, 4), np.uint8), small_step=1, large_step=200)


def texture(seed: int) -> np.ndarray:
    """[512, 512] grey with detail at several scales."""
    rng = np.random.default_rng(seed)
    image = sum(
        cv2.resize(rng.normal(size=(n, n)).astype(np.float32), (512, 512), interpolation=cv2.INTER_CUBIC)
        for n in (16, 48, 128)
    )
    return np.clip(128 + 40 * image, 1, 255).astype(np.float32)


TEXTURES = [texture(0), texture(1)]


def render(cam_from_world: np.ndarray, camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """(image [H, W] uint8, z [H, W]) of a slanted wall about 4 away with a panel about 2 away in front of its
    left half."""
    rays = unproject(pixel_centres(np, camera.width, camera.height), camera).reshape(-1, 3)
    world_from_cam = invert(cam_from_world)
    directions, origin = rays @ world_from_cam[:, :3].T, world_from_cam[:, 3]
    nearest = np.full(len(rays), np.inf)
    grey = np.zeros(len(rays), np.float32)
    planes = [(np.array([0.15, 0.1, 1.0]), 4.0, np.inf), (np.array([0.0, -0.1, 1.0]), 2.0, -0.1)]
    for (normal, offset, right), image in zip(planes, TEXTURES, strict=True):
        distance = (offset - origin @ normal) / (directions @ normal)
        points = origin + distance[:, None] * directions
        is_hit = (distance > 0) & (distance < nearest) & (points[:, 0] < right)
        at = (points[:, :2] * 60 + 256).astype(np.float32)
        seen = cv2.remap(image, at[:, 0], at[:, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT).ravel()
        grey[is_hit], nearest[is_hit] = seen[is_hit], distance[is_hit]
    shape = (camera.height, camera.width)
    return np.rint(grey).astype(np.uint8).reshape(shape), (nearest * rays[:, 2]).reshape(shape)


def clip_of(centres: np.ndarray, camera: Intrinsics, turn_rad: float = 0.0):
    """(frames [T, H, W, 3], true z [T, H, W], Reconstruction) of cameras at `centres` [T, 3], turning
    evenly."""
    num_frames = len(centres)
    rotation = Rotation.from_rotvec(np.linspace(0, turn_rad, num_frames)[:, None] * [0.2, 1, 0.1]).as_matrix()
    world_from_cam = np.concatenate([rotation, centres[..., None]], axis=-1)
    cam_from_world = invert(world_from_cam)
    rendered = [render(pose, camera) for pose in cam_from_world]
    frames = np.stack([np.repeat(image[..., None], 3, axis=-1) for image, _ in rendered])
    true_z = np.stack([z for _, z in rendered])
    rng = np.random.default_rng(3)
    rays = unproject(pixel_centres(np, camera.width, camera.height), camera)
    column, row = rng.integers(0, camera.width, 80), rng.integers(0, camera.height, 80)
    middle = num_frames // 2
    points_in_cam = rays[row, column] / rays[row, column, 2:] * true_z[middle, row, column, None]
    reconstruction = Reconstruction(
        timestamps_s=np.arange(num_frames) / 10,
        cam_from_world=cam_from_world,
        intrinsics=Intrinsics(
            fxfycxcy_px=np.tile(camera.fxfycxcy_px, (num_frames, 1)),
            width=camera.width,
            height=camera.height,
            model=camera.model,
            distortion=camera.distortion,
        ),
        points_in_world=transform(world_from_cam[middle], points_in_cam),
        point_rgb=np.zeros((80, 3), np.uint8),
        frame_idx=np.full(80, middle, np.int32),
        point_idx=np.arange(80, dtype=np.int32),
        xy_px=np.stack([column, row], axis=1).astype(np.float32) + 0.5,
    )
    return frames, true_z, reconstruction


PINHOLE = Intrinsics(fxfycxcy_px=np.array([140.0, 138.0, 78.0, 61.0]), width=WIDTH, height=HEIGHT)
FISHEYE = Intrinsics(
    fxfycxcy_px=np.array([90.0, 90.0, 80.0, 60.0]),
    width=WIDTH,
    height=HEIGHT,
    model="fisheye",
    distortion=(-0.02, 0.001),
)
SIDEWAYS = np.linspace(-0.4, 0.4, 9)[:, None] * [1.0, 0.2, 0.0]
FORWARD = np.linspace(-0.6, 0.6, 9)[:, None] * [0.1, 0.0, 1.0]


@pytest.mark.parametrize(
    ("centres", "camera", "turn_rad", "least_complete", "median_error"),
    [
        (SIDEWAYS, PINHOLE, 0.0, 0.8, 0.01),
        (SIDEWAYS, PINHOLE, 0.1, 0.8, 0.01),
        # The epipole lies inside the image: no depth there.
        (FORWARD, PINHOLE, 0.0, 0.55, 0.01),
        # Flattening costs resolution in the middle.
        (SIDEWAYS, FISHEYE, 0.05, 0.7, 0.015),
    ],
    ids=["sideways", "turning", "forward", "fisheye"],
)
def test_depth_of_two_planes(centres, camera, turn_rad, least_complete, median_error):
    frames, true_z, reconstruction = clip_of(centres, camera, turn_rad)
    depth = estimate_depth(frames, SMALL, reconstruction=reconstruction, frame_idx=[4])
    assert depth.kind is DepthKind.TRAJECTORY
    is_known = np.isfinite(depth.z[0])
    np.testing.assert_array_equal(depth.confidence[0] > 0, is_known)
    error = np.abs(depth.z[0] / true_z[4] - 1)[is_known]
    assert is_known.mean() > least_complete
    assert np.median(error) < median_error
    assert (error < 0.1).mean() > 0.95
    np.testing.assert_allclose(depth.intrinsics.fxfycxcy_px, camera.fxfycxcy_px[None])


def test_depth_is_in_the_unit_of_the_trajectory():
    frames, _, one = clip_of(SIDEWAYS, PINHOLE)
    cam_from_world = one.cam_from_world.copy()
    cam_from_world[..., 3] *= 7
    seven = dataclasses.replace(one, cam_from_world=cam_from_world, points_in_world=7 * one.points_in_world)
    small, large = (estimate_depth(frames, SMALL, reconstruction=r, frame_idx=[4]).z[0] for r in (one, seven))
    both = np.isfinite(small) & np.isfinite(large)
    assert both.mean() > 0.8
    np.testing.assert_allclose(np.median(large[both] / small[both]), 7, rtol=1e-4)


def test_a_camera_that_only_turns_has_no_depth():
    frames, _, reconstruction = clip_of(np.zeros((9, 3)), PINHOLE, turn_rad=0.3)
    depth = estimate_depth(frames, SMALL, reconstruction=reconstruction, frame_idx=[4])
    assert not np.isfinite(depth.z).any()
    assert (depth.confidence == 0).all()


def test_a_frame_without_a_pose_has_no_depth_and_hurts_no_other():
    frames, true_z, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    cam_from_world = reconstruction.cam_from_world.copy()
    cam_from_world[2] = np.nan
    reconstruction = dataclasses.replace(reconstruction, cam_from_world=cam_from_world)
    lost, found = iterate_depth(frames, SMALL, reconstruction=reconstruction, frame_idx=[2, 4])
    assert not np.isfinite(lost.z).any()
    is_known = np.isfinite(found.z)
    assert is_known.mean() > 0.7
    assert np.median(np.abs(found.z / true_z[4] - 1)[is_known]) < 0.01


def test_a_thing_that_moves_between_frames_is_mostly_left_out():
    frames, true_z, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    rng = np.random.default_rng(5)
    thing = rng.integers(0, 256, (30, 30, 1)).astype(np.uint8).repeat(3, axis=-1)
    thing = cv2.GaussianBlur(thing, (0, 0), 1.5)
    for t in range(len(frames)):
        frames[t, 80 - 7 * t : 110 - 7 * t, 110:140] = thing
    found = next(iterate_depth(frames, SMALL, reconstruction=reconstruction, frame_idx=[4]))
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[80 - 28 + 5 : 110 - 28 - 5, 115:135] = True
    wrong = np.abs(found.z / true_z[4] - 1) > 0.1  # NaN compares false: unknown is not wrong
    assert wrong[inside].mean() < 0.5
    assert np.isfinite(found.z)[~inside].mean() > 0.7


def test_equal_inputs_give_equal_maps():
    frames, _, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    first, second = (
        estimate_depth(frames, SMALL, reconstruction=reconstruction, frame_idx=[3, 5]) for _ in range(2)
    )
    np.testing.assert_array_equal(first.z, second.z)
    np.testing.assert_array_equal(first.confidence, second.confidence)


def test_sources_have_the_wanted_parallax_and_lie_on_both_sides():
    _, _, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    selection = select_views(reconstruction, 4, num_sources=4, parallax=12 / WIDTH, max_gap=90)
    assert selection is not None
    assert min(selection.sources) < 4 < max(selection.sources)
    z = transform(reconstruction.cam_from_world[4], reconstruction.points_in_world)[:, 2]
    assert selection.near < z.min() * 1.05
    assert selection.far > z.max() * 0.95


def test_a_sweep_needs_sources_and_a_range():
    frames, _, reconstruction = clip_of(SIDEWAYS[:3], PINHOLE)
    view = View(
        gray=frames[0, ..., 0],
        camera_matrix=PINHOLE.matrix(),
        cam_from_world=reconstruction.cam_from_world[0],
    )
    with pytest.raises(ValueError, match="sources"):
        sweep(view, [], 1.0, 2.0, PlaneSweepConfig())
    with pytest.raises(ValueError, match="near < far"):
        sweep(view, [view], 2.0, 1.0, PlaneSweepConfig())


@pytest.mark.parametrize(
    ("frame_idx", "message"), [([3, 2], "increase"), ([0, 9], "outside"), ([-1], "outside")]
)
def test_frames_must_exist_and_increase(frame_idx, message):
    frames, _, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    with pytest.raises(ValueError, match=message):
        iterate_depth(frames, SMALL, reconstruction=reconstruction, frame_idx=frame_idx)


def test_plane_sweep_needs_cameras():
    with pytest.raises(ValueError, match="reconstruction"):
        iterate_depth(np.zeros((2, 8, 8, 3), np.uint8), SMALL)


def test_cameras_must_belong_to_the_frames():
    frames, _, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    with pytest.raises(ValueError, match="5 frames but 9 cameras"):
        iterate_depth(frames[:5], SMALL, reconstruction=reconstruction)


def test_no_frame_is_an_error_for_a_stack():
    _, _, reconstruction = clip_of(SIDEWAYS, PINHOLE)
    with pytest.raises(ValueError, match="no frame"):
        estimate_depth(np.zeros((9, 8, 8, 3), np.uint8), SMALL, reconstruction=reconstruction, frame_idx=[])


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="known are none, depth_anything_3"):
        DepthConfig(backend="dept_pro")

"""The ground plane under rendered and real cameras: height, direction, and no ground where there is none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import (
    Intrinsics,
    invert,
    pixel_centres,
    project,
    rotation_from_rotvec,
    transform,
    unproject,
)
from worldline.annotate.ground import Ground, fit_ground
from worldline.annotate.ground_alignment import GroundConfig
from worldline.annotate.reconstruction import Reconstruction

WIDTH, HEIGHT = 320, 240
LENSES = {
    "pinhole": Intrinsics(fxfycxcy_px=np.array([220.0, 220.0, 160.0, 120.0]), width=WIDTH, height=HEIGHT),
    "fisheye": Intrinsics(
        fxfycxcy_px=np.array([160.0, 160.0, 162.0, 118.0]),
        width=WIDTH,
        height=HEIGHT,
        model="fisheye",
        distortion=(0.06, -0.002),
    ),
}
KITTI = Path(__file__).parents[3] / "shared" / "data" / "kitti_a"


class FlatWorld:
    """A textured plane y = height_m (y down) seen by a camera that moves forward with a bob, pitch and
    roll."""

    def __init__(
        self, *, lens: str = "pinhole", height_m: float = 1.6, pitch: float = 0.3, roll: float = 0.04
    ) -> None:
        self.intrinsics = LENSES[lens]
        self.height_m = height_m
        times = np.arange(45) / 15
        tilt = rotation_from_rotvec(np.array([-pitch, 0.0, 0.0])) @ rotation_from_rotvec(
            np.array([0.0, 0.0, roll])
        )
        sway = rotation_from_rotvec(
            np.stack([0.02 * np.sin(9 * times), 0.03 * np.sin(2 * times), 0 * times], axis=-1)
        )
        self.world_from_cam = np.zeros((45, 3, 4))
        self.world_from_cam[:, :, :3] = sway @ tilt
        self.world_from_cam[:, :, 3] = np.stack(
            [0.05 * np.sin(6 * times), 0.03 * np.sin(12 * times), 1.4 * times], axis=-1
        )
        self.times = times
        rng = np.random.default_rng(0)
        noise = sum(
            cv2.resize(rng.normal(0, 1, (n, n)), (2048, 2048), interpolation=cv2.INTER_CUBIC)
            for n in (128, 512)
        )
        self.texture = np.clip(128 + 30 * noise, 0, 255).astype(np.float32)  # 12 m a side, repeated

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        rays = unproject(pixel_centres(np, WIDTH, HEIGHT).reshape(-1, 2), self.intrinsics)
        for index in indices:
            rotation, centre = self.world_from_cam[index, :, :3], self.world_from_cam[index, :, 3]
            directions = rays @ rotation.T
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = (self.height_m - centre[1]) / directions[:, 1]
                hit = centre + distance[:, None] * directions
                on_ground = (distance > 0) & (distance < 40)
            at = np.where(on_ground[:, None], hit[:, [0, 2]] / 12 % 1 * 2048, 0).astype(np.float32)
            at = at.reshape(HEIGHT, WIDTH, 2)
            values = cv2.remap(
                self.texture, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
            ).ravel()
            values = np.where(on_ground, values, 200)
            yield index, values.reshape(HEIGHT, WIDTH).round().astype(np.uint8)

    def reconstruction(self, unit_m: float, points_m: np.ndarray | None = None) -> Reconstruction:
        """Exact poses in units of `unit_m` metres, all points seen wherever they project."""
        points = np.zeros((0, 3)) if points_m is None else points_m
        cam_from_world = invert(self.world_from_cam)
        fxfycxcy = np.tile(self.intrinsics.fxfycxcy_px, (len(self.times), 1))
        intrinsics = dataclasses.replace(self.intrinsics, fxfycxcy_px=fxfycxcy)
        pixels = project(transform(cam_from_world, points), intrinsics)
        with np.errstate(invalid="ignore"):
            is_seen = ((pixels > 0) & (pixels < [WIDTH, HEIGHT])).all(axis=-1)
        frame_idx, point_idx = np.nonzero(is_seen)
        cam_from_world[:, :, 3] /= unit_m
        return Reconstruction(
            timestamps_s=self.times,
            cam_from_world=cam_from_world,
            intrinsics=intrinsics,
            points_in_world=points / unit_m,
            point_rgb=np.zeros((len(points), 3), dtype=np.uint8),
            frame_idx=frame_idx.astype(np.int32),
            point_idx=point_idx.astype(np.int32),
            xy_px=pixels[is_seen].astype(np.float32),
        )

    def true_heights_m(self, ground: Ground) -> np.ndarray:
        return self.height_m - self.world_from_cam[ground.frame_idx, 1, 3]


@pytest.mark.parametrize(("lens", "unit_m"), [("pinhole", 0.02), ("fisheye", 7.0)])
def test_height_from_frames_is_right_for_any_lens_and_unit(lens: str, unit_m: float) -> None:
    world = FlatWorld(lens=lens)
    ground = fit_ground(world.reconstruction(unit_m), GroundConfig(), grey_frames=world.frames)
    assert ground is not None
    assert ground.method == "photometric"
    ratio = ground.height * unit_m / world.true_heights_m(ground)
    assert np.median(ratio) == pytest.approx(1, abs=0.006)
    assert np.degrees(np.arccos(np.clip(-ground.up_in_world[:, 1], -1, 1))).max() < 0.7
    assert 0.004 < ground.log_height_sigma < 0.03


def test_height_from_points_agrees_with_open3d_and_truth() -> None:
    rng = np.random.default_rng(1)
    world = FlatWorld()
    floor = np.stack([rng.uniform(-2, 2, 400), rng.normal(1.6, 0.005, 400), rng.uniform(0, 12, 400)], axis=-1)
    things = rng.uniform([-4, -1, 0], [4, 1.5, 12], (150, 3))
    reconstruction = world.reconstruction(0.5, np.concatenate([floor, things]))
    ground = fit_ground(reconstruction, GroundConfig())
    assert ground is not None
    assert ground.method == "sparse"
    np.testing.assert_allclose(ground.height * 0.5, world.true_heights_m(ground), rtol=0.01)

    o3d = pytest.importorskip("open3d")
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(reconstruction.points_in_world))
    plane, _ = cloud.segment_plane(distance_threshold=0.03, ransac_n=3, num_iterations=500)
    centres = world.world_from_cam[ground.frame_idx, :, 3] / 0.5
    peer = np.abs(centres @ plane[:3] + plane[3]) / np.linalg.norm(plane[:3])
    np.testing.assert_allclose(ground.height, peer, rtol=0.01)


def test_a_wall_is_not_the_ground() -> None:
    rng = np.random.default_rng(2)
    wall = np.stack([np.full(600, 2.0), rng.uniform(-2, 1.5, 600), rng.uniform(1, 12, 600)], axis=-1)
    reconstruction = FlatWorld(pitch=0.0).reconstruction(1.0, wall)
    assert fit_ground(reconstruction, GroundConfig()) is None


def test_ground_that_moves_with_the_camera_is_no_ground() -> None:
    world = FlatWorld()
    (_, picture), *_ = world.frames(
        [0]
    )  # a bonnet fills the view: the same picture while the camera moves on
    assert (
        fit_ground(world.reconstruction(1.0), GroundConfig(), grey_frames=lambda i: ((k, picture) for k in i))
        is None
    )


def test_without_motion_or_poses_there_is_no_ground() -> None:
    world = FlatWorld()
    still = world.reconstruction(1.0)
    still = dataclasses.replace(still, cam_from_world=np.tile(still.cam_from_world[:1], (45, 1, 1)))
    assert fit_ground(still, GroundConfig(), grey_frames=world.frames) is None
    unposed = dataclasses.replace(still, cam_from_world=np.full((45, 3, 4), np.nan))
    assert fit_ground(unposed, GroundConfig(), grey_frames=world.frames) is None


def test_a_given_upward_direction_is_used() -> None:
    world = FlatWorld(pitch=0.5, roll=0.35)  # rolled so far that the camera's own up axis misleads
    ground = fit_ground(
        world.reconstruction(1.0),
        GroundConfig(),
        grey_frames=world.frames,
        up_in_world=np.array([0.0, -3.0, 0.0]),
    )
    assert ground is not None
    assert np.median(ground.height / world.true_heights_m(ground)) == pytest.approx(1, abs=0.01)


def test_bent_ground_widens_the_sigma() -> None:
    flat = Ground(
        frame_idx=np.arange(5),
        up_in_world=np.tile([0.0, -1.0, 0.0], (5, 1)),
        height=np.full(5, 2.0),
        bend=np.zeros(5),
        support=np.ones(5),
        method="photometric",
    )
    bent = dataclasses.replace(flat, bend=np.full(5, 0.1))
    assert flat.log_height_sigma < 0.01
    assert bent.log_height_sigma == pytest.approx(0.1, rel=0.02)


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="num_windows"):
        GroundConfig(num_windows=2)
    with pytest.raises(ValueError, match="reach"):
        GroundConfig(reach=0.5)


@pytest.mark.skipif(not KITTI.is_dir(), reason="needs ../shared/data/kitti_a")
def test_camera_height_of_a_real_car() -> None:
    """1.65 m by the data set's description; its poses (GPS and inertial) are locally noisy, hence 5 %."""
    table = np.loadtxt(KITTI / "groundtruth.tum")
    rotation = Rotation.from_quat(table[:, 4:]).as_matrix()
    unit_m = 2.7
    world_from_cam = np.concatenate([rotation, table[:, 1:4, None] / unit_m], axis=-1)
    capture = cv2.VideoCapture(str(KITTI / "video.mp4"))
    pictures = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2GRAY) for _ in range(len(table))]
    height, width = pictures[0].shape
    fx, fy, cx, cy = np.loadtxt(KITTI / "intrinsics.txt")
    reconstruction = Reconstruction(
        timestamps_s=table[:, 0],
        cam_from_world=invert(world_from_cam),
        intrinsics=Intrinsics(fxfycxcy_px=np.array([fx, fy, cx + 0.5, cy + 0.5]), width=width, height=height),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), dtype=np.uint8),
        frame_idx=np.zeros(0, dtype=np.int32),
        point_idx=np.zeros(0, dtype=np.int32),
        xy_px=np.zeros((0, 2), dtype=np.float32),
    )
    ground = fit_ground(reconstruction, GroundConfig(), grey_frames=lambda i: ((k, pictures[k]) for k in i))
    assert ground is not None
    error = math.log(1.65 / (ground.median_height * unit_m))
    assert abs(error) < 0.05
    assert abs(error) < 2.5 * ground.log_height_sigma

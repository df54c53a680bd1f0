"""Fused surfaces against the planes they were rendered from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldline.annotate.camera import Intrinsics, invert, pixel_centres, unproject
from worldline.annotate.depth import DepthKind, DepthMap
from worldline.annotate.fusion import FusionConfig, fuse_depth
from worldline.annotate.reconstruction import Reconstruction
from worldline.datasets.schema import ClipRejected

pytest.importorskip("open3d")

PINHOLE = Intrinsics(fxfycxcy_px=np.array([150.0, 152.0, 81.0, 58.0]), width=160, height=120)
FISHEYE = Intrinsics(
    fxfycxcy_px=np.array([330.0, 330.0, 240.0, 180.0]),
    width=480,
    height=360,
    model="fisheye",
    distortion=(-0.02, 0.001),
)
BOX_HALF = np.array([2.0, 1.5, 3.0])


def room(camera: Intrinsics):
    """(maps, frames, Reconstruction) of 6 cameras inside a box with half sides BOX_HALF; each wall's colour
    is its own."""
    num_frames = 6
    rotation = Rotation.from_rotvec(np.linspace(0, 0.5, num_frames)[:, None] * [0.1, 1, 0]).as_matrix()
    centre = np.linspace(-0.4, 0.4, num_frames)[:, None] * [1, 0.2, 0.5]
    world_from_cam = np.concatenate([rotation, centre[..., None]], axis=-1)
    rays = unproject(pixel_centres(np, camera.width, camera.height), camera).reshape(-1, 3)
    maps, frames = [], []
    for t in range(num_frames):
        directions = rays @ rotation[t].T
        to_wall = (np.sign(directions) * BOX_HALF - centre[t]) / directions
        wall = np.argmin(to_wall, axis=1)
        distance = to_wall[np.arange(len(rays)), wall]
        z = (distance * rays[:, 2]).reshape(camera.height, camera.width)
        colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
        frames.append(colours[wall].reshape(camera.height, camera.width, 3))
        maps.append(
            DepthMap(
                frame_idx=t,
                z=z.astype(np.float32),
                confidence=np.ones_like(z, np.float32),
                kind=DepthKind.TRAJECTORY,
                intrinsics=None,
            )
        )
    reconstruction = Reconstruction(
        timestamps_s=np.arange(num_frames, dtype=float),
        cam_from_world=invert(world_from_cam),
        intrinsics=dataclasses.replace(camera, fxfycxcy_px=np.tile(camera.fxfycxcy_px, (num_frames, 1))),
        points_in_world=np.zeros((0, 3)),
        point_rgb=np.zeros((0, 3), np.uint8),
        frame_idx=np.zeros(0, np.int32),
        point_idx=np.zeros(0, np.int32),
        xy_px=np.zeros((0, 2), np.float32),
    )
    return maps, np.stack(frames), reconstruction


def distance_to_walls(points: np.ndarray) -> np.ndarray:
    """Distance to the nearest wall plane; meaningful for points near the box's surface."""
    return np.abs(BOX_HALF - np.abs(points)).min(axis=1)


@pytest.mark.parametrize("camera", [PINHOLE, FISHEYE], ids=["pinhole", "fisheye"])
def test_the_walls_of_a_room_come_back_in_place_and_colour(camera):
    maps, frames, reconstruction = room(camera)
    scene = fuse_depth(maps, frames, reconstruction, FusionConfig(voxel=0.04))
    assert len(scene.points_in_world) > 5000
    assert len(scene.triangles) > 5000
    off = distance_to_walls(scene.points_in_world)
    # Half a pixel of shift would be 0.01 on the side walls; corners are rounded by a voxel.
    assert np.median(off) < 0.004
    assert np.quantile(off, 0.95) < 0.03
    inside = np.sort(BOX_HALF - np.abs(scene.points_in_world), axis=1)
    is_flat = inside[:, 1] > 0.15  # away from the edges, where colours mix
    wall = np.argmin(BOX_HALF - np.abs(scene.points_in_world), axis=1)
    assert (np.argmax(scene.rgb, axis=1) == wall)[is_flat].mean() > 0.99
    towards_camera = (scene.normals_in_world * -np.sign(scene.points_in_world))[np.arange(len(wall)), wall]
    assert np.median(towards_camera[is_flat]) > 0.99


def test_metric_depth_can_be_brought_to_the_trajectory_s_unit():
    maps, frames, reconstruction = room(PINHOLE)
    halved = [dataclasses.replace(one, z=one.z / 2, kind=DepthKind.METRIC) for one in maps]
    scene = fuse_depth(halved, frames, reconstruction, FusionConfig(voxel=0.05, trajectory_per_depth=2.0))
    assert np.median(distance_to_walls(scene.points_in_world)) < 0.005


def test_what_is_unsure_or_unposed_is_left_out():
    maps, frames, reconstruction = room(PINHOLE)
    cam_from_world = reconstruction.cam_from_world.copy()
    cam_from_world[1:] = np.nan
    unposed = dataclasses.replace(reconstruction, cam_from_world=cam_from_world)
    left_only = np.where(np.arange(PINHOLE.width) < 80, 1, 0.1) * np.ones((PINHOLE.height, 1))
    maps = [dataclasses.replace(one, confidence=left_only.astype(np.float32)) for one in maps]
    scene = fuse_depth(maps, frames, unposed, FusionConfig(voxel=0.05))
    in_cam = scene.points_in_world @ cam_from_world[0, :, :3].T + cam_from_world[0, :, 3]
    column = in_cam[:, 0] / in_cam[:, 2] * 150 + 81
    assert len(column) > 500
    assert np.quantile(column, 0.99) < 83


def test_nothing_to_fuse_and_depth_without_a_scale():
    maps, frames, reconstruction = room(PINHOLE)
    with pytest.raises(ClipRejected, match="no depth"):
        fuse_depth([], frames, reconstruction)
    relative = [dataclasses.replace(one, kind=DepthKind.UP_TO_SCALE) for one in maps]
    with pytest.raises(ValueError, match="cannot be fused"):
        fuse_depth(relative, frames, reconstruction)


def test_config_is_checked():
    with pytest.raises(ValueError, match="voxel"):
        FusionConfig(voxel=0.0)
    with pytest.raises(ValueError, match="positive"):
        FusionConfig(max_depth_ratio=0.0)

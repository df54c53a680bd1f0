"""Depth without weights, measured: plane sweep on posed frames against rendered and sensor depth.

Rendered scenes have exact depth; 7-Scenes RedKitchen has a depth camera beside the colour camera. Poses are
the true ones, sparse points come from tracks triangulated with them, as in the mode that keeps a given
trajectory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import tyro
from scipy.spatial.transform import Rotation

from benchmarks.report import write_report
from worldline.annotate.camera import Intrinsics, invert, transform, unproject
from worldline.annotate.depth import DepthConfig, iterate_depth
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.tracks import TrackConfig, track_points
from worldline.datasets.synthetic import ClipRenderer, SyntheticConfig

RED_KITCHEN = Path(__file__).resolve().parents[2] / "shared" / "data" / "redkitchen_a"
COLOUR_FOCAL_PX, DEPTH_FOCAL_PX = 525.0, 585.0
COLOUR_IN_DEPTH_M = np.array([0.025, 0.0, 0.0])
"""The colour camera stands about 2.5 cm to the right of the depth camera, axes taken as parallel."""

RENDERED = {
    "room, handheld": SyntheticConfig(scene="room", path="handheld", num_frames=60, noise=2.0),
    "corridor, straight ahead": SyntheticConfig(scene="corridor", path="straight", num_frames=60, noise=2.0),
    "street, driving": SyntheticConfig(scene="street", path="driving", num_frames=60, noise=2.0),
    "desk, orbiting": SyntheticConfig(scene="desk", path="orbiting", num_frames=60, noise=2.0),
    "room, walking, fisheye": SyntheticConfig(
        scene="room",
        path="walking",
        num_frames=60,
        noise=2.0,
        camera_model="fisheye",
        distortion=(-0.03, 0.002),
        fov_x_deg=110,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to measure."""

    depth: DepthConfig = field(default_factory=DepthConfig)
    """The estimator under test."""
    num_maps: int = 6
    """Maps a sequence that are compared with truth."""
    write: bool = True
    """Write docs/results/depth.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """Posed frames with a true depth map for some of them."""

    frames: np.ndarray
    """[T, H, W, 3] uint8."""
    reconstruction: Reconstruction
    true_depth_m: Callable[[int], np.ndarray]
    """frame index -> [H, W], 0 where unknown."""
    truth_every: int


def triangulated(frames: np.ndarray, cam_from_world: np.ndarray, intrinsics: Intrinsics) -> Reconstruction:
    """Tracks of the frames as points where the rays of the given cameras meet within two pixels."""
    grey = ((cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), frame) for frame in frames)
    tracks = track_points(grey, TrackConfig())
    world_from_cam = invert(cam_from_world)
    per_observation = Intrinsics(
        fxfycxcy_px=intrinsics.fxfycxcy_px[tracks.frame_idx],
        width=intrinsics.width,
        height=intrinsics.height,
        model=intrinsics.model,
        distortion=intrinsics.distortion,
    )
    rays = unproject(tracks.xy_px[:, None].astype(np.float64), per_observation)[:, 0]
    rays = np.einsum("mij,mj->mi", world_from_cam[tracks.frame_idx, :, :3], rays)
    origin = world_from_cam[tracks.frame_idx, :, 3]
    projector = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    normal, target = np.zeros((tracks.num_tracks, 3, 3)), np.zeros((tracks.num_tracks, 3))
    np.add.at(normal, tracks.track_idx, projector)
    np.add.at(target, tracks.track_idx, np.einsum("mij,mj->mi", projector, origin))
    points = np.full((tracks.num_tracks, 3), np.nan)
    is_steady = np.linalg.eigvalsh(normal)[:, 0] > 1e-3
    points[is_steady] = np.linalg.solve(normal[is_steady], target[is_steady][..., None])[..., 0]
    points_in_cam = transform(cam_from_world[tracks.frame_idx], points[tracks.track_idx][:, None])[:, 0]
    along = points_in_cam / np.linalg.norm(points_in_cam, axis=1, keepdims=True)
    seen = unproject(tracks.xy_px[:, None].astype(np.float64), per_observation)[:, 0]
    angle = np.arccos(np.clip((along * seen).sum(axis=1), -1, 1))
    is_good = np.isfinite(angle) & (points_in_cam[:, 2] > 0) & (angle * intrinsics.fxfycxcy_px[0, 0] < 2)
    keep, point_idx = np.unique(tracks.track_idx[is_good], return_inverse=True)
    return Reconstruction(
        timestamps_s=np.arange(len(frames)) / 30,
        cam_from_world=cam_from_world,
        intrinsics=intrinsics,
        points_in_world=points[keep],
        point_rgb=np.zeros((len(keep), 3), np.uint8),
        frame_idx=tracks.frame_idx[is_good],
        point_idx=point_idx.astype(np.int32),
        xy_px=tracks.xy_px[is_good],
    )


def rendered(config: SyntheticConfig) -> Sequence:
    """A rendered clip held in memory."""
    with ClipRenderer(config) as renderer:
        truth = renderer.truth
        images, depths = [], []
        for i in range(config.num_frames):
            image, depth, is_moving = renderer.frame(i)
            images.append(image)
            depths.append(np.where(is_moving | ~np.isfinite(depth), 0, depth))
    frames = np.stack(images)
    return Sequence(
        frames=frames,
        reconstruction=triangulated(frames, invert(truth.world_from_cam), truth.intrinsics),
        true_depth_m=lambda i: depths[i],
        truth_every=1,
    )


def red_kitchen() -> Sequence:
    """RedKitchen: the colour camera's poses follow from the depth camera's, its depth from the sensor's
    points."""
    capture = cv2.VideoCapture(str(RED_KITCHEN / "video.mp4"))
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    path = np.loadtxt(RED_KITCHEN / "groundtruth.tum")
    rotation = Rotation.from_quat(path[:, 4:]).as_matrix()
    centre = path[:, 1:4] + rotation @ COLOUR_IN_DEPTH_M
    camera = Intrinsics(
        fxfycxcy_px=np.tile([COLOUR_FOCAL_PX, COLOUR_FOCAL_PX, 320.0, 240.0], (len(frames), 1)),
        width=640,
        height=480,
    )
    cam_from_world = invert(np.concatenate([rotation, centre[..., None]], axis=-1))
    stack = np.stack(frames)
    return Sequence(
        frames=stack,
        reconstruction=triangulated(stack, cam_from_world, camera),
        true_depth_m=sensor_depth_m,
        truth_every=10,
    )


def sensor_depth_m(frame_idx: int) -> np.ndarray:
    """[240, 320]: the depth camera's points as the colour camera sees them at half size, nearest first; 0
    unknown."""
    stored = cv2.imread(str(RED_KITCHEN / "depth_mm" / f"{frame_idx:06d}.png"), cv2.IMREAD_UNCHANGED)
    depth_m = stored.astype(np.float64) / 1000
    row, column = np.nonzero((depth_m > 0) & (depth_m < 10))
    z = depth_m[row, column]
    points = np.stack(
        [(column + 0.5 - 320) / DEPTH_FOCAL_PX * z, (row + 0.5 - 240) / DEPTH_FOCAL_PX * z, z], axis=1
    )
    points -= COLOUR_IN_DEPTH_M
    x, y = np.floor(points[:, :2] / points[:, 2:] * COLOUR_FOCAL_PX / 2 + [160, 120]).astype(int).T
    is_inside = (x >= 0) & (x < 320) & (y >= 0) & (y < 240)
    seen = np.full((240, 320), np.inf)
    np.minimum.at(seen, (y[is_inside], x[is_inside]), points[is_inside, 2])
    return np.where(np.isfinite(seen), seen, 0)


def measured(name: str, sequence: Sequence, job: Job) -> dict[str, object]:
    """One row: errors over the pixels that have both an estimate and a truth."""
    num_frames = len(sequence.frames)
    wanted = (
        np.linspace(0.1, 0.9, job.num_maps) * (num_frames - 1) // sequence.truth_every * sequence.truth_every
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    maps = list(
        iterate_depth(
            sequence.frames,
            job.depth,
            reconstruction=sequence.reconstruction,
            frame_idx=sorted({int(i) for i in wanted}),
        )
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    estimates, truths, confidences, num_true = [], [], [], 0
    for one in maps:
        height, width = one.z.shape
        true_z = sequence.true_depth_m(one.frame_idx)
        true_z = cv2.resize(true_z.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
        num_true += int((true_z > 0).sum())
        both = (true_z > 0) & np.isfinite(one.z)
        estimates.append(one.z[both])
        truths.append(true_z[both])
        confidences.append(one.confidence[both])
    z, truth, confidence = np.concatenate(estimates), np.concatenate(truths), np.concatenate(confidences)
    error, ratio = np.abs(z - truth) / truth, np.maximum(z / truth, truth / z)
    is_sure = confidence > 0.5
    return {
        "sequence": name,
        "maps": len(maps),
        "complete": z.size / num_true,
        "abs-rel": float(error.mean()),
        "median rel": float(np.median(error)),
        "delta < 1.25": float((ratio < 1.25).mean()),
        "complete, confidence > 0.5": float(is_sure.sum() / num_true),
        "abs-rel, confidence > 0.5": float(error[is_sure].mean()) if is_sure.any() else None,
        "median z / true z": float(np.median(z / truth)),
        "s / map": seconds / len(maps),
        "CPU s / map": cpu_seconds / len(maps),
    }


def main(job: Job) -> int:
    """Measures every sequence; RedKitchen only where its data is."""
    cv2.setNumThreads(2)
    rows = [measured(name, rendered(config), job) for name, config in RENDERED.items()]
    if RED_KITCHEN.exists():
        rows.append(measured("RedKitchen, sensor depth", red_kitchen(), job))
    if not job.write:
        for row in rows:
            print(row)
        return 0
    notes = (
        "Truth poses; abs-rel and delta over pixels with an estimate; 'complete' is their share of the\n"
        "pixels with a truth. RedKitchen's truth comes from a second camera whose place beside the colour\n"
        "camera is known to centimetres and whose poses leave epipolar errors of 0.7 px (median) in the\n"
        "colour images, so its error is an upper bound. Seconds are on two shared cores and include the\n"
        "sweeps of the frames a map is checked against: up to three a map, as the maps lie far apart here."
    )
    write_report(
        "depth", f"Depth of {job.depth.backend}", "python -m benchmarks.depth", {"Accuracy": rows}, notes
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))

"""The camera's path told from the frames of a video alone, by two engines that share nothing but the frames.

`worldline` is our own weight-free engine, `pycolmap` COLMAP's incremental mapping on SIFT features; both are given the
lens. A path that an engine cannot tell is an outcome with its reason, never a resting camera. Small pictures are
enlarged first, for both engines look for details of a few pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.geometry import GeometryConfig, estimate_geometry
from worldline.datasets.schema import ClipRejected
from worldline.evaluate.following import PoseFollowing, pose_following

MIN_WIDTH_PX = 320
"""Narrower pictures are enlarged to this by bicubic interpolation."""
MIN_POSED_SHARE = 0.8
"""Of a video's frames; a path of fewer is not scored."""


@dataclass(frozen=True, slots=True)
class RecoveredPath:
    """What an engine made of a video of F frames."""

    outcome: str
    """"ok", or why there is no path to score."""
    world_from_cam: np.ndarray | None = field(default=None, repr=False)
    """[F, 3, 4] in the engine's own unit, NaN for frames without a pose; None without a path."""

    @property
    def is_posed(self) -> np.ndarray:
        """[F] bool; none where there is no path."""
        poses = self.world_from_cam
        return np.zeros(0, dtype=bool) if poses is None else np.isfinite(poses[:, 0, 0])


def recover_path(frames: np.ndarray, intrinsics: Intrinsics, *, fps: float, engine: str) -> RecoveredPath:
    """The path of a video [F, H, W, 3] uint8 RGB.

    `intrinsics`: of these frames, held. `engine`: one of `ENGINES`, else ValueError. A camera that the engine finds to
    rest or only to turn has that as outcome, and poses.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r}: known are {', '.join(ENGINES)}")
    lens = intrinsics
    height, width = frames.shape[1:3]
    if width < MIN_WIDTH_PX:
        size = (MIN_WIDTH_PX, round(height * MIN_WIDTH_PX / width))
        frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames])
        lens = intrinsics.resized(*size)
    found = ENGINES[engine](frames, lens, fps)
    if found.world_from_cam is not None and found.is_posed.mean() < MIN_POSED_SHARE:
        return RecoveredPath(f"{found.is_posed.sum()} of {len(frames)} frames posed", found.world_from_cam)
    return found


def score_path(found: RecoveredPath, commanded: np.ndarray) -> PoseFollowing | None:
    """Figures over the frames that have a pose, against the commanded path [F, 3, 4]; None where too few have."""
    kept = found.is_posed
    if found.world_from_cam is None or kept.mean() < MIN_POSED_SHARE:
        return None
    return pose_following(found.world_from_cam[kept], commanded[kept])


def disagreement(one: RecoveredPath, other: RecoveredPath) -> PoseFollowing | None:
    """Figures of one engine's path against another's, in the other's unit; None where they share too few frames."""
    if one.world_from_cam is None or other.world_from_cam is None:
        return None
    kept = one.is_posed & other.is_posed
    if kept.mean() < MIN_POSED_SHARE:
        return None
    return pose_following(one.world_from_cam[kept], other.world_from_cam[kept])


def _by_worldline(frames: np.ndarray, intrinsics: Intrinsics, fps: float) -> RecoveredPath:
    images = ((cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), frame) for frame in frames)
    times = [k / fps for k in range(len(frames))]
    try:
        geometry = estimate_geometry(images, times, GeometryConfig(), known=intrinsics)
    except ClipRejected as rejection:
        return RecoveredPath(str(rejection))
    if geometry.reconstruction is None:
        return RecoveredPath(geometry.degeneracy)
    return RecoveredPath(geometry.degeneracy, invert(geometry.reconstruction.cam_from_world))


def colmap_poses(
    images: Path, *, reader: dict[str, str], engine: str = "incremental", num_threads: int = -1
) -> tuple[np.ndarray, np.ndarray | None]:
    """COLMAP's own recipe on a folder of pictures: SIFT, sequential matching with overlap 10, one camera, mapping.

    `reader`: pycolmap's ImageReaderOptions; a lens given by `camera_params` is held. `engine`: "incremental" or "global".
    Returns world_from_cam [F, 3, 4] in the order of the files' names, NaN for those not in the largest map, and that
    map's lens parameters, None without a map.
    """
    import pycolmap

    pycolmap.logging.minloglevel = 2
    names = sorted(path.name for path in images.iterdir())
    poses = np.full((len(names), 3, 4), np.nan)
    with tempfile.TemporaryDirectory() as work:
        database = Path(work) / "database.db"
        pycolmap.extract_features(
            database,
            images,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=pycolmap.ImageReaderOptions(**reader),
            extraction_options=pycolmap.FeatureExtractionOptions(num_threads=num_threads, use_gpu=False),
        )
        pycolmap.match_sequential(
            database,
            matching_options=pycolmap.FeatureMatchingOptions(num_threads=num_threads, use_gpu=False),
            pairing_options=pycolmap.SequentialPairingOptions(overlap=10),
        )
        if engine == "global":
            maps = pycolmap.global_mapping(database, images, Path(work))
        else:
            held: dict[str, Any] = {}
            if "camera_params" in reader:
                held = {"ba_refine_focal_length": False, "ba_refine_extra_params": False}
            options = pycolmap.IncrementalPipelineOptions(num_threads=num_threads, **held)
            maps = pycolmap.incremental_mapping(database, images, Path(work), options)
    if not maps:
        return poses, None
    best = max(maps.values(), key=lambda found: found.num_reg_images())
    for image in best.images.values():
        if image.has_pose:
            poses[names.index(image.name)] = image.cam_from_world().matrix()
    posed = np.isfinite(poses[:, 0, 0])
    poses[posed] = invert(poses[posed])
    return poses, np.array(next(iter(best.cameras.values())).params)


def _by_pycolmap(frames: np.ndarray, intrinsics: Intrinsics, fps: float) -> RecoveredPath:
    lens = np.asarray(intrinsics.fxfycxcy_px).reshape(-1, 4)[0]
    reader = {"camera_model": "PINHOLE", "camera_params": ",".join(str(float(value)) for value in lens)}
    with tempfile.TemporaryDirectory() as images:
        for k, frame in enumerate(frames):
            cv2.imwrite(str(Path(images) / f"{k:06d}.png"), frame[..., ::-1])
        poses, found = colmap_poses(Path(images), reader=reader)
    return RecoveredPath("no map") if found is None else RecoveredPath("ok", poses)


ENGINES: dict[str, Callable[[np.ndarray, Intrinsics, float], RecoveredPath]] = {
    "worldline": _by_worldline,
    "pycolmap": _by_pycolmap,
}
"""By name."""

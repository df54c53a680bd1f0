"""What was found out about a clip in, the columns of its table row out (datasets/schema.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from worldline.annotate.camera import invert
from worldline.annotate.clip_depth import ClipDepth
from worldline.annotate.geometry import Geometry
from worldline.annotate.given import Agreement
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale import Scale
from worldline.annotate.uncertainty import FrameSigma
from worldline.annotate.video import VideoInfo
from worldline.datasets.schema import METRIC, REJECTED, UP_TO_SCALE


def frame_columns(info: VideoInfo, times: Sequence[float]) -> dict[str, Any]:
    """Times and sizes."""
    gaps = np.diff(times)
    return {
        "fps": float(1 / gaps.mean()) if len(gaps) else None,
        "width": info.width,
        "height": info.height,
        "num_frames": len(times),
        "timestamps_s": [float(t) for t in times],
    }


def geometry_columns(info: VideoInfo, geometry: Geometry) -> dict[str, Any]:
    """Intrinsics, registration and quality; a rejection where the label says that there is no path."""
    columns: dict[str, Any] = {
        "degeneracy": geometry.degeneracy,
        "num_observations": geometry.num_observations,
        "inlier_share": geometry.inlier_share,
        "parallax_deg": geometry.parallax_deg,
        "readout_s": geometry.readout_s,
    }
    reconstruction = geometry.reconstruction
    if reconstruction is None:
        return columns | {"status": REJECTED, "reason": f"geometry: {geometry.degeneracy}"}
    if geometry.reprojection_px is not None:
        columns["reprojection_px"] = geometry.reprojection_px * info.width / reconstruction.intrinsics.width
    columns |= camera_columns(info, reconstruction)
    if geometry.sigma is not None:
        focal_sigma = geometry.sigma.focal_px * info.width / reconstruction.intrinsics.width
        columns["focal_sigma_px"] = float(focal_sigma) if np.isfinite(focal_sigma) else None
    return columns


def camera_columns(info: VideoInfo, reconstruction: Reconstruction) -> dict[str, Any]:
    """Intrinsics at the video's size and which frames have a pose."""
    registered = reconstruction.is_registered
    full = reconstruction.intrinsics.resized(info.width, info.height)
    has_focal = bool(np.isfinite(full.fxfycxcy_px).all())
    columns: dict[str, Any] = {
        "fxfycxcy_px": full.fxfycxcy_px.reshape(-1).tolist() if has_focal else None,
        "camera_model": full.model if has_focal else None,
        "distortion": list(full.distortion) if has_focal else None,
        "is_registered": registered.tolist(),
        "num_registered": int(registered.sum()),
        "registered_share": float(registered.mean()),
        "num_points": len(reconstruction.points_in_world),
    }
    if has_focal:
        fov_deg = np.degrees(np.median(full.fov_rad(), axis=0))
        columns |= {"fov_x_deg": float(fov_deg[0]), "fov_y_deg": float(fov_deg[1])}
    return columns


def scaled(reconstruction: Reconstruction, scale: Scale | None) -> Reconstruction:
    """The reconstruction in metres where the scale is known, as it is otherwise."""
    factor = metres_per_unit(scale)
    cam_from_world = reconstruction.cam_from_world.copy()
    cam_from_world[:, :, 3] *= factor
    return replace(
        reconstruction, cam_from_world=cam_from_world, points_in_world=reconstruction.points_in_world * factor
    )


def metres_per_unit(scale: Scale | None) -> float:
    """What a path is multiplied by: 1 where it stays in its own unit."""
    return scale.scale if scale is not None and scale.status == METRIC and scale.scale else 1.0


def path_columns(reconstruction: Reconstruction, scale: Scale | None) -> dict[str, Any]:
    """Poses and their lengths, in metres where the scale is known."""
    moved = scaled(reconstruction, scale)
    registered = moved.is_registered
    world_from_cam = np.full_like(moved.cam_from_world, np.nan)
    world_from_cam[registered] = invert(moved.cam_from_world[registered])
    centre, time = world_from_cam[registered][:, :, 3], moved.timestamps_s[registered]
    steps = np.linalg.norm(np.diff(centre, axis=0), axis=1)
    return {
        "world_from_cam": world_from_cam.reshape(-1).tolist(),
        "path_length": float(steps.sum()),
        "speed_median": float(np.median(steps / np.diff(time))) if len(steps) else None,
    }


def scale_columns(scale: Scale | None) -> dict[str, Any]:
    """The metric scale and what it rests on."""
    if scale is None:
        return {"scale_status": UP_TO_SCALE}
    gravity = scale.gravity_in_world
    return {
        "scale_status": scale.status,
        "scale": scale.scale,
        "scale_sigma": scale.sigma,
        "scale_cues": json.dumps([asdict(cue) for cue in scale.cues]),
        "gravity_in_world": None if gravity is None else gravity.tolist(),
    }


def sigma_columns(sigma: FrameSigma, scale: Scale | None) -> dict[str, Any]:
    """Error bars of the frames."""
    return {
        "sigma_translation": (sigma.translation * metres_per_unit(scale)).tolist(),
        "sigma_rotation_rad": sigma.rotation_rad.tolist(),
    }


def agreement_columns(found: Agreement | None, metres: float) -> dict[str, Any]:
    """How the path seen in the images agrees with the given one; metres: of the given unit."""
    if found is None:
        return {}
    return {
        "given_deviation": found.deviation * metres,
        "given_deviation_share": found.deviation_share,
        "given_rotation_deviation_rad": found.rotation_rad,
    }


def depth_columns(depth: ClipDepth) -> dict[str, Any]:
    """What depth was used and what the adjustment made of it."""
    if depth.backend is None:
        return {}
    outcome = depth.outcome
    columns: dict[str, Any] = {"depth_backend": depth.backend, "depth_frames": 0, "depth_residuals": 0}
    if outcome is not None:
        columns |= {
            "depth_frames": len(outcome.frame_idx),
            "depth_residuals": outcome.num_residuals,
            "depth_residual": outcome.residual_log,
            "depth_scale_variation": outcome.scale_variation,
        }
    return columns

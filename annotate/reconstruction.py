"""What structure-from-motion yields for one clip: a pose per frame, intrinsics, points and the observations
behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.annotate.camera import Intrinsics


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """Cameras and sparse structure of one clip in one world frame (world = first registered camera).

    T frames, P points, M observations. Lengths are metres only after a metric scale was applied.
    """

    timestamps_s: np.ndarray
    """[T] float64, container time of each frame."""
    cam_from_world: np.ndarray
    """[T, 3, 4] float64; NaN where the frame has no pose."""
    intrinsics: Intrinsics
    """fxfycxcy_px [T, 4] at the working size (intrinsics.width x intrinsics.height)."""
    points_in_world: np.ndarray
    """[P, 3] float64."""
    point_rgb: np.ndarray
    """[P, 3] uint8."""
    frame_idx: np.ndarray
    """[M] int32: the frame of each observation."""
    point_idx: np.ndarray
    """[M] int32: the point of each observation."""
    xy_px: np.ndarray
    """[M, 2] float32: where the frame sees the point, at the working size."""
    point_descriptor: np.ndarray | None = None
    """[P, 32] uint8 ORB descriptor of each point in the last keyframe that sees it, by which another window
    of the shot knows it again; None: not kept."""

    @property
    def is_registered(self) -> np.ndarray:
        """[T] bool."""
        return np.isfinite(self.cam_from_world[:, 0, 0])

    def save(self, path: Path) -> None:
        """Writes a compressed .npz with one array per field (camera model and size as scalars)."""
        optional: dict[str, Any] = (
            {} if self.point_descriptor is None else {"point_descriptor": self.point_descriptor}
        )
        np.savez_compressed(
            path,
            timestamps_s=self.timestamps_s,
            cam_from_world=self.cam_from_world,
            fxfycxcy_px=self.intrinsics.fxfycxcy_px,
            size_px=np.array([self.intrinsics.width, self.intrinsics.height]),
            camera_model=np.array(self.intrinsics.model),
            distortion=np.array(self.intrinsics.distortion, dtype=np.float64),
            points_in_world=self.points_in_world.astype(np.float32),
            point_rgb=self.point_rgb,
            frame_idx=self.frame_idx,
            point_idx=self.point_idx,
            xy_px=self.xy_px,
            **optional,
        )

    @staticmethod
    def load(path: Path) -> Reconstruction:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            intrinsics = Intrinsics(
                fxfycxcy_px=data["fxfycxcy_px"],
                width=int(data["size_px"][0]),
                height=int(data["size_px"][1]),
                model=str(data["camera_model"]),
                distortion=tuple(float(k) for k in data["distortion"]),
            )
            names = (
                "timestamps_s",
                "cam_from_world",
                "points_in_world",
                "point_rgb",
                "frame_idx",
                "point_idx",
                "xy_px",
            )
            descriptor = data.get("point_descriptor", None)
            return Reconstruction(
                intrinsics=intrinsics, point_descriptor=descriptor, **{name: data[name] for name in names}
            )

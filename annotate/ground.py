"""The ground below a moving camera: posed grey frames (or sparse points) in, the camera's height over the
ground out.

A road is smooth: corner trackers find a handful of points on it, too few for a plane. So the plane itself is
aligned: all ground pixels of one frame are carried through a trial plane into a second frame with the known
relative pose, and the plane's three numbers are moved until both agree (the plane-induced homography H = R -
t n^T / d, Hartley & Zisserman Sec. 13.1, in a form that also holds for lenses that bend lines). A sweep over
heights gives the start, so no sparse point is needed. Without frames the plane is fitted to the sparse points
by RANSAC. Open3D's `segment_plane` is not used for it: it takes the largest plane of any direction, which on
a street is a house front; here only planes across the upward direction compete.

Heights are in the reconstruction's unit; nothing here knows a metre.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import invert
from worldline.annotate.ground_alignment import GroundConfig, GroundFit, align_ground, high_passed
from worldline.annotate.reconstruction import Reconstruction

GreyFrames = Callable[[Sequence[int]], Iterable[tuple[int, np.ndarray]]]
"""Ascending frame indices -> (index, grey [H, W] uint8 at the reconstruction's working size), in the same
order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """The ground plane at W places of the path."""

    frame_idx: np.ndarray
    """[W] first frame of each place."""
    up_in_world: np.ndarray
    """[W, 3] unit normal of the ground, pointing to the camera's side."""
    height: np.ndarray
    """[W] height of the camera over the ground, in units of the reconstruction."""
    bend: np.ndarray
    """[W] ln(height by the farther half of the ground / by the nearer half): 0 on a plane; NaN unknown."""
    support: np.ndarray
    """[W] correlation of the aligned ground pixels, or share of sparse points of the lower half that are
    inliers."""
    method: str
    """'photometric' or 'sparse'."""

    @property
    def median_height(self) -> float:
        return float(np.median(self.height))

    @property
    def log_height_sigma(self) -> float:
        """Standard error of log(median_height): scatter between places, and half the bend of the ground
        within them.

        Ground that rises or falls ahead, or an upward direction that is off, shows as a height that depends
        on where one looks; places along the path share it, so it does not average out.
        """
        log_height = np.log(self.height)
        scatter = 1.4826 * float(np.median(np.abs(log_height - np.median(log_height))))
        # The median's standard error is 1.25 sigma / sqrt(n); a small sample's own scatter is itself
        # uncertain, for which Student's t widens the 68 % interval by about 1 + 1 / n.
        n = len(log_height)
        bend = float(np.nanmedian(np.abs(self.bend))) if np.isfinite(self.bend).any() else 0.0
        return math.hypot(1.25 * scatter / math.sqrt(n) * (1 + 1 / n), bend, _FLOOR_SIGMA)


_FLOOR_SIGMA = 0.005
"""What the alignment misses on perfectly flat rendered streets (docs/scale.md)."""


def fit_ground(
    reconstruction: Reconstruction,
    config: GroundConfig,
    *,
    grey_frames: GreyFrames | None = None,
    up_in_world: np.ndarray | None = None,
) -> Ground | None:
    """Finds the ground under the path; None where there is none to be found.

    up_in_world: [3] known upward direction (minus gravity); by default the cameras' mean up axis across the
    direction of motion is taken.
    """
    windows = _windows(reconstruction, config)
    if len(windows) < config.min_windows:
        return None
    ups = [_up_hint(reconstruction, window, up_in_world) for window in windows]
    if grey_frames is None:
        fits = [_fit_sparse(reconstruction, w, up, config) for w, up in zip(windows, ups, strict=True)]
    else:
        wanted = sorted({int(i) for window in windows for i in window})
        greys = {i: high_passed(grey) for i, grey in grey_frames(wanted)}
        fits = align_ground(reconstruction, windows, ups, greys, config)
    found = [(window, fit) for window, fit in zip(windows, fits, strict=True) if fit is not None]
    if len(found) < max(config.min_windows, len(windows) / 2):
        return None
    planes = np.stack([fit.plane for _, fit in found])
    size = np.linalg.norm(planes, axis=1)
    if float(np.std(np.log(size))) > config.max_scatter:
        return None
    return Ground(
        frame_idx=np.array([window[0] for window, _ in found]),
        up_in_world=-planes / size[:, None],
        height=1 / size,
        bend=np.array([fit.bend for _, fit in found]),
        support=np.array([fit.support for _, fit in found]),
        method="sparse" if grey_frames is None else "photometric",
    )


# Where to look


_OFFSETS = (0, 1, 2, 4, 8, 16, 32)
"""Frames of a window after its first: any height between a few frame steps and many finds a pair of useful
baseline."""


def _windows(reconstruction: Reconstruction, config: GroundConfig) -> list[np.ndarray]:
    """Frame indices of each window; the windows start at equal steps of path length, in which slow frames do
    not repeat."""
    posed = np.flatnonzero(reconstruction.is_registered)
    if len(posed) < 4:
        return []
    centres = invert(reconstruction.cam_from_world[posed])[:, :, 3]
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(centres, axis=0), axis=1))])
    if not travelled[-1] > 0:
        return []
    wanted = np.linspace(0, 0.9 * travelled[-1], config.num_windows)
    starts = sorted({int(i) for i in np.searchsorted(travelled, wanted)})
    windows = [posed[[s + o for o in _OFFSETS if s + o < len(posed)]] for s in starts]
    return [window for window in windows if len(window) >= 3]


def _up_hint(
    reconstruction: Reconstruction, window: np.ndarray, up_in_world: np.ndarray | None
) -> np.ndarray:
    """Unit vector [3] roughly across the ground: given, or the mean camera-up axis made perpendicular to the
    motion.

    Ground is parallel to the way one moves over it, also uphill, whatever the camera's pitch.
    """
    if up_in_world is not None:
        return np.asarray(up_in_world, dtype=np.float64) / np.linalg.norm(up_in_world)
    world_from_cam = invert(reconstruction.cam_from_world[window])
    up = -world_from_cam[:, :, 1].mean(axis=0)
    motion = world_from_cam[-1, :, 3] - world_from_cam[0, :, 3]
    motion /= max(float(np.linalg.norm(motion)), 1e-12)
    across = up - (up @ motion) * motion
    if np.linalg.norm(across) < 0.5 * np.linalg.norm(
        up
    ):  # the camera moves up or down its own axis: no ground motion
        across = up
    return across / np.linalg.norm(across)


# Sparse: points only


def _fit_sparse(
    reconstruction: Reconstruction, window: np.ndarray, up: np.ndarray, config: GroundConfig
) -> GroundFit | None:
    """The plane of the points seen in the window; None where no plane lies below the
    camera."""
    is_seen = np.isin(reconstruction.frame_idx, np.arange(window[0], window[-1] + 1))
    seen = np.unique(reconstruction.point_idx[is_seen])
    world_from_cam = invert(reconstruction.cam_from_world[window])
    origin = world_from_cam[0, :, 3]
    points = reconstruction.points_in_world[seen] - origin
    points = points[np.isfinite(points).all(axis=1)]
    points = points[points @ up < 0]
    if len(points) < 12:
        return None
    rng = np.random.default_rng(config.seed)
    triples = points[
        np.array([rng.choice(len(points), 3, replace=False) for _ in range(500)])
    ]  # [K, 3 points, 3]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    sizes = np.linalg.norm(normals, axis=1)
    triples, normals = triples[sizes > 0], normals[sizes > 0] / sizes[sizes > 0, None]
    normals *= np.where(normals @ up < 0, -1.0, 1.0)[:, None]
    heights = -np.einsum("ki,ki->k", normals, triples[:, 0])
    is_level = (normals @ up > np.cos(np.radians(config.max_tilt_deg))) & (heights > 0)
    if not is_level.any():
        return None
    normals, heights = normals[is_level], heights[is_level]
    distance = np.abs(normals @ points.T + heights[:, None])  # [K, N]
    count = (distance < 0.03 * heights[:, None]).sum(axis=1)
    best = int(np.argmax(count))
    inliers = points[distance[best] < 0.03 * heights[best]]
    if len(inliers) < 10:
        return None
    plane = np.linalg.lstsq(inliers, np.ones(len(inliers)), rcond=None)[0]
    return GroundFit(plane=plane, support=len(inliers) / len(points), bend=math.nan)

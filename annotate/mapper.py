"""The mapper: a keyframe map and the steps that pose, triangulate, adjust and judge it.

annotate/mapping.py runs them from a start to the whole map; later stages use them one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from worldline.annotate.bundle import adjust
from worldline.annotate.bundle_problem import Bundle, BundleConfig, reprojection_errors, scatter
from worldline.annotate.camera import invert, unproject
from worldline.annotate.keyframe_map import CameraFreedom, KeyframeMap
from worldline.annotate.resection import resect
from worldline.annotate.tracks import Tracks
from worldline.annotate.triangulate import meet_rays, ray_spread
from worldline.datasets.schema import ClipRejected

_SLACK = 2.0
"""Times the usual error at which a keyframe is posed when none can be otherwise: a map that is still rough predicts its
next view a few pixels off, and the adjustment over both mends that. What fits the whole map badly is judged at its end."""
_FAR_OUT = 10.0
"""Sigmas of the residuals' scatter from which an observation has no say in the last adjustments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MappingConfig:
    """Thresholds of the mapper, in pixels of the working image and degrees."""

    focal_guesses: tuple[float, ...] = (0.55, 0.8, 1.1, 1.6)
    """Start values of the focal length as shares of the longer image side (84, 64, 49, 35 degrees)."""
    fisheye_guesses: tuple[float, ...] = (0.5,)
    """The same for a wide lens (equidistant, 115 degrees), which no pinhole leads to."""
    focal_prior: float = 0.78
    """Focal length of an ordinary camera as a share of the longer side (65 degrees), and what is believed of an unknown
    one: where little motion leaves it open, a map would run off to any."""
    focal_prior_sigma: float = 0.35
    """1-sigma of its logarithm: two thirds of all cameras see 51 to 84 degrees, 95 % 36 to 104."""
    given_focal_sigma: float = 0.002
    """What a given focal length may be off, as a share of it. It is held; the error bars know."""
    given_centre_sigma: float = 0.001
    """The same of a given principal point, as a share of the longer side."""
    max_error_px: float = 3.0
    """Observations further off than this are outliers, for an image of 640 pixels; scaled with the size."""
    min_angle_deg: float = 1.2
    """Smallest angle between rays from which a point is triangulated."""
    min_start_angle_deg: float = 1.5
    """Median angle wanted between the two keyframes of a start. A wrong lens makes it seem larger, so that asking for
    more of it favours wrong lenses."""
    max_starts: int = 4
    """Pairs of keyframes that a map may be grown from, until one leads to a good map."""
    min_inlier_share: float = 0.7
    """Share of the observations that fits a good map, times that of keyframes posed. A start that has mistaken a
    wall's slant grows into a map that fits half."""
    min_points: int = 20
    """Fewest inlier points from which a keyframe is posed."""
    points_per_keyframe: int = 220
    """Longest tracks of each keyframe that the growing map is made of; the others join when it stands."""
    window: int = 8
    """Keyframes that a local adjustment moves."""


def keyframe_observations(tracks: Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations at keyframes of tracks that two keyframes or more see: (kf_idx, track_idx, xy_px)."""
    kf_of_frame = np.full(tracks.num_frames, -1)
    kf_of_frame[[kf.frame_idx for kf in tracks.keyframes]] = np.arange(len(tracks.keyframes))
    rows = kf_of_frame[tracks.frame_idx] >= 0
    track = tracks.track_idx[rows]
    seen = np.bincount(track, minlength=tracks.num_tracks)
    often = seen[track] >= 2
    return (
        kf_of_frame[tracks.frame_idx[rows]][often],
        track[often],
        tracks.xy_px[rows][often].astype(np.float64),
    )


class Mapper:
    """Grows and adjusts a KeyframeMap; the map itself is replaced or written in place."""

    def __init__(
        self, start: KeyframeMap, config: MappingConfig, *, max_error_px: float, known_focal: bool
    ) -> None:
        self.map, self.config = start, config
        self.max_error_px, self.known_focal = max_error_px, known_focal
        self.is_used: np.ndarray | None = None
        self.freedom = CameraFreedom()
        self.index()

    def index(self) -> None:
        """Groups the observations by keyframe; to be called when the map gained some or `is_used` changed."""
        num_kf = len(self.map.cam_from_world)
        order = np.argsort(self.map.kf_idx, kind="stable")
        if self.is_used is not None:
            order = order[self.is_used[self.map.track_idx[order]]]
        bounds = np.searchsorted(self.map.kf_idx[order], np.arange(num_kf + 1))
        self.rows_of_kf = [order[bounds[k] : bounds[k + 1]] for k in range(num_kf)]

    @staticmethod
    def of(start: KeyframeMap, config: MappingConfig, tracks: Tracks, *, known_focal: bool) -> Mapper:
        """A mapper whose pixel thresholds follow the size of the working image."""
        scale = max(tracks.width, tracks.height) / 640
        return Mapper(start, config, max_error_px=config.max_error_px * scale, known_focal=known_focal)

    def common(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
        """Observation rows of the tracks that two keyframes share, in the same order."""
        a, b = self.rows_of_kf[first], self.rows_of_kf[second]
        _, at_a, at_b = np.intersect1d(self.map.track_idx[a], self.map.track_idx[b], return_indices=True)
        return a[at_a], b[at_b]

    # Growth

    def grow(self) -> None:
        """Poses keyframe after keyframe outwards from the start, adjusting locally, and everything as the map
        grows."""
        failed: set[int] = set()
        posed_at_adjustment = int(self.map.is_posed.sum())
        since_local, slack = 0, 1.0
        while (kf := self._next(failed)) is not None or (failed and slack == 1.0):
            if kf is None:
                slack = _SLACK
                failed.clear()
                continue
            if not self.pose(kf, slack=slack):
                failed.add(kf)
                continue
            failed.clear()
            slack = 1.0
            self.triangulate(self._neighbours(kf))
            since_local += 1
            num_posed = int(self.map.is_posed.sum())
            if num_posed >= 1.35 * posed_at_adjustment + 2:
                self.adjust_all(max_iterations=3)
                self.drop_outliers()
                posed_at_adjustment, since_local = num_posed, 0
            elif since_local >= 2:
                self._adjust_local(kf)
                since_local = 0
        self.adjust_all(max_iterations=6)
        self.drop_outliers()

    def _next(self, failed: set[int]) -> int | None:
        """The unposed keyframe that sees most points."""
        best, best_count = None, self.config.min_points - 1
        has_point = np.isfinite(self.map.points[:, 0])
        posed = np.flatnonzero(self.map.is_posed)
        for kf in np.flatnonzero(~self.map.is_posed):
            if int(kf) in failed or np.min(np.abs(posed - kf)) > 12:
                continue
            count = int(has_point[self.map.track_idx[self.rows_of_kf[kf]]].sum())
            if count > best_count:
                best, best_count = int(kf), count
        return best

    def _neighbours(self, kf: int) -> np.ndarray:
        posed = np.flatnonzero(self.map.is_posed)
        return posed[np.abs(posed - kf) <= self.config.window + 2]

    def pose(self, kf: int, *, slack: float = 1.0) -> bool:
        """Poses a keyframe from the points it sees, starting at its nearest neighbour, by RANSAC where that
        fails. `slack`: how many times the usual error an inlier may have."""
        rows = self.rows_of_kf[kf]
        rows = rows[np.isfinite(self.map.points[self.map.track_idx[rows], 0])]
        if len(rows) < self.config.min_points:
            return False
        posed = np.flatnonzero(self.map.is_posed)
        nearest = posed[np.argmin(np.abs(posed - kf))]
        for start in (lambda: self.map.cam_from_world[nearest], lambda: self._ransac_pose(rows)):
            cam_from_world = start()
            if cam_from_world is None:
                continue
            bundle = self.bundle(rows, cam_from_world[None])[0]
            bundle = resect(replace(bundle, sigma_px=self.max_error_px / 3))
            is_inlier = reprojection_errors(bundle) < slack * self.max_error_px
            if is_inlier.sum() >= self.config.min_points and is_inlier.mean() > 0.5:
                self.map.cam_from_world[kf] = bundle.cam_from_world[0]
                self.map.is_inlier[rows] = is_inlier
                return True
        return False

    def _ransac_pose(self, rows: np.ndarray) -> np.ndarray | None:
        return self.pose_from_points(self.map.points[self.map.track_idx[rows]], self.map.ideal_px(rows))[0]

    def pose_from_points(self, points: np.ndarray, xy_px: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """cam_from_world [3, 4] from points [n, 3] and their pixels [n, 2] (as of a global shutter) by RANSAC,
        None where there is none, and which agree [n]."""
        rays = unproject(xy_px, self.map.intrinsics())
        ok, rotvec, translation, inliers = cv2.solvePnPRansac(
            points,
            np.ascontiguousarray(rays[:, :2] / rays[:, 2:]),
            np.eye(3),
            None,
            iterationsCount=300,
            reprojectionError=self.max_error_px / self.map.focal_px,
            confidence=0.999,
            flags=cv2.SOLVEPNP_AP3P,
        )
        is_inlier = np.zeros(len(points), dtype=bool)
        if not ok or inliers is None:
            return None, is_inlier
        is_inlier[inliers.ravel()] = True
        return np.concatenate([cv2.Rodrigues(rotvec)[0], translation], axis=1), is_inlier

    def normalised(self, rows: np.ndarray) -> np.ndarray:
        """z = 1 coordinates [n, 2] of observations."""
        rays = self._rays(rows)
        return np.ascontiguousarray(rays[:, :2] / rays[:, 2:])

    def _rays(self, rows: np.ndarray) -> np.ndarray:
        return unproject(self.map.ideal_px(rows), self.map.intrinsics())

    def triangulate(self, keyframes: np.ndarray) -> None:
        """Adds the points that the given posed keyframes see from far enough apart: the least-squares meeting
        of rays."""
        rows = np.concatenate([self.rows_of_kf[k] for k in keyframes if self.map.is_posed[k]])
        track = self.map.track_idx[rows]
        rows = rows[~np.isfinite(self.map.points[track, 0])]
        track = self.map.track_idx[rows]
        unique, local = np.unique(track, return_inverse=True)
        if len(unique) == 0:
            return
        world_from_cam = invert(self.map.cam_from_world[self.map.kf_idx[rows]])
        direction = np.einsum("mij,mj->mi", world_from_cam[:, :, :3], self._rays(rows))
        origin = world_from_cam[:, :, 3]
        points, angle = meet_rays(direction, origin, local, len(unique))
        count = np.bincount(local, minlength=len(unique))
        good = (count >= 2) & (angle > np.radians(self.config.min_angle_deg)) & np.isfinite(points[:, 0])
        trial = self.map.points.copy()
        trial[unique] = np.where(good[:, None], points, np.nan)
        rows = rows[good[local]]
        if len(rows) == 0:
            return
        bundle, _ = self.bundle(rows, points=trial)
        errors = reprojection_errors(bundle)
        is_inlier = errors < self.max_error_px
        self.map.is_inlier[rows] = is_inlier
        support = np.bincount(self.map.track_idx[rows], is_inlier, minlength=len(self.map.points))
        total = np.bincount(self.map.track_idx[rows], minlength=len(self.map.points))
        accept = (support >= 2) & (support >= 0.6 * total) & (total > 0)
        self.map.points[accept] = trial[accept]

    def rows(self, keyframes: np.ndarray | None = None) -> np.ndarray:
        """Inlier observation rows of posed keyframes and triangulated tracks."""
        use = (
            self.map.is_posed
            if keyframes is None
            else np.isin(np.arange(len(self.map.cam_from_world)), keyframes)
        )
        ok = self.map.is_inlier & use[self.map.kf_idx] & np.isfinite(self.map.points[self.map.track_idx, 0])
        return np.flatnonzero(ok)

    def bundle(
        self, rows: np.ndarray, cam_from_world: np.ndarray | None = None, *, points: np.ndarray | None = None
    ) -> tuple[Bundle, tuple[np.ndarray, np.ndarray]]:
        """The observations as a bundle problem, and (keyframes, tracks) of its rows."""
        tracks, point_idx = np.unique(self.map.track_idx[rows], return_inverse=True)
        if cam_from_world is None:
            keyframes, cam_idx = np.unique(self.map.kf_idx[rows], return_inverse=True)
            cam_from_world = self.map.cam_from_world[keyframes]
        else:
            keyframes, cam_idx = np.zeros(1, dtype=int), np.zeros(len(rows), dtype=int)
        bundle = Bundle(
            cam_from_world=cam_from_world.copy(),
            points_in_world=(self.map.points if points is None else points)[tracks],
            cam_idx=cam_idx,
            point_idx=point_idx,
            xy_px=self.map.xy_px[rows],
            focal_px=np.full(len(cam_from_world), self.map.focal_px),
            centre_px=self.map.centre_px,
            model=self.map.model,
            distortion=self.map.distortion,
            sigma_px=self.max_error_px / 6,
            shutter_px=self.map.shutter_px(rows),
            readout=self.map.readout,
        )
        return bundle, (keyframes, tracks)

    @property
    def is_centre_held(self) -> bool:
        """Whether adjustments keep the principal point where it is, given or at its prior."""
        return self.known_focal or self.freedom.is_centre_held

    def camera_config(self, **settings: Any) -> BundleConfig:
        """Settings of an adjustment that frees what is unknown of the camera; nothing where it was given."""
        config = self.error_config()
        centre_sigma_px = 0.0 if self.is_centre_held else config.centre_sigma_px
        return replace(
            config,
            free_focal=not self.known_focal,
            free_camera_focal=False,
            centre_sigma_px=centre_sigma_px,
            **settings,
        )

    def error_config(self) -> BundleConfig:
        """Everything that may be wrong about the camera, for the error bars."""
        longer_px = max(self.map.width, self.map.height)
        if self.known_focal:
            config = BundleConfig(
                free_focal=True,
                focal_prior_sigma=self.config.given_focal_sigma,
                centre_sigma_px=self.config.given_centre_sigma * longer_px,
                free_readout=self.freedom.free_readout,
            )
        else:
            config = BundleConfig(
                free_focal=True,
                free_distortion=self.map.model != "pinhole",
                distortion_sigma=self.freedom.distortion_sigma,
                centre_sigma_px=self.freedom.centre_sigma_px,
                centre_prior_px=self.freedom.centre_prior_px,
                free_readout=self.freedom.free_readout,
                focal_prior_sigma=self.config.focal_prior_sigma,
                focal_prior_px=self.config.focal_prior * longer_px,
            )
        if self.freedom.zoom_step_sigma == 0:
            return config
        step_sigma = self.freedom.zoom_step_sigma
        return replace(config, free_focal=False, free_camera_focal=True, focal_step_sigma=step_sigma)

    def adjust_all(self, *, max_iterations: int, free_focal: bool = True) -> None:
        """Adjusts all posed keyframes, all points and, unless it was given, the camera."""
        config = self.camera_config(max_iterations=max_iterations, relative_tolerance=1e-4)
        if not free_focal:
            config = replace(
                config, free_focal=False, free_distortion=False, free_readout=False, centre_sigma_px=0.0
            )
        self._run(self.rows(), config, None)

    def adjust_sharply(self, *, max_iterations: int) -> None:
        """The same at the scatter that the residuals have by now: what is small beside an image may be far out of it."""
        rows = self.rows()
        bundle, _ = self.bundle(rows)
        sigma_px = scatter(bundle)
        bundle, (keyframes, tracks) = self.bundle(rows[reprojection_errors(bundle) < _FAR_OUT * sigma_px])
        config = self.camera_config(max_iterations=max_iterations, relative_tolerance=1e-5)
        self.take(adjust(replace(bundle, sigma_px=sigma_px), config), keyframes, tracks)

    def settle_points(self) -> None:
        """Moves all points to where the cameras as they are see them."""
        bundle, (keyframes, tracks) = self.bundle(self.rows())
        self.take(adjust(bundle, BundleConfig(free_poses=False, max_iterations=5)), keyframes, tracks)

    def _adjust_local(self, kf: int) -> None:
        """Moves the keyframes around `kf` and the points they see; older keyframes that see these stay
        put."""
        near = self._neighbours(kf)
        near = near[np.argsort(np.abs(near - kf))][: self.config.window]
        seen = np.unique(self.map.track_idx[self.rows(near)])
        rows = self.rows(self._neighbours(kf))
        rows = rows[np.isin(self.map.track_idx[rows], seen)]
        self._run(rows, BundleConfig(max_iterations=4), near)

    def longest_tracks(self, count: int) -> np.ndarray:
        """All rows, outliers too, of the `count` triangulated tracks that most posed keyframes see."""
        use = self.map.is_posed[self.map.kf_idx] & np.isfinite(self.map.points[self.map.track_idx, 0])
        rows = np.flatnonzero(use)
        length = np.bincount(self.map.track_idx[rows], minlength=len(self.map.points))
        chosen = np.argsort(-length, kind="stable")[:count]
        return rows[np.isin(self.map.track_idx[rows], chosen)]

    def adjusted_bundle(self) -> tuple[Bundle, np.ndarray]:
        """The map as an adjusted bundle whose sigma_px is the residuals' own (robust), and its keyframes
        [C]."""
        bundle, (keyframes, _) = self.bundle(self.rows())
        return replace(bundle, sigma_px=scatter(bundle)), keyframes

    def take(self, bundle: Bundle, keyframes: np.ndarray, tracks: np.ndarray) -> None:
        """Writes an adjusted bundle of the given keyframes and tracks into the map."""
        self.map.cam_from_world[keyframes] = bundle.cam_from_world
        self.map.points[tracks] = bundle.points_in_world
        self.map.focal_px = float(bundle.focal_px[0])
        self.map.distortion = bundle.distortion
        self.map.centre_px = bundle.centre_px
        self.map.readout = bundle.readout

    def _run(self, rows: np.ndarray, config: BundleConfig, free: np.ndarray | None) -> None:
        if len(rows) == 0:
            raise ClipRejected("mapping", "no_map", "no observation agrees with the map any more")
        bundle, (keyframes, tracks) = self.bundle(rows)
        if free is not None:
            is_fixed = ~np.isin(keyframes, free)
            if not is_fixed.any():
                is_fixed[0] = True
            bundle = replace(bundle, is_fixed=is_fixed)
        self.take(adjust(bundle, config), keyframes, tracks)

    def drop_outliers(self) -> None:
        """Re-judges all observations of posed keyframes; points left with fewer than two inliers go."""
        has_point = np.isfinite(self.map.points[self.map.track_idx, 0])
        rows = np.flatnonzero(self.map.is_posed[self.map.kf_idx] & has_point)
        bundle, _ = self.bundle(rows)
        is_inlier = reprojection_errors(bundle) < self.max_error_px
        self.map.is_inlier[rows] = is_inlier
        support = np.bincount(self.map.track_idx[rows], is_inlier, minlength=len(self.map.points))
        world_from_cam = invert(self.map.cam_from_world[self.map.kf_idx[rows]])
        ray = self.map.points[self.map.track_idx[rows]] - world_from_cam[:, :, 3]
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        spread = ray_spread(ray, self.map.track_idx[rows], len(self.map.points))
        bad = (support < 2) | (spread < np.radians(0.5 * self.config.min_angle_deg))
        self.map.points[bad] = np.nan

    def median_angle_deg(self) -> float:
        """Median over points of the angle their rays span, in degrees; 0 without points."""
        rows = self.rows()
        if len(rows) == 0:
            return 0.0
        world_from_cam = invert(self.map.cam_from_world[self.map.kf_idx[rows]])
        ray = self.map.points[self.map.track_idx[rows]] - world_from_cam[:, :, 3]
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        tracks, local = np.unique(self.map.track_idx[rows], return_inverse=True)
        return float(np.degrees(np.median(ray_spread(ray, local, len(tracks)))))

"""Where a frame was taken from, in a place that can be rendered: a frame in, the pose whose render is most like it out.

At 64 x 48 pixels no engine tells a path from a small model's videos, whose details do not hold still from frame to frame.
But the place they show is known. Each frame is compared by itself with renders from poses spread over all that a walk
can reach, and the best of them are moved by Gauss-Newton steps until nothing fits better. The commanded pose is never
looked at, so that a frame which shows nothing gets a pose as good as a guess, and the place gives metres, so that no
fit hides an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.stats import qmc

from worldline.annotate.camera import compose, rotation_angle, rotation_from_rotvec
from worldline.datasets.synthetic_places import RenderedPlace
from worldline.datasets.synthetic_walks import Walks

Render = Callable[[np.ndarray], np.ndarray]
"""A pose first_from_cam [3, 4] in metres in, the frame [H, W, 3] uint8 that is seen from there out."""

ROTATION, TRANSLATION, CAM_MC = "RotErr, deg", "TransErr, m", "CamMC"
TOLD = "frames told"
"""Share of frames more like a render of the place than frames of another place are."""

_STEPS = np.array([0.01, 0.01, 0.01, 0.02, 0.02, 0.02])
"""Of the finite differences: radians about the camera's axes, metres along them."""
_MAX_MOVE = np.array([0.12, 0.12, 0.12, 0.25, 0.25, 0.25])
"""Of one Gauss-Newton step."""
_SLOPES_EVERY = 2
"""Steps for which the slopes of a pose serve; they cost twelve renders, a step costs one."""
_LEAST_GAIN = 1e-6
"""In likeness; a step that brings less is the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Which poses are tried, and how they are made better."""

    reach_m: tuple[float, float, float] = (0.75, 0.1, 0.95)
    """To each side of the first camera along its axes x, y, z; a third more than the recipe's walks go."""
    turn_rad: tuple[float, float] = (0.25, 0.8)
    """Up or down, and to each side."""
    num_poses: int = 1024
    """Spread over both."""
    num_kept: int = 6
    """Of them, made better by themselves; the best two of these are looked at closely."""
    blurs_px: tuple[float, float] = (2.5, 1.5)
    """Deviation of the Gaussian that frames are compared after: far off, and in the end."""
    max_steps: tuple[int, int] = (8, 30)
    """Gauss-Newton steps with each blur."""

    def __post_init__(self) -> None:
        if min(self.num_poses, self.num_kept, *self.max_steps) < 1 or min(self.blurs_px) <= 0:
            raise ValueError("num_poses, num_kept, max_steps and blurs_px must be positive")


@dataclass(frozen=True, slots=True)
class FoundPoses:
    """Of N frames."""

    first_from_cam: np.ndarray
    """[N, 3, 4], metres."""
    likeness: np.ndarray
    """[N] correlation of the frame with the render from there, at most 1."""


@dataclass(frozen=True, slots=True)
class PoseErrors:
    """Found against commanded poses, [...] each, without any fit."""

    rotation_deg: np.ndarray
    translation_m: np.ndarray
    cam_mc: np.ndarray
    """Frobenius norm of the difference of the [3, 4] matrices."""


class RenderedSearch:
    """The renders around one start, made once for all frames that are looked for."""

    def __init__(self, render: Render, config: SearchConfig | None = None) -> None:
        self._render = render
        self.config = SearchConfig() if config is None else config
        self._poses = spread_poses(self.config)
        blur = self.config.blurs_px[0]
        self._looks = np.stack([_look(render(pose), blur) for pose in self._poses])  # [K, D]
        self._kept_slopes: dict[int, np.ndarray] = {}

    def poses(self, frames: np.ndarray) -> FoundPoses:
        """Of frames [N, H, W, 3] uint8, each by itself."""
        found = [self._pose(frame) for frame in frames]
        return FoundPoses(
            np.stack([pose for pose, _ in found]), np.array([likeness for _, likeness in found])
        )

    def _pose(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        coarse, fine = self.config.blurs_px
        steps, more_steps = self.config.max_steps
        wanted = _look(frame, coarse)
        best = np.argsort(-(self._looks @ wanted), kind="stable")[: self.config.num_kept]
        moved = [
            self._moved(self._poses[k], wanted, coarse, steps, slopes=self._slopes_of(int(k))) for k in best
        ]
        moved = sorted(moved, key=lambda each: -each[1])[:2]
        wanted = _look(frame, fine)
        return max(
            (self._moved(pose, wanted, fine, more_steps) for pose, _ in moved), key=lambda each: each[1]
        )

    def _moved(
        self,
        pose: np.ndarray,
        wanted: np.ndarray,
        blur_px: float,
        max_steps: int,
        *,
        slopes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """The pose after damped Gauss-Newton steps, none of which makes the likeness worse, and its likeness.

        `slopes`: [6, D] to use all the way, None to take those of each pose.
        """
        look = _look(self._render(pose), blur_px)
        likeness, damping = float(look @ wanted), 1e-3
        here = self._slopes(pose, blur_px) if slopes is None else slopes
        for step in range(max_steps):
            if slopes is None and step and step % _SLOPES_EVERY == 0:
                here = self._slopes(pose, blur_px)
            normal, right = here @ here.T, here @ (wanted - look)
            before = likeness
            for _ in range(4):
                move = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), right)
                move = move / max(1.0, float(np.abs(move / _MAX_MOVE).max()))
                tried = compose(pose, _small_pose(move))
                seen = _look(self._render(tried), blur_px)
                if float(seen @ wanted) > likeness:
                    pose, look, likeness, damping = tried, seen, float(seen @ wanted), damping / 4
                    break
                damping *= 8
            if likeness - before < _LEAST_GAIN:
                break
        return pose, likeness

    def _slopes_of(self, index: int) -> np.ndarray:
        """Of a pose that was spread, with the first blur; kept."""
        if index not in self._kept_slopes:
            self._kept_slopes[index] = self._slopes(self._poses[index], self.config.blurs_px[0])
        return self._kept_slopes[index]

    def _slopes(self, pose: np.ndarray, blur_px: float) -> np.ndarray:
        """[6, D] central differences by rotation and translation of the camera."""
        moves = np.diag(_STEPS)
        ahead, behind = (
            np.stack([_look(self._render(compose(pose, _small_pose(move))), blur_px) for move in way])
            for way in (moves, -moves)
        )
        return (ahead - behind) / (2 * _STEPS[:, None])


class WalkCameras:
    """The cameras of videos that were made along held-out walks through one place; a context manager."""

    def __init__(self, walks: Walks, *, seed_of_place: int, fov_x_deg: float, walks_a_start: int = 2) -> None:
        """Raises MissingBackend where nothing can be rendered."""
        width, height = walks.camera.width, walks.camera.height
        self._place = RenderedPlace(seed_of_place, width=width, height=height, fov_x_deg=fov_x_deg)
        self._walks, self._walks_a_start = walks, walks_a_start
        self._searches = [self._around(start) for start in walks.scene_from_first[::walks_a_start]]

    def __enter__(self) -> WalkCameras:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.close()

    def _around(self, scene_from_first: np.ndarray) -> RenderedSearch:
        return RenderedSearch(lambda pose: self._place.seen_from(compose(scene_from_first, pose)))

    def found(self, videos: np.ndarray) -> FoundPoses:
        """Poses [N, F - 1, 3, 4] and likeness [N, F - 1] of videos [N, F, H, W, 3] uint8 without their first frames."""
        found = [self._searches[k // self._walks_a_start].poses(video[1:]) for k, video in enumerate(videos)]
        return FoundPoses(
            np.stack([each.first_from_cam for each in found]), np.stack([each.likeness for each in found])
        )

    def scores(self, videos: np.ndarray, *, least_likeness: float) -> dict[str, np.ndarray]:
        """Means over a video's frames, [N] each, by name; `least_likeness` from `unlike`.

        Errors are over all frames: one that shows nothing of the place counts with the pose that it happened to get.
        """
        found = self.found(videos)
        errors = pose_errors(found.first_from_cam, self._walks.first_from_cam[:, 1:])
        return {
            ROTATION: errors.rotation_deg.mean(axis=1),
            TRANSLATION: errors.translation_m.mean(axis=1),
            CAM_MC: errors.cam_mc.mean(axis=1),
            TOLD: (found.likeness > least_likeness).mean(axis=1),
        }

    def unlike(self, elsewhere: np.ndarray) -> float:
        """The likeness that 95 % of the frames of another place [N, F, H, W, 3] stay below."""
        return float(np.quantile(self.found(elsewhere).likeness, 0.95))


def pose_errors(first_from_cam: np.ndarray, commanded: np.ndarray) -> PoseErrors:
    """Of poses [..., 3, 4] against the commanded ones, metres."""
    turned = first_from_cam[..., :3].swapaxes(-1, -2) @ commanded[..., :3]
    return PoseErrors(
        np.degrees(rotation_angle(turned)),
        np.linalg.norm(first_from_cam[..., 3] - commanded[..., 3], axis=-1),
        np.linalg.norm(first_from_cam - commanded, axis=(-2, -1)),
    )


def spread_poses(config: SearchConfig) -> np.ndarray:
    """[K, 3, 4] poses spread evenly over the config's reach and turns (Sobol), the resting one first."""
    bounds = np.array([*config.reach_m, *config.turn_rad])
    sobol = qmc.Sobol(len(bounds), scramble=True, seed=0).random_base2(
        int(np.ceil(np.log2(config.num_poses)))
    )
    drawn = (2 * sobol[: config.num_poses] - 1) * bounds
    drawn[0] = 0
    zero = np.zeros(len(drawn))
    yaw = rotation_from_rotvec(np.stack([zero, drawn[:, 4], zero], axis=-1))
    pitch = rotation_from_rotvec(np.stack([drawn[:, 3], zero, zero], axis=-1))
    return np.concatenate([yaw @ pitch, drawn[:, :3, None]], axis=-1)


def _small_pose(move: np.ndarray) -> np.ndarray:
    """[3, 4] of a rotation vector and a translation [6]."""
    return np.concatenate([rotation_from_rotvec(move[:3]), move[3:, None]], axis=-1)


def _look(frame: np.ndarray, blur_px: float) -> np.ndarray:
    """What is compared of a frame [H, W, 3] uint8: blurred, without each channel's mean, of length 1; [D] float64.

    A dot product of two is their correlation, which neither brightness nor contrast changes. Blurred frames are halved.
    """
    image = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), blur_px, borderType=cv2.BORDER_REFLECT)
    if blur_px >= 2:
        image = image[::2, ::2]
    image = image.astype(np.float64) - image.mean(axis=(0, 1))
    return image.ravel() / max(float(np.linalg.norm(image)), 1e-9)

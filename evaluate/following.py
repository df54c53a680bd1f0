"""Does a world model follow its camera: generated videos and what they should show in, figures with
intervals out.

Two views. Where the place can be rendered: the generated frames against the true frames of the commanded
path, held next to the video made for another path from the same start, to the first frame standing still, and
to the video made with the camera switched off. Where a trajectory can be recovered from the video: RotErr,
TransErr and CamMC after Sim(3), with the fitted scale and the errors without any fit beside them, for a fit
can make a wrong path look right. A figure over videos comes with a bootstrap interval over those videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from worldline.annotate.camera import compose, invert, rotation_angle
from worldline.evaluate.perceptual import NAME as PERCEPTUAL
from worldline.evaluate.perceptual import perceptual_distance
from worldline.evaluate.trajectory import CameraControlError, align, camera_control_error

SSIM_SIGMA_PX = 1.5
"""Of the Gaussian window, as in Wang et al. 2004."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over videos and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFollowing:
    """Generated against true frames of N held-out clips, PSNR in dB."""

    commanded_db: np.ndarray
    """[N] the video made for the clip's own path."""
    other_db: np.ndarray
    """[N] the video made for another path from the same first frame."""
    still_db: np.ndarray
    """[N] the first frame standing still."""

    @property
    def beats_other(self) -> Interval:
        """Share of clips whose own path's video is nearer to the truth than the other path's."""
        return bootstrap((self.commanded_db > self.other_db).astype(np.float64))

    @property
    def beats_still(self) -> Interval:
        """Share of clips whose video is nearer to the truth than the standing first frame."""
        return bootstrap((self.commanded_db > self.still_db).astype(np.float64))

    @property
    def gap_db(self) -> Interval:
        """Mean of commanded minus other: 0 for a model that does not use the camera."""
        return bootstrap(self.commanded_db - self.other_db)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseFollowing:
    """One recovered path against the commanded one, both relative to their first frame."""

    aligned: CameraControlError
    """After Sim(3), the published figures."""
    unaligned: CameraControlError
    """As it is: scale errors count."""
    scale_ratio: float
    """Recovered over commanded length by the fit; NaN where either camera rests."""


def pixel_following(generated: np.ndarray, for_other_path: np.ndarray, truth: np.ndarray) -> PixelFollowing:
    """Compares videos [N, F, H, W, 3] uint8 that share their first frame, which is left out.

    Raises ValueError for unequal shapes or fewer than two frames.
    """
    if not generated.shape == for_other_path.shape == truth.shape or generated.ndim != 5:
        raise ValueError(f"videos of {generated.shape}, {for_other_path.shape} and {truth.shape} do not pair")
    if truth.shape[1] < 2:
        raise ValueError("a video of one frame has no path")
    still = np.broadcast_to(truth[:, :1], truth.shape)
    return PixelFollowing(
        commanded_db=psnr_db(generated[:, 1:], truth[:, 1:]),
        other_db=psnr_db(for_other_path[:, 1:], truth[:, 1:]),
        still_db=psnr_db(still[:, 1:], truth[:, 1:]),
    )


def psnr_db(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] from videos [N, F, H, W, 3] uint8, of the squared error's mean over a whole video; inf where equal."""
    error = videos.astype(np.float32) - truth.astype(np.float32)
    mean = np.square(error).reshape(len(error), -1).mean(axis=1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / mean)


def ssim(videos: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] mean structural similarity of videos [N, F, H, W, 3] uint8, per channel with a Gaussian window."""
    return np.array(
        [
            np.mean([_ssim(a, b) for a, b in zip(x, y, strict=True)])
            for x, y in zip(videos, truth, strict=True)
        ]
    )


MakeVideos = Callable[[np.ndarray, int], np.ndarray]
"""Paths [N, F, 3, 4] and a seed in, videos [N, F, H, W, 3] uint8 out, from first frames that are agreed on."""


def paired_table(
    make: MakeVideos, truth: np.ndarray, first_from_cam: np.ndarray, *, noise_seeds: int
) -> list[dict[str, Any]]:
    """Generated against true frames: rows of (what, mean, 95 % from, to).

    Walks 2 i and 2 i + 1 begin with the same frame, so that each is the other's other path. `truth`
    [N, F, H, W, 3] uint8, paths [N, F, 3, 4]. Shares and means are over all walks and noise seeds; intervals
    are over the starts, whose two walks and all seeds count as one draw.
    """

    def swapped(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)

    rest = np.broadcast_to(np.eye(3, 4), first_from_cam.shape).copy()
    db: dict[str, list[np.ndarray]] = {"own": [], "other": [], "rest": [], "against other truth": []}
    likeness = []
    apart: dict[str, list[np.ndarray]] = {"own": [], "other": []}
    for seed in range(noise_seeds):
        own, other = make(first_from_cam, seed), make(swapped(first_from_cam), seed)
        scores = pixel_following(own, other, truth)
        db["own"].append(scores.commanded_db)
        db["other"].append(scores.other_db)
        db["rest"].append(psnr_db(make(rest, seed)[:, 1:], truth[:, 1:]))
        db["against other truth"].append(psnr_db(own[:, 1:], swapped(truth)[:, 1:]))
        likeness.append(ssim(own[:, 1:], truth[:, 1:]))
        for name, made in (("own", own), ("other", other)):
            apart[name].append(perceptual_distance(made[:, 1:], truth[:, 1:]))
    still_db = scores.still_db[None]
    still = np.broadcast_to(truth[:, :1], truth.shape)
    found = {name: np.stack(values) for name, values in db.items()}  # [seeds, N]
    return [
        _row("its video, PSNR against its path's truth, dB", found["own"]),
        _row("its video against the other path's truth, dB", found["against other truth"]),
        _row("the first frame standing still, dB", still_db),
        _row("video of the other path's cameras, dB", found["other"]),
        _row("video of a camera that rests, dB", found["rest"]),
        _row("its video, SSIM", np.stack(likeness)),
        _row("first frame standing still, SSIM", ssim(still[:, 1:], truth[:, 1:])[None]),
        _row(f"its video, {PERCEPTUAL}", np.stack(apart["own"])),
        _row(f"video of the other path's cameras, {PERCEPTUAL}", np.stack(apart["other"])),
        _row(
            f"first frame standing still, {PERCEPTUAL}",
            perceptual_distance(still[:, 1:], truth[:, 1:])[None],
        ),
        _row("share nearer to its own than to the other truth", found["own"] > found["against other truth"]),
        _row("share nearer than the still frame", found["own"] > still_db),
    ]


def _row(what: str, values: np.ndarray) -> dict[str, Any]:
    """Values [seeds, N] as a mean with its interval."""
    starts = values.astype(np.float64).reshape(len(values), -1, 2).mean(axis=(0, 2))
    found = bootstrap(starts)
    return {"what": what, "mean": found.mean, "95 % from": found.low, "to": found.high}


def pose_following(world_from_cam: np.ndarray, commanded: np.ndarray) -> PoseFollowing:
    """Figures of a recovered path [F, 3, 4] against the commanded one [F, 3, 4], metres.

    Raises ValueError for unequal lengths or a pose that is missing: a video whose path could not be recovered
    is counted as such and not scored.
    """
    aligned = camera_control_error(world_from_cam, commanded)
    recovered = compose(invert(world_from_cam[:1]), world_from_cam)
    wanted = compose(invert(commanded[:1]), commanded)
    rests = min(np.ptp(path[:, :, 3], axis=0).max() for path in (recovered, wanted)) < 1e-9
    unaligned = CameraControlError(
        rotation_deg=float(np.degrees(rotation_angle(recovered[:, :, :3].mT @ wanted[:, :, :3])).mean()),
        translation=float(np.linalg.norm(recovered[:, :, 3] - wanted[:, :, 3], axis=-1).mean()),
        cam_mc=float(np.linalg.norm(recovered - wanted, axis=(1, 2)).mean()),
    )
    scale = float("nan") if rests else 1 / align(recovered, wanted, "sim3")[0].scale
    return PoseFollowing(aligned=aligned, unaligned=unaligned, scale_ratio=scale)


def static_camera(num_frames: int) -> np.ndarray:
    """[F, 3, 4] of a camera that never moves: the row every table needs."""
    return np.tile(np.eye(3, 4), (num_frames, 1, 1))


def bootstrap(values: np.ndarray, *, level: float = 0.95, num_draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of values [N] and its percentile interval over draws with replacement. Raises ValueError for none
    or for values that are not finite.
    """
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"bootstrap needs finite values, got {values}")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(num_draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def _ssim(image: np.ndarray, truth: np.ndarray) -> float:
    x, y = image.astype(np.float64), truth.astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), SSIM_SIGMA_PX, borderType=cv2.BORDER_REFLECT)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())

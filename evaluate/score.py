"""`worldline score`: one clip of a dataset folder and the true path in, its errors and the honesty of its
sigmas out."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from worldline.annotate.camera import compose, invert
from worldline.datasets.formats.tum import read_tum
from worldline.datasets.posed_clip import PosedClip, load_clip
from worldline.evaluate.calibration import coverage
from worldline.evaluate.trajectory import Alignment, CompareConfig, PathError, compare


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Score one clip's trajectory against a true one."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    truth: Path
    """TUM file: `t tx ty tz qx qy qz qw` a line, world_from_cam, OpenCV axes, metres, seconds on the video's
    clock."""
    clip: str | None = None
    """Clip id or a unique start of it; may be left out where the folder has one clip with a path."""
    json: bool = False
    """Print one JSON object instead of the table."""
    max_time_difference_s: float = 0.02
    """A frame and a true pose belong together when their times differ by at most this much."""
    rpe_delta_s: float = 1.0
    """Relative errors are taken over this time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Figures of one clip. Lengths in centimetres of the truth; None is unknown or undefined."""

    clip_id: str
    num_frames: int
    num_posed: int
    num_scored: int
    """Posed frames with a true pose at their time."""
    ate_sim3_cm: float
    """RMS position error after the best rotation, translation and scale."""
    ate_se3_cm: float | None
    """The same with the stored scale; None where the clip is up to scale."""
    ate_none_cm: float | None
    """The same with nothing fitted: the first posed frame is laid on its true pose; None where the clip is up
    to scale or that frame has no true pose."""
    rpe_translation_cm: float
    """RMS relative translation error over `rpe_delta_s`, at the stored scale of a metric clip, else the
    fitted one."""
    rpe_rotation_deg: float
    rotation_mean_deg: float
    """Mean rotation error after the Sim(3) alignment of positions."""
    rotation_median_deg: float
    orientation_mean_deg: float
    """Mean rotation error after the best rotation between the orientations: fair where the path is
    straight."""
    scale_status: str | None
    scale_ratio: float | None
    """Estimated over true length; None for a resting camera."""
    scale_sigma: float | None
    """Stated relative 1-sigma of the scale."""
    scale_error_sigmas: float | None
    """log(scale_ratio) / scale_sigma: within +-1 in 68 % of clips when the sigma is true. Metric clips
    only."""
    coverage_1_sigma: float | None
    """Share of frames whose position error is within the stated 1 sigma, scale fitted
    (evaluate/calibration.py); 0.683 over many clips when the sigmas are true. None without sigmas or without
    a true pose of the first posed frame."""
    coverage_2_sigma: float | None
    """The same at 2 sigma; 0.954."""
    fitted_coverage_1_sigma: float | None
    """The same with the rotation about the first centre fitted too: an upper bound, for a truth that belongs
    to another camera frame (evaluate/calibration.py)."""
    fitted_coverage_2_sigma: float | None
    metric_coverage_1_sigma: float | None
    """The same with the stored scale, whose sigma joins in. Metric clips only."""
    metric_coverage_2_sigma: float | None


def score_clip(clip: PosedClip, truth: PosedClip, config: ScoreConfig) -> Score:
    """Figures of a clip against its true path; ValueError where no posed frame has a true pose."""
    errors = {alignment: _compare(clip, truth, alignment, config) for alignment in ("sim3", "se3")}
    sim3, stored = errors["sim3"], errors["se3" if clip.is_metric else "sim3"]
    pair = sim3.frame_idx, sim3.true_idx
    # Only if the gauge frame itself has a true pose can errors be taken relative to it.
    is_anchored = pair[0][0] == np.flatnonzero(clip.is_registered)[0]
    poses, true_poses = clip.world_from_cam[pair[0]], truth.world_from_cam[pair[1]]
    shape = fitted = metric = None
    if is_anchored and clip.sigma_translation is not None:
        sigma = clip.sigma_translation[pair[0]]
        shape = coverage(poses, true_poses, sigma)
        fitted = coverage(poses, true_poses, sigma, fit_rotation=True)
        if clip.is_metric and clip.scale_sigma is not None:
            metric = coverage(poses, true_poses, sigma, scale_sigma=clip.scale_sigma)
    has_scale = math.isfinite(sim3.scale_ratio) and sim3.scale_ratio > 0
    z_score = None
    if clip.is_metric and has_scale and clip.scale_sigma:
        z_score = math.log(sim3.scale_ratio) / clip.scale_sigma
    return Score(
        clip_id=clip.clip_id,
        num_frames=len(clip.timestamps_s),
        num_posed=int(clip.is_registered.sum()),
        num_scored=sim3.num_pairs,
        ate_sim3_cm=100 * sim3.ate.rmse,
        ate_se3_cm=100 * stored.ate.rmse if clip.is_metric else None,
        ate_none_cm=100 * _anchored_rmse(poses, true_poses) if clip.is_metric and is_anchored else None,
        rpe_translation_cm=100 * stored.rpe_translation.rmse,
        rpe_rotation_deg=stored.rpe_rotation_deg.rmse,
        rotation_mean_deg=sim3.rotation_deg.mean,
        rotation_median_deg=sim3.rotation_deg.median,
        orientation_mean_deg=sim3.orientation_deg.mean,
        scale_status=clip.scale_status,
        scale_ratio=sim3.scale_ratio if has_scale else None,
        scale_sigma=clip.scale_sigma,
        scale_error_sigmas=z_score,
        coverage_1_sigma=shape.share_1_sigma if shape else None,
        coverage_2_sigma=shape.share_2_sigma if shape else None,
        fitted_coverage_1_sigma=fitted.share_1_sigma if fitted else None,
        fitted_coverage_2_sigma=fitted.share_2_sigma if fitted else None,
        metric_coverage_1_sigma=metric.share_1_sigma if metric else None,
        metric_coverage_2_sigma=metric.share_2_sigma if metric else None,
    )


def main(config: ScoreConfig) -> int:
    """Prints the score; exit status 0, or 1 where nothing could be scored."""
    try:
        score = score_clip(load_clip(config.dataset, config.clip), read_tum(config.truth), config)
    except (ValueError, OSError) as error:
        print(f"worldline score: {error}", file=sys.stderr)
        return 1
    if config.json:
        print(json.dumps({name: _plain(value) for name, value in dataclasses.asdict(score).items()}))
    else:
        print(format_score(score, config))
    return 0


def format_score(score: Score, config: ScoreConfig) -> str:
    """The score as a table for people."""

    def number(value: float | None, digits: int) -> str:
        return "unknown" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"

    def shares(one: float | None, two: float | None) -> str:
        return ", ".join("unknown" if x is None or not math.isfinite(x) else f"{x:.1%}" for x in (one, two))

    scale = f"{number(score.scale_ratio, 4)} of true, stated sigma {number(score.scale_sigma, 4)}"
    if score.scale_error_sigmas is not None:
        scale += f" ({score.scale_error_sigmas:+.1f} sigma off)"
    lines = [
        ("clip", score.clip_id),
        ("frames posed", f"{score.num_posed} of {score.num_frames}; {score.num_scored} with a true pose"),
        ("ATE after Sim(3) [cm]", number(score.ate_sim3_cm, 3)),
        ("ATE after SE(3) [cm]", number(score.ate_se3_cm, 3)),
        ("ATE, nothing fitted [cm]", number(score.ate_none_cm, 3)),
        (
            f"RPE over {config.rpe_delta_s:g} s",
            f"{number(score.rpe_translation_cm, 3)} cm, {number(score.rpe_rotation_deg, 3)} deg",
        ),
        (
            "rotation error [deg]",
            f"mean {number(score.rotation_mean_deg, 3)}, median {number(score.rotation_median_deg, 3)}; "
            f"after rotation fit {number(score.orientation_mean_deg, 3)}",
        ),
        ("scale", f"{score.scale_status or 'unknown'}: {scale}"),
        ("within 1, 2 sigma", shares(score.coverage_1_sigma, score.coverage_2_sigma)),
        ("  rotation fitted too", shares(score.fitted_coverage_1_sigma, score.fitted_coverage_2_sigma)),
        ("  with the stated scale", shares(score.metric_coverage_1_sigma, score.metric_coverage_2_sigma)),
    ]
    return "\n".join(f"{name:<26} {value}" for name, value in lines)


def _compare(clip: PosedClip, truth: PosedClip, alignment: Alignment, config: ScoreConfig) -> PathError:
    return compare(
        timestamps_s=clip.timestamps_s,
        world_from_cam=clip.world_from_cam,
        true_timestamps_s=truth.timestamps_s,
        true_world_from_cam=truth.world_from_cam,
        config=CompareConfig(
            alignment=alignment,
            max_time_difference_s=config.max_time_difference_s,
            rpe_delta=config.rpe_delta_s,
            rpe_unit="seconds",
        ),
    )


def _anchored_rmse(poses: np.ndarray, true_poses: np.ndarray) -> float:
    """RMS distance of the centres after the first camera is laid on its true pose."""
    error = compose(invert(poses[:1]), poses) - compose(invert(true_poses[:1]), true_poses)
    return float(np.sqrt(np.mean(np.sum(error[:, :, 3] ** 2, axis=-1))))


def _plain(value: object) -> object:
    """NaN and infinity are not JSON: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ScoreConfig)))

"""Do the error bars hold? Rendered clips of many kinds, their stated sigmas and true errors, and a reliability plot.

Each clip has its own field of view, noise, blur, compression, principal point off the centre; a quarter has people
walking in it, a sixth a bent lens. Errors are taken in the gauge that the sigmas are stated in (docs/conventions.md).
The frames of a clip drift together, so the spread between clips, not the number of frames, says how sure the shares are.
The constants of annotate/uncertainty.py were chosen on the clips of seed 7; those of seed 8 had no say in them.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.stats import chi

from benchmarks.report import RESULTS_DIR, write_report
from worldline.annotate.clip import ClipConfig, annotate_clip
from worldline.annotate.scenes import Scene
from worldline.annotate.video import Span, probe
from worldline.datasets.schema import ClipRejected
from worldline.datasets.synthetic import SyntheticConfig, write_clip
from worldline.evaluate.calibration import LENGTH_OF_1_SIGMA, LENGTH_OF_2_SIGMA, Coverage, coverage

SCENES = ("room", "street", "desk", "corridor", "outdoor")
PATHS = ("handheld", "walking", "orbiting", "spline", "dolly", "driving")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationJob:
    """Which clips."""

    num: int = 48
    """Clips of each seed."""
    num_frames: int = 72
    size: tuple[int, int] = (640, 360)
    """Width and height in pixels."""
    seeds: tuple[int, ...] = (7, 8)
    num_workers: int = 2
    """Clips rendered and annotated at once."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    write: bool = True
    """Write docs/results/calibration.md and calibration.png."""


def clips(job: CalibrationJob, seed: int) -> list[SyntheticConfig]:
    """The clips of one seed."""
    rng = np.random.default_rng(seed)
    planned = []
    for k in range(job.num):
        path = PATHS[(k * 7 + k // 5) % len(PATHS)]
        options: dict[str, Any] = {
            "scene": "street" if path == "driving" else SCENES[k % len(SCENES)],
            "path": path,
            "seed": 1000 * seed + k,
            "fov_x_deg": float(rng.uniform(45, 85)),
            "noise": float(rng.choice([0, 2, 5])),
            "motion_blur": float(rng.choice([0, 0, 0.4])),
            "principal_offset_px": tuple(rng.normal(0, 4, 2).tolist()),
            "crf": int(rng.choice([16, 24])),
        }
        if k % 4 == 1:
            options |= {"num_moving": 2, "moving_share": 0.1}
        if k % 6 == 2:
            options |= {"camera_model": "radial", "distortion": (float(rng.normal(0, 0.08)), 0.0)}
        width, height = job.size
        planned.append(
            SyntheticConfig(width=width, height=height, fps=24, num_frames=job.num_frames, **options)
        )
    return planned


def measured(config: SyntheticConfig, job: CalibrationJob) -> tuple[dict[str, Any], Coverage | None]:
    """One clip's row of the table and its coverage; None where it got no path with error bars."""
    row: dict[str, Any] = {"scene": config.scene, "path": config.path}
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(config, Path(folder))
        info = probe(str(clip.video_path))
        span = Span(start_s=float(info.timestamps_s[0]), end_s=float(info.timestamps_s[-1]) + 1.0)
        scene = Scene(span=span, overlap_s=0.0, num_cuts=0, shot_idx=0)
        try:
            found = annotate_clip(info, scene, job.clip)
        except ClipRejected as rejection:
            return row | {"label": f"rejected: {rejection.reason}"}, None
    row["label"] = found.get("degeneracy") or f"rejected: {found.get('reason', '')[:40]}"
    if found.get("sigma_translation") is None:
        return row, None
    poses = np.array(found["world_from_cam"]).reshape(-1, 3, 4)
    posed = np.isfinite(poses[:, 0, 0])
    sigma = np.array(found["sigma_translation"])[posed]
    held = coverage(poses[posed], clip.truth.world_from_cam[posed], sigma)
    true_m = clip.truth.world_from_cam[:, :, 3]
    extent_m = float(np.linalg.norm(true_m - true_m[0], axis=1).max())
    row |= {
        "posed": float(posed.mean()),
        "error / extent": float(np.sqrt(np.mean(held.error**2))) / extent_m,
        "sigma / extent": float(np.sqrt(3 * np.mean(held.sigma**2))) / extent_m,
        "in 1 sigma": held.share_1_sigma,
        "in 2 sigma": held.share_2_sigma,
    }
    return row, held


def plot(normalised: np.ndarray, path: Path) -> None:
    """Stated against found share of frames inside k sigma, for every k; errors [N] over sigma per axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stated = np.linspace(0.01, 0.995, 100)
    found = [np.mean(normalised < length) for length in chi.ppf(stated, df=3)]
    figure, axes = plt.subplots(figsize=(4.5, 4.5))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="true error bars")
    axes.plot(stated, found, color="tab:blue", label="worldline")
    axes.set(xlabel="stated share of frames", ylabel="found share of frames", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Position error bars on rendered truth")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def covered(held: list[Coverage]) -> list[dict[str, Any]]:
    """Rows of found shares, over all frames and over resampled sets of clips."""
    normalised = np.concatenate([each.error / each.sigma for each in held])
    shares = np.array([[each.share_1_sigma, each.share_2_sigma] for each in held])
    rng = np.random.default_rng(0)
    draws = shares[rng.integers(0, len(held), (2000, len(held)))].mean(axis=1)
    return [
        {
            "within": f"{k} sigma",
            "stated": stated,
            "found, all frames": float(np.mean(normalised < length)),
            "5 % of resampled sets of clips": float(np.quantile(draws[:, k - 1], 0.05)),
            "95 %": float(np.quantile(draws[:, k - 1], 0.95)),
        }
        for k, stated, length in ((1, 0.6827, LENGTH_OF_1_SIGMA), (2, 0.9545, LENGTH_OF_2_SIGMA))
    ]


def main(job: CalibrationJob) -> int:
    """Renders and annotates all clips and writes the report."""
    rows: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    held: list[Coverage] = []
    started_s = time.perf_counter()
    with ProcessPoolExecutor(job.num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for seed in job.seeds:
            of_seed = []
            for number, (row, found) in enumerate(pool.map(partial(measured, job=job), clips(job, seed))):
                rows.append({"seed": seed, "clip": number} | row)
                if found is not None:
                    of_seed.append(found)
                print(rows[-1], flush=True)
            summary += [{"clips": f"{len(of_seed)} of seed {seed}"} | row for row in covered(of_seed)]
            held += of_seed
    if len(job.seeds) > 1:
        summary += [{"clips": f"{len(held)}, all"} | row for row in covered(held)]
    width, height = job.size
    notes = (
        f"{len(rows)} clips of {width}x{height}, {job.num_frames} frames, {len(held)} with error bars, in "
        f"{time.perf_counter() - started_s:.0f} s.\nErrors and sigmas are lengths in space (rms over frames), "
        "over the path's largest distance from its start."
    )
    tables = {"Coverage": summary, "Clips": rows}
    if job.write:
        plot(np.concatenate([each.error / each.sigma for each in held]), RESULTS_DIR / "calibration.png")
        notes += "\n\n![found against stated shares](calibration.png)"
        write_report(
            "calibration", "Error bars against truth", "python -m benchmarks.calibration", tables, notes
        )
    else:
        print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(CalibrationJob, description=__doc__)))

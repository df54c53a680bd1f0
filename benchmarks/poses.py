"""Poses measured: ours beside pycolmap's incremental and global pipelines, on real truth and on rendered
scenes.

Every run is a process of its own, so that its peak memory is its own. pycolmap gets its own recipe: SIFT,
sequential matching with overlap 10, one SIMPLE_RADIAL camera with the default focal prior; its time leaves
out the writing of the images, ours includes decoding. Where a sequence is long pycolmap gets every n-th frame
and accuracy is compared on those.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.report import write_report
from worldline.annotate.camera import rotation_from_quat_xyzw
from worldline.evaluate.calibration import coverage
from worldline.evaluate.trajectory import CompareConfig, compare

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ENGINES = ("ours", "incremental", "global")
RENDERED = {
    "room_handheld": {"scene": "room", "path": "handheld", "seed": 11},
    "room_walking": {"scene": "room", "path": "walking", "seed": 12},
    "desk_orbit": {"scene": "desk", "path": "orbiting", "seed": 13},
    "street_driving": {"scene": "street", "path": "driving", "seed": 14},
    "corridor_dolly": {"scene": "corridor", "path": "dolly", "seed": 15},
    "room_moving": {"scene": "room", "path": "walking", "seed": 16, "num_moving": 2, "moving_share": 0.08},
    "street_zooming": {"scene": "street", "path": "walking", "seed": 21, "zoom": 1.6, "noise": 2.0},
    "room_wide": {
        "scene": "room",
        "path": "walking",
        "seed": 43,
        "fov_x_deg": 110.0,
        "camera_model": "fisheye",
        "distortion": (0.0, 0.0),
    },
}
MAX_FRAMES = 170
"""Most frames for pycolmap, every n-th of a longer sequence: it takes minutes otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PosesConfig:
    """What to run."""

    sequences: tuple[str, ...] = ("redkitchen_a", "kitti_a", *RENDERED)
    """Names of sequences: folders of `data_dir` with video.mp4 and groundtruth.tum, or rendered ones."""
    data_dir: Path = DATA
    """Folder of the real sequences (../shared/data; benchmarks/public_sequences.py makes another)."""
    engines: tuple[str, ...] = ENGINES
    num_frames: int = 120
    """Length of the rendered clips."""
    num_threads: int = 2
    write: bool = True
    """Write the report."""
    report: str = "poses"
    """Its name: docs/results/REPORT.md."""
    run_one: str = ""
    """Internal: run `engine:folder` alone and print its poses' file."""


def main(config: PosesConfig) -> int:
    """Runs all engines on all sequences and writes the table."""
    if config.run_one:
        engine, folder = config.run_one.split(":", 1)
        print(json.dumps(_run_engine(engine, Path(folder), config.num_threads)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in config.sequences:
            folder = _prepare(name, Path(work), config)
            if folder is None:
                print(f"{name}: not there, skipped", file=sys.stderr)
                continue
            for engine in config.engines:
                rows.append(
                    {"sequence": name, "engine": engine} | _measure(engine, folder, config.num_threads)
                )
                print(rows[-1], file=sys.stderr)
            shutil.rmtree(folder / "images", ignore_errors=True)
    notes = (
        "ATE after Sim(3) and after SE(3); RPE between neighbouring compared frames; in k sigma: share of frames "
        "whose position error the error bars hold (evaluate/calibration.py, rotation fitted); scale: estimated "
        "over true length. Frames/s counts the frames given to the engine; peak RSS is the process's. A dash: "
        "not available, or nothing posed."
    )
    if config.write:
        write_report(
            config.report,
            "Poses against truth",
            shlex.join(["python", "-m", "benchmarks.poses", *sys.argv[1:]]),
            {"Sequences": rows},
            notes,
            packages=("pycolmap",),
        )
    return 0


def _prepare(name: str, work: Path, config: PosesConfig) -> Path | None:
    """A folder with video.mp4, truth.npz (timestamps_s, world_from_cam) and images/ for pycolmap."""
    from worldline.annotate.video import probe, read_frames

    folder = work / name
    folder.mkdir()
    if name in RENDERED:
        from worldline.datasets.synthetic import SyntheticConfig, truth_of, write_clip

        size = {"width": 640, "height": 360, "num_frames": config.num_frames}
        synthetic = SyntheticConfig(**size, **RENDERED[name])  # type: ignore[arg-type]
        write_clip(synthetic, folder)
        truth = truth_of(synthetic)
        times, poses = truth.timestamps_s, truth.world_from_cam
    else:
        source = config.data_dir / name
        if not (source / "groundtruth.tum").exists():
            return None
        (folder / "video.mp4").symlink_to((source / "video.mp4").resolve())
        table = np.loadtxt(source / "groundtruth.tum")
        rotation = rotation_from_quat_xyzw(table[:, 4:8])
        times, poses = table[:, 0], np.concatenate([rotation, table[:, 1:4, None]], axis=2)
    np.savez(folder / "truth.npz", timestamps_s=times, world_from_cam=poses)
    import cv2

    images = folder / "images"
    images.mkdir()
    info = probe(str(folder / "video.mp4"))
    stride = -(-len(info.timestamps_s) // MAX_FRAMES)
    for frame in read_frames(info):
        if frame.index % stride == 0:
            path = images / f"{round(frame.timestamp_s * 1e6):012d}.png"
            cv2.imwrite(str(path), cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
    return folder


def _measure(engine: str, folder: Path, num_threads: int) -> dict[str, Any]:
    """One engine in a process of its own; its accuracy on the frames that every engine is given."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.poses",
        "--run-one",
        f"{engine}:{folder}",
        "--num-threads",
        str(num_threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {
            "frames": None,
            "error": done.stderr.strip().splitlines()[-1][:120] if done.stderr else "died",
        }
    result = json.loads(done.stdout.strip().splitlines()[-1])
    with np.load(folder / f"{engine}.npz") as data:
        times, poses, sigma = data["timestamps_s"], data["world_from_cam"], data["sigma"]
    with np.load(folder / "truth.npz") as data:
        true_times, true_poses = data["timestamps_s"], data["world_from_cam"]
    shared = np.array([int(p.stem) for p in sorted((folder / "images").iterdir())]) / 1e6
    kept = np.min(np.abs(times[:, None] - shared[None]), axis=1) < 2e-3
    row = {
        "label": result.get("label"),
        "posed": f"{int(np.isfinite(poses[:, 0, 0]).sum())}/{result['num_frames']}",
        "frames/s": result["num_frames"] / result["seconds"],
        "peak RSS MB": result["rss_mb"],
    }
    if np.isfinite(poses[kept, 0, 0]).sum() < 3:
        return row
    paths = {
        "timestamps_s": times[kept],
        "world_from_cam": poses[kept],
        "true_timestamps_s": true_times,
        "true_world_from_cam": true_poses,
    }
    sim3 = compare(**paths, config=CompareConfig(alignment="sim3"))
    se3 = compare(**paths, config=CompareConfig(alignment="se3"))
    row |= {
        "ATE Sim3 cm": 100 * sim3.ate.rmse,
        "ATE SE3 cm": 100 * se3.ate.rmse,
        "RPE cm": 100 * sim3.rpe_translation.rmse,
        "rot deg": sim3.orientation_deg.mean,
        "scale": sim3.scale_ratio,
        "scale sigma": result.get("scale_sigma"),
        "focal px": result.get("focal_px"),
    }
    if np.isfinite(sigma).any():
        pairs = sim3.frame_idx
        held = coverage(poses[kept][pairs], true_poses[sim3.true_idx], sigma[kept][pairs], fit_rotation=True)
        row["in 1 sigma"], row["in 2 sigma"] = held.share_1_sigma, held.share_2_sigma
    return row


def _run_engine(engine: str, folder: Path, num_threads: int) -> dict[str, Any]:
    """Poses of one engine, written beside the video; frames, seconds and peak memory."""
    run = _run_ours if engine == "ours" else _run_pycolmap
    result, times, poses, sigma = (
        run(folder, num_threads) if engine == "ours" else run(folder, num_threads, engine)
    )
    np.savez(folder / f"{engine}.npz", timestamps_s=times, world_from_cam=poses, sigma=sigma)
    return result | {"rss_mb": _peak_rss_mb()}


def _peak_rss_mb() -> float:
    """Of this program alone: ru_maxrss would start at what the parent had when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _run_ours(folder: Path, num_threads: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    from worldline.annotate.clip import ClipConfig, annotate_clip
    from worldline.annotate.scenes import Scene
    from worldline.annotate.video import Span, probe
    from worldline.datasets.schema import ClipRejected

    info = probe(str(folder / "video.mp4"))
    span = Span(start_s=float(info.timestamps_s[0]), end_s=float(info.timestamps_s[-1]) + 1.0)
    scene = Scene(span=span, overlap_s=0.0, num_cuts=0, shot_idx=0)
    started = time.perf_counter()
    try:
        row = annotate_clip(info, scene, ClipConfig(num_threads=num_threads))
    except ClipRejected as rejection:
        print(f"{folder.name}: rejected, {rejection.reason}: {rejection}", file=sys.stderr)
        row = {}
    seconds = time.perf_counter() - started
    times = np.array(row.get("timestamps_s", info.timestamps_s))
    unknown = np.full(len(times), np.nan)
    poses = np.array(row.get("world_from_cam", np.full((len(times), 12), np.nan))).reshape(-1, 3, 4)
    focal = row.get("fxfycxcy_px")
    result = {
        "num_frames": len(times),
        "seconds": seconds,
        "label": row.get("degeneracy", "rejected"),
        "scale_sigma": row.get("scale_sigma"),
        "focal_px": None if focal is None else focal[0],
    }
    return result, times, poses, np.array(row.get("sigma_translation", unknown))


def _run_pycolmap(
    folder: Path, num_threads: int, engine: str
) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    from worldline.evaluate.recovered import colmap_poses

    images = folder / "images"
    times = np.array(sorted(int(path.stem) for path in images.iterdir())) / 1e6
    started = time.perf_counter()
    poses, lens = colmap_poses(
        images, reader={"camera_model": "SIMPLE_RADIAL"}, engine=engine, num_threads=num_threads
    )
    seconds = time.perf_counter() - started
    focal = None if lens is None else float(lens[0])
    result = {"num_frames": len(times), "seconds": seconds, "focal_px": focal}
    return result, times, poses, np.full(len(times), np.nan)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(PosesConfig, description=__doc__)))

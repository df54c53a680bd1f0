"""One hundred rendered clips that leave little or no path to find: does the annotator invent one?

Still, turning and zooming cameras have no translation: any stored path of theirs is invented. Cameras before
a wall, cameras that barely move and cameras among moving people do move: a stored path of theirs is held
against the truth. Clips are short and small; every one of them is listed in `clips`, so a row can be rendered
and looked at.
"""

from __future__ import annotations

import collections
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.report import write_report
from worldline.annotate.camera import rotation_angle
from worldline.annotate.clip import ClipConfig, annotate_clip
from worldline.annotate.scenes import Scene
from worldline.annotate.video import probe
from worldline.datasets.schema import ClipRejected
from worldline.datasets.synthetic import SyntheticClip, SyntheticConfig, load_clip, write_clip
from worldline.evaluate.trajectory import CompareConfig, compare

RESTING = ("static", "pure_rotation", "zooming")
"""Families whose camera never leaves its place."""

ALLOWED = {
    "static": {"static"},
    "pure_rotation": {"pure_rotation"},
    "zooming": {"zoom", "pure_rotation"},
    "planar": {"planar", "ok"},
    "low_parallax": {"low_parallax", "pure_rotation", "static", "ok"},
    "moving objects": {"ok"},
}
"""Labels that are right for each family. Turning explains a zoom's images when each frame has its own focal
length; which of the two names it gets is a matter of words, not of an invented path."""

_ZERO = 1e-6
"""Length of a path that is zero up to rounding; reconstructed paths are about 1 or longer."""

_SPOILERS: tuple[dict[str, Any], ...] = (
    {},
    {"noise": 6.0},
    {"num_moving": 2, "moving_share": 0.12},
    {"num_moving": 1, "moving_share": 0.4},
    {"flicker": 0.1, "noise": 3.0, "motion_blur": 0.5},
)
"""What makes the question harder: sensor noise, people, one large moving foreground, a nervous exposure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Which clips, and where they go."""

    num: int = 100
    """Clips; they are dealt out so that every prefix mixes the families."""
    folder: Path | None = None
    """Keeps the rendered clips and uses those that are there; None: a temporary folder."""
    size: tuple[int, int] = (384, 216)
    """Width and height of the clips in pixels."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    write: bool = True
    """Write docs/results/degenerate.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One clip's truth and what the annotator said."""

    family: str
    name: str
    label: str
    """The degeneracy label, `rejected` without one, or `error`."""
    reason: str
    moved: float | None
    """Length of the stored path in its own unit; None where no path is stored."""
    error_share: float | None
    """ATE after Sim(3) over the true path's extent (largest distance from the first camera)."""
    rotation_deg: float | None
    """Median error of the rotation relative to the first frame."""
    registered_share: float | None


def clips(num: int, size: tuple[int, int]) -> list[tuple[str, SyntheticConfig]]:
    """(family, clip) of the first `num` clips of the list."""
    base: dict[str, Any] = {"width": size[0], "height": size[1], "fps": 15.0, "num_frames": 45}
    scenes = ("room", "street", "desk", "corridor", "outdoor")
    planned: list[tuple[str, SyntheticConfig]] = []
    for k in range(10):
        scene, other = scenes[k % 5], scenes[(k + 2) % 5]
        spoiler, second = _SPOILERS[(k + k // 5) % 5], _SPOILERS[(k + k // 5 + 2) % 5]
        seed = 100 + k
        options: list[tuple[str, dict[str, Any]]] = [
            ("static", {"scene": scene, "path": "static", **spoiler}),
            ("static", {"scene": other, "path": "static", **second}),
            ("pure_rotation", {"scene": scene, "path": "pure_rotation", **second}),
            ("pure_rotation", {"scene": other, "path": "pure_rotation", **spoiler}),
            ("zooming", {"scene": scene, "path": "zooming", **_SPOILERS[k % 3]}),
            (
                "planar",
                {"scene": "plane", "path": ("handheld", "spline", "walking")[k % 3], **_SPOILERS[k % 2]},
            ),
            (
                "low_parallax",
                {"scene": ("street", "outdoor")[k % 2], "path": "straight", "speed_m_s": 0.02 + 0.01 * k},
            ),
            ("moving objects", {"scene": scene, "path": "handheld", **_SPOILERS[2 + k % 2]}),
            ("moving objects", {"scene": other, "path": "spline", **_SPOILERS[2 + (k + 1) % 2]}),
            (
                "pure_rotation",
                {"scene": scene, "path": "pure_rotation", "texture_contrast": 0.4, "noise": 2.0 + k / 3},
            ),
        ]
        planned += [(family, SyntheticConfig(**base, seed=seed, **option)) for family, option in options]
    return planned[:num]


def describe(config: SyntheticConfig) -> str:
    """scene, path, seed and what differs from a clean clip."""
    default = SyntheticConfig()
    names = ("speed_m_s", "num_moving", "moving_share", "noise", "flicker", "motion_blur", "texture_contrast")
    extras = [f"{n}={getattr(config, n):.3g}" for n in names if getattr(config, n) != getattr(default, n)]
    return " ".join([config.scene, config.path, f"seed={config.seed}", *extras])


def measured(family: str, clip: SyntheticClip, config: ClipConfig) -> Outcome:
    """Annotates one clip as a single scene and compares."""
    name, reason, row = describe(clip.config), "", {}
    try:
        info = probe(str(clip.video_path))
        scene = Scene(span=info.span, overlap_s=0.0, num_cuts=0, shot_idx=0)
        row = annotate_clip(info, scene, config)
        label, reason = row.get("degeneracy") or "rejected", row.get("reason") or ""
    except ClipRejected as rejection:
        label, reason = "rejected", str(rejection)
    except Exception:  # a benchmark counts the annotator's errors, it does not stop at them
        label, reason = "error", traceback.format_exc(limit=-1).strip().splitlines()[-1]
    moved = error_share = rotation_deg = None
    if row.get("world_from_cam") is not None:
        poses = np.array(row["world_from_cam"]).reshape(-1, 3, 4)
        registered = np.isfinite(poses[:, 0, 0])
        moved = path_length(poses[registered][:, :, 3])
        truth = clip.truth
        relative = truth.world_from_cam[registered][:, :, :3].mT @ truth.world_from_cam[registered][:1, :, :3]
        found = poses[registered][:, :, :3].mT @ poses[registered][:1, :, :3]
        rotation_deg = float(np.degrees(np.median(rotation_angle(relative.mT @ found))))
        extent_m = float(np.linalg.norm(truth.world_from_cam[:, :, 3], axis=1).max())
        if family not in RESTING and moved > _ZERO:
            error = compare(
                timestamps_s=np.array(row["timestamps_s"]),
                world_from_cam=poses,
                true_timestamps_s=truth.timestamps_s,
                true_world_from_cam=truth.world_from_cam,
                config=CompareConfig(alignment="sim3"),
            )
            error_share = error.ate.rmse / extent_m
    return Outcome(
        family=family,
        name=name,
        label=label,
        reason=reason,
        moved=moved,
        error_share=error_share,
        rotation_deg=rotation_deg,
        registered_share=row.get("registered_share"),
    )


def path_length(centres: np.ndarray) -> float:
    """Sum of the steps between positions [N, 3]."""
    return float(sum(np.linalg.norm(b - a) for a, b in pairwise(centres)))


def summary(family: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One row of the table."""
    labels = collections.Counter(o.label for o in outcomes)
    shares = [o.error_share for o in outcomes if o.error_share is not None]
    turns = [o.rotation_deg for o in outcomes if o.rotation_deg is not None]
    no_path = [o for o in outcomes if o.moved is None]
    return {
        "truth": family,
        "clips": len(outcomes),
        "labels given": ", ".join(f"{count} {label}" for label, count in labels.most_common()),
        "right label": sum(o.label in ALLOWED[family] for o in outcomes),
        "no path stored": len(no_path),
        "translation zero": sum(o.moved is not None and o.moved <= _ZERO for o in outcomes),
        "invented paths": sum((o.moved or 0) > _ZERO for o in outcomes) if family in RESTING else None,
        "median ATE / extent": float(np.median(shares)) if shares else None,
        "worst ATE / extent": float(np.max(shares)) if shares else None,
        "median rotation error [deg]": float(np.median(turns)) if turns else None,
        "worst rotation error [deg]": float(np.max(turns)) if turns else None,
    }


def main(job: Job) -> int:
    """Renders and annotates the clips one after the other; 0 when no path was invented."""
    outcomes: list[Outcome] = []
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        for number, (family, config) in enumerate(clips(job.num, job.size)):
            folder = (job.folder or Path(temporary)) / f"{number:03d}"
            outcomes.append(measured(family, _clip(config, folder), job.clip))
            print(f"{number:3d} {family:14s} {outcomes[-1].label:13s} {outcomes[-1].name}", flush=True)
    families = list(dict.fromkeys(o.family for o in outcomes))
    table = [summary(family, [o for o in outcomes if o.family == family]) for family in families]
    invented = sum(row["invented paths"] or 0 for row in table)
    odd = [
        {
            "truth": o.family,
            "label": o.label,
            "clip": o.name,
            "path": o.moved,
            "ATE / extent": o.error_share,
            "reason": o.reason,
        }
        for o in outcomes
        if o.label not in ALLOWED[o.family]
        or (o.family in RESTING and (o.moved or 0) > _ZERO)
        or (o.error_share or 0) > 0.1
    ]
    wall_s = time.perf_counter() - start_s
    width, height = job.size
    notes = (
        f"{len(outcomes)} clips of {width}x{height} pixels, 45 frames at 15 a second, in {wall_s:.0f} s.\n"
        f"Invented paths (the camera rested, the stored path does not): {invented}. ATE is after\n"
        "Sim(3), over the true path's extent: 0.01 is one per cent; 0.3 and more means a wrong path."
    )
    if job.write:
        tables = {
            "Label against truth": table,
            "Clips with another label, an invented path or an ATE over 0.1": odd,
        }
        title = "Clips without a path to find"
        write_report("degenerate", title, "python -m benchmarks.degenerate", tables, notes)
    else:
        for row in (*table, *odd):
            print(row)
    return 0 if invented == 0 else 1


def _clip(config: SyntheticConfig, folder: Path) -> SyntheticClip:
    """The clip of this folder if it is the same one, else rendered anew."""
    if (folder / "camera.json").is_file() and load_clip(folder).config == config:
        return load_clip(folder)
    return write_clip(config, folder)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))

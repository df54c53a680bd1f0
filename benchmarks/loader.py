"""The loader beside plain tar, WebDataset, MosaicML Streaming and LitData: the same samples, machine and run.

Each measurement is a process of its own. Peers other than WebDataset want other versions of torch and numpy, so they
live in an environment of their own that `--peers-python` names; without it they are left out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader_systems import (
    COUNTS,
    FRAMES,
    NUM_SHARDS,
    PEERS,
    SEED,
    SHAPE,
    SYSTEMS,
    measure,
    read_webdataset,
    webdataset_dataset,
    write_litdata,
    write_streaming,
    write_tars,
)

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """Measure loaders and write docs/results/loader.md."""

    peers_python: Path | None = None
    """Interpreter that has mosaicml-streaming and litdata, and this one's packages on its path."""
    rounds: int = 3
    """Every measurement is taken this often, turn about; the median counts."""
    kinds: tuple[str, ...] = ("latent", "video", "small")
    """Which samples to measure with."""


# What is printed


def elastic_rows(folder: Path) -> list[dict[str, Any]]:
    """8 ranks are stopped, 6 go on, then 12: digests of the global batches beside one rank that never stopped."""
    from worldline.datasets.loader import Loader, LoaderConfig
    from worldline.datasets.shard_index import Selection

    selection = Selection.load(folder / "selection", str(folder))

    def batches(
        world_size: int, state: dict[str, Any] | None, count: int
    ) -> tuple[list[str], dict[str, Any]]:
        digests = [hashlib.sha256() for _ in range(count)]
        for rank in range(world_size):
            config = LoaderConfig(global_batch=48, members=("json",), rank=rank, world_size=world_size)
            loader = Loader(selection, config)
            if state is not None:
                loader.load_state_dict(state)
            for digest, batch in zip(digests, loader, strict=False):
                for sample in batch:
                    digest.update(json.dumps(sample, sort_keys=True).encode())
            last = loader.state_dict() | {"position": (state or {"position": 0})["position"] + 48 * count}
        return [digest.hexdigest() for digest in digests], last

    whole, _ = batches(1, None, 120)
    rows, state, start = [], None, 0
    for world_size in (8, 6, 12):
        found, state = batches(world_size, state, 40)
        same = _join(found) == _join(whole[start : start + 40])
        rows.append(
            {
                "ranks": world_size,
                "steps": f"{start}-{start + 39}",
                "sha256 of the batches": _join(found)[:16],
                "one rank, never stopped": _join(whole[start : start + 40])[:16],
                "equal": same,
            }
        )
        start += 40
    return rows


def _join(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def shuffle_rows(folder: Path) -> list[dict[str, Any]]:
    """How far the order of an epoch is from storage."""
    from worldline.datasets.sample_order import OrderConfig, SampleOrder

    count, per_shard = COUNTS["small"], COUNTS["small"] // NUM_SHARDS["small"]
    everything = list(range(count))
    random.Random(0).shuffle(everything)
    orders = {
        "ideal (Python's shuffle)": np.array(everything),
        "worldline": SampleOrder(count, OrderConfig(seed=SEED)).samples(np.arange(count)),
        "worldline, windows of 100, 16 mixed": SampleOrder(
            count, OrderConfig(seed=SEED, window=100, windows_mixed=16)
        ).samples(np.arange(count)),
        "webdataset, shards and a buffer of 1000": np.array(
            [facts["number"] for facts, _ in read_webdataset("small", webdataset_dataset("small", folder))]
        ),
        "stored order": np.arange(count),
    }
    rows = []
    for name, order in orders.items():
        shard = order // per_shard
        batches = shard[: count // 64 * 64].reshape(-1, 64)
        rows.append(
            {
                "order": name,
                "next from the same shard": float(np.mean(shard[1:] == shard[:-1])),
                "shards in a batch of 64": float(np.mean([len(set(batch.tolist())) for batch in batches])),
                "abs. correlation of place and number": float(
                    abs(np.corrcoef(np.arange(count), order)[0, 1])
                ),
            }
        )
    return rows


def run_one(python: str, *arguments: str) -> dict[str, float] | None:
    command = [python, "-m", "benchmarks.loader", "--one", *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DATA_OPTIMIZER_CACHE_FOLDER": arguments[-1] + "/cache",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        print(f"{' '.join(arguments[:3])} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(lines[-1].removeprefix("RESULT "))


def main(config: BenchmarkConfig) -> int:
    """Writes docs/results/loader.md."""
    from benchmarks.report import write_report

    systems = [name for name in SYSTEMS if name not in PEERS or config.peers_python is not None]
    with tempfile.TemporaryDirectory(prefix="worldline-loader-") as place:
        folders = {(kind, form): Path(place) / kind / form for kind in COUNTS for form in ("tar", *PEERS)}
        for (kind, form), folder in folders.items():
            if form == "tar":
                write_tars(kind, folder)
            elif config.peers_python is not None:
                run_one(str(config.peers_python), "write", form, kind, str(folder))
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for _ in range(config.rounds):
            for kind, system in itertools.product(config.kinds, systems):
                python = str(config.peers_python) if system in PEERS else sys.executable
                folder = folders[kind, system if system in PEERS else "tar"]
                result = run_one(python, "measure", system, kind, str(folder))
                if result is not None:
                    found.setdefault((kind, system), []).append(result)
        tables = {f"{TITLES[kind]}": _rows(kind, systems, found) for kind in config.kinds}
        tables["Stopped and gone on with on other ranks"] = elastic_rows(folders["small", "tar"])
        tables["Shuffling"] = shuffle_rows(folders["small", "tar"])
    command = "python -m benchmarks.loader --peers-python PEERS/bin/python"
    load = f"Load over the last five minutes: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores.\n"
    write_report(
        "loader",
        "The loader beside others",
        command,
        tables,
        f"{NOTES}\n{load}",
        packages=("webdataset", "pyarrow"),
    )
    return 0


TITLES = {
    "latent": f"Latents of {SHAPE} float16 with cameras: {COUNTS['latent']} samples of 2.5 MB",
    "video": f"Video of {FRAMES} frames 640 x 272, decoded: {COUNTS['video']} samples",
    "small": f"Small samples, 2 KB of JSON each: {COUNTS['small']}; resuming",
}

NOTES = """
One process, no worker processes, files in the page cache; whole epochs after one that warms up, the median of the
rounds, which are taken turn about. "tar" is Python's tarfile handing over raw bytes (decoded frames for video)
in stored order, unparsed: the rate that the files can give. All others hand over parsed cameras and the array or decoded
frames, in shuffled order and one sample at a time; the same decoder serves all. worldline checks every byte against the
index (CRC-32) on the way; "batches of 8" holds eight samples at a time, of which two batches are alive, as training does.

worldline reads latents in threads ahead of their use, so its wall rate uses a second core where one is free; the column of
CPU seconds has what it costs in all. MosaicML Streaming and LitData have threads of their own. "mapped" is
`LoaderConfig(map_files=True)` without these threads: nothing is copied, the checksum is of the page cache itself.

The target was 95 % of tar's rate for latents. Mapped files reach it on one core, unchecked copies with a second core's help.
Checked copies reach four fifths of it: a sample costs 0.11 ms of copying, 0.04 of CRC-32, 0.03 of JSON and 0.03 of all else,
tar's 0.15 ms are the same
copying and little more. Copying stays the default, since a disk that fails under mapped files kills the process.
For video all loaders run one decoder, which is nine tenths of the time and more; differences are of the machine.

Resuming: worldline at step 10^6; MosaicML Streaming and LitData at three quarters of their first epoch, from a state;
tar and WebDataset keep no state and have to read up to there, in time that grows with the position.

The peers' environment: `python -m venv PEERS`, there `pip install mosaicml-streaming litdata` and this project.
"""


def _rows(
    kind: str, systems: list[str], found: dict[tuple[str, str], list[dict[str, float]]]
) -> list[dict[str, Any]]:
    rows = []
    tar = found.get((kind, "tar"))
    base = statistics.median(r["rate"] for r in tar) if tar else float("nan")
    for system in systems:
        results = found.get((kind, system))
        if not results:
            rows.append({"loader": system, "samples/s": None})
            continue
        middle = {name: statistics.median(r[name] for r in results) for name in results[0]}
        row = {
            "loader": system,
            "samples/s": middle["rate"],
            "share of tar": middle["rate"] / base,
            "samples per CPU second": middle["cpu_rate"],
            "peak memory MiB": middle["peak_mib"],
        }
        rows.append(row | ({"resume s": middle["resume_s"]} if "resume_s" in middle else {}))
    return rows


def one(action: str, system: str, kind: str, folder: str) -> None:
    """Runs in a process of its own."""
    if action == "write":
        {"streaming": write_streaming, "litdata": write_litdata}[system](kind, Path(folder))
        result = {}
    else:
        result = measure(system, kind, Path(folder))
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        import tyro

        sys.exit(main(tyro.cli(BenchmarkConfig)))

"""The recipe's model along the one-minute benchmark's paths: likeness to the truth, memory, drift, camera errors.

    python -m benchmarks.long_paths --run recipe_output/runs/model --out LONG --scenes 2 --seconds 30

Runs `worldline benchmark` with the same options, which goes on where it was stopped, and writes docs/results/long_paths.md.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter

import tyro

from benchmarks.report import write_report
from worldline.train.benchmark import BenchmarkConfig
from worldline.train.benchmark import main as make


def main(config: BenchmarkConfig) -> int:
    """Exit status of `worldline benchmark`; the report where it is 0."""
    if status := make(config):
        return status
    results = json.loads((config.out / "results.json").read_text())
    outcomes = [
        {"video": video, "engine": engine, "outcome": outcome, "paths": count}
        for engine in config.engines
        for video in ("run", "ground truth")
        for outcome, count in Counter(
            str(row[f"{video}: {engine}: outcome"]).split(" (")[0]
            for row in results["paths"]
            if row["outcome"] == "made"
        ).most_common()
    ]
    tables = {
        f"{split} paths": [
            {key: value for key, value in row.items() if key != "split"}
            for row in results["summary"]
            if row["split"] == split
        ]
        for split in ("simple", "hard")
    }
    write_report(
        "long_paths",
        "Long paths through rendered rooms",
        shlex.join(["python", "-m", "benchmarks.long_paths", *sys.argv[1:]]),
        {name: rows for name, rows in tables.items() if rows}
        | {"What the engines made of the videos": outcomes},
        "Room 1 is the recipe's room of training, the others were never seen. In brackets 95 % of bootstrap draws of the"
        " rooms. Columns: docs/variants.md.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(BenchmarkConfig, description=__doc__)))

"""The table of `worldline variants` of a finished recipe, kept as a report.

    python -m benchmarks.variants --recipe recipe_output

Writes docs/results/variants.md. What is not trained yet is trained first (see `worldline variants --help`).
"""

from __future__ import annotations

import json
import sys

import tyro

from benchmarks.report import write_report
from worldline.ray_jobs.variants import VariantsConfig
from worldline.ray_jobs.variants import main as variants


def main(config: VariantsConfig) -> int:
    """Exit status of the command."""
    if status := variants(config):
        return status
    tables = json.loads((config.recipe / "variants" / "results.json").read_text())
    write_report(
        "variants",
        "What each form of the recipe's model costs",
        "python -m benchmarks.variants --recipe recipe_output "
        f"--chunk-causal-steps {config.chunk_causal_steps} --refiner-steps {config.refiner_steps}"
        f" --distill-steps {' '.join(map(str, config.distill_steps))}",
        tables,
        notes="Held-out walks through the room of training: two from each of 16 starts, two videos of each, the same"
        " seeds for all forms. In brackets 95 % of bootstrap"
        " draws of the starts; differences to the bidirectional model are walk by walk. FP8 and NVFP4 are emulated here, which"
        " is slower than no quantisation; streams are made one video at a time, windows all at once.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(VariantsConfig)))

"""What the parts of the model are worth: inputs of the camera, and kinds of attention, at equal steps.

    python -m benchmarks.train --recipe recipe_output

Trains the recipe's model on the latents of a finished `worldline recipe` folder, once per variant and seed, and asks each
whether it follows held-out walks through the rendered room. Runs are kept in --out and gone on with. Writes
docs/results/train.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.report import RESULTS_DIR, write_report
from worldline.datasets.synthetic_walks import rendered_walks
from worldline.evaluate.following import paired_table
from worldline.model.config import ModelConfig
from worldline.model.rope import Grid
from worldline.model.world_model import WorldModel, conditions
from worldline.ray_jobs.recipe import FOV_X_DEG, WHERE
from worldline.train.checkpoint import load_run
from worldline.train.generate_run import RunGenerator
from worldline.train.presets import WALK_HEIGHT, WALK_MODEL, WALK_VIEW, WALK_WIDTH, walk_model
from worldline.train.trainer import train

CAMERAS: dict[str, dict[str, Any]] = {
    "none": {"camera": "none", "plucker": False},
    "Pluecker": {"camera": "none", "plucker": True},
    "UCPE": {"camera": "ucpe", "plucker": False},
    "both": {"camera": "ucpe", "plucker": True},
}
ATTENTION: dict[str, dict[str, Any]] = {
    "GDN only": {"softmax_every": 0},
    "hybrid": {},
    "softmax only": {"softmax_every": 1},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainBenchmark:
    """What to train."""

    recipe: Path
    """Folder of a finished `worldline recipe`."""
    out: Path = Path("train_benchmark")
    """Where the runs go."""
    steps: int = 500
    """Of each run, of 12 clips."""
    seeds: tuple[int, ...] = (0, 1, 2)
    parts: tuple[Literal["cameras", "attention", "speed"], ...] = ("cameras", "attention", "speed")
    lengths: tuple[int, ...] = (5, 9, 17, 33, 65, 129)
    """Latent frames of the clips whose steps are timed."""


def trained(config: TrainBenchmark, name: str, changes: dict[str, Any], seed: int) -> Path:
    """The run folder of one variant, trained to the end."""
    recipe, out = config.recipe, config.out / f"{name.replace(' ', '-')}-{seed}"
    decided = recipe / "dataset" / "decisions" / "permissive.parquet"
    stage = walk_model(
        str(recipe / "latents"), out, recipe / "runs" / "patches", decisions=decided, steps=config.steps
    )
    stage = replace(stage, where=WHERE, cached_latents=True, seed=seed, model=replace(stage.model, **changes))
    train(stage)
    return out


def followed(run: Path, walks: Any) -> dict[str, float]:
    """Shares of held-out walks, as the recipe measures them."""
    generator = RunGenerator(load_run(run))

    def make(paths: np.ndarray, noise: int) -> np.ndarray:
        return generator.videos(walks.frames[:, 0], paths, walks.camera, seed=noise)

    rows = paired_table(make, walks.frames, walks.first_from_cam, noise_seeds=1)
    return {row["what"]: row["mean"] for row in rows}


def losses(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["step"] for line in lines]), np.array([line["loss"] for line in lines])


def compare(
    config: TrainBenchmark, variants: dict[str, dict[str, Any]], walks: Any
) -> Iterator[dict[str, Any]]:
    """A row a variant; means over seeds, with the least and the most of them."""
    for name, changes in variants.items():
        runs = [trained(config, name, changes, seed) for seed in config.seeds]
        scores = [followed(run, walks) for run in runs]
        last = [float(losses(run)[1][-10:].mean()) for run in runs]
        count = sum(p.numel() for p in WorldModel(replace(WALK_MODEL, **changes)).parameters())
        row: dict[str, Any] = {
            "variant": name,
            "parameters": count,
            "seeds": len(runs),
            "steps": config.steps,
        }
        row["loss of the last 100 steps"] = _spread(last)
        for what in (
            "share nearer to its own than to the other truth",
            "share nearer than the still frame",
            "its video, PSNR against its path's truth, dB",
        ):
            row[what] = _spread([score[what] for score in scores])
        yield row


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def speed(config: TrainBenchmark, name: str, changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Training steps of one clip a second against its length, median of five on one thread."""
    model_config: ModelConfig = replace(WALK_MODEL, **changes)
    torch.manual_seed(0)
    model = WorldModel(model_config)
    text, mask = torch.zeros(1, 1, model_config.text_channels), torch.ones(1, 1, dtype=torch.bool)
    for length in config.lengths:
        grid = Grid(num_frames=length, height=6, width=8)
        poses = torch.eye(3, 4).expand(1, length, 3, 4).clone()
        poses[..., 2, 3] = 0.05 * torch.arange(length)
        camera = rendered_lens()
        latents = torch.randn(1, model_config.latent_channels, length, 6, 8)
        taken = []
        for _ in range(6):
            started_s = time.perf_counter()
            given = conditions(model_config, poses, camera, grid)
            model.zero_grad(set_to_none=True)
            model(latents, torch.full((1, length), 500.0), text, mask, given).square().mean().backward()
            taken.append(time.perf_counter() - started_s)
        yield {"attention": name, "latent frames": length, "steps/s": 1 / float(np.median(taken[1:]))}


def plot(curves: dict[str, list[tuple[np.ndarray, np.ndarray]]], path: Path) -> None:
    """Loss against steps, a line a kind of attention: the mean of its seeds, and their spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    window = 5
    for name, runs in curves.items():
        smooth = np.stack([np.convolve(loss, np.ones(window) / window, mode="valid") for _, loss in runs])
        steps = runs[0][0][window - 1 :]
        (line,) = axes.plot(steps, smooth.mean(axis=0), label=name)
        axes.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} logged steps", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def rendered_lens() -> Any:
    """The camera of the recipe's films at the size of training."""
    from worldline.annotate.camera import Intrinsics

    focal_px = WALK_WIDTH / 2 / np.tan(np.radians(FOV_X_DEG) / 2)
    lens = np.array([focal_px, focal_px, WALK_WIDTH / 2, WALK_HEIGHT / 2])
    return Intrinsics(fxfycxcy_px=lens, width=WALK_WIDTH, height=WALK_HEIGHT)


def main(config: TrainBenchmark) -> int:
    """Exit status 0, or 2 where there is no finished recipe."""
    if not (config.recipe / "latents").is_dir():
        print(f"{config.recipe} is not a finished recipe: run `worldline recipe --out {config.recipe}`")
        return 2
    torch.set_num_threads(1)
    walks = rendered_walks(
        1, num_starts=16, walks_a_start=2, num_frames=WALK_VIEW.num_frames, width=WALK_WIDTH,
        height=WALK_HEIGHT, fov_x_deg=FOV_X_DEG, seed=2,
    )  # fmt: skip
    tables: dict[str, list[dict[str, Any]]] = {}
    notes = (
        "Held-out walks through the recipe's room: 32 walks from 16 starts, one video each. In brackets the least and"
        " the most of the seeds."
    )
    if "cameras" in config.parts:
        tables["Inputs of the camera (hybrid)"] = list(compare(config, CAMERAS, walks))
    if "attention" in config.parts:
        # The hybrid with both inputs is the run of the table above.
        named = {"both" if name == "hybrid" else name: changes for name, changes in ATTENTION.items()}
        tables["Kinds of attention (both camera inputs; `both` is the hybrid)"] = list(
            compare(config, named, walks)
        )
        curves = {
            "hybrid" if name == "both" else name: [
                losses(trained(config, name, changes, seed)) for seed in config.seeds
            ]
            for name, changes in named.items()
        }
        plot(curves, RESULTS_DIR / "train.png")
        notes += "\n\n![loss of the kinds of attention](train.png)"
    if "speed" in config.parts:
        tables["Training steps a second of one clip, one thread"] = [
            row for name, changes in ATTENTION.items() for row in speed(config, name, changes)
        ]
    write_report(
        "train",
        "What the parts of the model are worth",
        "python -m benchmarks.train " + " ".join(sys.argv[1:]),
        tables,
        notes,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(TrainBenchmark)))

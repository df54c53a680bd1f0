"""`worldline recipe`: raw videos in, a trained world model, its videos and an evaluation page out.

    render a place -> annotate -> decide -> shard -> fit patches -> encode -> train -> generate -> evaluate -> page and card

Every stage keeps what it has finished, so the same command goes on where it was stopped. The rendered place is
there because the question "does the model follow the camera" has a true answer only where any path can be rendered;
the given videos go the same way, and the page says how far each of them came.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import ray

from worldline.datasets import decisions
from worldline.datasets.clip_video import EncodeConfig
from worldline.datasets.commit_log import replace_file
from worldline.datasets.schema import MissingBackend
from worldline.datasets.shard_index import select
from worldline.datasets.synthetic import find_clip, write_clip
from worldline.datasets.synthetic_config import SyntheticConfig
from worldline.datasets.synthetic_walks import Walks, rendered_walks
from worldline.evaluate.following import paired_table
from worldline.evaluate.page import film_strips, line_plot, page_html, write_page
from worldline.ray_jobs import annotate, encode, shard
from worldline.ray_jobs.progress import INTERRUPTED
from worldline.train.checkpoint import load_run
from worldline.train.generate import GenerateConfig, generate
from worldline.train.generate_run import RunGenerator
from worldline.train.presets import WALK_HEIGHT, WALK_VIEW, WALK_WIDTH, walk_model, walk_patches
from worldline.train.trainer import NotFinite, train

logger = logging.getLogger(__name__)

FOV_X_DEG = 71.0
"""Of the rendered place and of the walks that the model is tested on."""
WHERE = "scale_status = 'metric' AND degeneracy = 'ok'"
"""What training asks for beside the rules: metres, and a path without degeneracy."""
ACTION = "w-24,wd-24,none-8,a-24"
"""What the shown video does."""


class StageFailed(RuntimeError):
    """A stage ended with an exit status other than 0."""

    def __init__(self, stage: str, status: int) -> None:
        super().__init__(f"{stage} ended with exit status {status}; the same command goes on from there")
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceConfig:
    """The rendered room that the model learns to walk through."""

    videos: int = 4
    """Films of it, each of another path; 0 trains on the given videos alone, and nothing is measured."""
    num_frames: int = 960
    """Of each film, 16 a second."""
    seed: int = 1
    """Which room."""
    test_starts: int = 16
    """Places where held-out walks begin, two walks each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """From raw videos to a world model that follows the camera, on two CPU cores within an hour."""

    out: Path
    """Folder for everything; the same command again goes on from what is there."""
    videos: tuple[str, ...] = ()
    """Your video files and folders, beside the rendered place. Clips without metric scale are not trained on."""
    place: PlaceConfig = field(default_factory=PlaceConfig)
    rules: decisions.RulesConfig = field(default_factory=decisions.RulesConfig)
    """What is kept of the annotated clips, before metric scale and a path without degeneracy are asked for."""
    steps: int = 2000
    """Of training, of 12 clips each."""
    noise_seeds: int = 3
    """Videos made of each held-out walk."""
    quick: bool = False
    """Seconds in place of minutes: checks that everything works, and learns nothing."""
    run: annotate.RunConfig = field(default_factory=annotate.RunConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.noise_seeds) < 1 or self.place.videos < 0:
            raise ValueError("steps and noise_seeds must be at least 1, place.videos not negative")
        if not self.videos and not self.place.videos:
            raise ValueError("nothing to learn from: give --videos, or --place.videos above 0")


def main(config: RecipeConfig) -> int:
    """Exit status: 0 done, 1 a package is missing or an input does not fit, 130 Ctrl-C, else that of the stage
    that stopped.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if config.quick:
        place = dataclasses.replace(
            config.place, videos=min(1, config.place.videos), num_frames=72, test_starts=2
        )
        config = dataclasses.replace(config, place=place, steps=4, noise_seeds=1)
    config.out.mkdir(parents=True, exist_ok=True)
    log = logging.FileHandler(config.out / "recipe.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(log)
    try:
        Recipe(config).work()
    except StageFailed as error:
        logger.error("recipe: %s", error)
        return error.status
    except KeyboardInterrupt:
        logger.error("recipe: stopped; the same command goes on from there")
        return INTERRUPTED
    except (MissingBackend, NotFinite, ValueError) as error:
        logger.error("recipe: %s", error)
        return 1
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
    return 0


class Recipe:
    """The stages, in order, with their folders."""

    def __init__(self, config: RecipeConfig) -> None:
        self.config = config
        out = config.out
        self.dataset, self.shards, self.latents = out / "dataset", out / "shards", out / "latents"
        self.patches, self.model = out / "runs" / "patches", out / "runs" / "model"
        self.decided = decisions.decisions_path(self.dataset, config.rules.rules)
        self._costs: list[dict[str, Any]] = []

    def work(self) -> None:
        """Raises StageFailed, MissingBackend, NotFinite, ValueError."""
        started = annotate.start_ray(self.config.run)
        try:
            for stage in (self.render, self.annotate, self.decide, self.shard, self.fit, self.encode):
                self._timed(stage)
        finally:
            if started:
                ray.shutdown()
        for stage in (self.train, self.evaluate):
            self._timed(stage)
        self.write_page()

    def _timed(self, stage: Callable[[], None]) -> None:
        logger.info("== %s", stage.__name__)
        started_s = time.monotonic()
        stage()
        self._costs.append({"stage": stage.__name__, "wall_s": time.monotonic() - started_s})

    def render(self) -> None:
        """Films of the place with depth beside them, as an RGB-D camera gives it: the metre comes from there."""
        place = self.config.place
        for k in range(place.videos):
            folder = self.config.out / "place" / f"path-{k}"
            film = SyntheticConfig(
                scene="room",
                path="excursions",
                seed=100 + k,
                place_seed=place.seed,
                width=320,
                height=240,
                fps=16,
                num_frames=place.num_frames,
                fov_x_deg=FOV_X_DEG,
                depth_every=8,
            )
            if find_clip(film, folder) is not None:
                continue
            given = {"depth_path": "{folder}/depth_mm"}
            sidecar = {"licence": "CC0-1.0", "source": "rendered place", "mode": "gt_depth", "given": given}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "video.json").write_text(json.dumps(sidecar) + "\n", encoding="utf-8")
            write_clip(film, folder)

    def annotate(self) -> None:
        """`worldline annotate` of all videos."""
        films = sorted(str(path) for path in (self.config.out / "place").glob("*/video.mp4"))
        job = annotate.JobConfig(inputs=(*films, *self.config.videos), out=self.dataset, run=self.config.run)
        job = dataclasses.replace(job, scenes=dataclasses.replace(job.scenes, max_window_s=20.0))
        _checked("annotate", annotate.main(job))

    def decide(self) -> None:
        """`worldline decide` under the rules asked for."""
        _checked(
            "decide", decisions.main(decisions.DecideConfig(dataset=self.dataset, rules=self.config.rules))
        )

    def shard(self) -> None:
        """`worldline shard`, at the size of training."""
        written = EncodeConfig(width=WALK_WIDTH, height=WALK_HEIGHT, crf=12)
        run = self.config.run
        job = shard.ShardConfig(
            dataset=self.dataset, out=self.shards, encode=written, address=run.address, workers=run.workers
        )
        _checked("shard", shard.main(job))

    def fit(self) -> None:
        """The patches' components, from the kept clips with a metric path."""
        steps = min(30, self.config.steps)
        stage = walk_patches(str(self.shards), self.patches, decisions=self.decided, steps=steps)
        train(dataclasses.replace(stage, where=WHERE))

    def encode(self) -> None:
        """`worldline encode`: training then reads no video."""
        run = self.config.run
        job = encode.EncodeJobConfig(
            shards=self.shards,
            out=self.latents,
            autoencoder=self.patches,
            address=run.address,
            workers=run.workers,
        )
        _checked("encode", encode.main(job))

    def train(self) -> None:
        """The model, on the latents of the same clips."""
        steps = self.config.steps
        stage = walk_model(str(self.latents), self.model, self.patches, decisions=self.decided, steps=steps)
        train(dataclasses.replace(stage, where=WHERE, cached_latents=True))

    def evaluate(self) -> None:
        """Held-out walks through the place, and through one never seen, into evaluation/results.json."""
        run = load_run(self.model)
        path = self.config.out / "evaluation" / "results.json"
        if self.config.place.videos == 0 or (
            path.exists() and json.loads(path.read_text())["step"] == run.step
        ):
            return
        generator = RunGenerator(run)
        tables: dict[str, list[dict[str, Any]]] = {}
        for name, seed in (("in the place of training", 0), ("in a place never seen", 1000)):
            walks = self.walks(self.config.place.seed + seed)

            def make(paths: np.ndarray, noise: int, walks: Walks = walks) -> np.ndarray:
                return generator.videos(walks.frames[:, 0], paths, walks.camera, seed=noise)

            tables[f"Held-out walks {name}"] = paired_table(
                make, walks.frames, walks.first_from_cam, noise_seeds=self.config.noise_seeds
            )
            if seed == 0:
                self._show(walks, make(walks.first_from_cam, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"step": run.step, "tables": tables}, indent=2).encode())

    def write_page(self) -> None:
        """index.html and the model's card, README.md of the run."""
        out, results = self.config.out, self.config.out / "evaluation" / "results.json"
        tables: dict[str, Any] = json.loads(results.read_text())["tables"] if results.exists() else {}
        tables["Clips by licence and source"] = ledger = self._ledger()
        tables["Time"] = [{"stage": c["stage"], "this time, s": round(c["wall_s"], 1)} for c in self._costs]
        facts = {"costs": tables["Time"], "ledger": ledger}
        results.parent.mkdir(parents=True, exist_ok=True)
        replace_file(results.with_name("stages.json"), json.dumps(facts, indent=2).encode())
        pictures = {}
        strip = out / "evaluation" / "strips.npy"
        if strip.exists():
            pictures["First frame and the four that follow, half a second apart"] = np.load(strip)
        log = pd.read_json(self.model / "metrics.jsonl", lines=True)
        pictures["Loss of training"] = line_plot("flow loss", log["step"].to_numpy(), log["loss"].to_numpy())
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        notes = [
            f"{sum(row['clips'] for row in ledger)} clips annotated; trained {int(log['step'].iloc[-1])} steps on those kept.",
            "Frames are compared with true renders of the commanded path. Two walks begin at each start, so that each"
            " has another path to be mistaken for. The first frame is given and not scored.",
            "No trajectory was recovered from the videos: whether frames of this size allow it was not measured.",
            f"Peak memory of the driving process {peak_gib:.1f} GiB; workers not counted.",
        ]
        write_page(
            out / "index.html",
            page_html("From raw videos to a camera that is followed", notes, tables, pictures),
        )
        replace_file(self.model / "README.md", self._card(tables).encode())
        logger.info("page: %s\nmodel: %s", out / "index.html", self.model)

    def walks(self, seed: int) -> Walks:
        """Held-out walks through the place of a seed."""
        return rendered_walks(
            seed,
            num_starts=self.config.place.test_starts,
            walks_a_start=2,
            num_frames=WALK_VIEW.num_frames,
            width=WALK_WIDTH,
            height=WALK_HEIGHT,
            fov_x_deg=FOV_X_DEG,
            seed=2,
        )

    def _show(self, walks: Walks, made: np.ndarray) -> None:
        """Strips for the page, and a video driven by keys from the first held-out start."""
        folder = self.config.out / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        strips = {}
        for i in range(2):
            strips[f"path {i + 1}: generated"], strips[f"path {i + 1}: truth"] = made[i], walks.frames[i]
        np.save(folder / "strips.npy", film_strips(strips))
        image = folder / "first.png"
        cv2.imwrite(str(image), walks.frames[0, 0][..., ::-1])
        generate(
            GenerateConfig(
                image=image,
                out=folder / "driven.mp4",
                run=self.model,
                action=ACTION,
                fov_deg=FOV_X_DEG,
                steps=6,
                overlay=True,
            )
        )

    def _ledger(self) -> list[dict[str, Any]]:
        """Per source and licence: clips, kept ones, those trained on, and seconds of these."""
        names = ["clip_id", "source", "licence", "start_s", "end_s", "scale_sigma"]
        rows = pd.read_parquet(self.dataset / "trajectories", columns=names)
        kept = pd.read_parquet(self.decided, columns=["clip_id", "keep"])
        rows = rows.merge(kept, on="clip_id", how="left")
        rows["is_kept"] = rows["keep"].eq(True)
        used_ids = select(self.latents, WHERE, decisions=self.decided).records["clip_id"]
        rows["is_used"] = rows["clip_id"].isin(np.char.decode(used_ids, "ascii"))
        found = []
        for (source, licence), part in rows.groupby(["source", "licence"], dropna=False):
            used = part[part["is_used"]]
            found.append(
                {
                    "source": _known(source),
                    "licence": _known(licence),
                    "clips": len(part),
                    "kept": int(part["is_kept"].sum()),
                    "trained on": len(used),
                    "seconds": float((used["end_s"] - used["start_s"]).sum()),
                    "median scale sigma": float(used["scale_sigma"].median()) if len(used) else None,
                }
            )
        return found

    def _card(self, tables: dict[str, Any]) -> str:
        lines = [
            "# Model card",
            "",
            "Trained by `worldline recipe`; `worldline generate --run` makes videos with it.",
            "",
        ]
        for name, rows in tables.items():
            if not rows:
                continue
            lines += [f"## {name}", "", f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
            lines += [f"| {' | '.join(_text(value) for value in row.values())} |" for row in rows]
            lines.append("")
        return "\n".join(lines)


def _checked(stage: str, status: int) -> None:
    if status:
        raise StageFailed(stage, status)


def _known(value: Any) -> str:
    return value if isinstance(value, str) and value else "not stated"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(RecipeConfig)))

"""`worldline variants`: a finished recipe in, its model in the forms it would be used in, and what each step costs.

    bidirectional -> + refiner      bidirectional -> fp8, nvfp4      chunk-causal -> nvfp4, + refiner
                                    bidirectional -> chunk-causal -> distilled -> + refiner

All forms make the same held-out walks with the same seeds; differences to the bidirectional model are paired, walk by walk.
Where the camera was is told by rendering (evaluate/rendered_pose.py), for the standing frame and the truth too.
The chunk-causal fine-tuning, the refiner and the distillation are trained first, each resumable, below RUN/variants.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldline.annotate.camera import Intrinsics
from worldline.datasets.commit_log import replace_file
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_walks import Walks
from worldline.evaluate.following import bootstrap, psnr_db, ssim
from worldline.evaluate.image_quality import ImageQuality, QualityName, image_quality
from worldline.evaluate.page import film_strips, page_html, write_page
from worldline.evaluate.perceptual import NAME as PERCEPTUAL
from worldline.evaluate.perceptual import perceptual_distance
from worldline.evaluate.rendered_pose import ROTATION, TRANSLATION, WalkCameras
from worldline.model.autoencoder import to_pixels
from worldline.model.quantize import weight_bytes
from worldline.model.sampler import DISTILLED_SIGMAS
from worldline.ray_jobs.recipe import FOV_X_DEG, WHERE, Recipe, RecipeConfig
from worldline.train.checkpoint import load_run
from worldline.train.distill import DistillConfig, distill
from worldline.train.generate_run import RunGenerator
from worldline.train.presets import WALK_VIEW, walk_chunk_causal, walk_refiner
from worldline.train.quantized_run import MAX_QUANTIZED_ERROR, quantized_errors
from worldline.train.trainer import NotFinite, train

logger = logging.getLogger(__name__)

BASE = "bidirectional"
TEACHER = "bidirectional, many steps"
Scores = dict[str, np.ndarray]
"""[seeds, N] by name."""
PSNR = "PSNR against its path's truth, dB"
MAX_CAMERA_RATIO, MAX_LOSS_DB = 1.5, 1.0
"""A format does not pass that makes the camera's rotation error so many times as large, or costs more PSNR."""
REFINER_STEPS = 3
"""Network evaluations that the refiner adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantsConfig:
    """What the deployed forms of a recipe's model cost in quality and in following the camera."""

    recipe: Path
    """Folder of a finished `worldline recipe`."""
    chunk_causal_steps: int = 400
    """Of fine-tuning, of 12 clips each."""
    refiner_steps: int = 300
    """Of the refiner's adapters."""
    distill_steps: tuple[int, int] = (150, 300)
    """Of distillation to four steps: regression on the teacher's paths, then distribution matching."""
    steps: int = 6
    """Denoising steps of the first stage."""
    teacher_steps: int = 40
    """Of the many-step teacher's row: eight times the distilled model's four and its one for the state."""
    noise_seeds: int = 2
    """Videos made of each held-out walk."""
    test_starts: int = 16
    """Places where held-out walks begin, two walks each."""
    camera_seeds: int = 1
    """Of each walk's videos, those whose cameras are told by rendering, which takes half a second a video."""
    quality: QualityName = "piqe"
    """Backend of image quality (evaluate/image_quality.py)."""

    def __post_init__(self) -> None:
        counts = (
            self.chunk_causal_steps,
            self.refiner_steps,
            self.steps,
            self.teacher_steps,
            self.noise_seeds,
            self.test_starts,
            self.camera_seeds,
            *self.distill_steps,
        )
        if min(counts) < 1:
            raise ValueError("steps, seeds and starts must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One form of the model."""

    name: str
    generator: RunGenerator
    evaluations: str
    """Of the network, for one window."""
    steps: int
    """Denoising steps; a distilled model has its own."""


def main(config: VariantsConfig) -> int:
    """Exit status: 0 done, 2 where there is no finished recipe, 1 where an input does not fit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(RecipeConfig(out=config.recipe))
    if not (recipe.model / "checkpoints").is_dir():
        logger.error(
            "%s is no finished recipe: run `worldline recipe --out %s` first", config.recipe, config.recipe
        )
        return 2
    place = dataclasses.replace(recipe.config.place, test_starts=config.test_starts)
    recipe = Recipe(dataclasses.replace(recipe.config, place=place))
    try:
        runs = trained(recipe, config)
        walks = recipe.walks(place.seed)
        quality = image_quality(config.quality)
        rows, strips = [], {"truth": walks.frames[0]}
        kept: dict[str, Scores] = {}
        with WalkCameras(walks, seed_of_place=place.seed, fov_x_deg=FOV_X_DEG) as cameras:
            least = cameras.unlike(recipe.walks(place.seed + 1000).frames)
            baselines = baseline_rows(recipe, walks, cameras, least)
            for variant in variants(recipe, runs, config):
                scores, first, seconds = measured(variant, walks, config, cameras, least, quality)
                kept[variant.name] = scores
                rows.append(row(variant, scores, kept, seconds))
                strips[variant.name] = first
                logger.info("%s: %s", variant.name, {k: v for k, v in rows[-1].items() if k != "variant"})
        gate, layers = quantisation(recipe, runs, kept, quality)
    except (ValueError, NotFinite, MissingBackend) as error:
        logger.error("variants: %s", error)
        return 1
    tables = {
        "Forms": rows,
        "Cameras of what needs no model": baselines,
        "Quantised beside the same model unquantised": gate,
        "Error of each layer by itself, on noise": layers,
    }
    out = config.recipe / "variants"
    replace_file(out / "results.json", json.dumps(tables, indent=2).encode())
    notes = [
        f"{len(walks.frames)} held-out walks through the rendered room of training, {config.noise_seeds} videos of each;"
        " the same seeds for all forms. In brackets 95 % of bootstrap draws of the starts.",
        "Differences are to the bidirectional model, walk by walk. The many-step teacher is the same model with"
        f" {config.teacher_steps} steps.",
        "Cameras: the pose whose true render is most like each frame, found without looking at the command; no fit. A frame"
        f" counts as told where it is likelier than 95 % of another room's frames are (correlation {least:.2f}).",
        "fp8 and nvfp4 are emulated where the machine does not multiply in them: their seconds say nothing of a GPU's.",
    ]
    pictures = {"The first walk: truth and each form": film_strips(strips)}
    write_page(out / "index.html", page_html("What each form of the model costs", notes, tables, pictures))
    logger.info("page: %s", out / "index.html")
    return 0


def trained(recipe: Recipe, config: VariantsConfig) -> dict[str, Path]:
    """Run folders of the three stages that follow the recipe's model."""
    runs = {name: recipe.config.out / "variants" / name for name in ("chunk-causal", "refiner")}
    chunk_causal = walk_chunk_causal(
        str(recipe.latents), runs["chunk-causal"], recipe.model, decisions=recipe.decided,
        steps=config.chunk_causal_steps,
    )  # fmt: skip
    refiner = walk_refiner(
        str(recipe.shards),
        runs["refiner"],
        recipe.model,
        decisions=recipe.decided,
        steps=config.refiner_steps,
    )
    for name, stage in (
        ("chunk-causal", dataclasses.replace(chunk_causal, cached_latents=True)),
        ("refiner", refiner),
    ):
        logger.info("== %s", name)
        train(dataclasses.replace(stage, where=WHERE))
    runs["distilled"] = recipe.config.out / "variants" / "distilled"
    logger.info("== distilled")
    distill(
        DistillConfig(
            shards=str(recipe.latents),
            out=runs["distilled"],
            teacher=recipe.model,
            student=runs["chunk-causal"],
            where=WHERE,
            decisions=recipe.decided,
            cached_latents=True,
            ode_steps=config.distill_steps[0],
            steps=config.distill_steps[1],
            teacher_steps=8,
            global_batch=12,
            ode_lr=5e-4,
            student_lr=2e-4,
            critic_lr=4e-4,
            cpu_threads=1,
        )
    )
    return runs


def variants(recipe: Recipe, runs: dict[str, Path], config: VariantsConfig) -> Iterator[Variant]:
    """The forms, the bidirectional model first and its many-step row second."""
    once = str(config.steps)
    per_chunk = f"{config.steps} + 1 a chunk"
    few = f"{len(DISTILLED_SIGMAS) - 1} + 1 a chunk"
    per_block = f"{REFINER_STEPS} + 1 a block"
    refiner = load_run(runs["refiner"])

    def variant(
        name: str, path: Path, evaluations: str, *, steps: int = config.steps, **options: Any
    ) -> Variant:
        generator = RunGenerator(load_run(path), **options)
        return Variant(name=name, generator=generator, evaluations=evaluations, steps=steps)

    yield variant(BASE, recipe.model, once)
    yield variant(TEACHER, recipe.model, str(config.teacher_steps), steps=config.teacher_steps)
    for dtype in ("fp8", "nvfp4"):
        yield variant(f"{BASE}, {dtype}", recipe.model, once, dtype=dtype)
    yield variant(f"{BASE} + refiner", recipe.model, f"{once} + {REFINER_STEPS}", refiner=refiner)
    chunk_causal = runs["chunk-causal"]
    yield variant("chunk-causal, streamed", chunk_causal, per_chunk)
    staggered = variant("chunk-causal, staggered", chunk_causal, "", staggered=True)
    evaluations = staggered.generator.num_evaluations(WALK_VIEW.num_frames, config.steps)
    yield dataclasses.replace(staggered, evaluations=str(evaluations))
    yield variant(
        "chunk-causal, streamed + refiner", chunk_causal, f"{per_chunk}, {per_block}", refiner=refiner
    )
    yield variant("chunk-causal, streamed, nvfp4", chunk_causal, per_chunk, dtype="nvfp4")
    yield variant("distilled, streamed", runs["distilled"], few)
    yield variant("distilled, streamed + refiner", runs["distilled"], f"{few}, {per_block}", refiner=refiner)


def baseline_rows(
    recipe: Recipe, walks: Walks, cameras: WalkCameras, least_likeness: float
) -> list[dict[str, Any]]:
    """What the camera's measure says of true videos, of the same through the autoencoder, and of the standing frame."""
    autoencoder = load_run(recipe.model).autoencoder
    truth = walks.frames
    with torch.no_grad():
        latents = autoencoder.encode(torch.from_numpy(truth).float().div(127.5).sub(1).permute(0, 4, 1, 2, 3))
        through = to_pixels(autoencoder.decode(latents))
    still = np.broadcast_to(truth[:, :1], truth.shape)
    named = (
        ("ground truth", truth),
        ("ground truth through the autoencoder", through),
        ("standing frame", still),
    )
    return [
        {"video": name}
        | {
            what: _interval(values[None])
            for what, values in cameras.scores(videos, least_likeness=least_likeness).items()
        }
        for name, videos in named
    ]


def quantisation(
    recipe: Recipe, runs: dict[str, Path], kept: dict[str, Scores], quality: ImageQuality
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the gate, each form in a format beside itself without, and each layer's error in NVFP4."""
    rows, layers = [], []
    forms = (
        (BASE, "fp8", recipe.model),
        (BASE, "nvfp4", recipe.model),
        ("chunk-causal, streamed", "nvfp4", runs["chunk-causal"]),
    )
    for name, dtype, path in forms:
        run = load_run(path)
        assert run.model is not None
        output, each = quantized_errors(run.model, dtype, view=run.config["view"])
        true, rough = kept[name], kept[f"{name}, {dtype}"]
        found: dict[str, Any] = {"form": name, "format": dtype, "error of the output": output}
        for what in (ROTATION, TRANSLATION, PSNR, quality.name):
            found[f"{what}: difference"] = _interval(rough[what] - true[what])
        turned = rough[ROTATION].mean() / true[ROTATION].mean()
        found["passes"] = bool(
            output <= MAX_QUANTIZED_ERROR
            and turned <= MAX_CAMERA_RATIO
            and (true[PSNR] - rough[PSNR]).mean() <= MAX_LOSS_DB
        )
        rows.append(found)
        if (name, dtype) == (BASE, "nvfp4"):
            layers = [{"layer": e.name, "weight": e.weight, "output": e.output} for e in each]
    return rows, layers


def measured(
    variant: Variant,
    walks: Walks,
    config: VariantsConfig,
    cameras: WalkCameras,
    least_likeness: float,
    quality: ImageQuality,
) -> tuple[Scores, np.ndarray, float]:
    """Scores [seeds, N] by name, the first video and the seconds of one."""
    make = _maker(variant.generator, walks.frames[:, 0], walks.camera, variant.steps)
    started_s = time.perf_counter()
    made = np.stack([make(walks.first_from_cam, seed) for seed in range(config.noise_seeds)])
    seconds = (time.perf_counter() - started_s) / (made.shape[0] * made.shape[1])
    truth = walks.frames
    other = truth.reshape(-1, 2, *truth.shape[1:])[:, ::-1].reshape(truth.shape)
    still = psnr_db(np.broadcast_to(truth[:, :1], truth.shape)[:, 1:], truth[:, 1:])
    own_db = np.stack([psnr_db(each[:, 1:], truth[:, 1:]) for each in made])
    other_db = np.stack([psnr_db(each[:, 1:], other[:, 1:]) for each in made])
    scores = {
        PSNR: own_db,
        "SSIM": np.stack([ssim(each[:, 1:], truth[:, 1:]) for each in made]),
        PERCEPTUAL: np.stack([perceptual_distance(each[:, 1:], truth[:, 1:]) for each in made]),
        "nearer to its own than to the other truth": (own_db > other_db).astype(np.float64),
        "nearer than the still frame": (own_db > still).astype(np.float64),
    }
    scores[quality.name] = np.stack([[quality(video[1:]).mean() for video in each] for each in made])
    told = [cameras.scores(each, least_likeness=least_likeness) for each in made[: config.camera_seeds]]
    scores |= {name: np.stack([each[name] for each in told]) for name in told[0]}
    return scores, made[0, 0], seconds


def row(variant: Variant, scores: Scores, kept: dict[str, Scores], seconds: float) -> dict[str, Any]:
    """One line of the table, beside the lines `kept` of the bidirectional model and, after it, of its many steps."""
    found: dict[str, Any] = {"variant": variant.name, "network evaluations": variant.evaluations}
    for name, values in scores.items():
        found[name] = _interval(values)
    found["PSNR beside the bidirectional, dB"] = _interval(scores[PSNR] - kept[BASE][PSNR])
    for name in (ROTATION, TRANSLATION):
        found[f"{name}: times the bidirectional's"] = _ratio(scores[name], kept[BASE][name])
        if TEACHER in kept:
            found[f"{name}: times the many-step teacher's"] = _ratio(scores[name], kept[TEACHER][name])
    found["seconds a video"] = seconds
    found["MB of weights"] = weight_bytes(variant.generator.model) / 1e6
    return found


def _interval(values: np.ndarray) -> str:
    """Values [seeds, N]; the two walks of a start and all seeds are one draw."""
    found = bootstrap(values.reshape(len(values), -1, 2).mean(axis=(0, 2)))
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _ratio(values: np.ndarray, base: np.ndarray) -> str:
    """Of the means of values [seeds, N]; the interval's draws of starts are the same above and below."""
    above, below = (x.reshape(len(x), -1, 2).mean(axis=(0, 2)) for x in (values, base))
    drawn = np.random.default_rng(0).integers(len(above), size=(2000, len(above)))
    low, high = np.quantile(above[drawn].mean(axis=1) / below[drawn].mean(axis=1), [0.025, 0.975])
    return f"{above.mean() / below.mean():.2f} ({low:.2f} to {high:.2f})"


def _maker(
    generator: RunGenerator, first_frames: np.ndarray, camera: Intrinsics, steps: int
) -> Callable[[np.ndarray, int], np.ndarray]:
    def make(paths: np.ndarray, seed: int) -> np.ndarray:
        if generator.chunks is None or generator.staggered:
            return generator.videos(first_frames, paths, camera, steps=steps, seed=seed)
        # Streams are of one video each; the walk's number keeps their noises apart.
        streams = [
            generator.stream(frame, path, camera, steps=steps, seed=seed * len(paths) + k)
            for k, (frame, path) in enumerate(zip(first_frames, paths, strict=True))
        ]
        return np.stack([np.stack(list(stream)) for stream in streams])

    return make

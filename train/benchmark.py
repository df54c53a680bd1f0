"""`worldline benchmark`: long paths through rendered rooms, made by a run, held next to their true renders.

The paths are the one-minute benchmark's (evaluate/benchmark_paths.py), in rooms for which every true frame can be rendered. Each
video is a row: likeness to the truth over windows of ten seconds, what the model still knows of a place it comes back to, and
how its image quality drifts. Beside it stand the first frame that never moves and the truth itself. A row that is done
is kept, so the command goes on where it was stopped.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from worldline.annotate.camera import Intrinsics
from worldline.datasets.clip_video import cover
from worldline.datasets.commit_log import replace_file
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_places import RenderedPlace
from worldline.evaluate.benchmark_paths import POSES_PER_S, BenchmarkPath, make_path, revisits, splits
from worldline.evaluate.following import bootstrap, psnr_db, ssim, static_camera
from worldline.evaluate.image_quality import ImageQuality, QualityName, drift, image_quality
from worldline.evaluate.page import film_strips, page_html, write_page
from worldline.evaluate.perceptual import NAME as PERCEPTUAL
from worldline.evaluate.perceptual import perceptual_distance
from worldline.evaluate.published_bench import manifest, published_scene
from worldline.evaluate.recovered import RecoveredPath, disagreement, recover_path, score_path
from worldline.train.checkpoint import load_run, weights_key
from worldline.train.generate import write_video
from worldline.train.generate_run import RunGenerator

logger = logging.getLogger(__name__)

STILL, TRUTH = "first frame standing still", "ground truth"
WINDOW_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """How far a run follows long paths, and what it forgets."""

    run: Path
    """Run folder of `worldline train` or `worldline distill`."""
    out: Path
    """Folder of videos, rows and page; the same command goes on from what is there."""
    split: str = "both"
    """simple, hard or both."""
    scenes: int = 16
    """Rendered rooms, whose numbers begin at `first_scene`, or scenes of `bench` in each split."""
    bench: Path | None = None
    """Folder of SANA-WM-Bench as published: its first `scenes` pictures, paths and prompts in place of rendered rooms.
    There is no truth there, so what needs one stays empty; videos are named as its own evaluators want them."""
    first_scene: int = 1
    """1 is the recipe's room of training, which so is measured too."""
    seconds: float = 60.0
    """Length of the paths."""
    fov_x_deg: float = 71.0
    """Of the rendered camera; the recipe's."""
    steps: int = 6
    """Denoising steps."""
    seed: int = 0
    engines: tuple[Literal["worldline", "pycolmap"], ...] = ("worldline",)
    """What tells the path from the frames (evaluate/recovered.py); with both, their disagreement too. pycolmap takes
    minutes a video."""
    quality: QualityName = "piqe"
    """Backend that image quality's drift is told by, in a column of its own (evaluate/image_quality.py)."""

    def __post_init__(self) -> None:
        splits(self.split)
        if self.scenes < 1 or self.first_scene < 0 or self.steps < 1 or self.seconds < 1:
            raise ValueError("scenes, steps and seconds must be at least 1, first_scene not negative")


def main(config: BenchmarkConfig) -> int:
    """Exit status: 0 done, 1 where a run does not fit or rooms cannot be rendered."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        generator = RunGenerator(load_run(config.run))
        if generator.width is None or generator.height is None:
            raise ValueError(f"{config.run} was trained without a size: rooms cannot be rendered for it")
        quality = image_quality(config.quality)
        rows = list(measured(config, generator, quality))
    except (ValueError, MissingBackend) as error:
        logger.error("worldline benchmark: %s", error)
        return 1
    table = summary(rows)
    notes = [
        f"{len(rows)} paths of {config.seconds:g} s; in brackets 95 % of bootstrap draws of the rooms.",
        "PSNR and SSIM against the true render of the commanded path, without the given first frame. Revisits: the"
        " later frame of a pair against the earlier one, for pairs that show nearly the same. Drift: how much"
        f" worse {quality.name} is in the last ten seconds than in the first.",
        "Camera errors: paths told from the frames by the named engine, after Sim(3) with the commanded path, and as they"
        " are for the standing camera; over videos whose path could be told, with their share. The truth's row is the"
        " engine's own error.",
    ]
    strips = cv2.imread(str(config.out / "strips.png"))
    pictures = {} if strips is None else {"Every ten seconds: generated and true": strips[..., ::-1]}
    write_page(
        config.out / "index.html",
        page_html("Long paths", notes, {"All paths": table, "Each path": rows}, pictures),
    )
    replace_file(
        config.out / "results.json", json.dumps({"summary": table, "paths": rows}, indent=2).encode()
    )
    for row in table:
        logger.info("%s", row)
    logger.info("page: %s", config.out / "index.html")
    return 0


def measured(
    config: BenchmarkConfig, generator: RunGenerator, quality: ImageQuality
) -> Iterator[dict[str, Any]]:
    """A row a path; those on disk are not made again. Raises ValueError for rows of another run or setting."""
    config.out.mkdir(parents=True, exist_ok=True)
    key = {"weights": weights_key(generator.model), "steps": config.steps, "seed": config.seed}
    key |= {"seconds": config.seconds, "fov_x_deg": config.fov_x_deg, "engines": list(config.engines)}
    key["quality"] = config.quality
    if config.bench is not None:
        yield from _published(config, generator, quality, key | {"bench": True})
        return
    templates, started_s, made = splits(config.split), time.monotonic(), 0
    for k in range(config.scenes):
        room = config.first_scene + k
        paths = {template.name: config.out / f"room-{room}-{template.name}.json" for template in templates}
        if any(not path.exists() for path in paths.values()):
            for row in _rows_of_room(config, generator, quality, room, paths):
                replace_file(paths[row["path"]], json.dumps({"key": key, "row": row}).encode())
                made += 1
                left = len(templates) * (config.scenes - k - 1) + sum(
                    not path.exists() for path in paths.values()
                )
                left_s = (time.monotonic() - started_s) / made * left
                logger.info("room %d, %s: %s, %.0f s left", room, row["path"], row["outcome"], left_s)
        yield from (_kept(path, key) for path in paths.values())


def _kept(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The row on disk. Raises ValueError where it is of another run or setting."""
    kept = json.loads(path.read_text())
    if kept["key"] != key:
        raise ValueError(f"{path} is of another run or setting: give another --out")
    row: dict[str, Any] = kept["row"]
    return row


def _published(
    config: BenchmarkConfig, generator: RunGenerator, quality: ImageQuality, key: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of SANA-WM-Bench's scenes, each of which is a room of its own; those on disk are not made again."""
    assert config.bench is not None
    for split in ("simple", "hard") if config.split == "both" else (config.split,):
        folder = config.out / f"{split}_60s"
        folder.mkdir(exist_ok=True)
        for line in manifest(config.bench, split)[: config.scenes]:
            kept = folder / f"{line['id']}.json"
            if kept.exists():
                yield _kept(kept, key)
                continue
            scene = published_scene(config.bench, split, line)
            frame, lens = cover(scene.first_frame[None], scene.intrinsics, generator.width, generator.height)
            poses = scene.first_from_cam[: round(config.seconds * POSES_PER_S) + 1]
            walk = BenchmarkPath(
                name=scene.name,
                split=split,
                first_from_cam=poses,
                reach_m=float(np.linalg.norm(poses[:, :, 3], axis=1).max()),
                revisits=revisits(poses),
            )
            out = folder / f"{scene.name}_generated.mp4"
            row = {"room": scene.name, "path": f"{split} path", "split": split}
            row |= _made(
                config, generator, quality, frame[0], lens, walk, out, truth=None, prompt=scene.prompt
            )
            replace_file(kept, json.dumps({"key": key, "row": row}).encode())
            logger.info("%s, %s: %s", split, scene.name, row["outcome"])
            yield row


def _rows_of_room(
    config: BenchmarkConfig,
    generator: RunGenerator,
    quality: ImageQuality,
    room: int,
    paths: dict[str, Path],
) -> Iterator[dict[str, Any]]:
    """Those whose file is not there."""
    num_frames = round(config.seconds * POSES_PER_S) + 1
    with RenderedPlace(
        room, width=generator.width, height=generator.height, fov_x_deg=config.fov_x_deg
    ) as place:
        depth_m, obstacles = place.median_depth_m(), place.obstacles()
        for template in splits(config.split):
            if paths[template.name].exists():
                continue
            row = {"room": room, "path": template.name, "split": template.split}
            try:
                walk = make_path(template, median_depth_m=depth_m, obstacles=obstacles, num_frames=num_frames)
            except ValueError as error:
                yield row | {"outcome": str(error)}
                continue
            truth = place.frames(walk.first_from_cam[:: generator.frame_step])
            out = paths[template.name].with_suffix(".mp4")
            yield row | _made(config, generator, quality, truth[0], place.camera, walk, out, truth=truth)


def _made(
    config: BenchmarkConfig,
    generator: RunGenerator,
    quality: ImageQuality,
    first_frame: np.ndarray,
    lens: Intrinsics,
    walk: BenchmarkPath,
    out: Path,
    *,
    truth: np.ndarray | None,
    prompt: str = "",
) -> dict[str, Any]:
    """The video, and what it is worth."""
    poses = walk.first_from_cam[:: generator.frame_step]
    started_s = time.perf_counter()
    options: dict[str, Any] = {"steps": config.steps, "seed": config.seed, "prompt": prompt}
    made = np.stack(list(generator.stream(first_frame, poses, lens, **options)))
    took_s = time.perf_counter() - started_s
    fps = POSES_PER_S / generator.frame_step
    write_video(out, iter(made), fps=fps)
    pairs = [(a // generator.frame_step, b // generator.frame_step) for a, b in walk.revisits]
    still = np.broadcast_to(first_frame[None], made.shape)
    row: dict[str, Any] = {
        "outcome": "made",
        "reach_m": walk.reach_m,
        "frames": len(made),
        "seconds_to_make": took_s,
    }
    for name, video in (("run", made), (STILL, still), (TRUTH, truth)):
        if video is None:
            continue
        row |= {f"{name}: {what}": value for what, value in scores(video, truth, pairs, fps, quality).items()}
        is_still = name == STILL
        found = camera_errors(None if is_still else video, lens, poses, fps, config.engines)
        row |= {f"{name}: {what}": value for what, value in found.items()}
    strips = config.out / "strips.png"
    if not strips.exists():
        at = np.arange(0, len(made), max(1, round(WINDOW_S * fps)))
        shown = {f"{walk.name}: generated": made[at]}
        if truth is not None:
            shown[f"{walk.name}: truth"] = truth[at]
        cv2.imwrite(str(strips), film_strips(shown)[..., ::-1])
    return row


def scores(
    video: np.ndarray,
    truth: np.ndarray | None,
    pairs: list[tuple[int, int]],
    fps: float,
    quality: ImageQuality,
) -> dict[str, float | None]:
    """Of one video [F, H, W, 3] uint8 against the truth, where there is one; None where a score has nothing to be told
    from."""
    window = max(2, round(WINDOW_S * fps))
    first, last = slice(1, window), slice(-window + 1, None)
    found: dict[str, float | None] = dict.fromkeys(
        ("PSNR, first 10 s, dB", "PSNR, last 10 s, dB", "SSIM", PERCEPTUAL)
    )
    if truth is not None:
        if video is not truth:
            found["PSNR, first 10 s, dB"] = float(psnr_db(video[None, first], truth[None, first])[0])
            found["PSNR, last 10 s, dB"] = float(psnr_db(video[None, last], truth[None, last])[0])
        found["SSIM"] = float(ssim(video[None, 1:], truth[None, 1:])[0])
        found[PERCEPTUAL] = float(perceptual_distance(video[None, 1:], truth[None, 1:], max_frames=20)[0])
    found |= dict.fromkeys(("revisit PSNR, dB", "revisit SSIM", f"revisit {PERCEPTUAL}"))
    found[f"drift, {quality.name}"] = drift(quality, video[first], video[last])
    pairs = [(a, b) for a, b in pairs if a != b]
    is_still = bool(np.array_equal(video[0], video[-1]) and np.array_equal(video[0], video[len(video) // 2]))
    if pairs and not is_still:  # a standing picture remembers perfectly, and shows nothing
        earlier, later = (video[[pair[k] for pair in pairs]][:, None] for k in (0, 1))
        found["revisit PSNR, dB"] = float(np.mean(np.minimum(psnr_db(later, earlier), 60.0)))
        found["revisit SSIM"] = float(ssim(later, earlier).mean())
        found[f"revisit {PERCEPTUAL}"] = float(perceptual_distance(later, earlier).mean())
    return found


def camera_errors(
    video: np.ndarray | None,
    intrinsics: Intrinsics,
    commanded: np.ndarray,
    fps: float,
    engines: tuple[str, ...],
) -> dict[str, float | str | None]:
    """Of the path told from a video [F, H, W, 3] against the commanded one [F, 3, 4]; a resting camera without a video.

    Figures are None where an engine cannot tell the path, and its outcome says why.
    """
    found: dict[str, float | str | None] = {}
    paths = []
    for engine in engines:
        if video is None:
            path = RecoveredPath("ok", static_camera(len(commanded)))
        else:
            path = recover_path(video, intrinsics, fps=fps, engine=engine)
        paths.append(path)
        score = score_path(path, commanded)
        found[f"{engine}: outcome"] = path.outcome
        found[f"{engine}: share told"] = float(score is not None)
        figures = None if score is None else score.aligned
        found[f"{engine}: RotErr without a fit, deg"] = (
            None if score is None else score.unaligned.rotation_deg
        )
        found[f"{engine}: RotErr, deg"] = None if figures is None else figures.rotation_deg
        found[f"{engine}: TransErr, m"] = None if figures is None else figures.translation
        found[f"{engine}: CamMC"] = None if figures is None else figures.cam_mc
    if len(paths) == 2 and video is not None:
        apart = disagreement(*paths)
        found["engines apart, deg"] = None if apart is None else apart.aligned.rotation_deg
        found["engines apart, in the second's unit"] = None if apart is None else apart.aligned.translation
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for the run, the standing frame and the truth, in each split; draws are of the rooms."""
    table = []
    done = [row for row in rows if row["outcome"] == "made"]
    for split in sorted({row["split"] for row in done}, reverse=True):
        chosen = [row for row in done if row["split"] == split]
        for name in ("run", STILL, TRUTH):
            line: dict[str, Any] = {"split": split, "video": name, "paths": len(chosen)}
            if not any(key.startswith(f"{name}: ") for key in chosen[0]):
                continue  # there is no truth of published pictures
            for key in (key for key in chosen[0] if key.startswith(f"{name}: ")):
                if not key.endswith("outcome"):
                    line[key.removeprefix(f"{name}: ")] = _interval(chosen, key)
            table.append(line)
    return table


def _interval(rows: list[dict[str, Any]], key: str) -> str | None:
    rooms: dict[int | str, list[float]] = {}
    for row in rows:
        if row.get(key) is not None and np.isfinite(row[key]):
            rooms.setdefault(row["room"], []).append(row[key])
    if not rooms:
        return None
    if len(rooms) == 1:
        return f"{np.mean(next(iter(rooms.values()))):.3f} (one room)"
    found = bootstrap(np.array([np.mean(values) for values in rooms.values()]))
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"

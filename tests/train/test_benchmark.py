"""`worldline benchmark`: rows that are kept, the standing frame and the truth beside the run, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_places import RenderedPlace
from worldline.datasets.transforms import ViewConfig
from worldline.evaluate.following import psnr_db
from worldline.evaluate.image_quality import image_quality
from worldline.evaluate.perceptual import NAME as PERCEPTUAL
from worldline.evaluate.published_bench import SPLIT_FOLDERS, manifest, published_scene
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from worldline.model.world_model import WorldModel
from worldline.train.benchmark import STILL, TRUTH, BenchmarkConfig, main, scores
from worldline.train.checkpoint import plain, save
from worldline.train.config import TrainConfig

PIQE = image_quality("piqe")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of random weights at 64 x 48."""
    config = TrainConfig(
        shards="none",
        out=tmp_path / "run",
        init_from=tmp_path,
        model=ModelConfig(
            width=32, num_blocks=1, num_heads=2, latent_channels=8, text_channels=8, softmax_every=0,
            camera_grid=CameraGridConfig(time_stride=1),
        ),
        autoencoder=PatchAutoencoderConfig(patch=8, latent_channels=8),
        view=ViewConfig(num_frames=5, time_stride=1, stride=8, width=64, height=48),
    )  # fmt: skip
    torch.manual_seed(0)
    model, autoencoder = WorldModel(config.model), PatchAutoencoder(PatchAutoencoderConfig(latent_channels=8))
    state = {"model": model.state_dict(), "ema": None, "autoencoder": autoencoder.state_dict(), "step": 1}
    save(config.out, 1, state | {"config": plain(config)})
    return config.out


def test_rows_are_made_once_and_stand_beside_truth_and_a_standing_frame(
    run: Path, tmp_path: Path, caplog
) -> None:
    try:
        RenderedPlace(1, width=64, height=48).__exit__()
    except MissingBackend as missing:
        pytest.skip(str(missing))
    config = BenchmarkConfig(run=run, out=tmp_path / "out", split="hard", scenes=1, seconds=3, steps=1)
    assert main(config) == 0
    results = json.loads((config.out / "results.json").read_text())
    assert [line["video"] for line in results["summary"]] == ["run", STILL, TRUTH]
    assert {row["path"] for row in results["paths"] if row["outcome"] == "made"} >= {"crane", "whip_pan"}
    assert all(row["outcome"] == "made" or "no room" in row["outcome"] for row in results["paths"])
    videos = {path: path.stat().st_mtime_ns for path in config.out.glob("*.mp4")}
    assert main(config) == 0
    assert {path: path.stat().st_mtime_ns for path in videos} == videos
    assert json.loads((config.out / "results.json").read_text()) == results
    assert main(replace(config, seed=1)) == 1
    assert "another run or setting" in caplog.text


def test_scores_of_videos_that_are_known() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    truth[30] = truth[10]
    still = np.broadcast_to(truth[:1], truth.shape)
    own, standing = (scores(video, truth, [(10, 30)], fps=2.0, quality=PIQE) for video in (truth, still))
    assert own["PSNR, first 10 s, dB"] is None
    assert own["SSIM"] == pytest.approx(1.0)
    assert own["revisit PSNR, dB"] == 60.0
    assert own[PERCEPTUAL] == own[f"revisit {PERCEPTUAL}"] == 0
    assert standing[PERCEPTUAL] > 0.1
    assert standing["revisit PSNR, dB"] is None
    assert standing["drift, PIQE"] == 0.0
    assert standing["PSNR, last 10 s, dB"] == pytest.approx(psnr_db(still[None, -19:], truth[None, -19:])[0])
    off = np.clip(truth.astype(int) + 10, 0, 255).astype(np.uint8)
    assert 28 < scores(off, truth, [], fps=2.0, quality=PIQE)["PSNR, first 10 s, dB"] < 29
    assert scores(off, truth, [], fps=2.0, quality=PIQE)["revisit SSIM"] is None


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, caplog) -> None:
    assert main(BenchmarkConfig(run=tmp_path, out=tmp_path / "out")) == 1
    assert "no checkpoint" in caplog.text


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """SANA-WM-Bench's layout with two scenes a split and paths of three seconds."""
    folder = tmp_path / "SANA-WM-Bench"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a_1", "b_2"):
        picture = cv2.resize(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8), (256, 144))
        cv2.imwrite(str(folder / "images" / f"{name}.png"), picture)
    for split in SPLIT_FOLDERS.values():
        export = folder / split / "sanawm_export_v2"
        (export / "cameras").mkdir(parents=True)
        rows = []
        for name in ("a_1", "b_2"):
            poses = np.tile(np.eye(4, dtype=np.float32), (49, 1, 1))
            poses[:, 2, 3] = 5 + np.linspace(0, 0.5, 49)
            lens = np.array([[200, 0, 128], [0, 200, 72], [0, 0, 1]], dtype=np.float32)
            path = export / "cameras" / f"{name}.npz"
            np.savez(path, c2w=poses, intrinsics=np.tile(lens, (49, 1, 1)), fps=16, num_frames=49)
            rows.append({"id": name, "prompt": "a quiet room", "camera_path": str(path.relative_to(folder))})
        (export / "run_manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


def test_published_scenes_are_followed_without_a_truth(run: Path, published: Path, tmp_path: Path) -> None:
    config = BenchmarkConfig(run=run, out=tmp_path / "out", bench=published, seconds=2, steps=1)
    assert main(config) == 0
    results = json.loads((config.out / "results.json").read_text())
    assert [(line["split"], line["video"], line["paths"]) for line in results["summary"]] == [
        ("simple", "run", 2), ("simple", STILL, 2), ("hard", "run", 2), ("hard", STILL, 2),
    ]  # fmt: skip
    assert all(line["SSIM"] is None and line["drift, PIQE"] is not None for line in results["summary"])
    assert results["paths"][0]["reach_m"] == pytest.approx(0.5 * 32 / 48, rel=1e-4)  # relative to the first
    videos = {path: path.stat().st_mtime_ns for path in config.out.rglob("*_generated.mp4")}
    assert {path.relative_to(config.out).as_posix() for path in videos} == {
        f"{split}_60s/{name}_generated.mp4" for split in ("simple", "hard") for name in ("a_1", "b_2")
    }
    assert main(config) == 0
    assert {path: path.stat().st_mtime_ns for path in videos} == videos


def test_a_folder_that_is_not_the_published_one_is_said(
    run: Path, published: Path, tmp_path: Path, caplog
) -> None:
    config = BenchmarkConfig(run=run, out=tmp_path / "out", bench=published, split="hard", seconds=1, steps=1)
    (published / "images" / "b_2.png").write_bytes(b"")
    assert main(config) == 1
    assert "b_2.png is not a readable picture" in caplog.text
    assert main(replace(config, bench=tmp_path)) == 1
    assert "run_manifest.jsonl is not there" in caplog.text


def test_a_lens_that_zooms_along_a_published_path_is_refused(published: Path) -> None:
    path = next(published.rglob("a_1.npz"))
    with np.load(path) as data:
        stored = dict(data)
    stored["intrinsics"][10:, 0, 0] *= 1.2
    np.savez(path, **stored)
    split = next(split for split, folder in SPLIT_FOLDERS.items() if folder in path.parts)
    with pytest.raises(ValueError, match=r"a_1\.npz: the lens changes"):
        [published_scene(published, split, row) for row in manifest(published, split)]

"""`worldline benchmark`: rows that are kept, the standing frame and the truth beside the run, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_places import RenderedPlace
from worldline.datasets.transforms import ViewConfig
from worldline.evaluate.following import psnr_db
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from worldline.model.world_model import WorldModel
from worldline.train.benchmark import STILL, TRUTH, BenchmarkConfig, main, scores
from worldline.train.checkpoint import plain, save
from worldline.train.config import TrainConfig


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
    own, standing = (scores(video, truth, [(10, 30)], fps=2.0) for video in (truth, still))
    assert own["PSNR, first 10 s, dB"] is None
    assert own["SSIM"] == pytest.approx(1.0)
    assert own["revisit PSNR, dB"] == 60.0
    assert standing["revisit PSNR, dB"] is None
    assert standing["drift, PIQE"] == 0.0
    assert standing["PSNR, last 10 s, dB"] == pytest.approx(psnr_db(still[None, -19:], truth[None, -19:])[0])
    off = np.clip(truth.astype(int) + 10, 0, 255).astype(np.uint8)
    assert 28 < scores(off, truth, [], fps=2.0)["PSNR, first 10 s, dB"] < 29
    assert scores(off, truth, [], fps=2.0)["revisit SSIM"] is None


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, caplog) -> None:
    assert main(BenchmarkConfig(run=tmp_path, out=tmp_path / "out")) == 1
    assert "no checkpoint" in caplog.text

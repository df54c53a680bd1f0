"""The full-size stages in their order, each for a step, with a small model and a small LTX-2 autoencoder in place of the
large ones; released weights as a start; latents and videos of an autoencoder that works on whole clips.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldline.annotate.camera import Intrinsics
from worldline.model.autoencoder import Ltx2Config
from worldline.model.config import full_2p6b
from worldline.model.exchange import diffusers_config, from_diffusers_config, released_weights, to_diffusers
from worldline.model.text import TextConfig
from worldline.model.world_model import WorldModel
from worldline.train import presets
from worldline.train.checkpoint import load_run, steps_of
from worldline.train.config import ParallelConfig, TrainConfig
from worldline.train.generate_run import RunGenerator
from worldline.train.latent_encoder import LatentEncoder, autoencoder_key
from worldline.train.trainer import train

diffusers = pytest.importorskip("diffusers")
CHANNELS = 8


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory, ltx2_vae: Any) -> Path:
    """A folder with a `vae` of random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ltx2")
    ltx2_vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> str:
    folder = tmp_path_factory.mktemp("full")
    return str(posed.make_shards(posed.numbered_dataset(folder, media, 2), folder / "out"))


def small(config: TrainConfig, vae: Path) -> TrainConfig:
    """The stage with everything large made small."""
    model = replace(
        config.model, width=32, num_blocks=4, num_heads=2, latent_channels=CHANNELS, text_channels=8
    )
    return replace(
        config,
        model=model,
        autoencoder=Ltx2Config(path=str(vae), latent_channels=CHANNELS),
        text=TextConfig(),
        view=replace(config.view, num_frames=17, width=64, height=64, allow_up_to_scale=True),
        cached_latents=False,
        steps=1,
        global_batch=2,
        num_workers=0,
        device="cpu",
        parallel=ParallelConfig(checkpoint_blocks=True),
    )


def test_the_chain_of_full_stages_runs(shards: str, vae: Path, tmp_path: Path) -> None:
    runs = [tmp_path / f"stage{i}" for i in range(6)]
    stages = [
        presets.full_autoencoder_swap(shards, runs[0]),
        presets.full_framewise_gdn(shards, runs[1], runs[0]),
        presets.full_hybrid(shards, runs[2], runs[1]),
        presets.full_minute_camera(shards, runs[3], runs[2]),
        presets.full_sft(shards, runs[4], runs[3]),
        presets.full_chunk_causal(shards, runs[5], runs[4]),
    ]
    assert stages[3].model == full_2p6b()
    assert (stages[3].lr, stages[3].global_batch, stages[3].parallel.context_ranks) == (1e-5, 32, 2)
    assert [stage.steps for stage in stages[:5]] == [50_000, 30_000, 30_000, 31_000, 10_000]
    for stage in stages:
        train(small(stage, vae))
        assert steps_of(stage.out) == [1]
    first, third = (load_run(runs[i]).model for i in (2, 3))
    assert first is not None
    assert third is not None
    kept = {n: v for n, v in first.state_dict().items() if n.endswith("cross_attention.out.weight")}
    assert kept
    # One step at the stage's rate, which warms up, moves a weight by less than the rate.
    assert all(float((third.state_dict()[n] - v).abs().max()) < 1e-5 for n, v in kept.items())

    # Chunk by chunk, decoded as a whole: as many frames as poses.
    run = load_run(runs[5])
    poses = np.tile(np.eye(4)[:3], (25, 1, 1))
    lens = Intrinsics(fxfycxcy_px=np.array([50.0, 50.0, 32.0, 32.0]), width=64, height=64)
    image = np.full((64, 64, 3), 99, np.uint8)
    assert len(list(RunGenerator(run).stream(image, poses, lens, steps=1))) == 25


def test_latents_of_whole_clips(vae: Path) -> None:
    from worldline.train.checkpoint import new_autoencoder

    autoencoder = new_autoencoder(Ltx2Config(path=str(vae), latent_channels=CHANNELS))
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
    encoder = LatentEncoder(autoencoder, device="cpu", dtype="float32")
    once, twice = encoder([frames]), encoder([frames[:9], frames[9:]])
    assert once.shape == (CHANNELS, 4, 2, 2)
    np.testing.assert_array_equal(once, twice)
    key = autoencoder_key(autoencoder)
    with torch.no_grad():
        next(autoencoder.parameters()).add_(1e-3)
    assert autoencoder_key(autoencoder) != key


def test_training_goes_on_from_released_weights(shards: str, vae: Path, tmp_path: Path, caplog: Any) -> None:
    from safetensors.torch import save_file

    folder, out = tmp_path / "transformer", tmp_path / "run"
    stage = small(presets.full_chunk_causal(shards, out, folder), vae)
    theirs = diffusers.SanaWMTransformer3DModel(**diffusers_config(stage.model))
    settings = dict(theirs.config)
    torch.manual_seed(1)
    released = WorldModel(from_diffusers_config(settings))
    theirs.load_state_dict(to_diffusers(released))
    theirs.save_pretrained(folder)
    for name, value in released_weights(folder).items():
        assert torch.equal(value, released.state_dict()[name]), name
    with caplog.at_level("INFO"):
        train(stage)
    assert "fresh parameters: []" in caplog.text
    moved = load_run(out).model
    assert moved is not None
    assert all(
        float((value - released.state_dict()[name]).abs().max()) < 1e-5
        for name, value in moved.state_dict().items()
    )
    save_file({}, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        released_weights(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no SanaWMTransformer3DModel"):
        released_weights(folder)

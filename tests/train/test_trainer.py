"""The trainer on a few small shards: resume, guards, stages, and what a checkpoint gives back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldline.datasets.transforms import ViewConfig
from worldline.model.autoencoder import AutoencoderConfig
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from worldline.train import objectives, trainer
from worldline.train.checkpoint import built, load_run, load_state, plain, steps_of
from worldline.train.config import TrainConfig
from worldline.train.parallel import Ranks
from worldline.train.trainer import NotFinite, learning_rate, train

AUTOENCODER = AutoencoderConfig(latent_channels=4, channels=(4, 4, 4))
MODEL = ModelConfig(
    width=32,
    num_blocks=2,
    num_heads=2,
    latent_channels=4,
    text_channels=8,
    softmax_every=0,
    camera="none",
    plucker=False,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, media, posed) -> str:
    folder = tmp_path_factory.mktemp("shards")
    return str(posed.make_shards(posed.numbered_dataset(folder, media, 2), folder / "out"))


@pytest.fixture(scope="module")
def autoencoder_run(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("autoencoder")
    train(stage(shards, out, kind="autoencoder", steps=2))
    return out


def stage(shards: str, out: Path, **more: Any) -> TrainConfig:
    config = TrainConfig(
        shards=shards,
        out=out,
        kind="autoencoder",
        model=MODEL,
        autoencoder=AUTOENCODER,
        view=ViewConfig(num_frames=9, width=32, height=16, allow_up_to_scale=True),
        steps=20,
        global_batch=2,
        lr=1e-3,
        warmup_steps=3,
        log_every=1,
        checkpoint_every=10,
    )
    return replace(config, **more)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
@pytest.mark.parametrize("stop", ["killed", "interrupted"])
def test_a_stopped_run_goes_on_bit_identically(
    shards, autoencoder_run, tmp_path, monkeypatch, stop, device
) -> None:
    flow = {"kind": "flow", "init_from": autoencoder_run, "ema_decay": 0.9, "device": device}
    train(stage(shards, tmp_path / "whole", **flow))

    calls, true_gradient = 0, trainer._gradient

    def stopping(*args: Any) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise RuntimeError("killed") if stop == "killed" else KeyboardInterrupt
        return true_gradient(*args)

    config = stage(shards, tmp_path / "stopped", **flow)
    monkeypatch.setattr(trainer, "_gradient", stopping)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        train(config)
    # 13 whole steps were made: a kill falls back to the last checkpoint, Ctrl-C saves the last step.
    assert steps_of(config.out)[-1] == (10 if stop == "killed" else 13)
    monkeypatch.setattr(trainer, "_gradient", true_gradient)
    train(config)
    whole, again = (load_state(tmp_path / name)[1] for name in ("whole", "stopped"))
    for name in ("model", "ema", "optimizer", "loader", "step"):
        assert same(whole[name], again[name]), name
    assert not same(whole["model"], load_state(tmp_path / "whole", 10)[1]["model"])


def test_a_run_of_another_config_is_not_continued(shards, autoencoder_run) -> None:
    with pytest.raises(ValueError, match="another lr"):
        train(stage(shards, autoencoder_run, steps=2, lr=0.5))


def test_loss_that_is_not_finite_names_the_clips(shards, tmp_path, monkeypatch) -> None:
    nan = lambda model, video: next(model.parameters()).sum() * math.nan  # noqa: E731
    monkeypatch.setattr(objectives, "reconstruction_loss", nan)
    with pytest.raises(NotFinite, match=r"step 1.*clips \['[0-9a-f-]{36}', '[0-9a-f-]{36}'\]"):
        train(stage(shards, tmp_path / "nan"))
    assert steps_of(tmp_path / "nan") == []


def test_a_model_on_fitted_patches_starts_windows_anywhere(shards, tmp_path) -> None:
    patches = PatchAutoencoderConfig(patch=8, latent_channels=4)
    view = ViewConfig(num_frames=3, time_stride=1, stride=4, width=32, height=16, allow_up_to_scale=True)
    model = replace(MODEL, camera="ucpe", plucker=True, camera_grid=CameraGridConfig(time_stride=1))
    first = stage(shards, tmp_path / "patches", autoencoder=patches, view=view, model=model, steps=4)
    train(first)
    fitted = load_run(first.out).autoencoder
    assert isinstance(fitted, PatchAutoencoder)
    noise = torch.rand(1, 3, 2, 16, 32)
    kept = fitted.encode(fitted.decode(fitted.encode(noise)))
    torch.testing.assert_close(kept, fitted.encode(noise))  # a projection: twice is once
    train(first)  # done: nothing is fitted anew
    second = replace(first, kind="flow", init_from=first.out, out=tmp_path / "flow", steps=2)
    train(second)
    run = load_run(second.out)
    assert run.model is not None
    assert same(run.autoencoder.state_dict(), fitted.state_dict())
    with pytest.raises(ValueError, match="time_stride"):
        replace(second, view=ViewConfig(num_frames=9, width=32, height=16))


def test_stages_follow_each_other_and_keep_the_projections(shards, autoencoder_run, tmp_path) -> None:
    flow = {"kind": "flow", "steps": 1}
    train(stage(shards, tmp_path / "gdn", init_from=autoencoder_run, **flow))
    hybrid_model = replace(MODEL, softmax_every=2, camera="ucpe", plucker=True)
    config = stage(shards, tmp_path / "hybrid", init_from=tmp_path / "gdn", model=hybrid_model, **flow)
    before = load_run(tmp_path / "gdn")
    net, autoencoder = trainer._networks(config)
    own = net.state_dict()
    shared = {name: value for name, value in before.model.state_dict().items() if name in own}
    assert all(torch.equal(own[name], value) for name, value in shared.items())
    dropped = set(before.model.state_dict()) - set(own)
    assert dropped
    assert all(name.startswith("blocks.1.") and ("gates" in name or "key_conv" in name) for name in dropped)
    assert same(autoencoder.state_dict(), before.autoencoder.state_dict())
    train(replace(config, chunks=(1, 1)))
    run = load_run(tmp_path / "hybrid")
    assert run.step == 1
    assert run.model.config == hybrid_model
    assert not run.model.training
    lines = [json.loads(line) for line in (tmp_path / "hybrid" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1]
    assert math.isfinite(lines[0]["loss"])


def test_accumulated_gradients_are_those_of_the_batch(shards, tmp_path, monkeypatch) -> None:
    # A smooth loss: the sign in an absolute error's gradient flips on rounding.
    smooth = lambda model, video: (model.decode(model.encode(video)) - video).square().mean()  # noqa: E731
    monkeypatch.setattr(objectives, "reconstruction_loss", smooth)
    weights = []
    for parts in (1, 2):
        config = stage(shards, tmp_path / str(parts), steps=1, accumulation=parts, bf16=False)
        net, autoencoder = trainer._networks(config)
        clips = next(iter(trainer.open_loader(config)))
        loss = objectives.loss_function(config, net, autoencoder)
        trainer._gradient(config, net, clips, loss, 0, Ranks())
        weights.append([p.grad for p in net.parameters()])
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_config_survives_json(tmp_path) -> None:
    config = stage("s", tmp_path, chunks=(2, 1))
    assert built(TrainConfig, json.loads(json.dumps(plain(config)))) == config


def test_learning_rate_rises_and_falls() -> None:
    config = stage("s", Path("o"), steps=11, warmup_steps=1, final_lr_share=0.2)
    assert learning_rate(0, config) == pytest.approx(1e-3)
    assert learning_rate(6, config) == pytest.approx(1e-3 * 0.6)
    assert learning_rate(11, config) == pytest.approx(2e-4)

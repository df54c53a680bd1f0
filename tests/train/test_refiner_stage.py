"""The refiner's stage of training: pairs on the fly, adapters alone, bit-identical resume, a run that loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldline.datasets.transforms import ViewConfig
from worldline.model.autoencoder import AutoencoderConfig
from worldline.model.chunks import chunk_causal
from worldline.model.config import ModelConfig
from worldline.train import trainer
from worldline.train.checkpoint import load_run, load_state
from worldline.train.config import RefineConfig, TrainConfig
from worldline.train.objectives import _frames_given, rescaled
from worldline.train.trainer import train


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory, media, posed) -> TrainConfig:
    """A model trained for two steps; its config."""
    folder = tmp_path_factory.mktemp("refiner")
    shards = str(posed.make_shards(posed.numbered_dataset(folder, media, 2), folder / "shards"))
    autoencoder = TrainConfig(
        shards=shards,
        out=folder / "autoencoder",
        kind="autoencoder",
        model=ModelConfig(
            width=32, num_blocks=2, num_heads=2, latent_channels=4, text_channels=8, softmax_every=2
        ),
        autoencoder=AutoencoderConfig(latent_channels=4, channels=(4, 4, 4)),
        view=ViewConfig(num_frames=9, width=32, height=16, allow_up_to_scale=True),
        steps=2,
        global_batch=2,
        lr=1e-3,
        log_every=1,
    )
    train(autoencoder)
    config = replace(autoencoder, out=folder / "model", kind="flow", init_from=autoencoder.out)
    train(config)
    return config


def _stage(first_stage: TrainConfig, out: Path, **more: Any) -> TrainConfig:
    config = replace(
        first_stage, out=out, kind="refiner", init_from=first_stage.out, chunks=(1, 2), steps=4,
        checkpoint_every=2, refine=RefineConfig(lora_rank=2, sample_steps=2),
    )  # fmt: skip
    return replace(config, **more)


def test_only_adapters_learn_and_the_run_has_them_in_its_weights(first_stage, tmp_path) -> None:
    train(_stage(first_stage, tmp_path))
    _, state = load_state(tmp_path)
    before = load_run(first_stage.out).model.state_dict()
    frozen = {name: v for name, v in state["model"].items() if ".lora_" not in name}
    assert all(torch.equal(v, before[name.replace(".base_layer", "")]) for name, v in frozen.items())
    assert any(v.any() for name, v in state["model"].items() if ".lora_B" in name)
    after = load_run(tmp_path).model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(f"{name.removesuffix('.weight')}.lora_A.default.weight" in state["model"] for name in changed)
    with pytest.raises(ValueError, match="begin from the run it began from"):
        train(_stage(first_stage, tmp_path / "more", init_from=tmp_path))


def test_a_stopped_refiner_goes_on_bit_identically(first_stage, tmp_path, monkeypatch) -> None:
    train(_stage(first_stage, tmp_path / "whole"))
    real, calls = trainer._gradient, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return real(*arguments)

    monkeypatch.setattr(trainer, "_gradient", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train(_stage(first_stage, tmp_path / "parts"))
    monkeypatch.setattr(trainer, "_gradient", real)
    train(_stage(first_stage, tmp_path / "parts"))
    one, two = (load_state(tmp_path / name)[1]["model"] for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_both_kinds_of_pairs_train_all_weights_without_adapters(first_stage, tmp_path) -> None:
    for share in (0.0, 1.0):
        refine = RefineConfig(lora_rank=0, sample_share=share, sample_steps=1)
        train(_stage(first_stage, tmp_path / f"{share}", refine=refine))
    kept = [load_run(tmp_path / f"{share}").model.state_dict() for share in (0.0, 1.0)]
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_given_blocks_are_the_first_or_any_but_the_last() -> None:
    generator, chunks = torch.Generator().manual_seed(0), chunk_causal(9, first=1, rest=3)  # 1, 3, 3, 2
    whole = [_frames_given(chunks, 0.0, generator) for _ in range(50)]
    streamed = [_frames_given(chunks, 1.0, generator) for _ in range(300)]
    assert set(whole) == {1}
    assert set(streamed) == {1, 4, 7}
    assert min(streamed.count(end) for end in (1, 4, 7)) > 60
    assert _frames_given([0], 1.0, generator) == 1


def test_scaling_down_and_up_keeps_means_and_loses_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, 4, 16, 24, generator=generator)
    blurred = rescaled(noise, 4.0)
    assert blurred.shape == noise.shape
    torch.testing.assert_close(blurred.mean(), noise.mean(), rtol=0.02, atol=0)
    assert blurred.var() < 0.2 * noise.var()
    torch.testing.assert_close(rescaled(noise, 1.0), noise)
    flat = torch.full((1, 3, 2, 8, 8), 0.3)
    torch.testing.assert_close(rescaled(flat, 3.0), flat)


@pytest.mark.parametrize("change", [{"chunks": None}, {"chunks": (2, 1)}, {"cached_latents": True}])
def test_what_a_refiner_cannot_read_is_refused(first_stage, tmp_path, change) -> None:
    with pytest.raises(ValueError, match="first chunk is the first frame"):
        _stage(first_stage, tmp_path, **change)

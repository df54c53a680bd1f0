"""`worldline distill`: phases, bit-identical resume, a run that streams in four steps, and refusals."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from worldline.annotate.camera import Intrinsics
from worldline.datasets.transforms import ViewConfig
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoderConfig
from worldline.model.sampler import DISTILLED_SIGMAS
from worldline.train.checkpoint import built, load_run, load_state
from worldline.train.config import TrainConfig
from worldline.train.distill import DistillConfig, Distiller, distill, main
from worldline.train.generate_run import RunGenerator
from worldline.train.objectives import latents_of
from worldline.train.trainer import open_loader, train


@pytest.fixture(scope="module")
def config(tmp_path_factory, media, posed) -> DistillConfig:
    """A distillation of a teacher and a student trained for two steps."""
    folder = tmp_path_factory.mktemp("distill")
    shards = str(posed.make_shards(posed.numbered_dataset(folder, media, 2), folder / "shards"))
    patches = TrainConfig(
        shards=shards,
        out=folder / "patches",
        kind="autoencoder",
        model=ModelConfig(
            width=32, num_blocks=2, num_heads=2, latent_channels=4, text_channels=8, softmax_every=2,
            camera_grid=CameraGridConfig(time_stride=1),
        ),
        autoencoder=PatchAutoencoderConfig(patch=8, latent_channels=4),
        view=ViewConfig(num_frames=5, time_stride=1, stride=2, width=32, height=16, allow_up_to_scale=True),
        steps=2,
        global_batch=2,
        lr=1e-3,
    )  # fmt: skip
    train(patches)
    teacher = replace(patches, out=folder / "teacher", kind="flow", init_from=patches.out)
    train(teacher)
    student = replace(teacher, out=folder / "student", init_from=teacher.out, chunks=(1, 2))
    train(student)
    return DistillConfig(
        shards=shards, out=folder / "distilled", teacher=teacher.out, student=student.out, ode_steps=2, steps=6,
        teacher_steps=2, global_batch=2, ode_lr=1e-3, student_lr=1e-3, critic_lr=1e-3, checkpoint_every=3, log_every=1,
    )  # fmt: skip


def _reading(config: DistillConfig) -> TrainConfig:
    """How the student's run reads clips."""
    return built(TrainConfig, load_run(config.student).config)


def test_both_phases_run_and_a_stopped_one_goes_on_bit_identically(config, tmp_path, monkeypatch) -> None:
    distill(replace(config, out=tmp_path / "whole"))
    real, calls = Distiller.step, []

    def dies(self: Distiller, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("killed")
        return real(self, *arguments)

    monkeypatch.setattr(Distiller, "step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        distill(replace(config, out=tmp_path / "parts"))
    monkeypatch.setattr(Distiller, "step", real)
    distill(replace(config, out=tmp_path / "parts"))
    whole, parts = (load_state(tmp_path / name)[1] for name in ("whole", "parts"))
    for name in ("model", "critic"):
        assert all(torch.equal(value, parts[name][key]) for key, value in whole[name].items()), name
    assert whole["loader"] == parts["loader"]
    student = load_run(config.student).model.state_dict()
    assert any(not torch.equal(value, student[key]) for key, value in whole["model"].items())
    # Regression, then the critic at every step and the student at each fifth.
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    kinds = (
        ["ode" in line for line in lines],
        ["matching" in line for line in lines],
        ["critic" in line for line in lines],
    )
    assert kinds == ([True] * 2 + [False] * 6, [k in (2, 7) for k in range(8)], [False] * 2 + [True] * 6)


def test_the_run_streams_in_four_steps(config, tmp_path) -> None:
    distill(replace(config, out=tmp_path, steps=1))
    generator = RunGenerator(load_run(tmp_path))
    lens = Intrinsics(fxfycxcy_px=np.array([24.0, 24.0, 16.0, 8.0]), width=32, height=16)
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    path = np.tile(np.eye(3, 4), (7, 1, 1))
    path[:, 2, 3] = 0.1 * np.arange(7)
    levels: list[float] = []
    stream = generator.model.stream

    def spy(x, timesteps, *rest):
        levels.append(float(timesteps.max()))
        return stream(x, timesteps, *rest)

    generator.model.stream = spy  # type: ignore[method-assign]
    frames, again = (list(generator.stream(image, path, lens, seed=3)) for _ in range(2))
    assert len(frames) == 7
    assert np.array_equal(frames, again)
    a_chunk = [1000 * s for s in DISTILLED_SIGMAS]  # four steps, and the pass at 0 that makes the state
    assert levels == pytest.approx(([0.0] * 5 + a_chunk * 3) * 2)
    assert not np.array_equal(frames, list(generator.stream(image, path, lens, seed=4)))


def test_the_teacher_is_guided_by_captions_in_both_phases(config, monkeypatch) -> None:
    distiller = Distiller(config)
    clips = next(iter(open_loader(_reading(config))))
    first = latents_of(clips, distiller.autoencoder, "cpu")[:, :, :1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, distiller.num_frames, *first.shape[3:], generator=generator)
    sigmas = torch.full(x.shape[:1] + x.shape[2:3], 0.5)
    captioned = replace(clips, caption=["a room with a red door", None])
    inputs = distiller._inputs(captioned, first)

    def velocity(text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return distiller.teacher(x, 1000 * sigmas, text, mask, inputs.whole)

    given, empty = (
        velocity(*distiller.text(["a room with a red door", ""])),
        velocity(*distiller.text(["", ""])),
    )
    assert (given[0] - empty[0]).abs().max() > 1e-6
    torch.testing.assert_close(distiller.guided_teacher(inputs)(x, sigmas), empty + 3 * (given - empty))
    # Without captions there is one pass, and the guidance changes nothing.
    plain = distiller._inputs(clips, first)
    assert plain.without is None
    assert torch.equal(distiller.guided_teacher(plain)(x, sigmas), empty)
    # Both losses ask the guided teacher.
    asked: list[int] = []
    real = Distiller.guided_teacher
    monkeypatch.setattr(Distiller, "guided_teacher", lambda self, given: asked.append(1) or real(self, given))
    distiller._ode_loss(first, inputs, torch.Generator().manual_seed(1))
    distiller._matching_loss(first, inputs, torch.Generator().manual_seed(1))
    assert len(asked) == 2


def test_guidance_changes_the_student_where_clips_have_captions(config) -> None:
    clips = replace(next(iter(open_loader(_reading(config)))), caption=["one", "two"])
    weights = []
    for guidance in (1.0, 3.0):
        distiller = Distiller(replace(config, guidance=guidance))
        distiller.step(config.ode_steps, clips)
        weights.append(distiller.student.state_dict())
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_runs_that_do_not_fit_are_refused(config, tmp_path, caplog) -> None:
    for change, message in (
        ({"teacher": config.student}, "teacher must be bidirectional"),
        ({"student": config.teacher}, "student chunk-causal"),
        ({"teacher": config.teacher.parent / "patches"}, "a run of the autoencoder stage"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(replace(config, out=tmp_path / "no", **change))
    described = load_run(config.teacher).config
    shutil.copytree(config.teacher, tmp_path / "always")
    state_path = next((tmp_path / "always" / "checkpoints").iterdir()) / "state.pt"
    state = torch.load(state_path, weights_only=True)
    torch.save(state | {"config": described | {"caption_dropout": 0.0}}, state_path)
    always = replace(config, out=tmp_path / "no", teacher=tmp_path / "always")
    with pytest.raises(ValueError, match="never went without a caption"):
        distill(always)
    Distiller(replace(always, guidance=1.0))
    with pytest.raises(ValueError, match="guidance"):
        replace(config, guidance=0.5)
    done = replace(config, out=tmp_path / "done", ode_steps=1, steps=0)
    distill(done)
    assert main(replace(done, ode_lr=0.5)) == 2
    assert "another ode_lr" in caplog.text

"""`worldline distill`: a bidirectional teacher and a chunk-causal student in, a student of four steps out.

Two phases in one run folder: regression on the teacher's paths, then distribution matching on the student's own
roll-outs (model/distillation.py). Batches, noise and resume are as in the trainer: all that is random follows from
(seed, step), so a stopped run goes on bit-identically. The result is a run like any other, which `worldline generate
--run` and `worldline drive` stream in four steps a chunk.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from worldline.datasets.transforms import ClipView
from worldline.model.chunks import chunk_causal, chunk_spans
from worldline.model.diffusion import Velocity, clean_from_velocity, flow_error, noised
from worldline.model.distillation import draw_matching_sigmas, matching_loss, self_forced, teacher_path
from worldline.model.rope import Grid
from worldline.model.sampler import DISTILLED_SIGMAS, with_guidance
from worldline.model.world_model import WorldModel, conditions
from worldline.train.checkpoint import Run, built, load_run, load_state, plain, save, steps_of
from worldline.train.config import TrainConfig
from worldline.train.latent_encoder import autoencoder_key
from worldline.train.objectives import latents_of
from worldline.train.parallel import seeded_generator
from worldline.train.text import run_text
from worldline.train.trainer import NotFinite, open_loader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """One distillation."""

    shards: str
    """Shard folder: first frames and paths are taken from its clips."""
    out: Path
    """Run folder; where it has a checkpoint of the same config, training goes on from it."""
    teacher: Path
    """Bidirectional run; the critic begins from it too."""
    student: Path
    """Chunk-causal run of the same autoencoder that the student begins from."""
    where: str = "TRUE"
    """SQL condition over the shards' index."""
    decisions: Path | None = None
    """Table of `worldline decide`."""
    cached_latents: bool = False
    """Read latents from the shards instead of encoding frames."""
    ode_steps: int = 3000
    """Steps of regression on the teacher's paths, before matching; 3000 is SANA-WM's."""
    teacher_steps: int = 24
    """Euler steps of a teacher's path."""
    steps: int = 5000
    """Steps of distribution matching."""
    student_every: int = 5
    """The critic learns at every step of matching, the student at every n-th."""
    global_batch: int = 16
    """Clips a step."""
    ode_lr: float = 2e-5
    student_lr: float = 1e-5
    critic_lr: float = 2e-6
    """Rates of SANA-WM's 2.6 B parameters; tiny models need a hundred times as much."""
    shift: float = 10.0
    """Of the levels at which teacher and critic look."""
    guidance: float = 3.0
    """Classifier-free guidance of the teacher, in its paths and in matching, which the student so has baked in; 3 is
    SANA-WM's. 1 is none. Clips without a caption have nothing to be guided by."""
    clip_norm: float = 1.0
    seed: int = 0
    device: str = "cpu"
    cpu_threads: int | None = None
    """Threads of torch on the CPU; None leaves its default."""
    checkpoint_every: int = 250
    """Steps."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        counts = ("teacher_steps", "student_every", "global_batch", "checkpoint_every", "log_every")
        if min(getattr(self, name) for name in counts) < 1 or min(self.ode_steps, self.steps) < 0:
            raise ValueError(f"{counts} must be positive, ode_steps and steps not negative")
        if min(self.ode_lr, self.student_lr, self.critic_lr, self.clip_norm) <= 0:
            raise ValueError("learning rates and clip_norm must be positive")
        if self.guidance < 1:
            raise ValueError(f"guidance must be at least 1, got {self.guidance}")

    @property
    def total_steps(self) -> int:
        """Of both phases."""
        return self.ode_steps + self.steps


class Distiller:
    """The networks of a distillation and one step of it."""

    def __init__(self, config: DistillConfig) -> None:
        """Raises ValueError for runs that do not fit each other."""
        teacher, student = load_run(config.teacher), load_run(config.student)
        _check(config, teacher, student)
        assert teacher.model is not None
        assert student.model is not None
        self.config, self.student_config = config, student.config
        self.view = teacher.config["view"]
        first, rest = student.config["chunks"]
        self.num_frames = 1 + (self.view["num_frames"] - 1) // teacher.autoencoder.time_stride
        self.chunks = chunk_causal(self.num_frames, first=first, rest=rest)
        self.autoencoder = student.autoencoder.to(config.device)
        self.teacher = teacher.model.to(config.device).requires_grad_(False)
        self.student = student.model.to(config.device).train()
        self.critic = copy.deepcopy(self.teacher).requires_grad_(True).train()
        self.text = run_text(student, config.device)
        self.reads_captions = teacher.config["caption_dropout"] < 1
        self.is_amid_step = False
        """Whether one of the networks has taken this step and another has not."""
        # Without momentum, as usual where the loss changes under way.
        betas = (0.0, 0.999)
        self.optimizers = {
            "student": torch.optim.AdamW(
                self.student.parameters(), lr=config.ode_lr, betas=betas, weight_decay=0.01
            ),
            "critic": torch.optim.AdamW(
                self.critic.parameters(), lr=config.critic_lr, betas=betas, weight_decay=0.01
            ),
        }

    def step(self, step: int, clips: ClipView) -> dict[str, float]:
        """Learns from a batch; the losses. Raises NotFinite, which leaves the networks as they were."""
        generator = seeded_generator(self.config.seed, step)
        first = latents_of(clips, self.autoencoder, self.config.device)[:, :, :1]
        inputs = self._inputs(clips, first)
        if step < self.config.ode_steps:
            return {
                "ode": self._learn("student", lambda: self._ode_loss(first, inputs, generator), step, clips)
            }
        losses = {}
        if (step - self.config.ode_steps) % self.config.student_every == 0:
            losses["matching"] = self._learn(
                "student", lambda: self._matching_loss(first, inputs, generator), step, clips
            )
        with torch.no_grad():
            sample = self._rolled_out(first, inputs, generator)
        losses["critic"] = self._learn(
            "critic", lambda: self._critic_loss(sample, inputs, generator), step, clips
        )
        return losses

    def _inputs(self, clips: ClipView, first: Tensor) -> _Inputs:
        config, device = self.student.config, self.config.device
        paths, lens, stride = (
            clips.first_from_cam.to(device),
            clips.intrinsics(),
            config.camera_grid.time_stride,
        )
        height, width = first.shape[3:]

        def seen(begin: int, end: int) -> Any:
            frames = slice(stride * (begin - 1) + 1 if begin else 0, stride * (end - 1) + 1)
            grid = Grid(num_frames=end - begin, height=height, width=width, first_frame=begin)
            part = replace(lens, fxfycxcy_px=lens.fxfycxcy_px[:, frames])
            return conditions(config, paths[:, frames], part, grid)

        captions = [caption or "" for caption in clips.caption] if self.reads_captions else [""] * len(first)
        text, mask = (tensor.to(device) for tensor in self.text(captions))
        empty = self.text([""] * len(first)) if self.config.guidance != 1 and any(captions) else None
        without = None if empty is None else (empty[0].to(device), empty[1].to(device))
        spans = chunk_spans(self.chunks)
        return _Inputs(text, mask, without, seen(0, self.num_frames), [seen(a, b) for a, b in spans])

    def guided_teacher(self, inputs: _Inputs) -> Velocity:
        """The teacher's velocity with guidance; where no clip has a caption that is the one without."""

        def reading(text: Tensor, mask: Tensor) -> Velocity:
            return lambda x, sigmas: self.teacher(x, 1000 * sigmas, text, mask, inputs.whole)

        with_caption = reading(inputs.text, inputs.mask)
        if inputs.without is None:
            return with_caption
        return with_guidance(with_caption, reading(*inputs.without), self.config.guidance)

    def _noise(self, first: Tensor, generator: torch.Generator) -> Tensor:
        batch, channels, _, height, width = first.shape
        return torch.randn(batch, channels, self.num_frames, height, width, generator=generator).to(first)

    def _ode_loss(self, first: Tensor, inputs: _Inputs, generator: torch.Generator) -> Tensor:
        start = torch.cat([first, self._noise(first, generator)[:, :, 1:]], dim=2)
        states = teacher_path(
            self.guided_teacher(inputs), start, DISTILLED_SIGMAS, steps=self.config.teacher_steps, num_clean=1,
        )  # fmt: skip
        end = states[-1]
        # As in a roll-out: some first chunks are done, the next is at one of the few levels.
        spans = chunk_spans(self.chunks)
        batch, places = len(start), torch.arange(self.num_frames)
        which = torch.randint(len(DISTILLED_SIGMAS) - 1, (batch,), generator=generator)
        begins = torch.tensor([max(1, begin) for begin, stop in spans if stop > 1])
        done = begins[torch.randint(len(begins), (batch,), generator=generator)]
        is_done = (places < done[:, None]).to(start.device)  # [B, T]
        sigmas = torch.tensor(DISTILLED_SIGMAS)[which].to(start.device)[:, None].repeat(1, self.num_frames)
        sigmas = sigmas.masked_fill(is_done, 0.0)
        x = torch.where(is_done[:, None, :, None, None], end, states[which, torch.arange(batch)])
        velocity = self.student(x, 1000 * sigmas, inputs.text, inputs.mask, inputs.whole, chunks=self.chunks)
        error = (clean_from_velocity(x, velocity, sigmas) - end).square().mean(dim=(1, 3, 4))
        return (error * ~is_done).sum() / (~is_done).sum()

    def _rolled_out(self, first: Tensor, inputs: _Inputs, generator: torch.Generator) -> Tensor:
        exit_step = int(torch.randint(len(DISTILLED_SIGMAS) - 1, (), generator=generator))
        return self_forced(
            self.student, self._noise(first, generator), first, inputs.text, inputs.mask, inputs.chunks,
            chunks=self.chunks, levels=DISTILLED_SIGMAS, exit_step=exit_step, generator=generator,
        )  # fmt: skip

    def _matching_loss(self, first: Tensor, inputs: _Inputs, generator: torch.Generator) -> Tensor:
        sample = self._rolled_out(first, inputs, generator)
        with torch.no_grad():
            sigmas = self._levels(len(first), generator)
            x = noised(sample, self._noise(first, generator), sigmas)
            # The critic knows the student's videos as they are made, which guidance is in already.
            fake = self.critic(x, 1000 * sigmas, inputs.text, inputs.mask, inputs.whole)
            teacher = clean_from_velocity(x, self.guided_teacher(inputs)(x, sigmas), sigmas)
            critic = clean_from_velocity(x, fake, sigmas)
        return matching_loss(sample, teacher, critic, sigmas > 0)

    def _critic_loss(self, sample: Tensor, inputs: _Inputs, generator: torch.Generator) -> Tensor:
        sigmas, noise = self._levels(len(sample), generator), self._noise(sample[:, :, :1], generator)
        velocity = self.critic(
            noised(sample, noise, sigmas), 1000 * sigmas, inputs.text, inputs.mask, inputs.whole
        )
        has_loss = sigmas > 0
        return (flow_error(velocity, sample, noise) * has_loss).sum() / has_loss.sum()

    def _levels(self, batch: int, generator: torch.Generator) -> Tensor:
        return draw_matching_sigmas(
            batch, self.num_frames, shift=self.config.shift, num_clean=1, generator=generator
        ).to(self.config.device)

    def _learn(self, name: str, loss_of: Callable[[], Tensor], step: int, clips: ClipView) -> float:
        net: nn.Module = getattr(self, name)
        optimizer, config = self.optimizers[name], self.config
        if name == "student":
            optimizer.param_groups[0]["lr"] = config.ode_lr if step < config.ode_steps else config.student_lr
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm))
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise NotFinite(
                f"step {step + 1}, {name}: loss {value}, gradient norm {norm}; clips {list(clips.clip_id)}"
            )
        self.is_amid_step = True
        optimizer.step()
        return value

    def state(self, step: int, loader: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint: that of a chunk-causal run, and what going on needs."""
        described = self.student_config | {"distilled": plain(self.config), "view": self.view}
        return {
            "model": self.student.state_dict(),
            "ema": None,
            "autoencoder": self.autoencoder.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "loader": loader,
            "step": step,
            "config": described,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a checkpoint."""
        self.student.load_state_dict(state["model"])
        self.critic.load_state_dict(state["critic"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the networks read of a batch beside latents."""

    text: Tensor
    mask: Tensor
    without: tuple[Tensor, Tensor] | None
    """Text and mask of no caption; None where nothing is guided."""
    whole: Any
    """Cameras of the whole clip."""
    chunks: list[Any]
    """Cameras of each chunk."""


def distill(config: DistillConfig) -> None:
    """Trains to the end of both phases, from the newest checkpoint where there is one.

    Ctrl-C writes a checkpoint, unless it came amid a step, and is raised again. Raises ValueError for runs that do not
    fit and for a run folder of another config, NotFinite.
    """
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    distiller = Distiller(config)
    student: TrainConfig = built(
        TrainConfig, {k: v for k, v in distiller.student_config.items() if k != "distilled"}
    )
    reading = replace(
        student, shards=config.shards, decisions=config.decisions, where=config.where, seed=config.seed,
        global_batch=config.global_batch, cached_latents=config.cached_latents,
        view=built(type(student.view), distiller.view),
    )  # fmt: skip
    loader = open_loader(reading)
    start = 0
    if steps_of(config.out):
        _, state = load_state(config.out)
        _refuse_another(config, state)
        distiller.restore(state)
        loader.load_state_dict(state["loader"])
        start = int(state["step"])
    config.out.mkdir(parents=True, exist_ok=True)
    step, saved, batches, since = start, start, iter(loader), time.monotonic()

    def write() -> None:
        # A batch that was read but not learnt from is read again.
        position = {**loader.state_dict(), "position": step * config.global_batch}
        save(config.out, step, distiller.state(step, position))

    try:
        while step < config.total_steps:
            losses = distiller.step(step, next(batches))
            step += 1
            distiller.is_amid_step = False
            if step % config.log_every == 0 or step == config.total_steps:
                _log(config, step, losses, (step - start) / (time.monotonic() - since))
            if step % config.checkpoint_every == 0 or step == config.total_steps:
                write()
                saved = step
    except KeyboardInterrupt:
        if step > saved and not distiller.is_amid_step:
            write()
        raise


def _check(config: DistillConfig, teacher: Run, student: Run) -> None:
    for run, what in ((teacher, "teacher"), (student, "student")):
        if run.model is None or run.config["kind"] != "flow":
            raise ValueError(f"the {what} {run.path} is a run of the {run.config['kind']} stage")
    if teacher.config["chunks"] is not None or student.config["chunks"] is None:
        raise ValueError("the teacher must be bidirectional, the student chunk-causal")
    if config.guidance != 1 and teacher.config["caption_dropout"] == 0:
        raise ValueError(
            "the teacher never went without a caption, so it cannot be guided: give --guidance 1"
        )
    if autoencoder_key(teacher.autoencoder) != autoencoder_key(student.autoencoder):
        raise ValueError("teacher and student have different autoencoders")
    assert isinstance(teacher.model, WorldModel)
    assert isinstance(student.model, WorldModel)
    cameras = [
        (m.config.camera, m.config.plucker, m.config.camera_grid) for m in (teacher.model, student.model)
    ]
    if cameras[0] != cameras[1]:
        raise ValueError("teacher and student read different inputs of the camera")


def _refuse_another(config: DistillConfig, state: dict[str, Any]) -> None:
    now, then = plain(config), state["config"].get("distilled", {})
    free = {"device", "cpu_threads", "checkpoint_every", "log_every"}
    if changed := [name for name in now if name not in free and now[name] != then.get(name)]:
        raise ValueError(f"{config.out} was made with another {', '.join(changed)}; give another --out")


def _log(config: DistillConfig, step: int, losses: dict[str, float], steps_per_s: float) -> None:
    line = {"step": step, **losses, "steps_per_s": steps_per_s}
    with (config.out / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
    left_s, total = (config.total_steps - step) / steps_per_s, config.total_steps
    logger.info("step %d/%d %s %.2f steps/s, %.0f s left", step, total, shown, steps_per_s, left_s)


def main(config: DistillConfig) -> int:
    """Exit status 0, or 2 for a config or run folder that does not fit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        distill(config)
    except (ValueError, NotFinite) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(DistillConfig)))

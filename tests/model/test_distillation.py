"""Distillation's losses: gradients by hand, a Gaussian whose score is known, and gradients through one step alone."""

from __future__ import annotations

import pytest
import torch

from worldline.model.chunks import chunk_causal
from worldline.model.config import ModelConfig
from worldline.model.diffusion import clean_from_velocity, noised
from worldline.model.distillation import draw_matching_sigmas, matching_loss, self_forced, teacher_path
from worldline.model.sampler import DISTILLED_SIGMAS, roll_out, with_guidance
from worldline.model.world_model import WorldModel

TEXT, MASK = torch.zeros(2, 1, 8), torch.ones(2, 1, dtype=torch.bool)


def _model() -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(
        width=32, num_blocks=2, num_heads=2, latent_channels=4, text_channels=8, softmax_every=2,
        camera="none", plucker=False,
    )  # fmt: skip
    model = WorldModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero would hide errors
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _gaussian_velocity(mean: float, std: float):
    """The exact field of a Gaussian: v = E[eps - x0 | x]."""

    def velocity(x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        s = sigmas[:, None, :, None, None].to(x.dtype)
        variance = (1 - s) ** 2 * std**2 + s**2
        off = (x - (1 - s) * mean) / variance
        return s * off - (mean + (1 - s) * std**2 * off)

    return velocity


def test_the_gradient_is_critic_minus_teacher_over_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    sample, teacher, critic = (torch.randn(2, 3, 4, 2, 2, generator=generator) for _ in range(3))
    sample.requires_grad_(True)
    has_loss = torch.tensor([[False, True, True, True], [False, True, True, False]])
    matching_loss(sample, teacher, critic, has_loss).backward()
    shown = has_loss[:, None, :, None, None].expand_as(sample)
    for k in range(2):
        distance = (sample[k] - teacher[k]).detach().abs()[shown[k]].mean()
        wanted = (critic[k] - teacher[k]) / distance * shown[k] / shown.sum()
        torch.testing.assert_close(sample.grad[k], wanted)


def test_a_teachers_path_ends_where_a_fine_integration_does() -> None:
    start = torch.randn(3, 2, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    velocity = _gaussian_velocity(0.7, 0.4)
    path = teacher_path(velocity, start, DISTILLED_SIGMAS, steps=2000, num_clean=1)
    assert path.shape == (5, *start.shape)
    assert torch.equal(path[:, :, :, :1], start[:, :, :1].expand(5, -1, -1, -1, -1, -1))
    # The probability flow of a Gaussian is affine: x_s = (1 - s) m + sqrt((1 - s)^2 d^2 + s^2) z with z the noise.
    for x, s in zip(path, DISTILLED_SIGMAS, strict=True):
        wanted = (1 - s) * 0.7 + ((1 - s) ** 2 * 0.4**2 + s**2) ** 0.5 * start
        torch.testing.assert_close(x[:, :, 1:], wanted[:, :, 1:], rtol=0, atol=3e-3)


def test_matching_moves_a_generator_to_the_teachers_gaussian() -> None:
    """Teacher and critic known in closed form: the critic's is that of the generator as it is."""
    torch.manual_seed(0)
    mean, log_std = torch.tensor(-1.0, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_std], lr=0.03)
    generator = torch.Generator().manual_seed(2)
    teacher = _gaussian_velocity(0.7, 0.4)
    for _ in range(400):
        shape = (64, 1, 2, 2, 2)
        sample = mean + log_std.exp() * torch.randn(shape, generator=generator)
        sigmas = draw_matching_sigmas(64, 2, shift=3.0, num_clean=0, generator=generator)
        x = noised(sample.detach(), torch.randn(shape, generator=generator), sigmas)
        critic = _gaussian_velocity(float(mean), float(log_std.exp()))
        clean = [clean_from_velocity(x, field(x, sigmas), sigmas) for field in (teacher, critic)]
        loss = matching_loss(sample, clean[0], clean[1], sigmas > 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(mean) == pytest.approx(0.7, abs=0.05)
    assert float(log_std.exp()) == pytest.approx(0.4, abs=0.06)


def test_a_guided_teacher_moves_the_generator_past_its_conditional_gaussian() -> None:
    """Of two Gaussians of one width the guided score, s_u + w (s_c - s_u), is at each level that of a third, whose mean is
    m_u + w (m_c - m_u)."""
    mean_with, mean_without, width, guidance = 0.3, 0.1, 0.4, 3.0
    guided_mean = mean_without + guidance * (mean_with - mean_without)
    teacher = with_guidance(
        _gaussian_velocity(mean_with, width), _gaussian_velocity(mean_without, width), guidance
    )
    generator = torch.Generator().manual_seed(2)
    shape = (64, 1, 2, 2, 2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    sigmas = draw_matching_sigmas(64, 2, shift=3.0, num_clean=0, generator=generator).double()
    torch.testing.assert_close(teacher(x, sigmas), _gaussian_velocity(guided_mean, width)(x, sigmas))
    mean, log_std = torch.tensor(-0.5, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_std], lr=0.03)
    for _ in range(400):
        sample = mean + log_std.exp() * torch.randn(shape, generator=generator)
        sigmas = draw_matching_sigmas(64, 2, shift=3.0, num_clean=0, generator=generator)
        x = noised(sample.detach(), torch.randn(shape, generator=generator), sigmas)
        critic = _gaussian_velocity(float(mean), float(log_std.exp()))
        clean = [clean_from_velocity(x, field(x, sigmas), sigmas) for field in (teacher, critic)]
        loss = matching_loss(sample, clean[0], clean[1], sigmas > 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(mean) == pytest.approx(guided_mean, abs=0.05)
    assert float(log_std.exp()) == pytest.approx(width, abs=0.06)


def test_levels_leave_given_frames_clean() -> None:
    sigmas = draw_matching_sigmas(
        1000, 4, shift=10.0, num_clean=1, generator=torch.Generator().manual_seed(0)
    )
    assert (sigmas[:, 0] == 0).all()
    assert (sigmas[:, 1:] == sigmas[:, 1:2]).all()
    assert 0.16 < sigmas[:, 1].min() < sigmas[:, 1].max() < 1  # 10 * .02 / (1 + 9 * .02) = .169


@pytest.mark.parametrize("exit_step", [0, 2, 3])
def test_the_roll_out_is_the_samplers_and_only_its_last_step_learns(exit_step: int) -> None:
    model, generator = _model(), torch.Generator().manual_seed(5)
    noise = torch.randn(2, 4, 5, 2, 3, generator=generator)
    first, chunks = torch.randn(2, 4, 1, 2, 3, generator=generator), chunk_causal(5, first=1, rest=2)
    calls: list[tuple[bool, float]] = []
    stream = model.stream

    def spy(x, timesteps, *rest):
        calls.append((torch.is_grad_enabled(), float(timesteps.max())))
        return stream(x, timesteps, *rest)

    model.stream = spy  # type: ignore[method-assign]
    made = self_forced(
        model, noise, first, TEXT, MASK, [None] * 3, chunks=chunks, levels=DISTILLED_SIGMAS,
        exit_step=exit_step, generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    model.stream = stream  # type: ignore[method-assign]
    # Of each chunk: the steps, the last of which alone is differentiated, and the clean pass. Chunk 0 is the given frame.
    of_chunk = [(k == exit_step) for k in range(exit_step + 1)] + [False]
    assert [has_grad for has_grad, _ in calls] == of_chunk * 3
    levels = [1000 * s for s in DISTILLED_SIGMAS[: exit_step + 1]] + [0.0]
    assert [level for _, level in calls] == pytest.approx([0.0] * len(levels) + levels * 2)
    torch.testing.assert_close(made[:, :, :1], first)
    made.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    if exit_step == len(DISTILLED_SIGMAS) - 2:
        spans = [(0, 1), (1, 3), (3, 5)]
        sampled = roll_out(
            model, [noise[:, :, a:b] for a, b in spans], TEXT, MASK, [None] * 3, sigmas=DISTILLED_SIGMAS,
            generator=torch.Generator().manual_seed(7), first_frame=first,
        )  # fmt: skip
        whole = torch.cat(list(sampled), dim=2)
        # The sampler draws a last noise that counts for nothing, so later chunks have other draws.
        torch.testing.assert_close(made[:, :, 0], whole[:, :, 0])


def test_later_chunks_change_nothing_before_them() -> None:
    model, generator = _model().eval(), torch.Generator().manual_seed(5)
    noise = torch.randn(2, 4, 5, 2, 3, generator=generator)
    first, chunks = torch.randn(2, 4, 1, 2, 3, generator=generator), chunk_causal(5, first=1, rest=2)
    other = torch.cat([noise[:, :, :3], torch.randn(2, 4, 2, 2, 3, generator=generator)], dim=2)
    with torch.no_grad():
        one, two = (
            self_forced(
                model, start, first, TEXT, MASK, [None] * 3, chunks=chunks, levels=DISTILLED_SIGMAS,
                exit_step=3, generator=torch.Generator().manual_seed(7),
            )
            for start in (noise, other)
        )  # fmt: skip
    assert torch.equal(one[:, :, :3], two[:, :, :3])
    assert not torch.equal(one[:, :, 3:], two[:, :, 3:])

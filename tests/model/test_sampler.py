"""Samplers on Gaussian data, whose velocity, flow map and step-by-step moments are known."""

import itertools
import math

import pytest
import torch

from worldline.annotate.camera import Intrinsics
from worldline.model.camera_embedding import relative_to_first
from worldline.model.chunks import chunk_causal
from worldline.model.config import ModelConfig
from worldline.model.rope import Grid
from worldline.model.sampler import (
    DISTILLED_SIGMAS,
    even_schedule,
    roll_out,
    sample_euler,
    sample_few_steps,
    staggered_schedule,
    with_guidance,
)
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.world_model import WorldModel, conditions

torch.set_num_threads(1)
MEAN, STD = 1.5, 0.4


def gaussian_velocity(x, sigmas):
    """E[eps - x_0 | x_sigma] for x_0 ~ N(MEAN, STD^2)."""
    s = sigmas.double()[:, None, :, None, None]
    variance = (1 - s) ** 2 * STD**2 + s**2
    centred = x - (1 - s) * MEAN
    return s / variance * centred - (MEAN + (1 - s) * STD**2 / variance * centred)


def flow_velocity(x, sigmas):
    """A perfectly distilled model: its clean latents are the end of the exact flow."""
    s = sigmas.double()[:, None, :, None, None]
    spread = ((1 - s) ** 2 * STD**2 + s**2).sqrt()
    clean = MEAN + STD * (x - (1 - s) * MEAN) / spread
    return (x - clean) / s.clamp_min(1e-12)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_euler_converges_to_the_exact_flow_at_first_order():
    x = noise(1, 2, 3, 8, 8)
    exact = MEAN + STD * x
    errors = [
        float((sample_euler(gaussian_velocity, x, even_schedule(n, 3, shift=3.0)) - exact).abs().max())
        for n in (40, 80, 160)
    ]
    assert errors[2] < 0.03
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)


def test_euler_keeps_a_given_frame_and_staggered_chunks_reach_the_same_end():
    x = noise(1, 2, 10, 4, 4)
    table = staggered_schedule(200, chunk_causal(10), shift=3.0, num_clean=1)
    out = sample_euler(gaussian_velocity, x, table)
    assert torch.equal(out[:, :, 0], x[:, :, 0])
    assert float((out[:, :, 1:] - (MEAN + STD * x[:, :, 1:])).abs().max()) < 0.03


def test_staggered_schedule():
    chunks = chunk_causal(10)  # 3 chunks
    table = staggered_schedule(12, chunks, shift=5.0)
    assert len(table) == 12 + 8 + 1
    assert (table[0] == 1).all()
    assert (table[-1] == 0).all()
    assert (table.diff(dim=0) <= 0).all()  # never noisier again
    assert (table.diff(dim=1) >= 0).all()  # later chunks never cleaner
    first, second = table[:, 0], table[:, 4]
    torch.testing.assert_close(second[4:16], first[:12])  # the same schedule a third later
    together = staggered_schedule(12, chunks, shift=5.0, interval=0.0)
    torch.testing.assert_close(together, even_schedule(12, 10, shift=5.0))
    one_after_another = staggered_schedule(4, chunks, shift=1.0, interval=1.0)
    assert len(one_after_another) == 13
    assert (one_after_another[4] == torch.tensor([0.0] * 4 + [1.0] * 6)).all()


def test_few_steps_with_a_distilled_model_keep_the_distribution():
    x = noise(1, 1, 4, 150, 150)
    table = torch.tensor(DISTILLED_SIGMAS, dtype=torch.float64)[:, None].repeat(1, 4)
    out = sample_few_steps(flow_velocity, x, table, generator=torch.Generator().manual_seed(1))
    assert float(out.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(out.numel()))
    assert float(out.std()) == pytest.approx(STD, rel=0.02)


def test_few_steps_with_an_undistilled_model_shrink_as_computed():
    """The posterior mean loses variance at each jump: Var' = (k (1 - s))^2 Var + ..., followed by hand."""
    x = noise(1, 1, 4, 150, 150)
    table = torch.tensor(DISTILLED_SIGMAS, dtype=torch.float64)[:, None].repeat(1, 4)
    variance = 1.0  # of the input at sigma 1
    for s, after in itertools.pairwise(DISTILLED_SIGMAS):
        gain = (1 - s) * STD**2 / ((1 - s) ** 2 * STD**2 + s**2)
        variance = (1 - after) ** 2 * gain**2 * variance + after**2
    out = sample_few_steps(gaussian_velocity, x, table, generator=torch.Generator().manual_seed(1))
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(out.std()) == pytest.approx(math.sqrt(variance), rel=0.03)
    assert math.sqrt(variance) < 0.5 * STD


def test_guidance_calls_the_second_model_only_when_it_counts():
    calls = []

    def unconditional(x, sigmas):
        calls.append(1)
        return torch.zeros_like(x)

    x, sigmas = noise(1, 1, 1, 2, 2), torch.full((1, 1), 0.5)
    assert torch.equal(
        with_guidance(gaussian_velocity, unconditional, 1)(x, sigmas), gaussian_velocity(x, sigmas)
    )
    assert calls == []
    torch.testing.assert_close(
        with_guidance(gaussian_velocity, unconditional, 4.0)(x, sigmas), 4 * gaussian_velocity(x, sigmas)
    )


def small_model():
    torch.manual_seed(0)
    config = ModelConfig(
        width=48,
        num_blocks=2,
        num_heads=3,
        latent_channels=4,
        text_channels=6,
        softmax_every=2,
        span=AttentionSpan(sink_frames=1, window_frames=3),
    )
    model = WorldModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def clip_cameras(config, num_frames):
    raw = 8 * (num_frames - 1) + 1
    poses = torch.eye(3, 4, dtype=torch.float64).repeat(1, raw, 1, 1)
    poses[0, :, 2, 3] = 0.02 * torch.arange(raw)
    intrinsics = Intrinsics(fxfycxcy_px=torch.tensor([40.0, 40, 32, 24]), width=64, height=48)
    return relative_to_first(poses), intrinsics


def chunk_conditions(config, poses, intrinsics, start, stop):
    first = 0 if start == 0 else 8 * start - 7
    grid = Grid(num_frames=stop - start, height=2, width=3, first_frame=start)
    return conditions(config, poses[:, first : 8 * (stop - 1) + 1], intrinsics, grid)


def test_roll_out_equals_sampling_the_whole_clip_one_chunk_after_another():
    """With interval 1, chunk-causal sampling of the whole clip is the roll-out, at many times its cost."""
    model = small_model()
    poses, intrinsics = clip_cameras(model.config, 7)
    text, mask = noise(1, 3, 6), torch.ones(1, 3, dtype=torch.bool)
    start, first = noise(1, 4, 7, 2, 3), noise(1, 4, 1, 2, 3, seed=1)
    chunks = [0] * 4 + [1] * 3
    cameras = [chunk_conditions(model.config, poses, intrinsics, a, b) for a, b in [(0, 4), (4, 7)]]
    sigmas = even_schedule(3, 1, shift=3.0)[:, 0].tolist()
    pieces = list(
        roll_out(model, start.split([4, 3], dim=2), text, mask, cameras, sigmas=sigmas, first_frame=first)
    )

    whole_cameras = chunk_conditions(model.config, poses, intrinsics, 0, 7)
    table = staggered_schedule(3, chunks, shift=3.0, interval=1.0, num_clean=1)
    begin = torch.cat([first, start[:, :, 1:]], dim=2)
    with torch.no_grad():
        whole = sample_euler(
            lambda x, s: model(x, 1000 * s, text, mask, whole_cameras, chunks=chunks), begin, table
        )
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=0, atol=1e-10)


def test_roll_out_of_a_distilled_model_goes_on_without_end():
    model = small_model()
    poses, intrinsics = clip_cameras(model.config, 40)
    text, mask = noise(1, 3, 6), torch.ones(1, 3, dtype=torch.bool)
    spans = [(0, 4), *((a, a + 3) for a in range(4, 40, 3))]
    chunks = roll_out(
        model,
        (noise(1, 4, b - a, 2, 3, seed=a) for a, b in spans),
        text,
        mask,
        (chunk_conditions(model.config, poses, intrinsics, a, b) for a, b in spans),
        sigmas=DISTILLED_SIGMAS,
        generator=torch.Generator().manual_seed(0),
    )
    latents = list(chunks)
    assert [chunk.shape[2] for chunk in latents] == [4] + [3] * 12
    assert all(torch.isfinite(chunk).all() for chunk in latents)

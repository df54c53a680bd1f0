"""Noise levels, targets and loss against closed forms and diffusers' scheduler."""

import pytest
import torch

from worldline.model.chunks import chunk_causal, one_chunk
from worldline.model.diffusion import (
    FlowConfig,
    clean_from_velocity,
    draw_levels,
    flow_loss,
    guided,
    noised,
    refiner_pair,
    shift_sigmas,
)
from worldline.model.sampler import sample_euler

torch.set_num_threads(1)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_velocity_leads_back_to_the_clean_latents():
    clean, noise = random(2, 3, 4, 2, 2), random(2, 3, 4, 2, 2, seed=1)
    sigmas = torch.rand(2, 4, dtype=torch.float64)
    x = noised(clean, noise, sigmas)
    torch.testing.assert_close(clean_from_velocity(x, noise - clean, sigmas), clean)
    assert torch.equal(noised(clean, noise, torch.zeros(2, 4)), clean)
    assert torch.equal(noised(clean, noise, torch.ones(2, 4)), noise)


def test_shift_is_diffusers_and_keeps_the_ends():
    scheduler_module = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    scheduler = scheduler_module.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=9.95)
    plain = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(shift_sigmas(plain, 9.95), scheduler.sigmas[:1000], rtol=0, atol=1e-6)
    assert shift_sigmas(torch.tensor([0.0, 1.0]), 9.95).tolist() == [0.0, pytest.approx(1.0)]


def test_level_distribution_has_the_known_mean_and_tail():
    """At shift 9.95 the mean level is 0.876 and 54 % lie above 0.9 (computed by quadrature)."""
    config = FlowConfig(clean_first_frame=0.0)
    levels = draw_levels(200_000, one_chunk(1), config, generator=torch.Generator().manual_seed(0)).sigmas
    normal = torch.distributions.Normal(0.0, 1.0)
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    exact = shift_sigmas(normal.icdf(grid).sigmoid(), 9.95)
    # The clean-prefix schedule leaves a single chunk alone: any number of chunks but all.
    assert float(levels.mean()) == pytest.approx(float(exact.mean()), abs=2e-3)
    assert float((levels > 0.9).double().mean()) == pytest.approx(
        float((exact > 0.9).double().mean()), abs=5e-3
    )
    assert float(exact.mean()) == pytest.approx(0.876, abs=1e-3)


@pytest.mark.parametrize("kind", ["same", "incremental", "last_anchor", "clean_prefix"])
def test_each_chunk_schedule(kind):
    shares = {name: float(name == kind) for name in ("same", "incremental", "last_anchor", "clean_prefix")}
    chunks = chunk_causal(10)
    drawn = draw_levels(
        500, chunks, FlowConfig(clean_first_frame=0.0, **shares), generator=torch.Generator().manual_seed(0)
    )
    per_chunk = drawn.sigmas[:, [0, 4, 7]]
    lengths = torch.tensor([4, 3, 3])
    assert torch.equal(drawn.sigmas, per_chunk.repeat_interleave(lengths, dim=1))
    steps = per_chunk.diff(dim=1)
    if kind == "same":
        assert (steps == 0).all()
    elif kind == "incremental":
        assert (steps >= 0).all()
        assert (steps > 0).any()
    elif kind == "last_anchor":
        assert (per_chunk[:, :-1] <= per_chunk[:, -1:]).all()
        assert (steps < 0).any()
    else:
        num_clean = (per_chunk == 0).sum(dim=1)
        assert set(num_clean.tolist()) == {0, 1, 2}
        assert (per_chunk[:, -1] > 0).all()
    assert torch.equal(drawn.has_loss, drawn.sigmas > 0)


def test_first_frame_is_given_at_the_stated_share():
    drawn = draw_levels(4000, one_chunk(3), FlowConfig(), generator=torch.Generator().manual_seed(0))
    given = drawn.sigmas[:, 0] == 0
    assert float(given.double().mean()) == pytest.approx(0.9, abs=0.02)
    assert torch.equal(drawn.has_loss[:, 0], ~given)
    assert drawn.has_loss[:, 1:].all()


def test_loss_counts_only_frames_that_bear_it():
    clean, noise = random(2, 3, 4, 2, 2), random(2, 3, 4, 2, 2, seed=1)
    velocity = noise - clean
    has_loss = torch.tensor([[False, True, True, True], [True] * 4])
    wrong_where_given = velocity.clone()
    wrong_where_given[0, :, 0] += 5
    assert float(flow_loss(wrong_where_given, clean, noise, has_loss)) == 0
    wrong = velocity.clone()
    wrong[0, :, 2] += 2.0
    assert float(flow_loss(wrong, clean, noise, has_loss)) == pytest.approx(4 / 7)
    assert float(flow_loss(wrong, clean, noise, torch.zeros(2, 4, dtype=torch.bool))) == 0


def test_guidance():
    a, b = random(1, 2, 1, 1, 1), random(1, 2, 1, 1, 1, seed=1)
    assert torch.equal(guided(a, b, 0.0), b)
    torch.testing.assert_close(guided(a, b, 1.0), a)
    torch.testing.assert_close(guided(a, b, 3.0), b + 3 * (a - b))


def test_refiner_flow_is_a_straight_line_from_start_to_target():
    low, high, noise = (random(1, 2, 3, 2, 2, seed=i) for i in range(3))
    start = 0.909375
    begin, velocity = refiner_pair(low, high, noise, torch.full((1, 3), start, dtype=torch.float64))
    torch.testing.assert_close(begin, (1 - start) * low + start * noise)
    # A straight flow with its true velocity arrives in any number of Euler steps.
    table = torch.tensor([0.909375, 0.725, 0.421875, 0.0], dtype=torch.float64)[:, None].repeat(1, 3)
    torch.testing.assert_close(sample_euler(lambda x, s: velocity, begin, table), high)


def test_bad_configs():
    for change in ({"shift": 0.0}, {"clean_first_frame": 1.5}, {"same": 0.5}):
        with pytest.raises(ValueError, match=next(iter(change)) if "same" not in change else "shares"):
            FlowConfig(**change)

"""The refiner's flow, its reference frames, its two forms, and adapters that are merged."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from worldline.model.chunks import chunk_causal, chunk_spans
from worldline.model.config import ModelConfig
from worldline.model.diffusion import REFINER_SIGMA, refiner_pair
from worldline.model.lora import adapter_state, merged, with_lora
from worldline.model.refiner import beginning, blocks_of, draw_sigmas, refine, refine_stream
from worldline.model.sampler import REFINER_SIGMAS, sample_euler
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.world_model import WorldModel

SHAPE = (1, 4, 7, 2, 3)


def _model(window: int | None = None) -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(
        width=32, num_blocks=2, num_heads=2, latent_channels=4, text_channels=8, softmax_every=2,
        camera="none", plucker=False, span=AttentionSpan(sink_frames=1, window_frames=window),
    )  # fmt: skip
    model = WorldModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero would hide errors
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _tensors(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


TEXT, MASK = torch.zeros(1, 1, 8, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)


def test_the_flow_leads_from_the_noised_first_stage_to_the_target() -> None:
    low, high, noise = _tensors(3)
    full = torch.full((1, 7), REFINER_SIGMA, dtype=torch.float64)
    at_start, velocity = refiner_pair(low, high, noise, full)
    torch.testing.assert_close(at_start, (1 - REFINER_SIGMA) * low + REFINER_SIGMA * noise)
    torch.testing.assert_close(at_start, beginning(low, noise))
    torch.testing.assert_close(refiner_pair(low, high, noise, 0 * full)[0], high)
    # The derivative along the level, by finite differences, is the target.
    step = 1e-6
    ahead, behind = (refiner_pair(low, high, noise, 0.5 * full + d)[0] for d in (step, -step))
    torch.testing.assert_close((ahead - behind) / (2 * step), velocity, rtol=1e-6, atol=1e-6)
    # The field is constant along the way: any number of Euler steps is exact.
    table = torch.tensor(REFINER_SIGMAS, dtype=torch.float64)[:, None].repeat(1, 7)
    torch.testing.assert_close(sample_euler(lambda x, sigmas: velocity, at_start, table), high)


@pytest.mark.parametrize("shift", [1.0, 4.0, 9.95])
def test_levels_have_the_truncated_law(shift: float) -> None:
    drawn = draw_sigmas(20_000, shift=shift, generator=torch.Generator().manual_seed(0)).double().numpy()
    assert drawn.min() > 0
    assert drawn.max() <= REFINER_SIGMA + 1e-6
    # Rejection: draws of the whole law that happen to be low enough.
    normal = np.random.default_rng(0).standard_normal(400_000)
    whole = 1 / (1 + np.exp(-normal))
    whole = shift * whole / (1 + (shift - 1) * whole)
    assert stats.ks_2samp(drawn, whole[whole <= REFINER_SIGMA][:20_000]).pvalue > 1e-3


def test_reference_frames_are_kept_and_read_nothing() -> None:
    model, (low, noise, other) = _model(), _tensors(3)
    reference, chunks = low[:, :, :1], chunk_causal(7, first=1, rest=3)
    found = refine(model, low, noise, reference, TEXT, MASK, None, chunks=chunks)
    assert torch.equal(found[:, :, :1], reference)
    # Others read it ...
    elsewhere = refine(model, low, noise, other[:, :, :1], TEXT, MASK, None, chunks=chunks)
    assert (elsewhere[:, :, 1:] - found[:, :, 1:]).abs().max() > 1e-3
    # ... and what the model says of it does not depend on them.
    x = torch.cat([reference, noise[:, :, 1:]], dim=2)
    moved = torch.cat([reference, other[:, :, 1:]], dim=2)
    levels = torch.full((1, 7), 500.0, dtype=torch.float64)
    levels[:, 0] = 0
    with torch.no_grad():
        one, two = (model(v, levels, TEXT, MASK, None, chunks=chunks) for v in (x, moved))
    torch.testing.assert_close(one[:, :, 0], two[:, :, 0])
    with pytest.raises(ValueError, match="chunk of their own"):
        refine(model, low, noise, reference, TEXT, MASK, None, chunks=[0] * 7)


def test_one_block_streamed_is_the_clip_whole() -> None:
    model, (low, noise) = _model(), _tensors(2)
    reference = low[:, :, :1]
    whole = refine(model, low, noise, reference, TEXT, MASK, None, chunks=[0] + [1] * 6)
    blocks = list(
        refine_stream(model, [low[:, :, 1:]], [noise[:, :, 1:]], reference, TEXT, MASK, [None, None])
    )
    torch.testing.assert_close(torch.cat(blocks, dim=2), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("window", "rest"), [(3, 3), (2, 3), (4, 2), (0, 2)])
def test_streamed_blocks_read_refined_ones_within_the_window(
    window: int, rest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block equals a pass over the whole clip in which the blocks before it are clean and refined, its attention one
    softmax over all tokens with a mask: the block itself, the first frame, and the window before the block."""
    shape = (1, 4, 12, 2, 3)
    generator = torch.Generator().manual_seed(3)
    low, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    model, reference = _model(window=window), low[:, :, :1]
    chunks = chunk_causal(12, first=1, rest=rest)
    spans = chunk_spans(chunks)[1:]
    parts = [[x[:, :, a:b] for a, b in spans] for x in (low, noise)]
    blocks = list(refine_stream(model, *parts, reference, TEXT, MASK, [None] * len(chunk_spans(chunks))))
    streamed = torch.cat(blocks, dim=2)
    assert streamed.shape == shape
    monkeypatch.setattr("worldline.model.attention.softmax_attention", _masked_attention)
    for a, b in spans:
        x = torch.cat([streamed[:, :, :a], beginning(low, noise)[:, :, a:b]], dim=2)
        table = torch.tensor(REFINER_SIGMAS, dtype=torch.float64)[:, None].repeat(1, b)
        table[:, :a] = 0
        with torch.no_grad():
            whole = sample_euler(
                lambda v, s, b=b: model(v, 1000 * s.double(), TEXT, MASK, None, chunks=chunks[:b]), x, table
            )
        torch.testing.assert_close(streamed[:, :, a:b], whole[:, :, a:b], rtol=1e-5, atol=1e-5)


def _masked_attention(queries, keys, values, *, chunks, span, scale=None, **_):
    """Softmax over all tokens of a clip [B, T, S, H, D] under a mask of frames."""
    num_frames, num_tokens = queries.shape[1:3]
    reads = torch.zeros(num_frames, num_frames, dtype=torch.bool)
    for a, b in chunk_spans(chunks):
        reads[a:b, a:b] = True
        reads[a:b, : min(a, span.sink_frames)] = True
        reads[a:b, max(0, a - (num_frames if span.window_frames is None else span.window_frames)) : a] = True
    mask = reads.repeat_interleave(num_tokens, 0).repeat_interleave(num_tokens, 1)
    q, k, v = (x.flatten(1, 2) for x in (queries, keys, values))  # [B, N, H, D]
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * (scale or queries.shape[-1] ** -0.5)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).view_as(queries), None


@pytest.mark.parametrize("sizes", [[1, 2, 2, 2, 2], [4, 3, 2], [9], [2, 7], [1] * 9])
def test_chunks_of_any_size_become_blocks(sizes: list[int]) -> None:
    clip = torch.arange(9.0).view(1, 1, 9, 1, 1)
    asked: list[int] = []

    def chunks():
        for chunk in clip.split(sizes, dim=2):
            asked.append(chunk.shape[2])
            yield chunk

    blocks = blocks_of(chunks(), 1, 3)
    first = next(blocks)
    assert asked == sizes[:1]  # nothing is waited for that is not needed
    found = [first, *blocks]
    assert [block.shape[2] for block in found] == [1, 3, 3, 2]
    assert torch.equal(torch.cat(found, dim=2), clip)
    assert list(blocks_of(iter([]), 1, 3)) == []


def test_adapters_start_without_effect_and_merge_into_the_weights() -> None:
    base, (x, _) = _model(), _tensors(2)
    levels = torch.full((1, 7), 500.0, dtype=torch.float64)

    def run(model: WorldModel) -> torch.Tensor:
        with torch.no_grad():
            return model(x, levels, TEXT, MASK, None)

    adapted = with_lora(copy.deepcopy(base), 4).double().eval()
    torch.testing.assert_close(run(adapted), run(base))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_state(adapted))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in trained:
                parameter.normal_(std=0.1)
    wanted, adapters = run(adapted), adapter_state(adapted)
    assert (wanted - run(base)).abs().max() > 1e-2
    # By hand: W + B A.
    by_hand = copy.deepcopy(base)
    for name in (n.removesuffix(".lora_A.default.weight") for n in adapters if "lora_A" in n):
        update = adapters[f"{name}.lora_B.default.weight"] @ adapters[f"{name}.lora_A.default.weight"]
        by_hand.get_submodule(name).weight.data += update
    torch.testing.assert_close(run(by_hand), wanted)
    single = merged(copy.deepcopy(adapted))
    torch.testing.assert_close(run(single), wanted)
    assert single.state_dict().keys() == base.state_dict().keys()
    # Into another model of the same layers: that model's weights plus the same update.
    other = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    student = merged(with_lora(copy.deepcopy(other), 4).double(), adapters)
    weight = "blocks.0.attention.out.weight"
    torch.testing.assert_close(
        student.state_dict()[weight] - other.state_dict()[weight],
        by_hand.state_dict()[weight] - base.state_dict()[weight],
    )
    with pytest.raises(ValueError, match="another rank"):
        merged(with_lora(copy.deepcopy(other), 2), adapters)

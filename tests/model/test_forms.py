"""torch.compile, bfloat16 and activation checkpointing on every form in which the model runs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline.annotate.camera import Intrinsics, rotation_from_rotvec
from worldline.model import softmax_attention as softmax_module
from worldline.model.camera_embedding import relative_to_first
from worldline.model.chunks import chunk_causal, chunk_spans, one_chunk
from worldline.model.config import ModelConfig
from worldline.model.gated_delta import DeltaInputs, gated_delta
from worldline.model.rope import Grid
from worldline.model.softmax_attention import AttentionSpan, KeyValueCache, softmax_attention
from worldline.model.token_delta import token_delta
from worldline.model.world_model import WorldModel, conditions

torch.set_num_threads(1)
NUM_FRAMES = 8
CHUNKS = chunk_causal(NUM_FRAMES)
MIXED = ModelConfig(
    width=48,
    num_blocks=2,
    num_heads=3,
    latent_channels=4,
    text_channels=10,
    softmax_every=2,
    spectral_guard=True,
)
WINDOWS = dataclasses.replace(MIXED, span=AttentionSpan(sink_frames=1, window_frames=3))
TOKENS = dataclasses.replace(MIXED, attention="token_delta")


def whole(chunks: list[int] | None, form: str = "chunked") -> Callable[..., Tensor]:
    return lambda model, *clip: model(*clip[0], chunks=chunks, form=form)


def streamed(form: str) -> Callable[..., Tensor]:
    """Chunk after chunk; the gradient goes through the carried state."""

    def run(model: WorldModel, *clips) -> Tensor:
        pieces, state = [], None
        for clip in clips[1:]:
            out, state = model.stream(*clip, state, form=form)
            pieces.append(out)
        return torch.cat(pieces, dim=2)

    return run


FORMS = {
    "bidirectional": (MIXED, whole(None)),
    "chunk_causal": (MIXED, whole(CHUNKS)),
    "frame_causal": (MIXED, whole(list(range(NUM_FRAMES)))),
    "recurrent": (MIXED, whole(CHUNKS, "recurrent")),
    "windows": (WINDOWS, whole(CHUNKS)),
    "streaming": (WINDOWS, streamed("chunked")),
    "recurrent_streaming": (WINDOWS, streamed("recurrent")),
    "tokens": (TOKENS, whole(CHUNKS)),
    "tokens_streaming": (TOKENS, streamed("chunked")),
}


def make_model(config: ModelConfig, dtype=torch.float32) -> WorldModel:
    """A model whose parameters are all away from their special starting values."""
    torch.manual_seed(0)
    model = WorldModel(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_clips(config: ModelConfig) -> list[list]:
    """Arguments of the whole clip, and of each of its chunks."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    raw = 8 * (NUM_FRAMES - 1) + 1
    poses = torch.cat([rotation_from_rotvec(0.1 * random(2, raw, 3)), 0.5 * random(2, raw, 3, 1)], dim=-1)
    poses = relative_to_first(poses)
    lens = Intrinsics(fxfycxcy_px=torch.tensor([40.0, 40, 32, 24]), width=64, height=48)
    latents, timesteps = random(2, config.latent_channels, NUM_FRAMES, 2, 3), 1000 * torch.rand(2, NUM_FRAMES)
    text, mask = random(2, 5, config.text_channels), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def part(start: int, stop: int) -> list:
        grid = Grid(num_frames=stop - start, height=2, width=3, first_frame=start)
        cameras = conditions(config, poses[:, max(8 * start - 7, 0) : 8 * stop - 7], lens, grid)
        return [latents[:, :, start:stop], timesteps[:, start:stop], text, mask, cameras]

    return [part(0, NUM_FRAMES), *(part(*span) for span in chunk_spans(CHUNKS))]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).detach().norm() / b.detach().float().norm())


def gradients(model: WorldModel, out: Tensor) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return list(torch.autograd.grad((out * weights).sum(), list(model.parameters())))


@pytest.mark.parametrize("name", FORMS)
def test_checkpointing_changes_no_gradient_and_keeps_less(name):
    config, run = FORMS[name]
    model, clips = make_model(config), make_clips(config)
    kept, results = [], []
    for model.checkpoint_blocks in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x
        ):
            out = run(model, *clips)
        kept.append(sum(sizes))
        results.append([out, *gradients(model, out)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0] / 4


@pytest.mark.parametrize("how", ["autocast", "whole_model"])
@pytest.mark.parametrize("name", FORMS)
def test_bfloat16_stays_near_float32(name, how):
    config, run = FORMS[name]
    model, clips = make_model(config), make_clips(config)
    exact = run(model, *clips)
    exact_grad = torch.cat([g.flatten() for g in gradients(model, exact)])
    if how == "whole_model":
        model = model.bfloat16()
        clips = [[x.bfloat16(), time, text.bfloat16(), *rest] for x, time, text, *rest in clips]
        half = run(model, *clips)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = run(model, *clips)
    grad = torch.cat([g.flatten() for g in gradients(model, half)])
    assert relative(half, exact) < 3e-2
    assert relative(grad, exact_grad) < 3e-2


@pytest.mark.parametrize("name", FORMS)
def test_softmax_of_a_bfloat16_model_reads_bfloat16(name, monkeypatch):
    """Also in the camera branch, whose transforms are in float32: a GPU takes ten times as long there."""
    config, run = FORMS[name]
    model, read = make_model(config).bfloat16(), set()
    attend = F.scaled_dot_product_attention

    def watched(*tensors: Tensor, **options: Any) -> Tensor:
        read.update(x.dtype for x in tensors)
        return attend(*tensors, **options)

    monkeypatch.setattr(softmax_module.F, "scaled_dot_product_attention", watched)
    run(model, *[[x.bfloat16(), time, text.bfloat16(), *rest] for x, time, text, *rest in make_clips(config)])
    assert read == {torch.bfloat16}


def compiled_equals_eager(run: Callable[..., Tensor], leaves: list[Tensor], *arguments) -> None:
    """Traced without a graph break, forward and backward, with the decompositions Inductor uses."""
    compiled = torch.compile(run, backend="aot_eager_decomp_partition", fullgraph=True)(*arguments)
    eager = run(*arguments)
    assert relative(compiled, eager) < 1e-5
    weights = torch.randn(eager.shape, generator=torch.Generator().manual_seed(9))
    grads = [torch.autograd.grad((x * weights).sum(), leaves) for x in (compiled, eager)]
    assert all(relative(a, b) < 1e-3 for a, b in zip(*grads, strict=True) if b.norm() > 1e-6)


@pytest.mark.slow
def test_compiled_model_equals_eager_with_gradients():
    config, run = FORMS["windows"]
    model, clips = make_model(config), make_clips(config)
    compiled_equals_eager(run, list(model.parameters()), model, *clips)


def delta_form(form: str, chunks: list[int] | None) -> Callable[..., Tensor]:
    return lambda *x: gated_delta(DeltaInputs(**x[0]), chunks=chunks, form=form)[0]


def in_chunks(mix: Callable[..., tuple[Tensor, object]]) -> Callable[[dict[str, Tensor]], Tensor]:
    """A mixing that is called chunk after chunk with the state it returned."""

    def run(x: dict[str, Tensor]) -> Tensor:
        pieces, state = [], None
        for start, stop in chunk_spans(CHUNKS):
            part = {name: tensor[:, start:stop] for name, tensor in x.items()}
            out, state = mix(part, one_chunk(stop - start), state)
            pieces.append(out)
        return torch.cat(pieces, dim=1)

    return run


def softmax(x: dict[str, Tensor], chunks: list[int], cache: KeyValueCache | None = None):
    tokens = (x["queries"], x["keys"], x["values"])
    return softmax_attention(*tokens, chunks=chunks, span=WINDOWS.span, cache=cache)


MIXINGS = {
    "bidirectional": delta_form("chunked", one_chunk(NUM_FRAMES)),
    "chunk_causal": delta_form("chunked", CHUNKS),
    "frame_causal": delta_form("chunked", None),
    "recurrent": delta_form("recurrent", CHUNKS),
    "streaming": in_chunks(
        lambda x, chunks, state: gated_delta(DeltaInputs(**x), chunks=chunks, state=state)
    ),
    "windows": lambda x: softmax(x, CHUNKS)[0],
    "windows_streaming": in_chunks(softmax),
    "tokens": lambda x: token_delta(DeltaInputs(**x), chunks=CHUNKS)[0],
    "tokens_streaming": in_chunks(
        lambda x, chunks, state: token_delta(DeltaInputs(**x), chunks=chunks, state=state)
    ),
}


@pytest.mark.parametrize("name", MIXINGS)
def test_compiled_mixing_equals_eager_with_gradients(name):
    generator = torch.Generator().manual_seed(0)
    shape = (2, NUM_FRAMES, 5, 2, 8)
    x = {key: torch.randn(shape, generator=generator) for key in ("queries", "keys", "values")}
    x["beta"], x["gamma"] = (torch.rand(s, generator=generator) for s in (shape[:4], (2, NUM_FRAMES, 2)))
    if "windows" not in name and "tokens" not in name:
        x["plain_queries"] = torch.rand(shape, generator=generator) + 0.1
        x["plain_keys"] = torch.rand(shape, generator=generator) * 40**-0.5
    x["keys"] = x["keys"] * 40**-0.5
    leaves = [tensor.requires_grad_() for tensor in x.values()]
    read = leaves[:3] if "windows" in name else leaves
    compiled_equals_eager(MIXINGS[name], read, x)

"""The whole model: its forms agree, its cameras matter and obey their invariants, its initialisation learns
everywhere.
"""

import dataclasses
import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from worldline.annotate.camera import Intrinsics, compose, rotation_from_rotvec
from worldline.model.camera_embedding import relative_to_first
from worldline.model.chunks import chunk_causal, chunk_spans
from worldline.model.config import SIZES, ModelConfig, full_2p6b, release, tiny
from worldline.model.rope import Grid
from worldline.model.softmax_attention import AttentionSpan
from worldline.model.world_model import WorldModel, conditions

torch.set_num_threads(1)
SMALL = ModelConfig(
    width=48,
    num_blocks=3,
    num_heads=3,
    latent_channels=4,
    text_channels=10,
    softmax_every=2,
    spectral_guard=True,
)
NUM_FRAMES = 8


def make_model(config=SMALL, dtype=torch.float64, seed=0):
    """A model whose parameters are all away from their special starting values."""
    torch.manual_seed(seed)
    model = WorldModel(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_clip(config=SMALL, dtype=torch.float64, *, num_frames=NUM_FRAMES, seed=0, motion=None):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    raw = 8 * (num_frames - 1) + 1
    poses = torch.cat([rotation_from_rotvec(0.1 * random(2, raw, 3)), 0.5 * random(2, raw, 3, 1)], dim=-1)
    if motion is not None:
        poses = compose(motion, poses)
    intrinsics = Intrinsics(fxfycxcy_px=torch.tensor([40.0, 40, 32, 24], dtype=dtype), width=64, height=48)
    grid = Grid(num_frames=num_frames, height=2, width=3)
    latents, text = random(2, config.latent_channels, num_frames, 2, 3), random(2, 5, config.text_channels)
    timesteps = 1000 * torch.rand(2, num_frames, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return [latents, timesteps, text, mask, conditions(config, relative_to_first(poses), intrinsics, grid)]


def frames_of(clip, start, stop):
    latents, timesteps, text, mask, cameras = clip
    if cameras is not None:
        transforms = cameras.transforms
        if transforms is not None:
            transforms = dataclasses.replace(
                transforms,
                matrix=transforms.matrix[:, start:stop],
                inverse=transforms.inverse[:, start:stop],
                rope=transforms.rope[:, start:stop],
            )
        plucker = cameras.plucker[:, start:stop] if cameras.plucker is not None else None
        cameras = dataclasses.replace(cameras, transforms=transforms, plucker=plucker)
    return [latents[:, :, start:stop], timesteps[:, start:stop], text, mask, cameras]


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


def gradients(model, out):
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(out)
    return torch.autograd.grad((out * weights).sum(), list(model.parameters()))


@pytest.mark.parametrize("chunks", [None, chunk_causal(NUM_FRAMES)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recurrent_form_equals_chunked_with_gradients(chunks, dtype):
    model, clip = make_model(dtype=dtype), make_clip(dtype=dtype)
    outputs = [model(*clip, chunks=chunks, form=form) for form in ("chunked", "recurrent")]
    limit = 1e-11 if dtype == torch.float64 else 2e-4
    assert relative(*outputs) < limit
    both = [torch.cat([g.flatten() for g in gradients(model, out)]) for out in outputs]
    assert relative(*both) < limit


CONFIGS = {
    "mixed": SMALL,
    "window": dataclasses.replace(SMALL, span=AttentionSpan(sink_frames=1, window_frames=3)),
    "prope": dataclasses.replace(SMALL, camera="prope", plucker=False),
    "no_camera": dataclasses.replace(SMALL, camera="none", plucker=False),
    "released": release(SMALL),
    "head_norm": dataclasses.replace(SMALL, key_norm="head"),
    "tokens": dataclasses.replace(SMALL, attention="token_delta"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_equals_the_whole_clip(name):
    config = CONFIGS[name]
    model, clip = make_model(config), make_clip(config)
    with torch.no_grad():
        whole = model(*clip, chunks=chunk_causal(NUM_FRAMES))
        pieces, state = [], None
        for start, stop in [(0, 4), (4, 7), (7, 8)]:
            out, state = model.stream(*frames_of(clip, start, stop), state)
            pieces.append(out)
    assert state.num_frames == NUM_FRAMES
    # The release rounds softmax inputs to bfloat16, which turns rounding differences into steps.
    assert relative(torch.cat(pieces, dim=2), whole) < (1e-2 if config.quirks.bf16_softmax else 1e-12)


def masked_softmax(queries, keys, values, *, chunks, span, scale, **_):
    """Attention under an explicit N x N mask, in place of `softmax_attention`; for whole clips."""
    starts = [chunks.index(c) for c in chunks]
    reads = [
        [u < b + chunks.count(chunks[b]) and (u >= b or span.keeps(u, b)) for u in range(len(chunks))]
        for b in starts
    ]
    tokens = queries.shape[2]
    mask = torch.tensor(reads).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (queries, keys, values))
    scores = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).unflatten(1, queries.shape[1:3]), None


@pytest.mark.parametrize("name", ["mixed", "window"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_stream_equals_chunked_equals_masked_full_attention(monkeypatch, name, dtype, limit):
    """The slowest form of the model: token by token recurrence and attention under a mask, of the whole clip."""
    model, clip = make_model(CONFIGS[name], dtype), make_clip(CONFIGS[name], dtype, num_frames=11)
    chunks = chunk_causal(11, first=1, rest=2)
    with torch.no_grad():
        chunked = model(*clip, chunks=chunks)
        pieces, state = [], None
        for start, stop in chunk_spans(chunks):
            out, state = model.stream(*frames_of(clip, start, stop), state)
            pieces.append(out)
        monkeypatch.setattr("worldline.model.attention.softmax_attention", masked_softmax)
        masked = model(*clip, chunks=chunks, form="recurrent")
    assert relative(chunked, masked) < limit
    assert relative(torch.cat(pieces, dim=2), masked) < limit


def test_a_span_given_later_is_as_if_it_had_been_in_the_config():
    model, built, clip = make_model(), make_model(CONFIGS["window"]), make_clip()
    chunks = chunk_causal(NUM_FRAMES)
    with torch.no_grad():
        before = model(*clip, chunks=chunks)
        model.read_span(CONFIGS["window"].span)
        after = model(*clip, chunks=chunks)
        assert torch.equal(after, built(*clip, chunks=chunks))
    assert not torch.allclose(before, after)


def test_state_is_constant_in_length_with_a_window():
    config = CONFIGS["window"]
    model, clip = make_model(config), make_clip(config, num_frames=19)

    def num_values(x):
        if isinstance(x, torch.Tensor):
            return x.numel()
        if isinstance(x, tuple):
            return sum(num_values(y) for y in x)
        if dataclasses.is_dataclass(x):
            return sum(num_values(getattr(x, field.name)) for field in dataclasses.fields(x))
        return 0

    sizes, state = [], None
    with torch.no_grad():
        for start, stop in [(0, 4), (4, 7), (7, 10), (10, 13), (13, 16), (16, 19)]:
            _, state = model.stream(*frames_of(clip, start, stop), state)
            sizes.append(num_values(state))
    assert len(set(sizes[1:])) == 1


def test_a_later_chunk_does_not_reach_an_earlier_one():
    model, clip = make_model(), make_clip()
    other = make_clip()
    other[0] = other[0].clone()
    other[0][:, :, 4:] += 1
    with torch.no_grad():
        a, b = (model(*c, chunks=chunk_causal(NUM_FRAMES)) for c in (clip, other))
        assert torch.equal(a[:, :, :4], b[:, :, :4])
        assert not torch.allclose(a[:, :, 4:], b[:, :, 4:])
        assert not torch.allclose(model(*clip)[:, :, :4], model(*other)[:, :, :4])  # bidirectional does reach


def _rank_main(rank, num_ranks, chunks, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks
    )
    model, clip = make_model(), make_clip()
    step = NUM_FRAMES // num_ranks
    part = frames_of(clip, rank * step, (rank + 1) * step)
    out = model(*part, chunks=chunks, group=dist.group.WORLD)
    weights = torch.randn(clip[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    weights = weights[:, :, rank * step : (rank + 1) * step]
    grad = torch.cat(
        [g.flatten() for g in torch.autograd.grad((out * weights).sum(), list(model.parameters()))]
    )
    dist.all_reduce(grad)
    torch.save((out.detach(), grad), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("chunks", [None, chunk_causal(NUM_FRAMES)])
def test_context_parallel_equals_one_process_with_gradients(chunks):
    model, clip = make_model(), make_clip()
    whole = model(*clip, chunks=chunks)
    expected = torch.cat([g.flatten() for g in gradients(model, whole)])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank_main, args=(2, chunks, folder), nprocs=2, start_method="fork")
        results = [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(2)]
    assert relative(torch.cat([out for out, _ in results], dim=2), whole) < 1e-12
    assert relative(results[0][1], expected) < 1e-11


def test_a_rigid_motion_of_the_world_changes_nothing_and_the_camera_path_does():
    motion = torch.cat(
        [
            rotation_from_rotvec(torch.tensor([[[0.5, -1.0, 2.0]]], dtype=torch.float64)),
            torch.tensor([[[[3.0], [-7.0], [2.0]]]], dtype=torch.float64),
        ],
        dim=-1,
    )
    model = make_model()
    with torch.no_grad():
        out = model(*make_clip())
        assert relative(model(*make_clip(motion=motion)), out) < 1e-10
        still = make_clip()
        still[4] = make_clip(seed=1)[4]
        assert relative(model(*still), out) > 1e-2


def test_first_steps_reach_every_parameter():
    """Zero initialisations leave no parameter without a gradient for good: after two steps all have moved."""
    torch.manual_seed(0)
    model, clip = WorldModel(SMALL).double(), make_clip()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (model(*clip) - clip[0].flip(0)).square().mean().backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_start_ignores_cameras_and_is_plain_linear_attention():
    torch.manual_seed(0)
    model = WorldModel(SMALL).double()
    with torch.no_grad():
        torch.nn.init.normal_(model.final.weight)
        a, b = make_clip(), make_clip()
        b[4] = make_clip(seed=1)[4]
        assert torch.equal(model(*a), model(*b))
        gates = model.blocks[0].attention.gates
        beta, gamma = gates(torch.randn(1, 2, 6, 48, dtype=torch.float64), frames_like())
    assert float(beta.min()) == pytest.approx(torch.tensor(5.0).sigmoid().item(), rel=1e-6)
    assert float(gamma.min()) == pytest.approx(0.9933, abs=1e-4)


def frames_like():
    from worldline.model.attention import Frames

    return Frames(rope=torch.zeros(0), chunks=None)


def test_splitting_the_feed_forward_over_frames_changes_nothing(monkeypatch):
    model, clip = make_model(), make_clip()
    with torch.no_grad():
        whole = model(*clip)
        monkeypatch.setattr("worldline.model.world_model.MAX_CONV_ELEMENTS", 3 * 2 * 3 * 48 * 6)
        assert relative(model(*clip), whole) < 1e-14


def test_sizes_and_bad_configs():
    for name, make in SIZES.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in WorldModel(make()).parameters())
        low, high = {"tiny": (1e6, 2e6), "small": (2e7, 4e7), "base": (5e8, 6e8), "2p6b": (2.6e9, 2.7e9)}[
            name
        ]
        assert low < count < high
    assert [i for i in range(20) if full_2p6b().is_softmax(i)] == [3, 7, 11, 15, 19]
    for change, message in [
        ({"camera": "pose"}, "camera 'pose'"),
        ({"num_heads": 5}, "does not divide"),
        ({"num_heads": 24}, "multiple of 8"),
        ({"num_blocks": 0}, "num_blocks"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(tiny(), **change)
    assert chunk_causal(121)[-1] == 39
    assert chunk_causal(121).count(39) == 3


def test_missing_cameras_are_refused():
    model, clip = make_model(), make_clip()
    with pytest.raises(ValueError, match="needs Pluecker rays"):
        model(*clip[:4], None)
    with pytest.raises(ValueError, match="needs camera transforms"):
        model(*clip[:4], dataclasses.replace(clip[4], transforms=None))

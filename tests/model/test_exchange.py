"""Parity with diffusers' SanaWMTransformer3DModel: output, every gradient, every key."""

import contextlib
import dataclasses
import sys

import pytest
import torch

from worldline.annotate.camera import Intrinsics, rotation_from_rotvec
from worldline.model.camera_embedding import CameraConditions
from worldline.model.config import ModelConfig, ReleaseQuirks, full_2p6b
from worldline.model.exchange import (
    diffusers_config,
    from_diffusers,
    from_diffusers_config,
    to_diffusers,
    unread_shapes,
)
from worldline.model.rope import Grid, rope_table, split_channels
from worldline.model.world_model import WorldModel, conditions

torch.set_num_threads(1)
diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed: pip install 'worldline[diffusers]'"
)
SanaWM = diffusers.SanaWMTransformer3DModel
oracle_module = sys.modules[SanaWM.__module__]


@contextlib.contextmanager
def casts_lifted(dtype):
    """The oracle rounds to bfloat16 and float32 inside; without that it can be compared in float64."""
    originals = {name: getattr(torch.Tensor, name) for name in ("float", "bfloat16", "to")}

    def keep(self, *args, **kwargs):
        return self

    def to(self, *args, **kwargs):
        if args and args[0] is torch.float32 and self.dtype is torch.float64:
            return self
        return originals["to"](self, *args, **kwargs)

    torch.Tensor.bfloat16 = keep
    up_and_latitude = oracle_module.compute_up_lat_map
    if dtype == torch.float64:
        torch.Tensor.float, torch.Tensor.to = keep, to
        # Its absolute ray map makes float32 tensors; with Pluecker rays nothing reads it.
        oracle_module.compute_up_lat_map = lambda R, *_, height, width, **__: (
            R.new_zeros(*R.shape[:2], height, width, 2),
            R.new_zeros(*R.shape[:2], height, width, 1),
        )
    try:
        yield
    finally:
        oracle_module.compute_up_lat_map = up_and_latitude
        for name, function in originals.items():
            setattr(torch.Tensor, name, function)


class TimeEmbedding(torch.nn.Module):
    """The oracle's sinusoids in float64."""

    def forward(self, timesteps):
        angles = timesteps.double()[:, None] * 1e4 ** (-torch.arange(128, dtype=torch.float64) / 128)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def tables_in_full_precision(oracle, head_dim):
    """The oracle's rotation and timestep tables, made in float64 instead of float32."""
    oracle.time_proj = TimeEmbedding()
    grid = Grid(num_frames=64, height=1, width=1)
    parts = []
    for dim in split_channels(head_dim):
        steps = torch.arange(64, dtype=torch.float64)[:, None]
        angles = steps * 1e4 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        parts.append(torch.polar(torch.ones_like(angles), angles))
    oracle.rope.freqs = torch.cat(parts, dim=1)
    cos, _ = rope_table(grid, head_dim)
    torch.testing.assert_close(cos[:, 0, : split_channels(head_dim)[0] // 2], parts[0].real)


def make_pair(dtype=torch.float32, seed=0, **changes):
    """A random oracle, our model with its weights, and the tensors nothing reads."""
    torch.manual_seed(seed)
    shape = {
        "num_layers": 3,
        "hidden_size": 48,
        "num_attention_heads": 3,
        "linear_head_dim": 16,
        "in_channels": 6,
        "caption_channels": 10,
        "softmax_every_n": 2,
    }
    oracle = SanaWM(**{**shape, **changes})
    with torch.no_grad():  # nothing may stay at zero, or its part of the network would go untested
        for parameter in oracle.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        for block in oracle.blocks:
            block.attn.A_log.clamp_(-3, 0.5)
    torch.nn.Module.to(oracle, dtype)
    config = from_diffusers_config(oracle.config)
    model = WorldModel(config).to(dtype)
    unread = from_diffusers(model, oracle.state_dict())
    return oracle, model, unread


def make_inputs(model, dtype, *, batch=2, num_frames=5, height=3, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = model.config

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    raw_frames = 8 * (num_frames - 1) + 1
    poses = torch.cat(
        [rotation_from_rotvec(0.05 * random(batch, raw_frames, 3)), 0.3 * random(batch, raw_frames, 3, 1)],
        dim=-1,
    )
    poses[:, 0] = torch.eye(3, 4)
    focal = torch.tensor([4.0, 4.1, 2.1, 1.4], dtype=dtype).expand(batch, raw_frames, 4)
    grid = Grid(num_frames=num_frames, height=height, width=width)
    cameras = conditions(config, poses, Intrinsics(fxfycxcy_px=focal, width=width, height=height), grid)
    latent_poses = torch.cat(
        [poses, torch.tensor([0.0, 0, 0, 1]).to(poses).expand(batch, raw_frames, 1, 4)], dim=-2
    )
    return {
        "latents": random(batch, config.latent_channels, num_frames, height, width),
        "timesteps": torch.randint(0, 1000, (batch, num_frames), generator=generator).to(dtype),
        "text": random(batch, 7, config.text_channels),
        "text_mask": torch.arange(7)[None] < torch.tensor([[7], [4]])[:batch],
        "cameras": cameras,
        "camera_rows": torch.cat([latent_poses[:, ::8].flatten(2), focal[:, ::8]], dim=-1),
    }


def run_oracle(oracle, x, frame_valid=None):
    plucker = x["cameras"].plucker.to(x["latents"].dtype)
    height, width = x["latents"].shape[-2:]
    return oracle(
        x["latents"],
        x["timesteps"][:, None],
        x["text"][:, None],
        encoder_attention_mask=x["text_mask"].long(),
        camera_conditions=x["camera_rows"],
        chunk_plucker=plucker.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3),
        frame_valid_mask=frame_valid,
        return_dict=False,
    )[0]


def run_ours(model, x, **kwargs):
    return model(x["latents"], x["timesteps"], x["text"], x["text_mask"], x["cameras"], **kwargs)


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-30))


CASES = {
    "mixed": {},
    "only_delta": {"softmax_every_n": 0, "num_layers": 2},
    "only_softmax": {"softmax_every_n": 1, "num_layers": 1},
    "wide_heads": {"hidden_size": 80, "linear_head_dim": 40, "num_attention_heads": 2, "conv_kernel_size": 3},
}


PARITY_LIMITS = {torch.float32: 1e-4, torch.float64: 1e-8}


def parity_errors(case, dtype):
    """Relative error of the output, and of each gradient by its name in diffusers.

    A gradient's error is relative to its own norm, or to a millionth of all gradients' where that is larger.
    """
    oracle, model, _ = make_pair(dtype, **CASES[case])
    quirks = dataclasses.replace(model.config.quirks, bf16_softmax=False)
    model = with_quirks(model, quirks)
    if dtype == torch.float64:
        tables_in_full_precision(oracle, model.config.head_dim)
    x = make_inputs(model, dtype)
    weights = torch.randn(x["latents"].shape, dtype=dtype, generator=torch.Generator().manual_seed(5))
    with casts_lifted(dtype):
        theirs = run_oracle(oracle, x)
        (theirs * weights).sum().backward()
    ours = run_ours(model, x)
    (ours * weights).sum().backward()

    gradients = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.data = parameter.grad  # the exchange maps gradients as it maps weights
    mapped = to_diffusers(model)
    unread = unread_shapes(model.config)
    assert set(gradients) == set(mapped) - set(unread)
    total = torch.cat([g.flatten() for g in gradients.values()]).norm()
    errors = {
        name: float((mapped[name] - theirs).norm() / theirs.norm().clamp_min(1e-6 * total))
        for name, theirs in gradients.items()
    }
    return relative(ours, theirs), errors


@pytest.mark.parametrize(("dtype", "limit"), PARITY_LIMITS.items())
@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient(case, dtype, limit):
    output, gradients = parity_errors(case, dtype)
    assert output < limit
    assert {name: error for name, error in gradients.items() if error >= limit} == {}


def with_quirks(model, quirks):
    changed = WorldModel(dataclasses.replace(model.config, quirks=quirks)).to(next(model.parameters()).dtype)
    changed.load_state_dict(model.state_dict())
    return changed


@pytest.mark.parametrize("num_frames", [1, 2])
def test_short_clips(num_frames):
    oracle, model, _ = make_pair()
    model = with_quirks(model, dataclasses.replace(model.config.quirks, bf16_softmax=False))
    x = make_inputs(model, torch.float32, num_frames=num_frames)
    with casts_lifted(torch.float32):
        assert relative(run_ours(model, x), run_oracle(oracle, x)) < 1e-4


def test_padding_frames():
    oracle, model, _ = make_pair()
    model = with_quirks(model, dataclasses.replace(model.config.quirks, bf16_softmax=False))
    x = make_inputs(model, torch.float32)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with casts_lifted(torch.float32):
        theirs = run_oracle(oracle, x, frame_valid=valid)
    assert relative(run_ours(model, x, frame_valid=valid), theirs) < 1e-4


def test_padding_of_the_paper_form_equals_the_short_clip():
    _, model, _ = make_pair()
    paper = with_quirks(model, ReleaseQuirks())
    x = make_inputs(paper, torch.float32, batch=1)
    valid = torch.tensor([[True] * 3 + [False] * 2])
    short = dict(x)
    transforms = x["cameras"].transforms
    short["latents"], short["timesteps"] = x["latents"][:, :, :3], x["timesteps"][:, :3]
    short["cameras"] = CameraConditions(
        transforms=dataclasses.replace(
            transforms,
            matrix=transforms.matrix[:, :3],
            inverse=transforms.inverse[:, :3],
            rope=transforms.rope[:, :3],
        ),
        plucker=x["cameras"].plucker[:, :3],
    )
    padded = run_ours(paper, x, frame_valid=valid)[:, :, :3]
    assert relative(padded, run_ours(paper, short)) < 2e-5
    released = run_ours(model, x, frame_valid=valid)[:, :, :3]
    assert relative(released, run_ours(model, short)) > 1e-3  # the release lets padding in


def test_unmodified_oracle_with_its_bfloat16_softmax():
    oracle, model, _ = make_pair()
    x = make_inputs(model, torch.float32)
    # A float32 rounding difference can move a value across a bfloat16 step, hence the looser limit.
    assert relative(run_ours(model, x), run_oracle(oracle, x)) < 2e-3


@pytest.mark.parametrize(
    "quirk", ["bf16_softmax", "padded_softmax_scale", "ray_rms_cap", "integer_timesteps"]
)
def test_each_switch_matters(quirk):
    _, model, _ = make_pair()
    x = make_inputs(model, torch.float32)
    x["timesteps"] = x["timesteps"] + 0.5
    other = with_quirks(model, dataclasses.replace(model.config.quirks, **{quirk: False}))
    assert relative(run_ours(other, x), run_ours(model, x)) > 1e-4


def test_round_trip_is_exact_and_runs_in_diffusers():
    oracle, model, unread = make_pair()
    theirs = oracle.state_dict()
    written = to_diffusers(model, unread)
    assert sorted(written) == sorted(theirs)
    assert all(torch.equal(written[name], theirs[name]) for name in theirs)
    again = SanaWM(**diffusers_config(model.config))
    again.load_state_dict(to_diffusers(model), strict=True)  # without the unread ones: zeros, same function
    x = make_inputs(model, torch.float32)
    assert torch.equal(run_oracle(again, x), run_oracle(oracle, x))


def test_nothing_is_missing_in_silence():
    oracle, model, _ = make_pair()
    theirs = dict(oracle.state_dict())
    theirs["blocks.0.attn.surprise"] = torch.zeros(1)
    del theirs["blocks.1.mlp.t_conv.weight"]
    theirs["final_layer.linear.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="3 tensors do not fit") as error:
        from_diffusers(model, theirs)
    for name in (
        "missing blocks.1.mlp.t_conv.weight",
        "unknown blocks.0.attn.surprise",
        "final_layer.linear.bias",
    ):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="y_norm"):
        from_diffusers_config({**oracle.config, "y_norm": False})
    with pytest.raises(ValueError, match="camera 'ucpe'"):
        diffusers_config(ModelConfig(width=48, num_blocks=1, num_heads=3, camera="prope"))


def test_full_size_holds_exactly_its_parameters():
    with torch.device("meta"):
        model, oracle = WorldModel(full_2p6b()), SanaWM()
        written = to_diffusers(model)
    buffers = sum(name.endswith("recall_gate") for name in written)
    assert sum(x.numel() for x in written.values()) - buffers == 2_661_800_448
    assert {name: x.shape for name, x in written.items()} == {
        n: x.shape for n, x in oracle.state_dict().items()
    }


def test_a_model_that_diffusers_would_run_differently_is_named(caplog):
    _, model, _ = make_pair()
    to_diffusers(model)
    assert "other settings" not in caplog.text
    to_diffusers(with_quirks(model, ReleaseQuirks(ray_rms_cap=True)))
    assert "bf16_softmax: False, True" in caplog.text
    assert "ray_rms_cap" not in caplog.text
    with pytest.raises(ValueError, match="spectral_guard False"):
        diffusers_config(dataclasses.replace(model.config, spectral_guard=True))

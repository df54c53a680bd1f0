"""Costs against the specification's per-block table, torch's own FLOP counter, and the memory autograd
really keeps.
"""

import dataclasses

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from worldline.annotate.camera import Intrinsics
from worldline.model.accounting import cost, report
from worldline.model.config import ModelConfig, full_2p6b
from worldline.model.rope import Grid
from worldline.model.world_model import WorldModel, conditions

torch.set_num_threads(1)


def test_full_model_holds_what_the_specification_says():
    total = cost(full_2p6b(), Grid(num_frames=121, height=22, width=40))
    width2 = 2240**2
    expected = {
        "qkv": 3,
        "out": 1,
        "output gate": 1,
        "camera q, k, v": 3,
        "camera out": 1,
        "cross-attention": 4,
        "feed-forward": 6 + 3 + 3,
        "Pluecker": 1,
    }
    for part, multiple in expected.items():
        assert total.delta_block[part] / width2 == pytest.approx(multiple, rel=0.02), part
        assert total.softmax_block[part] == total.delta_block[part]
    assert total.released_parameters == 2_661_800_448
    assert sum(total.parameters.values()) == 2_661_343_088
    assert "2,661,800,448" in report(full_2p6b(), Grid(num_frames=121, height=22, width=40))


def run(config, grid):
    torch.manual_seed(0)
    model = WorldModel(config)
    poses = torch.eye(3, 4).repeat(1, 8 * (grid.num_frames - 1) + 1, 1, 1)
    lens = Intrinsics(fxfycxcy_px=torch.tensor([20.0, 20, 8, 8]), width=16, height=16)
    latents = torch.randn(1, config.latent_channels, grid.num_frames, grid.height, grid.width)
    text, mask = torch.randn(1, 9, config.text_channels), torch.ones(1, 9, dtype=torch.bool)
    cameras = conditions(config, poses, lens, grid)
    return model, (latents, torch.rand(1, grid.num_frames), text, mask, cameras)


@pytest.mark.parametrize("softmax_every", [1, 0])
def test_flops_equal_torchs_count(softmax_every):
    config = ModelConfig(
        width=64, num_blocks=2, num_heads=4, latent_channels=4, text_channels=8, softmax_every=softmax_every
    )
    grid = Grid(num_frames=6, height=8, width=8)
    model, inputs = run(config, grid)
    # The counter does not know the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    counted = cost(config, grid, text_tokens=9)
    ours = sum(counted.flops.values())
    if softmax_every == 0:
        # torch does not see into our operators (model/delta_ops.py).
        ours -= counted.flops["gated delta"]
    rays = 2 * config.num_blocks * 4 * tokens_of(grid) * config.width // 2 * 4
    assert counter.get_total_flops() - rays == pytest.approx(ours, rel=0.03)


def tokens_of(grid):
    return grid.num_frames * grid.num_tokens


def test_activation_estimate_is_within_a_factor_of_what_autograd_keeps():
    config = ModelConfig(width=64, num_blocks=4, num_heads=4, latent_channels=4, text_channels=8)
    grid = Grid(num_frames=6, height=8, width=8)
    model, inputs = run(config, grid)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with saved_tensors_hooks(pack, lambda x: x):
        out = model(*inputs)
    real = sum(size for pointer, size in kept.items() if pointer not in parameters)
    assert out.requires_grad
    estimate = cost(config, grid).activation_bytes
    # The run is in float32, the estimate for bfloat16.
    assert 0.4 < 2 * estimate / real < 2.5
    assert cost(config, grid).checkpointed_bytes < estimate
    without = dataclasses.replace(config, camera="none", plucker=False)
    assert cost(without, grid).activation_bytes < estimate

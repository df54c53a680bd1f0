"""NVFP4 and FP8 against torchao's own tensors and the formats' definitions; what quantisation leaves alone."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from worldline.annotate.camera import Intrinsics
from worldline.model.config import tiny
from worldline.model.quantize import (
    PACK,
    QuantizeConfig,
    QuantizedLinear,
    checked,
    e2m1_codes,
    layer_errors,
    pack_fp8,
    pack_nvfp4,
    quantize,
    quantized_layers,
    relative_error,
    weight_bytes,
)
from worldline.model.rope import Grid
from worldline.model.world_model import WorldModel, conditions

GRID = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _matrix(seed: int, rows: int = 24, columns: int = 96) -> torch.Tensor:
    """Rows of very different sizes, with zeros and one outlier."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 3, rows)[:, None]
    x[3], x[5, :16], x[7, 0] = 0.0, 0.0, 3e4
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nvfp4_has_torchaos_codes_scales_and_values(dtype: torch.dtype) -> None:
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    for seed in range(5):
        x = _matrix(seed).to(dtype)
        scale = nvfp4.per_tensor_amax_to_scale(x.abs().amax())
        theirs, ours = nvfp4.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale), pack_nvfp4(x)
        assert torch.equal(ours.codes, theirs.qdata.view(torch.uint8))
        assert torch.equal(
            ours.scale.view(torch.uint8), theirs.scale.view(torch.uint8).view(ours.scale.shape)
        )
        assert torch.equal(ours.unpack(), theirs.dequantize(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_has_torchaos_codes_scales_and_values(dtype: torch.dtype) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    for seed in range(5):
        x = _matrix(seed).to(dtype)
        x[3] = 1.0  # theirs has no number for a row of zeros
        theirs = quantization.Float8Tensor.from_hp(x, granularity=quantization.PerRow())
        ours = pack_fp8(x)
        if dtype == torch.float32:
            assert torch.equal(ours.codes.view(torch.uint8), theirs.qdata.view(torch.uint8))
            assert torch.equal(ours.scale, theirs.scale)
            assert torch.equal(ours.unpack(), theirs.dequantize(torch.float32))
        else:  # theirs divides in bfloat16 for the scale
            assert relative_error(ours.unpack(), theirs.dequantize(torch.float32)) < 0.03


def test_codes_are_the_nearest_values_and_ties_go_to_the_even_code() -> None:
    x = torch.linspace(-6, 6, 4801)
    codes = e2m1_codes(x)
    values = torch.cat([GRID, -GRID])[codes.long()]
    distance = (x[:, None] - torch.cat([GRID, -GRID])).abs()
    assert torch.equal((values - x).abs(), distance.amin(dim=1))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert (e2m1_codes(ties) % 2 == 0).all()
    assert torch.equal(e2m1_codes(-ties), e2m1_codes(ties) | 8)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 32), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(sorted(PACK)),
)
def test_packing_again_changes_nothing_and_errors_are_bounded(values: np.ndarray, name: str) -> None:
    x = torch.from_numpy(values)
    once = PACK[name](x).unpack()
    assert torch.isfinite(once).all()
    assert (once.sign() * x.sign() >= 0).all()
    if name == "fp8":
        # Half a step is 1/16 of a value, or half of the smallest subnormal of the row's scale.
        scale = (x.abs().amax(dim=1, keepdim=True).double() / 448).clamp_min(torch.finfo(torch.float32).tiny)
        least = scale * 2**-10
        assert ((once - x).abs() <= x.abs() / 16 * 1.001 + 1.001 * least).all()
        assert relative_error(PACK[name](once).unpack(), once) < 1e-6 if once.any() else True
    else:
        # Half of the widest step, 2 of 6, and what the block's scale loses: E4M3 rounds it by up to 1/16, or by half its
        # smallest subnormal.
        largest = x.unflatten(1, (-1, 16)).abs().amax(dim=2).repeat_interleave(16, dim=1)
        lost = 6 * 2**-10 * x.abs().max() / (448 * 6)
        assert ((once - x).abs() <= largest * (1 / 6 + 1 / 16) + 6 * lost + 1e-30).all()


def test_matrices_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        pack_nvfp4(torch.zeros(4, 24))


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    made = WorldModel(tiny())
    with torch.no_grad():
        for parameter in made.parameters():  # what starts at zero would hide errors
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made.eval()


def _run(model: WorldModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    grid = Grid(num_frames=2, height=4, width=4)
    poses = torch.eye(3, 4).expand(1, 9, 3, 4).clone()
    poses[..., 0, 3] = 0.1 * torch.arange(9)
    lens = Intrinsics(fxfycxcy_px=np.array([40.0, 40.0, 32.0, 32.0]), width=64, height=64)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 3, 384, generator=generator)
    cameras = conditions(model.config, poses, lens, grid)
    with torch.no_grad():
        return model(latents, torch.full((1, 2), 500.0), text, torch.ones(1, 3, dtype=torch.bool), cameras)


@pytest.mark.parametrize("name", ["nvfp4", "fp8"])
def test_only_linear_layers_of_the_blocks_change(model: WorldModel, name: str) -> None:
    config = QuantizeConfig(format=name)
    made = quantize(model, config)
    kinds = {path: type(layer) for path, layer in made.named_modules()}
    changed = {path for path, kind in kinds.items() if kind is QuantizedLinear}
    assert changed == {path for path, _ in quantized_layers(model, config)}
    assert all(path.startswith("blocks.") for path in changed)
    assert not [p for p in changed if any(part in p for part in ("camera", "plucker", "gates"))]
    kept, before = made.state_dict(), model.state_dict()
    assert all(torch.equal(kept[key], before[key]) for key in kept.keys() & before.keys())
    more = set(dict(quantized_layers(model, replace(config, camera_branch=True))))
    assert more > changed
    assert any("plucker" in path for path in more)


@pytest.mark.parametrize(("name", "share"), [("nvfp4", 4.5 / 32), ("fp8", 8 / 32)])
def test_memory_is_that_of_the_format(model: WorldModel, name: str, share: float) -> None:
    config = QuantizeConfig(format=name)
    made = quantize(model, config)
    for path, layer in quantized_layers(model, config):
        packed = made.get_submodule(path).packed
        rest = 4 if name == "nvfp4" else 4 * layer.out_features + 4
        assert packed.num_bytes == layer.weight.numel() * 4 * share + rest
    assert weight_bytes(made) < weight_bytes(model)


@pytest.mark.parametrize("activations", [False, True])
def test_the_model_is_that_of_rounded_matrices(model: WorldModel, activations: bool) -> None:
    """Against the plain model with its weights (and inputs, by hooks) rounded by hand."""
    config = QuantizeConfig(format="nvfp4", activations=activations)
    reference = quantize(model, config)
    plain = WorldModel(model.config).eval()
    plain.load_state_dict(model.state_dict())
    for _, layer in quantized_layers(plain, config):
        layer.weight.data = pack_nvfp4(layer.weight.data).unpack()
        if activations:
            layer.register_forward_pre_hook(
                lambda _, given: pack_nvfp4(given[0].flatten(0, -2)).unpack().view(given[0].shape)
            )
    assert relative_error(_run(reference), _run(plain)) < 1e-5
    assert 1e-3 < relative_error(_run(reference), _run(model)) < 0.5


def test_fp8_is_nearer_than_nvfp4_layer_by_layer(model: WorldModel) -> None:
    found = {name: layer_errors(model, QuantizeConfig(format=name), _run) for name in ("nvfp4", "fp8")}
    names = [name for name, _ in quantized_layers(model, QuantizeConfig())]
    for errors in found.values():
        assert [each.name for each in errors] == names
    for four, eight in zip(found["nvfp4"], found["fp8"], strict=True):
        assert 0 < eight.weight < four.weight < 0.2
        assert 0 < eight.output < four.output < 0.4
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_copy_that_is_not_the_model_any_more_is_refused(model: WorldModel) -> None:
    config = QuantizeConfig()
    quantized = quantize(model, config)
    assert checked(model, quantized, config, _run, limit=0.5) is quantized
    with pytest.raises(ValueError, match=r"nvfp4 changes the model's output by .*blocks\.\d.*Use fp8"):
        checked(model, quantized, config, _run, limit=1e-3)


def test_a_saved_copy_loads_into_another(model: WorldModel) -> None:
    config = QuantizeConfig(format="nvfp4")
    made = quantize(model, config)
    torch.manual_seed(5)
    other = quantize(WorldModel(model.config), config)
    assert relative_error(_run(other), _run(made)) > 0.1
    other.load_state_dict(made.state_dict())
    assert torch.equal(_run(other), _run(made))

"""Linear layers of the transformer in FP8 or NVFP4: a trained model in, a smaller one out, and what that costs.

NVFP4 (NVIDIA, 2025): values of E2M1, a scale of E4M3 for 16 of them along the inputs, one float32 scale for all. FP8: E4M3
with a float32 scale a row. Weights are packed once, activations are rounded as they come. Codes and scales are those
of torchao's tensors bit for bit. On a GPU that multiplies in the format torchao's kernels do it; elsewhere the
rounded values are multiplied in the model's own precision, which has the errors and the memory of the format and not its
speed.

Camera geometry, norms, convolutions, gates, embeddings and the last projection stay as they are, and so do, unless
asked for, the projections of the camera's branches.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)

_M = TypeVar("_M", bound=nn.Module)

BLOCK = 16
"""Values that share a scale of NVFP4."""

E2M1_MAX, E4M3_MAX = 6.0, 448.0
_E4M3_TINY = torch.finfo(torch.float8_e4m3fn).tiny
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Half-way values go to the code that is even, as IEEE 754 rounds.
_BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_ROUNDS_UP = (False, True, False, True, False, True, False)

_NATIVE_PARTS = ("gates",)
_CAMERA_PARTS = ("camera", "camera_out", "plucker")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """Which layers, and how."""

    format: Literal["nvfp4", "fp8"] = "nvfp4"
    activations: bool = True
    """Round the layers' inputs too, as the kernels of the format need; else only weights are small."""
    camera_branch: bool = False
    """The projections of the camera's branches too."""


# Formats


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [R, C] in a format."""

    codes: Tensor
    """[R, C / 2] uint8, the even column in the low half (NVFP4), or [R, C] float8_e4m3fn."""
    scale: Tensor
    """[R, C / 16] float8_e4m3fn, or [R, 1] float32."""
    tensor_scale: Tensor
    """[] float32; 1 for FP8."""

    def unpack(self) -> Tensor:
        """[R, C] float32."""
        if self.codes.dtype == torch.float8_e4m3fn:
            return self.codes.float() * self.scale
        codes = torch.stack([self.codes & 0xF, self.codes >> 4], dim=-1).flatten(1)
        table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=codes.device)
        blocks = table[codes.long()].unflatten(1, (-1, BLOCK))
        return (blocks * (self.tensor_scale * self.scale.float())[..., None]).flatten(1)

    @property
    def num_bytes(self) -> int:
        """Of codes and scales."""
        return sum(part.numel() * part.element_size() for part in (self.codes, self.scale, self.tensor_scale))


def pack_nvfp4(x: Tensor) -> Packed:
    """A matrix [R, C] in NVFP4; C a multiple of 16, else ValueError."""
    if x.ndim != 2 or x.shape[1] % BLOCK:
        raise ValueError(f"NVFP4 needs a matrix with a multiple of {BLOCK} columns, got {tuple(x.shape)}")
    blocks = x.float().unflatten(1, (-1, BLOCK))
    # A matrix of zeros has any scale; the least has a finite reciprocal after the division by a block's.
    tensor_scale = (x.float().abs().amax() / (E4M3_MAX * E2M1_MAX)).clamp_min(2.0**-120)
    scale = (blocks.abs().amax(dim=-1) / E2M1_MAX / tensor_scale).clamp(_E4M3_TINY, E4M3_MAX)
    scale = scale.to(torch.float8_e4m3fn)
    reciprocal = (1.0 / tensor_scale) / scale.float()
    codes = e2m1_codes((blocks * reciprocal[..., None]).clamp(-E2M1_MAX, E2M1_MAX)).flatten(1)
    return Packed(codes[:, ::2] | codes[:, 1::2] << 4, scale, tensor_scale)


def pack_fp8(x: Tensor) -> Packed:
    """A matrix [R, C] in FP8, a scale a row."""
    scale = x.float().abs().amax(dim=1, keepdim=True) / E4M3_MAX
    scale = scale.clamp_min(
        torch.finfo(torch.float32).tiny
    )  # smaller ones have no precision left; zeros have any
    codes = (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return Packed(codes, scale, torch.ones((), device=x.device))


def e2m1_codes(x: Tensor) -> Tensor:
    """Codes 0 to 15 (uint8) of the nearest E2M1 values, ties to even; the sign is the highest bit."""
    size = x.abs()
    code = torch.zeros_like(size, dtype=torch.uint8)
    for bound, rounds_up in zip(_BOUNDS, _ROUNDS_UP, strict=True):
        code += (size >= bound) if rounds_up else (size > bound)
    return code | torch.signbit(x).to(torch.uint8) << 3


PACK: dict[str, Callable[[Tensor], Packed]] = {"nvfp4": pack_nvfp4, "fp8": pack_fp8}


# Layers


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is packed; buffers, so that it is saved with the model."""

    codes: Tensor
    scale: Tensor
    tensor_scale: Tensor

    def __init__(self, linear: nn.Linear, config: QuantizeConfig) -> None:
        super().__init__()
        self.format, self.activations = config.format, config.activations
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = PACK[config.format](linear.weight.detach())
        for name in ("codes", "scale", "tensor_scale"):
            self.register_buffer(name, getattr(packed, name))
        self.bias = linear.bias

    @property
    def packed(self) -> Packed:
        """The weight."""
        return Packed(self.codes, self.scale, self.tensor_scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        weight = self.packed.unpack().to(x.dtype)
        if self.activations:
            x = PACK[self.format](x.flatten(0, -2)).unpack().to(x.dtype).view(x.shape)
        return functional.linear(x, weight, self.bias)


def quantized_layers(model: nn.Module, config: QuantizeConfig) -> Iterator[tuple[str, nn.Linear]]:
    """Names and linear layers that `quantize` packs: those of the blocks, but for gates and the camera's branches."""
    native = _NATIVE_PARTS if config.camera_branch else (*_NATIVE_PARTS, *_CAMERA_PARTS)
    for name, layer in model.named_modules():
        parts = name.split(".")
        if isinstance(layer, nn.Linear) and "blocks" in parts and not set(parts) & set(native):
            if layer.in_features % BLOCK:
                logger.info(
                    "%s stays as it is: %d inputs are no multiple of %d", name, layer.in_features, BLOCK
                )
                continue
            yield name, layer


def quantize(model: _M, config: QuantizeConfig) -> _M:
    """A copy of the model with its linear layers in the format; gradients do not reach their weights.

    Raises ValueError where no layer qualifies.
    """
    made = copy.deepcopy(model).eval()
    layers = list(quantized_layers(made, config))
    if not layers:
        raise ValueError("no linear layer of the model qualifies")
    if config.activations and _has_kernels(config.format, next(made.parameters()).device):
        _with_torchao(made, config, {name for name, _ in layers})
        return made
    for name, layer in layers:
        made.set_submodule(name, QuantizedLinear(layer, config))
    return made


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _has_kernels(format: str, device: torch.device) -> bool:
    """Whether torchao is there and the GPU multiplies in the format: from Ada on FP8, from Blackwell on NVFP4."""
    if device.type != "cuda":
        return False
    try:
        import torchao  # noqa: F401
    except ModuleNotFoundError:
        logger.warning("%s is emulated, slowly: pip install 'worldline[quantize]' brings the kernels", format)
        return False
    return torch.cuda.get_device_capability(device) >= ((8, 9) if format == "fp8" else (10, 0))


def _with_torchao(model: nn.Module, config: QuantizeConfig, names: set[str]) -> None:
    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    kernels = (
        Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
        if config.format == "fp8"
        else NVFP4DynamicActivationNVFP4WeightConfig()
    )
    quantize_(model, kernels, filter_fn=lambda _, name: name in names)


# What it costs


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """Of one layer, relative to the norm of the true one."""

    name: str
    weight: float
    output: float
    """On the inputs that the layer had in the true model."""


def layer_errors(
    model: nn.Module, config: QuantizeConfig, run: Callable[[nn.Module], object]
) -> list[LayerError]:
    """Each layer's error by itself, while `run` calls the true model; means over its calls."""
    found: list[LayerError] = []
    handles, sums = [], {}
    for name, layer in quantized_layers(model, config):
        packed = QuantizedLinear(layer, config)
        sums[name] = [0.0, 0.0]

        def measure(
            _: nn.Module, given: tuple[Tensor, ...], out: Tensor, name: str = name, packed: nn.Module = packed
        ) -> None:
            sums[name][0] += float((packed(given[0]) - out).float().square().sum())
            sums[name][1] += float(out.float().square().sum())

        handles.append(layer.register_forward_hook(measure))
        weight = layer.weight.detach().float()
        found.append(
            LayerError(name=name, weight=relative_error(packed.packed.unpack(), weight), output=float("nan"))
        )
    try:
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return [
        LayerError(
            name=each.name, weight=each.weight, output=(sums[each.name][0] / sums[each.name][1]) ** 0.5
        )
        for each in found
        if sums[each.name][1] > 0
    ]


def checked(
    model: _M, quantized: _M, config: QuantizeConfig, run: Callable[[nn.Module], Tensor], *, limit: float
) -> _M:
    """The quantised model, if its output on what `run` calls it with is within `limit` of the true one's norm.

    Else ValueError, which names the layers that lose the most.
    """
    with torch.no_grad():
        error = relative_error(run(quantized), run(model))
    logger.info("%s: output %.1f %% off", config.format, 100 * error)
    if error > limit:
        worst = sorted(layer_errors(model, config, run), key=lambda layer: -layer.output)[:3]
        named = ", ".join(f"{layer.name} ({layer.output:.0%})" for layer in worst)
        raise ValueError(
            f"{config.format} changes the model's output by {error:.0%}, more than {limit:.0%}; most in {named}."
            " Use fp8 or bfloat16"
        )
    return quantized


def relative_error(x: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    truth = truth.double()  # squares of small float32 values vanish
    return float((x.double() - truth).norm() / truth.norm())

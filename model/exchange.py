"""Weights to and from diffusers' `SanaWMTransformer3DModel`, the format of the released SANA-WM.

Every tensor of both sides is accounted for: a key or shape that does not fit raises. diffusers holds some
that nothing reads (the absolute ray-map embedder, replaced by Pluecker rays, and the delta rule's gates in
softmax blocks); they come back as `unread` and can be written out again, so that a round trip changes
nothing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.model.config import ModelConfig, release
from worldline.model.world_model import WorldModel

logger = logging.getLogger(__name__)

_TOP = {
    "latent_in": "x_embedder.proj",
    "time_in.0": "t_embedder.linear_1",
    "time_in.2": "t_embedder.linear_2",
    "time_block": "t_block.1",
    "text_in.0": "y_embedder.y_proj.fc1",
    "text_in.2": "y_embedder.y_proj.fc2",
    "text_norm": "attention_y_norm",
    "plucker_in": "plucker_embedder.proj",
    "final_table": "final_layer.scale_shift_table",
    "final": "final_layer.linear",
}
_BLOCK = {
    "table": "scale_shift_table",
    "attention.main.qkv": "attn.qkv",
    "attention.main.query_norm": "attn.q_norm",
    "attention.main.key_norm": "attn.k_norm",
    "attention.main.key_conv": "attn.conv_k.weight",
    "attention.camera.query_norm": "attn.q_norm_cam",
    "attention.camera.key_norm": "attn.k_norm_cam",
    "attention.camera.key_conv": "attn.conv_k_cam.weight",
    "attention.camera_out": "attn.out_proj_cam",
    "attention.gates.beta": "attn.beta_proj",
    "attention.gates.gamma": "attn.gate_proj",
    "attention.gates.log_rate": "attn.A_log",
    "attention.gates.bias": "attn.dt_bias",
    "attention.output_gate": "attn.output_gate",
    "attention.out": "attn.proj",
    "plucker": "plucker_proj",
    "cross_attention.query": "cross_attn.q_linear",
    "cross_attention.key_value": "cross_attn.kv_linear",
    "cross_attention.query_norm": "cross_attn.q_norm",
    "cross_attention.key_norm": "cross_attn.k_norm",
    "cross_attention.out": "cross_attn.proj",
    "feed_forward.expand": "mlp.inverted_conv.conv",
    "feed_forward.depthwise": "mlp.depth_conv.conv",
    "feed_forward.contract": "mlp.point_conv.conv",
    "feed_forward.temporal": "mlp.t_conv.weight",
}
_CAMERA_QKV = "attention.camera.qkv"
_CAMERA_PARTS = ("attn.q_proj_cam", "attn.k_proj_cam", "attn.v_proj_cam")
"""diffusers keeps the camera's queries, keys and values in three layers, we in one."""


def diffusers_config(config: ModelConfig) -> dict[str, Any]:
    """Arguments of `SanaWMTransformer3DModel` for a model of this shape.

    Raises ValueError for a shape that format cannot hold.
    """
    fixed = {
        "camera": "ucpe",
        "plucker": True,
        "attention": "frame_delta",
        "key_norm": "width",
        "key_scale": "frame",
        "spectral_guard": False,
    }
    for name, needed in fixed.items():
        if getattr(config, name) != needed:
            raise ValueError(f"diffusers' format needs {name} {needed!r}, not {getattr(config, name)!r}")
    return {
        "in_channels": config.latent_channels,
        "num_layers": config.num_blocks,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "linear_head_dim": config.head_dim,
        "softmax_every_n": config.softmax_every,
        "conv_kernel_size": config.key_conv_taps,
        "mlp_ratio": float(config.ffn_ratio),
        "caption_channels": config.text_channels,
        "chunk_plucker_channels": 6 * config.camera_grid.time_stride,
        "chunk_plucker_post_attn_blocks": config.num_blocks,
    }


def from_diffusers_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Our config of a `SanaWMTransformer3DModel.config`, with the switches its code needs.

    Raises ValueError naming each setting we have no equal of.
    """
    unsupported = []
    expected = {
        "patch_size": (1, 1, 1),
        "ffn_type": "GLUMBConvTemp",
        "t_kernel_size": 3,
        "k_conv_only": True,
        "pos_embed_type": "wan_rope",
        "qk_norm": True,
        "cross_norm": True,
        "y_norm": True,
        "cam_attn_compress": 1,
        "use_chunk_plucker_post_attn": True,
        "mlp_acts": ("silu", "silu", None),
        "use_pe": True,
        "pred_sigma": False,
    }
    for name, value in expected.items():
        given = settings.get(name, value)
        given = tuple(given) if isinstance(given, list) else given
        if given != value:
            unsupported.append(f"{name}={given!r} (we have {value!r})")
    blocks = settings["num_layers"]
    plucker_blocks = settings.get("chunk_plucker_post_attn_blocks", -1)
    if 0 <= plucker_blocks < blocks:
        unsupported.append(f"chunk_plucker_post_attn_blocks={plucker_blocks} of {blocks}")
    if settings["hidden_size"] // settings["linear_head_dim"] != settings["num_attention_heads"]:
        unsupported.append("self- and cross-attention with different numbers of heads")
    if settings["mlp_ratio"] != int(settings["mlp_ratio"]) or settings["chunk_plucker_channels"] % 6:
        unsupported.append("fractional mlp_ratio or chunk_plucker_channels / 6")
    if unsupported:
        raise ValueError("this SanaWMTransformer3DModel is not ours to load: " + "; ".join(unsupported))
    config = ModelConfig(
        width=settings["hidden_size"],
        num_blocks=blocks,
        num_heads=settings["num_attention_heads"],
        latent_channels=settings["in_channels"],
        text_channels=settings["caption_channels"],
        softmax_every=settings["softmax_every_n"],
        ffn_ratio=int(settings["mlp_ratio"]),
        key_conv_taps=settings["conv_kernel_size"],
    )
    config = release(config)
    grid = dataclasses.replace(config.camera_grid, time_stride=settings["chunk_plucker_channels"] // 6)
    return dataclasses.replace(config, camera_grid=grid)


def from_diffusers(model: WorldModel, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loads a diffusers state dict into `model`; returns the tensors of it that nothing reads.

    Raises ValueError naming every tensor that is missing, left over or of another shape.
    """
    ours = model.state_dict()
    unread = {name: theirs[name] for name in unread_shapes(model.config) if name in theirs}
    wanted = {source for name in ours for source in _sources(name, model.config)}
    missing = sorted(wanted - set(theirs))
    extra = sorted(set(theirs) - wanted - set(unread))
    problems = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in extra]
    loaded = {}
    for name, ours_tensor in ours.items():
        sources = _sources(name, model.config)
        if not set(sources) <= set(theirs):
            continue
        joined = torch.cat([theirs[source] for source in sources])
        if joined.numel() != ours_tensor.numel() or joined.shape[:1] != ours_tensor.shape[:1]:
            problems.append(f"{sources} is {tuple(joined.shape)}, ours {tuple(ours_tensor.shape)}")
            continue
        loaded[name] = joined.reshape(ours_tensor.shape)
    if problems:
        raise ValueError(f"{len(problems)} tensors do not fit: " + "; ".join(problems[:20]))
    model.load_state_dict(loaded)
    return unread


def released_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict, under our names, of a `transformer` folder of a diffusers repository (config.json and safetensors).

    Raises ValueError for a folder of another model or with tensors that do not fit.
    """
    from safetensors.torch import load_file

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.get("_class_name") != "SanaWMTransformer3DModel":
        raise ValueError(
            f"{folder} has no SanaWMTransformer3DModel: its config.json says {settings.get('_class_name')!r}"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors: download its weights")
    theirs = {name: tensor for file in files for name, tensor in load_file(file).items()}
    with torch.device("meta"):
        model = WorldModel(from_diffusers_config(settings))
    model.to_empty(device="cpu")
    from_diffusers(model, theirs)
    return model.state_dict()


def to_diffusers(model: WorldModel, unread: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A complete diffusers state dict of `model`.

    diffusers' code has the release's switches on; a model made with others gives other results there, which
    is logged. `unread` gives the tensors nothing reads, as `from_diffusers` returned them; those it lacks
    are zero.
    """
    diffusers_config(model.config)
    if differing := release_differences(model.config):
        logger.warning("diffusers will run this model with other settings: %s", ", ".join(differing))
    theirs: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        sources = _sources(name, model.config)
        for source, part in zip(sources, tensor.chunk(len(sources)), strict=True):
            theirs[source] = part.reshape(_their_shape(source, part))
    like = model.latent_in.weight
    for name, shape in unread_shapes(model.config).items():
        given = (unread or {}).get(name)
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} is {tuple(given.shape)}, expected {tuple(shape)}")
        theirs[name] = like.new_zeros(shape) if given is None else given
    return theirs


def release_differences(config: ModelConfig) -> list[str]:
    """Settings of `config` in which diffusers' code differs, as "name: ours, theirs"."""
    released = release(config)
    differing = []
    for part in ("quirks", "camera_grid"):
        ours, theirs = getattr(config, part), getattr(released, part)
        for field in dataclasses.fields(ours):
            values = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name != "time_stride" and values[0] != values[1]:
                differing.append(f"{field.name}: {values[0]}, {values[1]}")
    return differing


def unread_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shapes of the tensors of diffusers' format that its own code never reads."""
    width, heads = config.width, config.num_heads
    shapes = {"raymap_embedder.proj.weight": (width, 3, 1, 1, 1), "raymap_embedder.proj.bias": (width,)}
    for i in range(config.num_blocks):
        shapes[f"blocks.{i}.attn.recall_gate"] = (1,)
        if config.is_softmax(i):
            for gate in ("beta_proj", "gate_proj"):
                shapes[f"blocks.{i}.attn.{gate}.weight"] = (heads, width)
                shapes[f"blocks.{i}.attn.{gate}.bias"] = (heads,)
            shapes[f"blocks.{i}.attn.A_log"] = (heads,)
            shapes[f"blocks.{i}.attn.dt_bias"] = (heads,)
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def _sources(name: str, config: ModelConfig) -> list[str]:
    """The diffusers tensors that make up our tensor `name`, in order along its first dimension."""
    prefix, table, rest = "", _TOP, name
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        prefix, table = f"blocks.{index}.", _BLOCK
    for ending in ("", ".weight", ".bias"):
        stem = rest.removesuffix(ending) if ending else rest
        if ending and stem == rest:
            continue
        if stem == _CAMERA_QKV:
            return [f"{prefix}{part}{ending}" for part in _CAMERA_PARTS]
        if stem in table:
            return [f"{prefix}{table[stem]}{ending}"]
    raise ValueError(f"{name} has no place in diffusers' format (camera {config.camera!r})")


def _their_shape(source: str, tensor: Tensor) -> tuple[int, ...]:
    """1 x 1 convolutions are linear layers here."""
    if source.endswith("_embedder.proj.weight"):
        return (*tensor.shape, 1, 1, 1)
    if source.endswith(("inverted_conv.conv.weight", "point_conv.conv.weight")):
        return (*tensor.shape, 1, 1)
    if source.endswith(("conv_k.weight", "conv_k_cam.weight")):
        return (tensor.shape[0], 1, tensor.shape[1])
    return (*tensor.shape, 1) if source.endswith("t_conv.weight") else tuple(tensor.shape)

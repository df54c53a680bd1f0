"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear layers of attention and feed-forward, by peft."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worldline.model.world_model import WorldModel

LAYERS = (
    r"blocks\.\d+\.(attention\.(main\.qkv|output_gate|out)"
    r"|cross_attention\.(query|key_value|out)|feed_forward\.(expand|contract))"
)
"""Adapted layers. The camera's branches stay as they were trained."""

_NAME = "default"  # peft's


def with_lora(model: WorldModel, rank: int) -> WorldModel:
    """Adds adapters of a rank to the model, in place, and freezes all else; they start without effect.

    The update is (alpha / rank) B A with alpha = rank. Raises ValueError where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ValueError(f"adapters need {error.name}: pip install 'worldline[train]'") from error
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS)
    inject_adapter_in_model(settings, model, adapter_name=_NAME)
    return model


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' parameters by name."""
    return {name: value for name, value in model.state_dict().items() if ".lora_" in name}


@torch.no_grad()
def merged(model: WorldModel, adapters: Mapping[str, Tensor] | None = None) -> WorldModel:
    """The model, in place, with adapters added to its weights and gone; those given instead of its own.

    Adapters trained on a many-step model may so be merged into its few-step descendant. Raises ValueError where the
    given ones are not those of the model's layers.
    """
    if adapters is not None:
        own = adapter_state(model)
        if own.keys() != adapters.keys() or any(own[n].shape != v.shape for n, v in adapters.items()):
            raise ValueError("these adapters are of another model, or of another rank")
        model.load_state_dict(dict(adapters), strict=False)
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.merge(adapter_names=[_NAME])
            model.set_submodule(name, layer.get_base_layer())
    return model.requires_grad_(True)

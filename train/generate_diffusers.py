"""Video generation with the released SANA-WM: diffusers' SanaWMPipeline behind our `Generator`."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import SanaWMPipeline
from PIL import Image

from worldline.train.generate import GenerateConfig, Generated


class DiffusersGenerator:
    """A SanaWMPipeline folder or repository, with the parts moved to the device only while they work."""

    def __init__(self, model: str, *, device: str, dtype: str) -> None:
        self.device = device
        self.pipeline = SanaWMPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype))
        if device.startswith("cuda"):
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            self.pipeline.to(device)

    def __call__(
        self,
        config: GenerateConfig,
        image_rgb: np.ndarray,
        world_from_cam: np.ndarray,
        fxfycxcy_px: np.ndarray,
    ) -> Generated:
        """See `Generator`. A path longer than `num_frames` is cut, a shorter one makes a shorter video."""
        last_row = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(world_from_cam), 1, 4))
        poses = np.concatenate([world_from_cam, last_row], axis=1).astype(np.float32)
        output = self.pipeline(
            image=Image.fromarray(image_rgb),
            prompt=config.prompt,
            c2w=poses,
            intrinsics=fxfycxcy_px.astype(np.float32),
            height=config.height,
            width=config.width,
            num_frames=161 if config.num_frames is None else config.num_frames,
            fps=config.fps,
            num_inference_steps=config.steps,
            guidance_scale=5.0 if config.guidance is None else config.guidance,
            generator=torch.Generator("cpu").manual_seed(config.seed),
            output_type="np",
        )
        frames = np.clip(np.rint(255 * np.asarray(output.frames)), 0, 255).astype(np.uint8)
        return Generated(
            frames=frames, world_from_cam=np.asarray(output.c2w)[:, :3], fps=config.fps, how="one pass"
        )

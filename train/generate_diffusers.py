"""Video generation with the released SANA-WM: diffusers' SanaWMPipeline, and its refiner, behind our `Generator`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import SanaWMLTX2Refiner, SanaWMPipeline
from PIL import Image

from worldline.train.generate import GenerateConfig, Generated


class DiffusersGenerator:
    """A SanaWMPipeline folder or repository, with the parts moved to the device only while they work.

    `GenerateConfig.refine` names the folder or repository of a SanaWMLTX2Refiner, which goes over the latents in blocks
    of three with a bounded window. It leaves out the first frame, which is given.
    """

    def __init__(self, model: str, *, device: str, dtype: str) -> None:
        self.device, self.dtype = device, getattr(torch, dtype)
        self.pipeline = SanaWMPipeline.from_pretrained(model, torch_dtype=self.dtype)
        self._place(self.pipeline)

    def _place(self, pipeline: Any) -> None:
        if self.device.startswith("cuda"):
            pipeline.enable_model_cpu_offload(device=self.device)
        else:
            pipeline.to(self.device)

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
            output_type="np" if config.refine is None else "latent",
        )
        made, path, how = output.frames, np.asarray(output.c2w)[:, :3], "one pass"
        if config.refine is not None:
            made = self._refined(config, made)
            # Its poses go on from the given frame, which is not among them.
            path, how = path[-len(made) :], "one pass, refined"
        frames = np.clip(np.rint(255 * np.asarray(made)), 0, 255).astype(np.uint8)
        return Generated(frames=frames, world_from_cam=path, fps=config.fps, how=how)

    def _refined(self, config: GenerateConfig, latents: torch.Tensor) -> np.ndarray:
        """Frames [F - 1, H, W, 3] in [0, 1]."""
        refiner = SanaWMLTX2Refiner.from_pretrained(
            str(config.refine), torch_dtype=self.dtype, vae=self.pipeline.vae
        )
        self._place(refiner)
        generator = torch.Generator("cpu").manual_seed(config.seed)
        return np.asarray(refiner(latents, config.prompt, fps=float(config.fps), generator=generator))

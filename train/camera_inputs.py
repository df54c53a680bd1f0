"""A batch of the loader's clips in, the model's camera conditions out: one call of the model's own function.

Per-latent cameras and raw-frame ray maps are made here, on the training device, and nowhere else: what training
sees and what generation sees cannot differ.
"""

from __future__ import annotations

from worldline.datasets.transforms import ClipView
from worldline.model.camera_embedding import CameraConditions, CameraGridConfig, camera_conditions
from worldline.model.rope import Grid


def camera_inputs(
    clips: ClipView,
    *,
    cell_px: int = 32,
    kind: str = "ucpe",
    head_dim: int = 128,
    with_plucker: bool = True,
    config: CameraGridConfig | None = None,
) -> CameraConditions:
    """Conditions of a collated batch [B, F, ...] whose latent cells cover `cell_px` pixels.

    Raises ValueError where the size is no whole number of cells or F does not fit the time stride.
    """
    config = config or CameraGridConfig()
    width, height = clips.size_px
    if width % cell_px or height % cell_px:
        raise ValueError(f"{width}x{height} is no whole number of {cell_px} px cells")
    num_frames = clips.first_from_cam.shape[1]
    if (num_frames - 1) % config.time_stride:
        raise ValueError(f"{num_frames} frames do not fit latent frames of {config.time_stride}")
    grid = Grid(
        num_frames=1 + (num_frames - 1) // config.time_stride,
        height=height // cell_px,
        width=width // cell_px,
    )
    return camera_conditions(
        clips.first_from_cam,
        clips.intrinsics(),
        grid=grid,
        kind=kind,
        head_dim=head_dim,
        with_plucker=with_plucker,
        config=config,
    )

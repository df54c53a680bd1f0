"""What a rendered clip is made from, and what is then known about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import CAMERA_MODELS, Intrinsics
from worldline.datasets.camera_paths import PATHS
from worldline.datasets.synthetic_scenes import SCENES


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """One rendered clip."""

    scene: str = "room"
    """room, desk, corridor, plane, street or outdoor."""
    path: str = "handheld"
    """static, handheld, walking, driving, orbiting, pure_rotation, zooming, dolly, straight, loop, backtrack,
    spline or excursions (camera_paths.py says what each does)."""
    seed: int = 0
    """Decides the scene, the path and the noise."""
    place_seed: int | None = None
    """Decides the scene in place of `seed`, for several paths through one place."""
    width: int = 640
    """Pixels, even (4:2:0 video)."""
    height: int = 360
    """Pixels, even."""
    fps: float = 30.0
    """Frames per second."""
    num_frames: int = 90
    """Frames; loop, dolly and backtrack stretch to fill them."""
    fov_x_deg: float = 65.0
    """Horizontal field of view at the start, lens distortion included; a phone's main camera sees 65-70."""
    pixel_aspect: float = 1.0
    """fy / fx."""
    principal_offset_px: tuple[float, float] = (0.0, 0.0)
    """Principal point minus image centre."""
    camera_model: str = "pinhole"
    """pinhole, radial or fisheye."""
    distortion: tuple[float, ...] = ()
    """The lens model's (k1, k2); empty for pinhole."""
    zoom: float | None = None
    """Final focal length over the first; None: 1.6 on the zooming path, 1 on the others."""
    speed_m_s: float | None = None
    """Speed of walking, driving, orbiting, dolly, straight and backtrack; None: their usual
    speed (walking 1.4, in room and desk 0.7; driving 10)."""
    num_moving: int = 0
    """People (cars where the camera drives) that move through the view."""
    moving_share: float = 0.06
    """Share of the image that they cover together, roughly; 0.4 makes one a large moving foreground."""
    motion_blur: float = 0.0
    """Exposure time over frame time, 0-1; the exposure is centred on the time stamp."""
    noise: float = 0.0
    """Standard deviation of sensor noise in grey levels; 3-8 is a dim room."""
    flicker: float = 0.0
    """Relative amplitude of exposure changes; 0.1 is a nervous auto-exposure."""
    texture_contrast: float = 1.0
    """Scales each texture's deviation from its mean colour; 0.1 leaves bare, low-texture surfaces."""
    crf: int = 16
    """x264 quality: 12 is near lossless, 23 web video."""
    depth_every: int = 0
    """Writes the depth of every n-th frame as a 16-bit PNG in millimetres; 0: none."""

    def __post_init__(self) -> None:
        if self.scene not in SCENES:
            raise ValueError(f"scene {self.scene!r}: known are {list(SCENES)}")
        if self.path not in PATHS:
            raise ValueError(f"path {self.path!r}: known are {list(PATHS)}")
        if self.path == "driving" and self.scene != "street":
            raise ValueError("driving needs the street scene")
        if self.path == "excursions" and self.scene != "room":
            raise ValueError("excursions need the room scene")
        if self.width < 16 or self.height < 16 or self.width % 2 or self.height % 2:
            raise ValueError(f"size {self.width}x{self.height}: both even and at least 16")
        if self.fps <= 0 or self.num_frames < 1:
            raise ValueError("fps and num_frames must be positive")
        if not 5 <= self.fov_x_deg <= 160:
            raise ValueError(f"fov_x_deg {self.fov_x_deg}: between 5 and 160")
        if self.camera_model not in CAMERA_MODELS or len(self.distortion) != CAMERA_MODELS[self.camera_model]:
            raise ValueError(
                f"camera {self.camera_model!r} with distortion {self.distortion}: see CAMERA_MODELS"
            )
        if not 0 <= self.motion_blur <= 1 or self.noise < 0 or self.flicker < 0 or self.texture_contrast < 0:
            raise ValueError("motion_blur in 0-1; noise, flicker and texture_contrast not negative")
        if self.num_moving < 0 or not 0 < self.moving_share < 1:
            raise ValueError("num_moving not negative; moving_share between 0 and 1")
        if self.zoom is not None and self.zoom <= 0:
            raise ValueError("zoom must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What is exactly known about a rendered clip."""

    timestamps_s: np.ndarray
    """[T] float64, as in the container."""
    world_from_cam: np.ndarray
    """[T, 3, 4] float64 metres; the first is the identity."""
    intrinsics: Intrinsics
    """fxfycxcy_px [T, 4] with size and lens."""
    gravity_in_world: np.ndarray
    """[3] unit vector, downwards."""

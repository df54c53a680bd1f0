"""A configuration in, a rendered video with exact camera poses, intrinsics and depth out.

Scenes are textured like real ones and of real size; everything follows from the seed. Used by tests, the demo
and the benchmarks, and as training data whose geometry is known. Needs the extra `worldline[render]` and no
GPU.

    clip = write_clip(SyntheticConfig(scene="street", path="driving"), Path("out"))
    python -m worldline.datasets.synthetic --scene room --path walking --out out
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import tyro

from worldline.annotate.camera import Intrinsics, compose, invert, quat_xyzw_from_rotation
from worldline.datasets.camera_paths import SPEED_M_S, CameraPath, scene_from_cam
from worldline.datasets.clip_video import x264_params
from worldline.datasets.synthetic_config import SyntheticConfig, Truth
from worldline.datasets.synthetic_lens import Lens
from worldline.datasets.synthetic_mesh import FIRST_MOVING
from worldline.datasets.synthetic_movers import Movers
from worldline.datasets.synthetic_renderer import Renderer
from worldline.datasets.synthetic_scenes import build_scene

__all__ = [
    "ClipRenderer",
    "SyntheticClip",
    "SyntheticConfig",
    "Truth",
    "load_clip",
    "render_clip",
    "truth_of",
    "write_clip",
]

TICKS_PER_S = 90_000
"""The container's clock: 30, 29.97, 25, 24 and 16 frames/s all fall on whole ticks."""

_BLUR_SAMPLES = 8

Frame = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(image [H, W, 3] uint8 RGB, depth_m [H, W] float32, is_moving [H, W] bool)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticClip:
    """A rendered clip on disk."""

    folder: Path
    config: SyntheticConfig
    truth: Truth

    @property
    def video_path(self) -> Path:
        return self.folder / "video.mp4"

    @property
    def groundtruth_path(self) -> Path:
        """TUM text: seconds, then t tx ty tz qx qy qz qw of world_from_cam, metres."""
        return self.folder / "groundtruth.tum"

    def depth_path(self, frame_idx: int) -> Path:
        return self.folder / "depth_mm" / f"{frame_idx:06d}.png"

    def depth_m(self, frame_idx: int) -> np.ndarray:
        """[H, W] float32 depth along z from the stored millimetres; 0 where unknown (sky, or beyond 65.5 m).

        Raises ValueError for a frame whose depth was not written.
        """
        if not self.depth_path(frame_idx).is_file():
            raise ValueError(f"no depth stored for frame {frame_idx}: see depth_every")
        depth_mm = cv2.imread(str(self.depth_path(frame_idx)), cv2.IMREAD_UNCHANGED)
        if depth_mm is None:
            raise ValueError(f"{self.depth_path(frame_idx)}: not a readable image")
        return depth_mm.astype(np.float32) / 1000


class ClipRenderer:
    """Renders any frame of one clip; a context manager. Frames do not depend on the order of the calls."""

    def __init__(self, config: SyntheticConfig) -> None:
        """Raises MissingBackend without moderngl or EGL, ValueError where the lens cannot be rendered."""
        self.config = config
        ticks = np.round(np.arange(config.num_frames) * TICKS_PER_S / config.fps)
        times_s = ticks / TICKS_PER_S
        duration_s = max(float(times_s[-1]), 1 / config.fps)
        place = config.seed if config.place_seed is None else config.place_seed
        scene = build_scene(config.scene, seed=place, route_length_m=_route_length_m(config, duration_s))
        self._path = CameraPath(
            config.path, scene.space, seed=config.seed, duration_s=duration_s, speed_m_s=config.speed_m_s
        )
        self._duration_s = duration_s
        first = self._intrinsics(np.zeros(1))
        self._movers = Movers(
            scene.mesh,
            self._path,
            scene.space,
            num=config.num_moving,
            share=config.moving_share,
            are_cars=config.path == "driving",
            fov_rad=tuple(float(a) for a in first.fov_rad()[0]),  # type: ignore[arg-type]
        )
        textures = _with_contrast(scene.mesh.textures(), config.texture_contrast)
        poses = scene_from_cam(self._path(times_s))
        gravity = poses[0, :, :3].T @ np.array([0.0, 0.0, -1.0])
        world_from_cam = compose(invert(poses[:1]), poses)
        world_from_cam[0] = np.eye(3, 4)
        self.truth = Truth(
            timestamps_s=times_s,
            world_from_cam=world_from_cam,
            intrinsics=self._intrinsics(times_s),
            gravity_in_world=gravity,
        )
        self._lens: tuple[bytes, Lens] | None = None
        self._renderer = Renderer(scene.mesh.vertices(), textures)

    def __enter__(self) -> ClipRenderer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._renderer.close()

    def image(self, frame_idx: int) -> np.ndarray:
        """[H, W, 3] uint8 RGB."""
        config, time_s = self.config, float(self.truth.timestamps_s[frame_idx])
        if config.motion_blur == 0 and config.noise == 0 and config.flicker == 0:
            return self._image_at(time_s)
        image = self._exposed(time_s)
        rng = np.random.default_rng([config.seed, frame_idx, 7])
        slow = math.sin(2 * math.pi * 0.6 * time_s + config.seed)
        image *= 1 + config.flicker * (0.7 * slow + 0.3 * rng.uniform(-1, 1))
        if config.noise > 0:
            image += np.float32(config.noise) * rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def _exposed(self, time_s: float) -> np.ndarray:
        """[H, W, 3] float32: the mean over the time the shutter is open, centred on time_s."""
        config = self.config
        if config.motion_blur == 0:
            return self._image_at(time_s).astype(np.float32)
        shutter = (np.arange(_BLUR_SAMPLES) + 0.5) / _BLUR_SAMPLES - 0.5
        total = np.zeros((config.height, config.width, 3), np.float32)
        for offset in shutter * config.motion_blur / config.fps:
            total += self._image_at(time_s + float(offset))
        return total / _BLUR_SAMPLES

    def depth_and_mask(self, frame_idx: int) -> tuple[np.ndarray, np.ndarray]:
        """Depth along z [H, W] float32 in metres at pixel centres (inf: sky), and is_moving [H, W] bool."""
        time_s = float(self.truth.timestamps_s[frame_idx])
        camera, lens = self._camera_at(time_s)
        depth_m, objects = self._renderer.depth(
            camera, self._pose_at(time_s), self._movers.scene_from_object(time_s)
        )
        if lens is not None:
            depth_m, objects = lens.depth(depth_m), lens.labels(objects)
        return depth_m, objects >= FIRST_MOVING

    def frame(self, frame_idx: int) -> Frame:
        """Image, depth and moving mask of one frame."""
        return self.image(frame_idx), *self.depth_and_mask(frame_idx)

    def _pose_at(self, time_s: float) -> np.ndarray:
        return scene_from_cam(self._path(np.array([time_s])))[0]

    def _image_at(self, time_s: float) -> np.ndarray:
        camera, lens = self._camera_at(time_s)
        objects = self._movers.scene_from_object(time_s)
        image = self._renderer.image(camera, self._pose_at(time_s), objects)
        return image if lens is None else lens.image(image)

    def _camera_at(self, time_s: float) -> tuple[Intrinsics, Lens | None]:
        """The pinhole camera to render with, and the lens that bends its image."""
        many = self._intrinsics(np.array([time_s]))
        camera = dataclasses.replace(many, fxfycxcy_px=many.fxfycxcy_px[0])
        if camera.model == "pinhole":
            return camera, None
        key = camera.fxfycxcy_px.tobytes()
        if self._lens is None or self._lens[0] != key:
            self._lens = key, Lens(camera)
        return self._lens[1].source, self._lens[1]

    def _intrinsics(self, times_s: np.ndarray) -> Intrinsics:
        """fxfycxcy_px [N, 4]: the focal length eases from its first to its last value."""
        config = self.config
        zoom = config.zoom if config.zoom is not None else (1.6 if config.path == "zooming" else 1.0)
        share = np.clip(times_s / self._duration_s, 0, 1)
        factor = zoom ** (share**2 * (3 - 2 * share))
        fx = factor * _focal_px(config)
        cx, cy = (
            config.width / 2 + config.principal_offset_px[0],
            config.height / 2 + config.principal_offset_px[1],
        )
        return Intrinsics(
            fxfycxcy_px=np.stack([fx, fx * config.pixel_aspect, 0 * fx + cx, 0 * fx + cy], axis=-1),
            width=config.width,
            height=config.height,
            model=config.camera_model,
            distortion=config.distortion,
        )


def render_clip(config: SyntheticConfig) -> Iterator[Frame]:
    """Yields (image, depth_m, is_moving) of each frame in turn; see ClipRenderer for shapes and errors."""
    with ClipRenderer(config) as renderer:
        for frame_idx in range(config.num_frames):
            yield renderer.frame(frame_idx)


def truth_of(config: SyntheticConfig) -> Truth:
    """The exact poses and intrinsics of a clip without writing it."""
    with ClipRenderer(config) as renderer:
        return renderer.truth


def write_clip(config: SyntheticConfig, folder: Path) -> SyntheticClip:
    """Renders a clip into video.mp4 (h264, 4:2:0), truth.npz, groundtruth.tum, camera.json and depth_mm/."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    with ClipRenderer(config) as renderer, av.open(str(folder / "video.mp4"), "w") as container:
        clip = SyntheticClip(folder=folder, config=config, truth=renderer.truth)
        stream = container.add_stream("libx264", rate=Fraction(config.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = config.width, config.height, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS_PER_S)
        # x264's output depends on the number of threads.
        stream.options = {"crf": str(config.crf), "preset": "veryfast", "x264-params": x264_params(threads=2)}
        for frame_idx, time_s in enumerate(renderer.truth.timestamps_s):
            frame = av.VideoFrame.from_ndarray(renderer.image(frame_idx), format="rgb24")
            frame.pts, frame.time_base = round(time_s * TICKS_PER_S), Fraction(1, TICKS_PER_S)
            container.mux(stream.encode(frame))
            if config.depth_every and frame_idx % config.depth_every == 0:
                _write_depth(clip.depth_path(frame_idx), renderer.depth_and_mask(frame_idx)[0])
        container.mux(stream.encode(None))
    _write_truth(clip)
    return clip


def load_clip(folder: Path) -> SyntheticClip:
    """Reads what `write_clip` wrote."""
    stored: dict[str, Any] = json.loads((folder / "camera.json").read_text())["config"]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    config = SyntheticConfig(**fields)
    with np.load(folder / "truth.npz") as data:
        intrinsics = Intrinsics(
            fxfycxcy_px=data["fxfycxcy_px"],
            width=config.width,
            height=config.height,
            model=config.camera_model,
            distortion=config.distortion,
        )
        names = ("timestamps_s", "world_from_cam", "gravity_in_world")
        truth = Truth(intrinsics=intrinsics, **{name: data[name] for name in names})
    return SyntheticClip(folder=folder, config=config, truth=truth)


def find_clip(config: SyntheticConfig, folder: Path) -> SyntheticClip | None:
    """What `write_clip` wrote with this very config; None where it did not, or not to the end."""
    try:
        clip = load_clip(folder)
    except (OSError, ValueError):
        return None
    return clip if clip.config == config else None


def _write_depth(path: Path, depth_m: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    depth_mm = np.where(depth_m * 1000 < 65535.5, depth_m * 1000, 0)
    cv2.imwrite(str(path), np.rint(depth_mm).astype(np.uint16))


def _write_truth(clip: SyntheticClip) -> None:
    truth, config = clip.truth, clip.config
    np.savez_compressed(
        clip.folder / "truth.npz",
        timestamps_s=truth.timestamps_s,
        world_from_cam=truth.world_from_cam,
        fxfycxcy_px=truth.intrinsics.fxfycxcy_px,
        gravity_in_world=truth.gravity_in_world,
    )
    quat_xyzw = quat_xyzw_from_rotation(truth.world_from_cam[:, :, :3])
    table = np.column_stack([truth.timestamps_s, truth.world_from_cam[:, :, 3], quat_xyzw])
    np.savetxt(clip.groundtruth_path, table, fmt="%.9f")
    camera = {
        "width": config.width,
        "height": config.height,
        "model": config.camera_model,
        "distortion": list(config.distortion),
        "fxfycxcy_px_first_frame": truth.intrinsics.fxfycxcy_px[0].tolist(),
        "config": dataclasses.asdict(config),
    }
    (clip.folder / "camera.json").write_text(json.dumps(camera, indent=1) + "\n")


def _focal_px(config: SyntheticConfig) -> float:
    """fx with which the image spans fov_x_deg, lens distortion included."""
    half = math.radians(config.fov_x_deg) / 2
    if config.camera_model == "fisheye":
        radius, k = half, config.distortion
    else:
        radius, k = math.tan(half), config.distortion or (0.0, 0.0)
    return 0.5 * config.width / (radius * (1 + k[0] * radius**2 + k[1] * radius**4))


def _route_length_m(config: SyntheticConfig, duration_s: float) -> float:
    """How far the clip's camera may travel along its route: open scenes are built that long."""
    usual_m_s = 1.4 if config.path == "walking" else SPEED_M_S.get(config.path, 0.0)
    return duration_s * (usual_m_s if config.speed_m_s is None else config.speed_m_s)


def _with_contrast(textures: np.ndarray, contrast: float) -> np.ndarray:
    """Textures whose deviation from their mean colour is scaled."""
    if contrast == 1:
        return textures
    mean = textures.mean(axis=(1, 2), keepdims=True)
    return np.clip(np.rint(mean + contrast * (textures - mean)), 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Renders one clip and its truth into a folder."""

    out: Path
    """Folder for video.mp4, groundtruth.tum, truth.npz, camera.json and depth_mm/."""
    clip: tyro.conf.OmitArgPrefixes[SyntheticConfig]


def main(job: Job) -> int:
    """Writes the clip and says how long that took."""
    start_s = time.perf_counter()
    clip = write_clip(job.clip, job.out)
    wall_s = time.perf_counter() - start_s
    print(f"{clip.video_path}: {job.clip.num_frames} frames in {wall_s:.1f} s, with building the scene")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job)))

"""One scene of one video in, its camera trajectory and scores out: the road through the annotator.

No Ray here: `annotate_clip` runs the whole CPU geometry of a clip inside one call, on frames decoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.geometry import Geometry, GeometryConfig, estimate_geometry
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale import Scale, ScaleConfig, estimate_scale
from worldline.datasets.schema import METRIC, REJECTED, UP_TO_SCALE, ClipRejected

if TYPE_CHECKING:
    from worldline.annotate.scenes import Scene
    from worldline.annotate.video import VideoInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Geometry settings of one clip."""

    max_pixels: int = 500_000
    """Frames are scaled down to at most this many pixels before tracking; 640x480 and 960x540 stay as they
    are."""
    num_threads: int = 1
    """Threads of OpenCV and of the decoder inside the call."""
    fxfycxcy_px: tuple[float, float, float, float] | None = None
    """Known intrinsics in pixels of the source's full size, then held; None: estimated."""
    camera_model: str = "pinhole"
    """Lens model of known intrinsics: pinhole, radial or fisheye."""
    distortion: tuple[float, ...] = ()
    """(k1, k2) of known intrinsics."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)


def annotate_clip(
    info: VideoInfo,
    scene: Scene,
    config: ClipConfig,
    *,
    sidecar_path: Path | None = None,
) -> dict[str, Any]:
    """Annotates one scene.

    Returns the geometry and score columns of `datasets.schema.TRAJECTORIES`, per-frame arrays as flat lists;
    no identity or version columns, which the caller knows. Where no path can be found the columns hold the
    scores, `status` rejected and the `reason`. Writes the sparse structure to `sidecar_path` where given.
    Equal inputs give equal results. Raises ClipRejected where the scene has no readable frame.
    """
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(config.num_threads)
    with threadpool_limits(config.num_threads):
        return _annotate(info, scene, config, sidecar_path)


def _annotate(info: VideoInfo, scene: Scene, config: ClipConfig, sidecar_path: Path | None) -> dict[str, Any]:
    from worldline.filters.image import ImageScores
    from worldline.filters.motion import MotionScores

    image_scores, motion_scores = ImageScores(), MotionScores()
    times: list[float] = []
    frames = _frames(info, scene, config, times, (image_scores, motion_scores))
    row: dict[str, Any] = {}
    try:
        geometry = estimate_geometry(frames, times, config.geometry, known=_known(info, config))
    except ClipRejected as rejection:
        geometry = None
        row |= {"status": REJECTED, "reason": str(rejection)}
    except ValueError:
        if not times:
            raise ClipRejected("video", "no_frames", f"nothing decodes between {scene.span}") from None
        raise
    row |= _frame_columns(info, times)
    row |= image_scores.result() | motion_scores.result() | {"num_cuts": float(scene.num_cuts)}
    if geometry is not None:
        row |= _geometry_columns(info, geometry)
        scale = _scale(info, scene, geometry, config)
        row |= _path_columns(geometry, scale)
        reconstruction = geometry.reconstruction
        if sidecar_path is not None and reconstruction is not None and len(reconstruction.xy_px):
            _scaled(reconstruction, scale).save(sidecar_path)
    return row


def _frames(
    info: VideoInfo, scene: Scene, config: ClipConfig, times: list[float], scores: Sequence[Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(grey, rgb) of the scene, noting times and feeding the scores on the way."""
    import cv2

    from worldline.annotate.video import read_frames

    for frame in read_frames(info, scene.span, max_pixels=config.max_pixels, num_threads=config.num_threads):
        times.append(frame.timestamp_s)
        for score in scores:
            score.add(frame.image, frame.timestamp_s)
        image = _square_pixels(frame.image, config)
        yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image


def _square_pixels(image: np.ndarray, config: ClipConfig) -> np.ndarray:
    """The engine holds one focal length, so known unequal ones are made equal by stretching the image."""
    import cv2

    stretch = 1.0 if config.fxfycxcy_px is None else config.fxfycxcy_px[0] / config.fxfycxcy_px[1]
    if abs(stretch - 1) < 1e-3:
        return image
    return cv2.resize(image, (image.shape[1], round(image.shape[0] * stretch)), interpolation=cv2.INTER_AREA)


def _known(info: VideoInfo, config: ClipConfig) -> Intrinsics | None:
    if config.fxfycxcy_px is None:
        return None
    return Intrinsics(
        fxfycxcy_px=np.array(config.fxfycxcy_px, dtype=np.float64),
        width=info.width,
        height=info.height,
        model=config.camera_model,
        distortion=config.distortion,
    )


def _frame_columns(info: VideoInfo, times: list[float]) -> dict[str, Any]:
    gaps = np.diff(times)
    return {
        "fps": float(1 / gaps.mean()) if len(gaps) else None,
        "width": info.width,
        "height": info.height,
        "num_frames": len(times),
        "timestamps_s": [float(t) for t in times],
    }


def _geometry_columns(info: VideoInfo, geometry: Geometry) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "degeneracy": geometry.degeneracy,
        "num_observations": geometry.num_observations,
        "inlier_share": geometry.inlier_share,
        "parallax_deg": geometry.parallax_deg,
    }
    reconstruction = geometry.reconstruction
    if reconstruction is None:
        return columns | {"status": REJECTED, "reason": f"geometry: {geometry.degeneracy}"}
    if geometry.reprojection_px is not None:
        columns["reprojection_px"] = geometry.reprojection_px * info.width / reconstruction.intrinsics.width
    registered = reconstruction.is_registered
    full = reconstruction.intrinsics.resized(info.width, info.height)
    has_focal = bool(np.isfinite(full.fxfycxcy_px).all())
    columns |= {
        "fxfycxcy_px": full.fxfycxcy_px.reshape(-1).tolist() if has_focal else None,
        "camera_model": full.model if has_focal else None,
        "distortion": list(full.distortion) if has_focal else None,
        "is_registered": registered.tolist(),
        "num_registered": int(registered.sum()),
        "registered_share": float(registered.mean()),
        "num_points": len(reconstruction.points_in_world),
    }
    if has_focal:
        fov_deg = np.degrees(np.median(full.fov_rad(), axis=0))
        columns |= {"fov_x_deg": float(fov_deg[0]), "fov_y_deg": float(fov_deg[1])}
    if geometry.sigma is not None:
        focal_sigma = geometry.sigma.focal_px * info.width / reconstruction.intrinsics.width
        columns["focal_sigma_px"] = float(focal_sigma) if np.isfinite(focal_sigma) else None
    return columns


def _scale(info: VideoInfo, scene: Scene, geometry: Geometry, config: ClipConfig) -> Scale | None:
    """The metric scale; None where there is no structure to measure it on."""
    reconstruction = geometry.reconstruction
    if reconstruction is None or len(reconstruction.points_in_world) == 0:
        return None

    def grey_frames(wanted: Sequence[int]) -> Iterable[tuple[int, np.ndarray]]:
        import cv2

        from worldline.annotate.video import read_frames

        indices = set(wanted)
        frames = read_frames(info, scene.span, max_pixels=config.max_pixels, num_threads=config.num_threads)
        for idx, frame in enumerate(frames):
            if idx in indices:
                yield idx, cv2.cvtColor(_square_pixels(frame.image, config), cv2.COLOR_RGB2GRAY)

    focal_sigma = 0.0
    if geometry.sigma is not None and np.isfinite(geometry.sigma.focal_px):
        focal_sigma = geometry.sigma.focal_px / float(
            np.nanmedian(reconstruction.intrinsics.fxfycxcy_px[:, 0])
        )
    return estimate_scale(
        reconstruction, Path(info.path), config.scale, grey_frames=grey_frames, focal_sigma=focal_sigma
    )


def _scaled(reconstruction: Reconstruction, scale: Scale | None) -> Reconstruction:
    """The reconstruction in metres where the scale is known, as it is otherwise."""
    factor = scale.scale if scale is not None and scale.status == METRIC and scale.scale else 1.0
    cam_from_world = reconstruction.cam_from_world.copy()
    cam_from_world[:, :, 3] *= factor
    return replace(
        reconstruction, cam_from_world=cam_from_world, points_in_world=reconstruction.points_in_world * factor
    )


def _path_columns(geometry: Geometry, scale: Scale | None) -> dict[str, Any]:
    """Poses and their error bars, in metres where the scale is known."""
    if geometry.reconstruction is None:
        return {}
    reconstruction = _scaled(geometry.reconstruction, scale)
    registered = reconstruction.is_registered
    world_from_cam = np.full_like(reconstruction.cam_from_world, np.nan)
    world_from_cam[registered] = invert(reconstruction.cam_from_world[registered])
    columns: dict[str, Any] = {"world_from_cam": world_from_cam.reshape(-1).tolist()}
    centre, time = world_from_cam[registered][:, :, 3], reconstruction.timestamps_s[registered]
    if geometry.sigma is None:
        return columns | {"path_length": 0.0, "speed_median": 0.0}
    steps = np.linalg.norm(np.diff(centre, axis=0), axis=1)
    columns["path_length"] = float(steps.sum())
    columns["speed_median"] = float(np.median(steps / np.diff(time))) if len(steps) else None
    factor = 1.0
    if scale is not None:
        if scale.status == METRIC and scale.scale is not None:
            factor = scale.scale
        columns |= {
            "scale_status": scale.status,
            "scale": scale.scale,
            "scale_sigma": scale.sigma,
            "scale_cues": json.dumps([asdict(cue) for cue in scale.cues]),
            "gravity_in_world": None if scale.gravity_in_world is None else scale.gravity_in_world.tolist(),
        }
    else:
        columns["scale_status"] = UP_TO_SCALE
    if geometry.sigma is not None:
        columns["sigma_translation"] = (geometry.sigma.translation * factor).tolist()
        columns["sigma_rotation_rad"] = geometry.sigma.rotation_rad.tolist()
    return columns

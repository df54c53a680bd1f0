"""One scene of one video in, its camera trajectory and scores out: the road through the annotator.

No Ray here: `annotate_clip` runs the whole CPU geometry of a clip inside one call, on frames decoded once (a
second time where ground or depth is looked at).

Three modes. `estimate`: everything from the images. `gt_depth`: known depth replaces the estimator in the
bundle adjustment and gives the metre. `gt_pose`: a known trajectory is kept as it is, structure is triangulated
with it, and the path seen in the images says how far the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from worldline.annotate.camera import Intrinsics, invert
from worldline.annotate.clip_columns import (
    agreement_columns,
    camera_columns,
    depth_columns,
    frame_columns,
    geometry_columns,
    metres_per_unit,
    path_columns,
    scale_columns,
    scaled,
    sigma_columns,
)
from worldline.annotate.clip_depth import ClipDepth
from worldline.annotate.clip_frames import square_pixels
from worldline.annotate.decoder import made_ahead
from worldline.annotate.depth import NO_DEPTH, DepthConfig
from worldline.annotate.depth_adjustment import DepthAdjustmentConfig
from worldline.annotate.geometry import Geometry, GeometryConfig, estimate_geometry
from worldline.annotate.given import ESTIMATE, GT_DEPTH, GT_POSE, MODES, Given, GivenConfig
from worldline.annotate.given_path import GivenPath, keep_given_path
from worldline.annotate.reconstruction import Reconstruction
from worldline.annotate.scale import Scale, ScaleConfig, estimate_scale
from worldline.annotate.scale_cues import Cue, known_poses_cue
from worldline.datasets.schema import METRIC, REJECTED, UP_TO_SCALE, ClipRejected
from worldline.filters.camera import camera_scores
from worldline.filters.clip_scores import ClipScores, ScoresConfig

if TYPE_CHECKING:
    from worldline.annotate.scenes import Scene
    from worldline.annotate.video import VideoInfo

_FRAMES_AHEAD = 2
"""Frames decoded and scored while the one before is tracked, where there is a thread for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Geometry settings of one clip."""

    mode: Literal["estimate", "gt_depth", "gt_pose"] = ESTIMATE
    """estimate: all from the images; gt_depth: with known depth; gt_pose: on a known trajectory (`given`)."""
    max_pixels: int = 500_000
    """Frames are scaled down to at most this many pixels before tracking; 640x480 and 960x540 stay as they
    are."""
    num_threads: int = 1
    """Threads inside the call: of the decoder, of OpenCV and of this engine's own loops."""
    fxfycxcy_px: tuple[float, float, float, float] | None = None
    """Known intrinsics in pixels of the source's full size, then held; None: estimated."""
    camera_model: str = "pinhole"
    """Lens model of known intrinsics: pinhole, radial or fisheye."""
    distortion: tuple[float, ...] = ()
    """(k1, k2) of known intrinsics."""
    keep_depth: bool = False
    """Write depth maps of every `depth.stride`-th frame beside the clip's sidecar (docs/depth.md): of
    `depth.backend`, else of plane_sweep, which needs nothing but the clip."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    depth: DepthConfig = field(default_factory=lambda: DepthConfig(backend=NO_DEPTH, stride=5))
    """Estimator whose depth enters the bundle adjustment and, where metric, the scale."""
    depth_adjustment: DepthAdjustmentConfig = field(default_factory=DepthAdjustmentConfig)
    given: GivenConfig = field(default_factory=GivenConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    """Scores for curation (docs/scores.md)."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}: known are {', '.join(MODES)}")

    @property
    def stretch(self) -> float:
        """Factor on the image's height that makes known unequal focal lengths equal."""
        return 1.0 if self.fxfycxcy_px is None else self.fxfycxcy_px[0] / self.fxfycxcy_px[1]


def annotate_clip(
    info: VideoInfo,
    scene: Scene,
    config: ClipConfig,
    *,
    sidecar_path: Path | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """Annotates one scene.

    Returns the geometry and score columns of `datasets.schema.TRAJECTORIES`, per-frame arrays as flat lists;
    no identity or version columns, which the caller knows. Where no path can be found the columns hold the
    scores, `status` rejected and the `reason`. `given`: the video's known poses or depth, for the modes that
    use them. Writes the sparse structure to `sidecar_path` where given, and kept depth beside it under its name
    with the suffix `.depth.zip`. Equal inputs give equal results. Raises ClipRejected where the scene has no
    readable frame.
    """
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(config.num_threads)
    # Matrices here are small: threads of BLAS would wait for each other, and keep the cores from ours.
    with threadpool_limits(1):
        return _annotate(info, scene, config, sidecar_path, given)


def _annotate(
    info: VideoInfo, scene: Scene, config: ClipConfig, sidecar_path: Path | None, given: Given | None
) -> dict[str, Any]:
    scores = ClipScores(config.scores, coded_size=(info.width, info.height))
    times: list[float] = []
    frames = _frames(info, scene, config, times, scores)
    if config.num_threads > 1:
        frames = made_ahead(frames, count=_FRAMES_AHEAD)
    depth = _clip_depth(info, config, given)
    row: dict[str, Any] = {"mode": config.mode, "given_id": None if given is None else given.given_id}
    geometry: Geometry | None = None
    try:
        # The list of times is filled while the frames are drawn, before the map is handed to `depth`.
        geometry = estimate_geometry(
            frames, times, config.geometry, known=_known(info, config), adjust_map=_timed(depth, times)
        )
    except ClipRejected as rejection:
        row |= {"status": REJECTED, "reason": str(rejection)}
    except ValueError:
        if not times:
            raise ClipRejected("video", "no_frames", f"nothing decodes between {scene.span}") from None
        raise
    row |= frame_columns(info, times)
    row |= scores.result() | {"num_cuts": float(scene.num_cuts)}
    if config.mode == GT_POSE:
        columns, posed, scale = _on_given_path(info, scene, config, geometry, given, np.array(times))
        row |= columns
    elif geometry is not None:
        posed, scale = geometry.reconstruction, _scale(info, scene, geometry, config, depth)
        row |= geometry_columns(info, geometry)
        if posed is not None:
            row |= path_columns(posed, scale)
        if geometry.sigma is not None:
            row |= scale_columns(scale) | sigma_columns(geometry.sigma, scale)
        row |= depth_columns(depth)
    else:
        posed, scale = None, None
    row |= camera_scores(row)
    if sidecar_path is not None and posed is not None and len(posed.xy_px):
        whole = scaled(posed, scale)
        whole.save(sidecar_path)
        if config.keep_depth:
            depth.timestamps_s = np.array(times)
            depth.keep(sidecar_path.with_suffix(".depth.zip"), whole)
    return row


def _frames(
    info: VideoInfo, scene: Scene, config: ClipConfig, times: list[float], scores: ClipScores
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(grey, rgb) of the scene, noting times and feeding the scores on the way."""
    import cv2

    from worldline.annotate.video import read_frames

    for frame in read_frames(info, scene.span, max_pixels=config.max_pixels, num_threads=config.num_threads):
        times.append(frame.timestamp_s)
        scores.add(frame.image, frame.timestamp_s)
        image = square_pixels(frame.image, config.stretch)
        yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), image


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


def _clip_depth(info: VideoInfo, config: ClipConfig, given: Given | None) -> ClipDepth:
    """The clip's depth. Raises ClipRejected where given depth is wanted and there is none."""
    known = None
    if config.mode == GT_DEPTH:
        known = None if given is None else given.depth
        if known is None:
            raise ClipRejected(GT_DEPTH, "no given depth")
    return ClipDepth(
        info,
        config.depth,
        config.depth_adjustment,
        max_pixels=config.max_pixels,
        num_threads=config.num_threads,
        stretch=config.stretch,
        given=known,
        given_config=config.given,
    )


def _timed(depth: ClipDepth, times: list[float]) -> Any:
    def adjust_map(mapper: Any, tracks: Any) -> bool:
        depth.timestamps_s = np.array(times)
        return depth(mapper, tracks)

    return adjust_map


def _scale(
    info: VideoInfo, scene: Scene, geometry: Geometry, config: ClipConfig, depth: ClipDepth
) -> Scale | None:
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
                yield idx, cv2.cvtColor(square_pixels(frame.image, config.stretch), cv2.COLOR_RGB2GRAY)

    focal_sigma = 0.0
    if geometry.sigma is not None and np.isfinite(geometry.sigma.focal_px):
        focal_sigma = geometry.sigma.focal_px / float(
            np.nanmedian(reconstruction.intrinsics.fxfycxcy_px[:, 0])
        )
    return estimate_scale(
        reconstruction,
        Path(info.path),
        config.scale,
        grey_frames=grey_frames,
        measured_cues=depth.cues(reconstruction, config.scale.depth_sigma),
        focal_sigma=focal_sigma,
    )


def _on_given_path(
    info: VideoInfo,
    scene: Scene,
    config: ClipConfig,
    geometry: Geometry | None,
    given: Given | None,
    times: np.ndarray,
) -> tuple[dict[str, Any], Reconstruction | None, Scale | None]:
    """Columns, reconstruction and scale of a clip on its given trajectory; a rejection where that cannot be
    the clip's. What the images alone gave is kept for comparison only."""
    from worldline.annotate.video import working_size

    if given is None or given.poses is None:
        raise ClipRejected(GT_POSE, "no given poses")
    seen = None if geometry is None else geometry.reconstruction
    width, height = working_size(info.width, info.height, config.max_pixels)
    size_px = (width, round(height * config.stretch))
    try:
        path = keep_given_path(
            seen, given.poses, times, config.given, size_px=size_px, held=_known(info, config)
        )
    except ClipRejected as rejection:
        return {"status": REJECTED, "reason": str(rejection)}, None, None
    scale = _given_scale(info, scene, config, geometry, path)
    reconstruction = path.reconstruction
    columns: dict[str, Any] = {"status": "ok", "reason": None}
    if geometry is not None:
        columns |= {"degeneracy": geometry.degeneracy, "parallax_deg": geometry.parallax_deg}
    columns |= camera_columns(info, reconstruction)
    columns |= path_columns(reconstruction, scale) | scale_columns(scale)
    columns |= agreement_columns(path.agreement, metres_per_unit(scale))
    columns["num_observations"] = len(reconstruction.xy_px)
    if path.reprojection_px is not None:
        columns["reprojection_px"] = path.reprojection_px * info.width / reconstruction.intrinsics.width
    return columns, reconstruction, scale


def _given_scale(
    info: VideoInfo, scene: Scene, config: ClipConfig, geometry: Geometry | None, path: GivenPath
) -> Scale:
    """Metres per unit of a given trajectory: 1 where it is in metres; else from the cues of the path seen in
    the images, through the Sim(3) between the two."""
    seen = None if geometry is None else geometry.reconstruction
    own: Scale | None = None
    cues: tuple[Cue, ...] = ()
    gravity = None
    if geometry is not None and seen is not None and path.agreement is not None:
        own = _scale(info, scene, geometry, config, _clip_depth(info, replace(config, mode=ESTIMATE), None))
        known = known_poses_cue(seen, invert(path.reconstruction.cam_from_world))
        cues = (() if own is None else own.cues) + (() if known is None else (known,))
        if own is not None and own.gravity_in_world is not None:
            gravity = _in_first_camera(own.gravity_in_world, seen, path.reconstruction)
    if config.given.poses_are_metric:
        return Scale(status=METRIC, scale=1.0, sigma=None, cues=cues, gravity_in_world=gravity)
    unknown = Scale(
        status=UP_TO_SCALE, scale=None, sigma=None, cues=cues, gravity_in_world=gravity, reason="no cue"
    )
    if own is None or own.scale is None or own.sigma is None or path.agreement is None:
        return unknown
    # Metres per unit seen, over units given per unit seen.
    sigma = math.hypot(own.sigma, path.agreement.deviation_share / math.sqrt(10))
    return replace(
        unknown,
        status=METRIC,
        scale=own.scale / path.agreement.given_from_seen.scale,
        sigma=sigma,
        reason=None,
    )


def _in_first_camera(
    direction_in_seen: np.ndarray, seen: Reconstruction, given: Reconstruction
) -> np.ndarray | None:
    """A direction of the seen world in the given one, which is its first camera; None where the images lost
    that frame. Through the camera, since a straight path leaves Sim(3) free to roll."""
    first = int(np.flatnonzero(given.is_registered)[0])
    if not seen.is_registered[first]:
        return None
    return seen.cam_from_world[first, :, :3] @ direction_in_seen

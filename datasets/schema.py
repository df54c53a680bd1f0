"""The tables' contract: columns, units and conventions of a dataset folder, the exceptions, and the identities.

A dataset folder DIR holds `DIR/trajectories/*.parquet` (one row a scene) and `DIR/videos/*.parquet` (one row a source
file). Every scene and every file has exactly one row: `status` is ok, rejected or failed. An unknown value is null, never
a stand-in number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or goes; a new nullable column keeps the version."""

CONVENTIONS = {
    "axes": "OpenCV camera: x right, y down, z forward",
    "world_from_cam": "camera to world, 3x4 row-major [R|t], 12 floats a frame; first registered frame = identity",
    "length_unit": "metre where scale_status = metric, an arbitrary unit per clip where up_to_scale",
    "pixel_origin": "(0, 0) is the image's top-left corner; the first pixel's centre is (0.5, 0.5)",
    "fxfycxcy_px": "fx, fy, cx, cy in pixels of (width, height) after rotation metadata is applied, 4 floats a frame",
    "time": "seconds on the container's clock (PTS) of the source file",
    "angles": "radians",
    "covariance_gauge": "sigmas are relative to the first registered frame, whose own sigma is zero",
}

OK, REJECTED, FAILED = "ok", "rejected", "failed"
METRIC, UP_TO_SCALE = "metric", "up_to_scale"
PER_FRAME = {
    "timestamps_s": 1,
    "world_from_cam": 12,
    "fxfycxcy_px": 4,
    "is_registered": 1,
    "sigma_translation": 1,
    "sigma_rotation_rad": 1,
}
"""Per-frame lists -> numbers a frame."""

DEGENERACIES = ("ok", "static", "pure_rotation", "low_parallax", "planar", "zoom", "distorted", "too_short")

_NAMESPACE = uuid.UUID("6f1d2c5e-0c0e-5d8e-9b7b-7f6c1f4f9a10")


class ClipRejected(Exception):
    """This input cannot be annotated, for a reason that lies in the input and would be the same on a second try."""

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(stage, reason, detail)
        self.stage, self.reason, self.detail = stage, reason, detail

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class MissingBackend(Exception):
    """An optional package is not installed; the message names the pip extra that brings it."""


def _field(name: str, kind: pa.DataType, about: str, unit: str = "", *, nullable: bool = True) -> pa.Field:
    metadata = {"about": about} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


_TEXT, _INT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_PROVENANCE = [
    _field("source", _TEXT, "where the video comes from, as the user named it"),
    _field("licence", _TEXT, "licence of the video, as the user named it; null: unknown"),
    _field("path", _TEXT, "the media file: a local path or an fsspec URI"),
]

_OUTCOME = [
    _field(
        "status",
        _TEXT,
        "ok, rejected (the input's fault, see reason) or failed (an error, see error)",
        nullable=False,
    ),
    _field("reason", _TEXT, "stage: reason (detail) of a rejection or failure; null when ok"),
    _field("error", _TEXT, "traceback of a failure; null otherwise"),
    _field("replay", _TEXT, "shell command that runs this unit of work alone; null when ok"),
]

_VERSIONS = [
    _field("tool_version", _TEXT, "worldline version", nullable=False),
    _field("config_hash", _TEXT, "hash of the configuration that made this row", nullable=False),
]

_SCORES = [
    # Image (filters/image.py)
    _field("blur", _REAL, "Crete's blur effect: 0 sharp, 1 blurred; falls less with content than sharpness"),
    _field("border_share", _REAL, "share of the picture under black bars that stay"),
    _field("letterbox_share", _REAL, "share of the height under black bars at the top and bottom"),
    _field("pillarbox_share", _REAL, "share of the width under black bars at the sides"),
    _field("blockiness", _REAL, "steps on the codec's 8-pixel grid over steps off it; 1: no blocks"),
    _field("clipped_dark_share", _REAL, "share of pixels at luma 2 or less, outside the bars"),
    _field("clipped_bright_share", _REAL, "share of pixels at luma 253 or more, outside the bars"),
    _field("clipped_share", _REAL, "clipped_dark_share + clipped_bright_share"),
    _field("noise", _REAL, "Immerkaer's noise of the quietest quarter of the picture, grey levels"),
    _field(
        "impairment", _REAL, "worst of blur, blockiness and noise, no reference: 0 clean, 1 plainly spoilt"
    ),
    _field("piqe", _REAL, "PIQE no-reference quality at the working size: 0 best, 100 worst"),
    # Motion (filters/motion.py, filters/vmaf_motion.py)
    _field("flow_576x320_px", _REAL, "mean |component| of flow at 576x320: scale of UniMatch ranges", "px"),
    _field("flow_std_px", _REAL, "standard deviation over pairs of their mean flow, at working size", "px"),
    _field("flow_spread_px", _REAL, "mean over pairs of the flow's spread within the picture", "px"),
    _field(
        "moving_share", _REAL, "share of the points with known flow that move by themselves; null: too few"
    ),
    _field("frozen_share", _REAL, "share of frames that repeat the frame before"),
    _field("jitter", _REAL, "rms shake of the picture about its smoothed path, over its width"),
    _field("vmaf_motion", _REAL, "FFmpeg's vmafmotion: mean over frames at the working size and own rate"),
    # Overlay (filters/overlay.py)
    _field("text_area_share", _REAL, "share of the picture under text, mean over looks"),
    _field("text_persistence", _REAL, "share of looks in which the most lasting text is there"),
    _field("text_backend", _TEXT, "what found the text: edges (likeness only) or rapidocr (read)"),
    _field("subtitle_share", _REAL, "share of looks with a line of text low in the middle of the picture"),
    _field("logo_area_share", _REAL, "share of the picture under still edges; null where all of it is still"),
    _field(
        "split_screen",
        _REAL,
        "share of its length over which the strongest seam cuts the picture; null: still, perhaps",
    ),
    _field(
        "picture_in_picture", _REAL, "least share of an inset's sides that is a seam; null where all is still"
    ),
    # Content (filters/content.py), each by an optional detector
    _field("num_faces", _REAL, "faces a look: the most in any; null: not looked for"),
    _field("num_people", _REAL, "people a look: the 95th percentile; null: not looked for"),
    _field("num_vehicles", _REAL, "vehicles a look: the 95th percentile; null: not looked for"),
    _field("num_animals", _REAL, "animals a look: the 95th percentile; null: not looked for"),
    _field("num_entities", _REAL, "people, vehicles and animals, counted together; null: not looked for"),
    _field("vlm_quality", _REAL, "a vision-language model's verdict: 1 pass, 0 fail; null: not asked"),
    _field("vlm_flags", _TEXT, "JSON list of what it found wrong; null: not asked"),
    _field("aesthetic", _REAL, "LAION-type aesthetic score, 1-10; null: not scored"),
    _field("dover", _REAL, "DOVER quality, mean over 5 s chunks, 0-1; null: not scored"),
    _field("content_backends", _TEXT, "JSON object of score -> backend that gave it; null: none"),
    # Duplicates (filters/fingerprint.py)
    _field(
        "pixels_hash", _TEXT, "digest of the looked-at pixels: equal for remuxed copies read by one decoder"
    ),
    _field("fingerprint", pa.list_(_INT), "64-bit perceptual hashes, 3 crops a look; 0: too flat to tell"),
    # Camera (filters/camera.py), of the registered frames
    _field("focal_mismatch", _REAL, "|fx - fy| over their mean, median over frames"),
    _field("focal_variation", _REAL, "standard deviation over mean of fx, over frames"),
    _field("speed_mean", _REAL, "path_length over the time it took", "length_unit/s"),
    _field("speed_max", _REAL, "fastest half second", "length_unit/s"),
    _field("speed_variation", _REAL, "standard deviation over mean of the speed of half seconds"),
    _field("acceleration_rms", _REAL, "rms acceleration of the centre over half seconds", "length_unit/s2"),
    _field(
        "smoothness", _REAL, "rms of the path about its half-second smoothing, over the mean step of 0.5 s"
    ),
    _field("jump_share", _REAL, "share of frames off the path that their neighbours foretell"),
    _field("turn_rate", _REAL, "mean rate of turning", "deg/s"),
    _field("turn_rate_max", _REAL, "fastest half second of turning", "deg/s"),
    _field("turn_total_deg", _REAL, "angle turned along the path, all turns added up", "deg"),
    _field(
        "yaw_net_deg", _REAL, "turn to the right from first to last frame about the first's down axis", "deg"
    ),
    _field("yaw_range_deg", _REAL, "largest less smallest yaw", "deg"),
    _field("pitch_range_deg", _REAL, "largest less smallest pitch", "deg"),
    _field("roll_range_deg", _REAL, "largest less smallest roll", "deg"),
    _field("displacement", _REAL, "distance from first to last centre", "length_unit"),
    _field("straightness", _REAL, "displacement over path_length: 1 straight, 0 closed; null: no path"),
    _field("path_extent", _REAL, "largest distance of a centre from the first", "length_unit"),
    _field("num_turns", _INT, "changes of direction by more than 26 deg along the path"),
    _field("forward_share", _REAL, "share of the path along the optical axis; backwards counts negative"),
    _field("sideways_share", _REAL, "share of the path along the image's x axis, either way"),
    _field("vertical_share", _REAL, "share of the path along the image's y axis, either way"),
    _field("path_shape", _TEXT, "static, turn, forward, backward, sideways, vertical, arc, loop or mixed"),
    _field("sigma_translation_median", _REAL, "median of sigma_translation over frames", "length_unit"),
    _field("sigma_rotation_median_deg", _REAL, "median of sigma_rotation_rad over frames", "deg"),
    _field("sigma_share", _REAL, "sigma_translation_median over path_extent"),
]

VIDEOS = pa.schema(
    [
        _field(
            "video_id",
            _TEXT,
            "SHA-256 of the file's bytes, 32 hex digits; of the path where unreadable",
            nullable=False,
        ),
        *_PROVENANCE,
        _field("other_paths", pa.list_(_TEXT), "further paths with the same content, annotated once"),
        _field("size_bytes", _INT, "file size", "B"),
        _field("codec", _TEXT, "video codec"),
        _field("pixel_format", _TEXT, "FFmpeg pixel format"),
        _field("width", _INT, "display width after rotation", "px"),
        _field("height", _INT, "display height after rotation", "px"),
        _field("rotation_deg", _INT, "rotation metadata that was applied, clockwise", "deg"),
        _field("fps", _REAL, "mean frame rate over the file", "Hz"),
        _field("is_variable_rate", _FLAG, "the gaps between frame times differ by more than a tenth"),
        _field("num_frames", _INT, "frames that decode"),
        _field("duration_s", _REAL, "last frame time minus first plus one mean gap", "s"),
        _field("num_scenes", _INT, "rows of this video in trajectories/"),
        *_OUTCOME,
        *_VERSIONS,
    ],
    metadata={"worldline_schema": str(SCHEMA_VERSION), "worldline_conventions": json.dumps(CONVENTIONS)},
)

TRAJECTORIES = pa.schema(
    [
        _field("clip_id", _TEXT, "uuid5 of (video_id, start, end)", nullable=False),
        _field("video_id", _TEXT, "the video's content hash", nullable=False),
        *_PROVENANCE,
        _field("start_s", _REAL, "time of the first frame", "s", nullable=False),
        _field("end_s", _REAL, "time just after the last frame", "s", nullable=False),
        _field(
            "overlap_s",
            _REAL,
            "time shared with the previous window of the same shot; 0 for a shot's first",
            "s",
        ),
        _field("shot_idx", _INT, "counts the shots of the video from 0; windows of one shot share it"),
        _field("fps", _REAL, "mean frame rate over the scene", "Hz"),
        _field("width", _INT, "frame width that fxfycxcy_px refers to", "px"),
        _field("height", _INT, "frame height that fxfycxcy_px refers to", "px"),
        _field("num_frames", _INT, "frames in the scene: the length of every per-frame list"),
        _field("timestamps_s", pa.list_(_REAL), "container time of each frame", "s"),
        _field("world_from_cam", pa.list_(_REAL), "12 a frame; NaN where is_registered is false"),
        _field("fxfycxcy_px", pa.list_(_REAL), "4 a frame", "px"),
        _field("camera_model", _TEXT, "pinhole, radial or fisheye (annotate/camera.py)"),
        _field("distortion", pa.list_(_REAL), "the camera model's parameters"),
        _field("is_registered", pa.list_(_FLAG), "whether the frame has a pose"),
        _field(
            "sigma_translation",
            pa.list_(_REAL),
            "1-sigma of the camera centre, per axis (rms), a frame",
            "length_unit",
        ),
        _field(
            "sigma_rotation_rad", pa.list_(_REAL), "1-sigma of the rotation, per axis (rms), a frame", "rad"
        ),
        _field("num_registered", _INT, "frames with a pose"),
        _field("registered_share", _REAL, "num_registered / num_frames"),
        _field("degeneracy", _TEXT, "one of " + ", ".join(DEGENERACIES)),
        _field("scale_status", _TEXT, "metric or up_to_scale; null without a path"),
        _field("scale", _REAL, "metres per unit of the reconstruction before scaling; null: unknown"),
        _field("scale_sigma", _REAL, "relative 1-sigma of the scale; null: unknown"),
        _field("scale_cues", _TEXT, "JSON list of {cue, log_scale, sigma, is_used} that gave the scale"),
        _field(
            "gravity_in_world", pa.list_(_REAL), "unit vector of gravity in the world frame; null: unknown"
        ),
        _field("mode", _TEXT, "estimate, gt_depth or gt_pose: what was measured and what was given"),
        _field("given_id", _TEXT, "digest of the given poses or depth; null where nothing was given"),
        _field(
            "given_deviation",
            _REAL,
            "rms distance of the path seen in the images from the given one after Sim(3), best 80 % of frames",
            "length_unit",
        ),
        _field(
            "given_deviation_share", _REAL, "given_deviation over the rms extent of the given path's frames"
        ),
        _field("given_rotation_deviation_rad", _REAL, "median angle between seen and given rotations", "rad"),
        _field("depth_backend", _TEXT, "estimator of the depth that was used, or given; null: none"),
        _field("depth_frames", _INT, "keyframes whose depth entered the bundle adjustment"),
        _field("depth_residuals", _INT, "depth measurements in the bundle adjustment"),
        _field("depth_residual", _REAL, "rms of their log residuals, each frame's own scale taken out"),
        _field(
            "depth_scale_variation", _REAL, "standard deviation over mean of the depth's scale, over frames"
        ),
        _field(
            "depth_path", _TEXT, "depth maps of the clip, kept (docs/depth.md), relative to DIR; null: none"
        ),
        _field("focal_sigma_px", _REAL, "1-sigma of fx; 0 where it was given; null: unknown", "px"),
        _field("reprojection_px", _REAL, "rms reprojection error of inliers at (width, height)", "px"),
        _field("heldout_px", _REAL, "median reprojection error of tracks kept out of the adjustment", "px"),
        _field("num_points", _INT, "scene points in the adjustment"),
        _field("num_observations", _INT, "inlier observations in the adjustment"),
        _field("inlier_share", _REAL, "inlier observations over all tracked observations"),
        _field(
            "readout_s",
            _REAL,
            "time from a frame's first line to its last: of a rolling shutter, whose poses are those of the middle "
            "line; negative: from the last to the first; 0: no sign of one",
            "s",
        ),
        _field(
            "parallax_deg", _REAL, "median over points of the largest angle between two of its rays", "deg"
        ),
        _field("path_length", _REAL, "length of the camera's path", "length_unit"),
        _field("speed_median", _REAL, "median speed of the camera", "length_unit/s"),
        _field("fov_x_deg", _REAL, "median horizontal field of view", "deg"),
        _field("fov_y_deg", _REAL, "median vertical field of view", "deg"),
        _field("num_cuts", _INT, "scene cuts the detector sees inside the clip"),
        _field("luminance", _REAL, "mean luma, 0-255"),
        _field("contrast", _REAL, "mean over frames of the luma's standard deviation"),
        _field("saturation", _REAL, "mean HSV saturation, 0-255"),
        _field("sharpness", _REAL, "median variance of the Laplacian of luma at the working size"),
        _field("flow_px", _REAL, "mean optical flow of pairs 0.5 s apart, at the working size", "px"),
        _field("static_share", _REAL, "share of frame pairs whose median flow is under 0.1 px"),
        *_SCORES,
        _field(
            "sidecar_path",
            _TEXT,
            "sparse structure of the clip (annotate/reconstruction.py), relative to DIR; null: none",
        ),
        _field("caption", _TEXT, "scene-static caption; null: none yet"),
        *_OUTCOME,
        *_VERSIONS,
    ],
    metadata=VIDEOS.metadata,
)


SHOTS = pa.schema(
    [
        _field("shot_id", _TEXT, "uuid5 of (video_id, shot_idx, first frame's time)", nullable=False),
        _field("video_id", _TEXT, "the video's content hash", nullable=False),
        *_PROVENANCE,
        _field("shot_idx", _INT, "counts the shots of the video from 0", nullable=False),
        _field("piece_idx", _INT, "counts the unbroken stretches of the shot's path from 0", nullable=False),
        _field("num_pieces", _INT, "of the shot: 1 where the path never breaks", nullable=False),
        _field("start_s", _REAL, "time of the first frame", "s", nullable=False),
        _field("end_s", _REAL, "time just after the last frame", "s", nullable=False),
        _field("clip_ids", pa.list_(_TEXT), "the rows of trajectories/ it is made of, in order of time"),
        _field("width", _INT, "frame width that fxfycxcy_px refers to", "px"),
        _field("height", _INT, "frame height that fxfycxcy_px refers to", "px"),
        _field("num_frames", _INT, "frames: the length of every per-frame list"),
        _field("timestamps_s", pa.list_(_REAL), "container time of each frame, each once", "s"),
        _field("world_from_cam", pa.list_(_REAL), "12 a frame; NaN where is_registered is false"),
        _field("fxfycxcy_px", pa.list_(_REAL), "4 a frame, of the frame's clip", "px"),
        _field("camera_model", _TEXT, "where all clips have the same; null: see their rows"),
        _field("distortion", pa.list_(_REAL), "where all clips have the same; null: see their rows"),
        _field("clip_idx", pa.list_(_INT), "index into clip_ids of the clip each frame's lens is from"),
        _field("is_registered", pa.list_(_FLAG), "whether the frame has a pose"),
        _field(
            "sigma_translation",
            pa.list_(_REAL),
            "1-sigma of the camera centre, per axis (rms), a frame: of the clip and of its place in the shot",
            "length_unit",
        ),
        _field(
            "sigma_rotation_rad", pa.list_(_REAL), "1-sigma of the rotation, per axis (rms), a frame", "rad"
        ),
        _field("num_registered", _INT, "frames with a pose"),
        _field("scale_status", _TEXT, "metric where a clip of it is, else up_to_scale; null without a path"),
        _field("scale_sigma", _REAL, "relative 1-sigma of the metre; null: unknown"),
        _field("scale_spread", _REAL, "standard deviation of the clips' own metres, log; null: under two"),
        _field("path_length", _REAL, "length of the camera's path", "length_unit"),
        _field(
            "joints",
            _TEXT,
            "JSON list of {first, second, is_loop, num_frames, num_points, log_scale_sigma, residual}: how clips "
            "were joined; residual in sigmas",
        ),
        _field("num_loops", _INT, "joints that close a loop"),
        *_OUTCOME[:2],
        *_VERSIONS,
    ],
    metadata=VIDEOS.metadata,
)
"""`DIR/shots/*.parquet`: the windows of each shot as one path. `reason` of an ok row says why it ends before the
shot does."""


def shot_id(video_id: str, shot_idx: int, start_s: float) -> str:
    """The identity of one piece of a shot's path."""
    return str(uuid.uuid5(_NAMESPACE, f"{video_id}:shot {shot_idx}:{round(start_s * 1e6)}"))


def clip_id(video_id: str, start_s: float, end_s: float) -> str:
    """The clip's identity: equal content and span give an equal id on every machine; times count to the microsecond."""
    return str(uuid.uuid5(_NAMESPACE, f"{video_id}:{round(start_s * 1e6)}:{round(end_s * 1e6)}"))


def config_hash(*configs: Any) -> str:
    """16 hex digits that change with any field of the given (nested, frozen) dataclasses, and only then."""
    plain = [dataclasses.asdict(c) if dataclasses.is_dataclass(c) else c for c in configs]  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def table_from_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows (dicts) -> a table of exactly `schema`; absent keys are null, an unknown key is a ValueError."""
    known = set(schema.names)
    for row in rows:
        if unknown := set(row) - known:
            raise ValueError(f"columns not in the schema: {sorted(unknown)}")
    return pa.Table.from_pylist(rows, schema=schema)

"""Point tracks: grey frames of one clip in, sub-pixel tracks and keyframes out.

Pyramidal Lucas-Kanade from frame to frame finds a point; a second alignment against the patch in the last
keyframe removes the drift that frame-to-frame tracking collects (Lucas & Kanade 1981; Bouguet 2001; anchoring
as in Shi & Tomasi 1994). A backward pass must return to within a fraction of a pixel. New corners are taken
at keyframes only, so every track begins at a keyframe. Keyframes carry ORB descriptors at their tracked
points, with which places seen again are recognised later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackConfig:
    """Settings of the tracker; lengths are in pixels of the working image."""

    num_points: int = 700
    """Points followed at once; more give accuracy, cost time in proportion."""
    window_px: int = 17
    """Side of the aligned patch."""
    num_levels: int = 4
    """Pyramid levels above the image; 4 follow motions of about a tenth of the width a frame."""
    backward_px: float = 0.6
    """Largest distance between a point and its forward-backward image."""
    keyframe_motion: float = 0.035
    """Median motion since the last keyframe, as a share of the image's diagonal, that makes a new one."""
    keyframe_survival: float = 0.7
    """A new keyframe is made when fewer than this share of its points are left."""
    lost_points: int = 12
    """With fewer points from one frame to the next the tracker counts as lost there."""

    def __post_init__(self) -> None:
        if self.num_points < 50:
            raise ValueError(f"num_points must be at least 50, got {self.num_points}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyframe:
    """What is kept of a keyframe once the frames have gone by."""

    frame_idx: int
    track_idx: np.ndarray
    """[K] tracks present, in the order of `descriptors`."""
    descriptors: np.ndarray
    """[K, 32] uint8 ORB descriptors."""
    rgb: np.ndarray
    """[K, 3] uint8 colour at each track."""
    grey: np.ndarray
    """[H, W] uint8 image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """All tracks of a clip as one flat table of M observations, ordered by frame."""

    num_frames: int
    width: int
    height: int
    num_tracks: int
    frame_idx: np.ndarray
    """[M] int32"""
    track_idx: np.ndarray
    """[M] int32"""
    xy_px: np.ndarray
    """[M, 2] float32"""
    keyframes: tuple[Keyframe, ...]
    motion_px: np.ndarray
    """[T] median motion of the points since the frame before; 0 for the first, NaN where tracking was
    lost."""
    is_lost: np.ndarray
    """[T] bool: no track leads from the frame before to this one."""
    zoom: np.ndarray | None = None
    """[T] magnification of each frame that has been taken out of its pixels (annotate/zoom.py); None: none."""


def without(tracks: Tracks, is_dropped: np.ndarray) -> Tracks:
    """The tracks but for those marked in is_dropped [N]; the others keep their numbers."""
    if not is_dropped.any():
        return tracks
    rows = ~is_dropped[tracks.track_idx]
    keyframes = []
    for keyframe in tracks.keyframes:
        kept = ~is_dropped[keyframe.track_idx]
        keyframes.append(
            replace(
                keyframe,
                track_idx=keyframe.track_idx[kept],
                descriptors=keyframe.descriptors[kept],
                rgb=keyframe.rgb[kept],
            )
        )
    return replace(
        tracks,
        frame_idx=tracks.frame_idx[rows],
        track_idx=tracks.track_idx[rows],
        xy_px=tracks.xy_px[rows],
        keyframes=tuple(keyframes),
    )


def track_points(frames: Iterable[tuple[np.ndarray, np.ndarray]], config: TrackConfig) -> Tracks:
    """Tracks points through (grey [H, W] uint8, rgb [H, W, 3] uint8) frames, one pass, holding two frames at
    a time.

    Raises ValueError when there is no frame.
    """
    tracker: _Tracker | None = None
    for grey, rgb in frames:
        if tracker is None:
            tracker = _Tracker(config, grey.shape)
        tracker.add(grey, rgb)
    if tracker is None:
        raise ValueError("track_points: no frames")
    return tracker.result()


class _Tracker:
    def __init__(self, config: TrackConfig, shape: tuple[int, ...]) -> None:
        self.config = config
        self.height, self.width = shape[:2]
        self.window = (config.window_px, config.window_px)
        smallest = min(self.height, self.width)
        self.num_levels = int(
            np.clip(np.log2(max(smallest / (2 * config.window_px), 1)), 0, config.num_levels)
        )
        self.spacing_px = 0.6 * np.sqrt(self.height * self.width / config.num_points)
        self.orb = cv2.ORB.create(nlevels=1, edgeThreshold=0, patchSize=31)
        self.idx = np.zeros(0, dtype=np.int32)
        self.xy = np.zeros((0, 2), dtype=np.float32)
        self.anchor_xy = np.zeros((0, 2), dtype=np.float32)
        self.num_tracks = 0
        self.num_frames = 0
        self.rows: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.keyframes: list[Keyframe] = []
        self.motion: list[float] = []
        self.lost: list[bool] = []
        self.num_at_keyframe = 0

    def add(self, grey: np.ndarray, rgb: np.ndarray) -> None:
        if self.num_frames == 0:
            self.motion.append(0.0)
            self.lost.append(False)
            self._make_keyframe(grey, rgb)
        else:
            self._follow(grey)
            if self._needs_keyframe():
                self._make_keyframe(grey, rgb)
        self.rows.append((self.num_frames, self.idx, self.xy))
        self.last_frame = (grey, rgb)
        self.num_frames += 1

    def result(self) -> Tracks:
        if self.keyframes[-1].frame_idx != self.num_frames - 1 and len(self.xy) >= self.config.lost_points:
            grey, rgb = self.last_frame
            self.num_frames -= 1
            self._describe(grey, rgb)
            self.num_frames += 1
        counts = [len(idx) for _, idx, _ in self.rows]
        return Tracks(
            num_frames=self.num_frames,
            width=self.width,
            height=self.height,
            num_tracks=self.num_tracks,
            frame_idx=np.repeat(np.arange(self.num_frames, dtype=np.int32), counts),
            track_idx=np.concatenate([idx for _, idx, _ in self.rows]).astype(np.int32),
            # OpenCV counts from the first pixel's centre, this product from its corner.
            xy_px=np.concatenate([xy for _, _, xy in self.rows]).astype(np.float32) + np.float32(0.5),
            keyframes=tuple(self.keyframes),
            motion_px=np.array(self.motion),
            is_lost=np.array(self.lost),
        )

    def _align(
        self, from_grey: np.ndarray, to_grey: np.ndarray, xy: np.ndarray, start: np.ndarray, num_levels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where points xy of one image lie in the other, searched from `start`: pixels [N, 2] and whether
        found [N]."""
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01)
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
        found, ok, _ = cv2.calcOpticalFlowPyrLK(
            from_grey,
            to_grey,
            xy,
            start.copy(),
            winSize=self.window,
            maxLevel=num_levels,
            criteria=criteria,
            flags=flags,
        )
        return found, ok.reshape(-1).astype(bool)

    def _follow(self, grey: np.ndarray) -> None:
        """Moves all points from the last frame to this one and drops those that fail a check."""
        if len(self.xy) == 0:
            self._set_motion(np.zeros((0, 2)))
            return
        last_grey = self.last_frame[0]
        found, ok = self._align(last_grey, grey, self.xy, self.xy, self.num_levels)
        agrees = np.zeros(len(found), dtype=bool)
        if last_grey is not self.anchor_grey:
            anchored, ok_anchored = self._align(self.anchor_grey, grey, self.anchor_xy, found, 0)
            agrees = ok_anchored & (np.linalg.norm(anchored - found, axis=1) < 1.0)
            found = np.where(agrees[:, None], anchored, found)
        # Two templates that lead to one place are proof enough; where there is one, it must lead back.
        alone = np.flatnonzero(ok & ~agrees)
        if len(alone) > 0:
            back, ok_back = self._align(grey, last_grey, found[alone], self.xy[alone], 0)
            returned = np.linalg.norm(back - self.xy[alone], axis=1) < self.config.backward_px
            ok[alone] = ok_back & returned
        border = 2.0
        inside = np.all(
            (found > border) & (found < np.array([self.width - border, self.height - border])), axis=1
        )
        ok &= inside
        self._set_motion((found - self.xy)[ok])
        self.idx, self.xy, self.anchor_xy = self.idx[ok], found[ok], self.anchor_xy[ok]

    def _set_motion(self, moved: np.ndarray) -> None:
        is_lost = len(moved) < self.config.lost_points
        self.lost.append(is_lost)
        self.motion.append(float("nan") if is_lost else float(np.median(np.linalg.norm(moved, axis=1))))

    def _needs_keyframe(self) -> bool:
        if self.lost[-1] or len(self.xy) < self.config.keyframe_survival * self.num_at_keyframe:
            return True
        moved = np.median(np.linalg.norm(self.xy - self.anchor_xy, axis=1))
        return bool(moved > self.config.keyframe_motion * np.hypot(self.width, self.height))

    def _make_keyframe(self, grey: np.ndarray, rgb: np.ndarray) -> None:
        """Adds corners where there are none, renews the anchors and stores the descriptors."""
        if self.lost[-1]:
            self.idx, self.xy = self.idx[:0], self.xy[:0]
        wanted = self.config.num_points - len(self.xy)
        if wanted > 0:
            mask = np.full(grey.shape, 255, dtype=np.uint8)
            for x, y in self.xy:
                cv2.circle(mask, (int(x), int(y)), int(self.spacing_px), 0, -1)
            corners = cv2.goodFeaturesToTrack(grey, wanted, 0.002, self.spacing_px, mask=mask, blockSize=5)
            if corners is not None:
                fresh = corners.reshape(-1, 2)
                self.xy = np.concatenate([self.xy, fresh]).astype(np.float32)
                self.idx = np.concatenate(
                    [self.idx, np.arange(self.num_tracks, self.num_tracks + len(fresh))]
                )
                self.idx = self.idx.astype(np.int32)
                self.num_tracks += len(fresh)
        self.anchor_xy, self.anchor_grey = self.xy, grey
        self.num_at_keyframe = len(self.xy)
        # A frame that shows nothing is no keyframe; the next one is tried again.
        if self.num_frames == 0 or len(self.xy) >= self.config.lost_points:
            self._describe(grey, rgb)

    def _describe(self, grey: np.ndarray, rgb: np.ndarray) -> None:
        points = [cv2.KeyPoint(float(x), float(y), 31.0) for x, y in self.xy]
        for number, point in enumerate(points):
            point.class_id = number
        kept, descriptors = self.orb.compute(grey, points) if points else ([], None)
        order = np.array([point.class_id for point in kept], dtype=np.int64)
        xy = self.xy[order]
        columns, rows = xy[:, 0].astype(int), xy[:, 1].astype(int)
        self.keyframes.append(
            Keyframe(
                frame_idx=self.num_frames,
                track_idx=self.idx[order],
                descriptors=np.zeros((0, 32), np.uint8) if descriptors is None else descriptors,
                rgb=rgb[rows, columns],
                grey=grey,
            )
        )

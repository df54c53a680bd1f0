"""The windows of one shot in, one camera path per unbroken stretch of it out.

Neighbouring windows are joined by a similarity measured on the frames they share, windows that see one place
again by another (annotate/window_joint.py); a graph of similarities, one a window, is then brought to its
least-squares optimum, with the metric scales of all windows as measurements in it. Where no joint can be had the
path ends and another begins: two pieces, never one with a bridge nobody measured.

The graph has seven unknowns a window, a hundred for a quarter of an hour, so scipy's least squares does (libraries
for pose graphs know rigid transforms; similarities in g2o and GTSAM come without Python wheels). Only two windows'
points are in memory at a time. What bends inside a window is not unbent: a window moves as one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation, Slerp

from worldline.annotate.camera import Sim3, compose, hat, invert, rotation_from_rotvec, rotvec_from_rotation
from worldline.annotate.window_joint import (
    Joint,
    JointConfig,
    Window,
    find_loop,
    join_neighbours,
    shared_frames,
)

logger = logging.getLogger(__name__)

_GIVEN_SIGMA = 0.002
"""Relative doubt about a metre that a user gave."""
_STEP = 1e-6
"""Of the central differences."""
_LOOP_LOSS = 3.0
"""Residual in sigmas beyond which a loop counts less and less: one false loop must not bend the path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StitchConfig:
    """How windows are joined."""

    joint: JointConfig = field(default_factory=JointConfig)
    close_loops: bool = True
    """Look for places seen again in windows that are not neighbours: 0.3 s of CPU a pair."""
    max_loop_pairs: int = 400
    """Pairs of windows looked at, evenly spread: bounds the cost for shots of hours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One joint of a piece as it ended up."""

    first: int
    """Indices of the windows within the piece."""
    second: int
    joint: Joint
    residual: float
    """Rms of the joint's seven residuals after the adjustment, in its sigmas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A path over consecutive windows, N frames in order of time; the first posed frame is the identity."""

    windows: tuple[int, ...]
    """Indices of the shot's windows."""
    timestamps_s: np.ndarray
    """[N]"""
    world_from_cam: np.ndarray
    """[N, 3, 4], NaN where no window has a pose; metres where `is_metric`."""
    window_of_frame: np.ndarray
    """[N] the window (index in the shot) whose lens and row a frame belongs to."""
    frame_of_window: np.ndarray
    """[N] the frame's index in that window."""
    sigma_translation: np.ndarray
    """[N] 1-sigma of the camera centre per axis: the window's own and its place in the graph; NaN unknown."""
    sigma_rotation_rad: np.ndarray
    """[N]"""
    is_metric: bool
    scale_sigma: float | None
    """Relative; None where the path is up to scale."""
    scale_spread: float | None
    """Standard deviation, in log scale, of the metric windows' own metres around the path's; None with fewer
    than two."""
    links: tuple[Link, ...]
    why_ended: str | None
    """Why the next window is not part of it; None at the shot's end."""


def stitch_shot(windows: Sequence[Window | str], config: StitchConfig) -> list[Piece]:
    """Joins the windows of a shot, in order of time. A text stands for a window without a path and says why.

    Equal inputs give equal results.
    """
    pieces: list[Piece] = []
    start = 0
    joints: list[Joint] = []
    for k, window in enumerate(windows):
        if isinstance(window, str):
            if k > start:
                pieces.append(_piece(windows, start, joints, f"window {k}: {window}", config))
            start, joints = k + 1, []
            continue
        following = windows[k + 1] if k + 1 < len(windows) else None
        if following is None:
            pieces.append(_piece(windows, start, joints, None, config))
        elif not isinstance(following, str):
            joint = join_neighbours(window, following, config.joint)
            if isinstance(joint, str):
                pieces.append(
                    _piece(windows, start, joints, f"no joint with window {k + 1}: {joint}", config)
                )
                start, joints = k + 1, []
            else:
                joints.append(joint)
    return pieces


def _piece(
    windows: Sequence[Window | str],
    start: int,
    joints: list[Joint],
    why_ended: str | None,
    config: StitchConfig,
) -> Piece:
    """One piece over the windows start .. start + len(joints)."""
    chosen = [w for w in windows[start : start + len(joints) + 1] if isinstance(w, Window)]
    edges = [(k, k + 1, joint) for k, joint in enumerate(joints)]
    if config.close_loops:
        for first, second in _loop_pairs(len(chosen), config.max_loop_pairs):
            loop = find_loop(chosen[first], chosen[second], config.joint)
            if loop is not None:
                logger.info("windows %s and %s see one place", chosen[first].clip_id, chosen[second].clip_id)
                edges.append((first, second, loop))
    graph = _Graph(chosen, edges)
    nodes, covariance = graph.solve()
    metric = [k for k, window in enumerate(chosen) if window.is_metric]
    log_scales = np.array([math.log(nodes[k].scale) for k in metric])
    # An error of the scale that all windows share is the scale's sigma, not the path's.
    frames = _frames(chosen, nodes, _without_common_scale(covariance))
    first = int(np.flatnonzero(np.isfinite(frames.poses[:, 0, 0]))[0])
    return Piece(
        windows=tuple(range(start, start + len(chosen))),
        timestamps_s=frames.times,
        world_from_cam=_from_first(frames.poses, first),
        window_of_frame=frames.window + start,
        frame_of_window=frames.frame,
        sigma_translation=frames.sigma[:, 0],
        sigma_rotation_rad=frames.sigma[:, 1],
        is_metric=bool(metric),
        scale_sigma=float(np.sqrt(np.mean([covariance[k, 3, 3] for k in metric]))) if metric else None,
        scale_spread=float(np.std(log_scales)) if len(metric) > 1 else None,
        links=tuple(
            Link(first=a, second=b, joint=joint, residual=graph.misfit(nodes, a, b, joint))
            for a, b, joint in edges
        ),
        why_ended=why_ended,
    )


def _loop_pairs(count: int, limit: int) -> list[tuple[int, int]]:
    pairs = [(a, b) for a in range(count) for b in range(a + 2, count)]
    if len(pairs) <= limit:
        return pairs
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, limit).round().astype(int)]


# The graph


class _Graph:
    """Similarities shot_from_window, one a window; the first turns and moves nothing (the gauge), and keeps its
    scale too where no window is metric. A node is perturbed as R <- exp(w) R, s <- s exp(l), t <- t + d."""

    def __init__(self, windows: list[Window], edges: list[tuple[int, int, Joint]]) -> None:
        self.windows, self.edges = windows, edges
        self.metric = [k for k, window in enumerate(windows) if window.is_metric]
        self.is_free = np.ones(7 * len(windows), dtype=bool)
        self.is_free[[0, 1, 2, 4, 5, 6]] = False
        self.is_free[3] = bool(self.metric)

    def solve(self) -> tuple[list[Sim3], np.ndarray]:
        """The nodes at the optimum and their covariance [K, 7, 7] (w, l, d)."""
        start = self._start()
        count = len(start)
        covariance = np.zeros((7 * count, 7 * count))
        if not self.is_free.any():
            return start, _blocks(covariance, count)
        found = least_squares(
            lambda x: self._residuals(self._moved(start, x)),
            np.zeros(int(self.is_free.sum())),
            jac=lambda x: self._jacobian(self._moved(start, x)),
            max_nfev=100,
        )
        nodes = self._moved(start, found.x)
        information = found.jac.T @ found.jac
        inverse = np.linalg.pinv(information, hermitian=True)
        covariance[np.ix_(self.is_free, self.is_free)] = inverse
        return nodes, _blocks(covariance, count)

    def _start(self) -> list[Sim3]:
        """Along the chain of neighbours, brought to the metric windows' mean metre."""
        nodes = [Sim3(scale=1.0, rotation=np.eye(3), translation=np.zeros(3))]
        for a, b, joint in self.edges:
            if not joint.is_loop and b == a + 1:
                nodes.append(_compose(nodes[a], joint.a_from_b))
        if not self.metric:
            return nodes
        weight = np.array([self._scale_sigma(k) ** -2 for k in self.metric])
        mean = float(np.average([math.log(nodes[k].scale) for k in self.metric], weights=weight))
        metres = Sim3(scale=math.exp(-mean), rotation=np.eye(3), translation=np.zeros(3))
        return [_compose(metres, node) for node in nodes]

    def _moved(self, nodes: list[Sim3], x: np.ndarray) -> list[Sim3]:
        full = np.zeros(7 * len(nodes))
        full[self.is_free] = x
        return [_applied(node, step) for node, step in zip(nodes, full.reshape(-1, 7), strict=True)]

    def _jacobian(self, nodes: list[Sim3]) -> np.ndarray:
        """Central differences of each edge by its own two nodes: cost grows with the edges, not with their
        square. A step is taken on top of the node as it is, which to first order is a change of x, since the
        graph moves little."""
        size = 7 * len(self.edges) + len(self.metric)
        jacobian = np.zeros((size, 7 * len(nodes)))
        for k, (a, b, joint) in enumerate(self.edges):
            for node in (a, b):
                for axis in range(7):
                    sides = []
                    for step in (_STEP, -_STEP):
                        moved = {a: nodes[a], b: nodes[b]}
                        moved[node] = _stepped(nodes[node], axis, step)
                        sides.append(_loss(_edge_residual(moved[a], moved[b], joint), joint))
                    jacobian[7 * k : 7 * k + 7, 7 * node + axis] = (sides[0] - sides[1]) / (2 * _STEP)
        for k, node in enumerate(self.metric):
            jacobian[7 * len(self.edges) + k, 7 * node + 3] = 1 / self._scale_sigma(node)
        return jacobian[:, self.is_free]

    def _scale_sigma(self, k: int) -> float:
        """Cues of one shot share their systematic error, so that n windows together know the metre no better
        than one: each counts for an n-th."""
        sigma = self.windows[k].scale_sigma
        return (_GIVEN_SIGMA if sigma is None else max(sigma, _GIVEN_SIGMA)) * math.sqrt(len(self.metric))

    def _residuals(self, nodes: list[Sim3]) -> np.ndarray:
        parts = []
        for a, b, joint in self.edges:
            parts.append(_loss(_edge_residual(nodes[a], nodes[b], joint), joint))
        parts += [np.array([math.log(nodes[k].scale) / self._scale_sigma(k)]) for k in self.metric]
        return np.concatenate(parts)

    def misfit(self, nodes: list[Sim3], a: int, b: int, joint: Joint) -> float:
        return float(np.sqrt(np.mean(_edge_residual(nodes[a], nodes[b], joint) ** 2)))


def _edge_residual(node_a: Sim3, node_b: Sim3, joint: Joint) -> np.ndarray:
    """[7] in sigmas: turn, log scale and place of the joint's centre."""
    predicted = _compose(node_a.inverse(), node_b)
    turn = rotvec_from_rotation(predicted.rotation @ joint.a_from_b.rotation.T)
    centre = joint.centre_in_b
    return np.concatenate(
        [
            turn / joint.rotation_sigma_rad,
            [math.log(predicted.scale / joint.a_from_b.scale) / joint.log_scale_sigma],
            (predicted.points(centre) - joint.a_from_b.points(centre)) / joint.shift_sigma,
        ]
    )


def _loss(residual: np.ndarray, joint: Joint) -> np.ndarray:
    """The residuals whose squares are summed: of a loop shortened as Cauchy's loss says, all seven alike."""
    if not joint.is_loop:
        return residual
    squared, limit = float(residual @ residual), 7 * _LOOP_LOSS**2
    return residual * math.sqrt(limit * math.log1p(squared / limit) / max(squared, 1e-12))


def _stepped(node: Sim3, axis: int, step: float) -> Sim3:
    """A node moved along one of its seven unknowns (w, l, d)."""
    change = np.zeros(7)
    change[axis] = step
    return _applied(node, change)


def _applied(node: Sim3, change: np.ndarray) -> Sim3:
    return Sim3(
        scale=node.scale * math.exp(change[3]),
        rotation=rotation_from_rotvec(change[:3]) @ node.rotation,
        translation=node.translation + change[4:],
    )


def _compose(a_from_b: Sim3, b_from_c: Sim3) -> Sim3:
    return Sim3(
        scale=a_from_b.scale * b_from_c.scale,
        rotation=a_from_b.rotation @ b_from_c.rotation,
        translation=a_from_b.points(b_from_c.translation),
    )


def _blocks(covariance: np.ndarray, count: int) -> np.ndarray:
    view = covariance.reshape(count, 7, count, 7)
    return view[np.arange(count), :, np.arange(count), :]


# The path


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frames:
    times: np.ndarray
    poses: np.ndarray
    window: np.ndarray
    frame: np.ndarray
    sigma: np.ndarray


def _frames(windows: list[Window], nodes: list[Sim3], covariance: np.ndarray) -> _Frames:
    """All frames of all windows once, in the shot's frame; in an overlap the path goes over from one window to
    the next by degrees."""
    kept: list[list[np.ndarray]] = []
    for k, window in enumerate(windows):
        poses = nodes[k].poses(window.world_from_cam)
        sigma = _sigma(window, nodes[k], covariance[k])
        fresh = np.ones(len(window.timestamps_s), dtype=bool)
        if k > 0:
            in_last, in_this = shared_frames(windows[k - 1], window)
            fresh[in_this] = False
            last_poses, last_sigma = kept[-1][1], kept[-1][4]
            at = in_last - (len(windows[k - 1].timestamps_s) - len(last_poses))
            for row, this, share in zip(at, in_this, np.linspace(0, 1, len(at)), strict=True):
                assert row >= 0, "an overlap reaches back over a whole window"
                last_poses[row] = _between(last_poses[row], poses[this], float(share))
                last_sigma[row] = np.fmax(last_sigma[row], sigma[this])
        chosen = np.flatnonzero(fresh)
        kept.append(
            [
                window.timestamps_s[chosen],
                poses[chosen],
                np.full(len(chosen), k),
                chosen,
                sigma[chosen],
            ]
        )
    times, poses, window_idx, frame, sigma = (np.concatenate(each) for each in zip(*kept, strict=True))
    return _Frames(times=times, poses=poses, window=window_idx, frame=frame, sigma=sigma)


def _between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """A pose [3, 4] `share` of the way; the other one where one is NaN."""
    if not np.isfinite(first[0, 0]):
        return second
    if not np.isfinite(second[0, 0]):
        return first
    rotation = Slerp([0, 1], Rotation.from_matrix(np.stack([first[:, :3], second[:, :3]])))(share).as_matrix()
    centre = (1 - share) * first[:, 3] + share * second[:, 3]
    return np.concatenate([rotation, centre[:, None]], axis=1)


def _sigma(window: Window, node: Sim3, covariance: np.ndarray) -> np.ndarray:
    """[T, 2] 1-sigma of centre (per axis) and rotation: the window's own and its node's."""
    offset = node.points(window.world_from_cam[:, :, 3]) - node.translation
    jacobian = np.zeros((len(offset), 3, 7))
    jacobian[:, :, :3] = -hat(offset)
    jacobian[:, :, 3] = offset
    jacobian[:, :, 4:] = np.eye(3)
    place = np.einsum("tij,jk,tik->t", jacobian, covariance, jacobian) / 3
    turn = np.trace(covariance[:3, :3]) / 3
    unknown = np.full(len(offset), np.nan)
    own = unknown if window.sigma_translation is None else node.scale * window.sigma_translation
    own_turn = unknown if window.sigma_rotation_rad is None else window.sigma_rotation_rad
    return np.stack([np.sqrt(own**2 + place), np.sqrt(own_turn**2 + turn)], axis=1)


def _without_common_scale(covariance: np.ndarray) -> np.ndarray:
    """Covariances [K, 7, 7] whose scales carry only what they differ by, apart from the rest."""
    kept = covariance.copy()
    kept[:, 3, :] = kept[:, :, 3] = 0.0
    kept[:, 3, 3] = covariance[:, 3, 3] - covariance[:, 3, 3].min()
    return kept


def _from_first(poses: np.ndarray, first: int) -> np.ndarray:
    """Poses in the camera of frame `first`."""
    moved = compose(invert(poses[first : first + 1]), poses)
    moved[first] = np.eye(3, 4)
    return moved

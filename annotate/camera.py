"""Cameras: rigid and similarity transforms, intrinsics, projection, ray maps.

Conventions (docs/conventions.md): OpenCV axes (x right, y down, z forward), metres, radians. A transform
`a_from_b` maps points in b to points in a and is an array [..., 3, 4] = [R | t]. Pixel (0, 0) is the top-left
corner of the image, so the first pixel's centre is (0.5, 0.5). Every function takes numpy arrays or torch
tensors and returns the same kind: the annotator and the world model share this one file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import array_namespace, device

Array = Any
"""A numpy array or a torch tensor."""

CAMERA_MODELS = {"pinhole": 0, "radial": 2, "fisheye": 2}
"""Camera model -> number of distortion parameters.

`radial`: OpenCV / COLMAP RADIAL, x_d = x (1 + k1 r^2 + k2 r^4). `fisheye`: OpenCV fisheye / COLMAP
RADIAL_FISHEYE, theta_d = theta (1 + k1 theta^2 + k2 theta^4). x, y are z = 1 coordinates and theta the angle
from the optical axis.
"""


# Rigid transforms


def transform(a_from_b: Array, points_in_b: Array) -> Array:
    """Maps points [..., N, 3] by transforms [..., 3, 4]; leading dimensions broadcast."""
    rotation, translation = a_from_b[..., :3], a_from_b[..., 3]
    return points_in_b @ rotation.mT + translation[..., None, :]


def compose(a_from_b: Array, b_from_c: Array) -> Array:
    """a_from_c = a_from_b b_from_c, all [..., 3, 4]."""
    xp = array_namespace(a_from_b, b_from_c)
    rotation = a_from_b[..., :3] @ b_from_c[..., :3]
    translation = a_from_b[..., :3] @ b_from_c[..., 3:] + a_from_b[..., 3:]
    return xp.concat([rotation, translation], axis=-1)


def invert(a_from_b: Array) -> Array:
    """b_from_a of a rigid transform [..., 3, 4]."""
    xp = array_namespace(a_from_b)
    rotation = a_from_b[..., :3].mT
    return xp.concat([rotation, -(rotation @ a_from_b[..., 3:])], axis=-1)


def identity(xp: Any, *shape: int, **kwargs: Any) -> Array:
    """Identity transforms [*shape, 3, 4] in the array namespace `xp` (numpy or torch)."""
    eye = xp.eye(3, 4, **kwargs)
    return xp.broadcast_to(eye, (*shape, 3, 4)) + 0 * eye


def as_matrix(a_from_b: Array) -> Array:
    """[..., 3, 4] -> homogeneous [..., 4, 4]."""
    xp = array_namespace(a_from_b)
    last = 0 * a_from_b[..., :1, :] + xp.asarray(
        [0.0, 0.0, 0.0, 1.0], dtype=a_from_b.dtype, device=device(a_from_b)
    )
    return xp.concat([a_from_b, last], axis=-2)


def hat(v: Array) -> Array:
    """Cross-product matrices [..., 3, 3] of vectors [..., 3]: hat(v) u = v x u."""
    xp = array_namespace(v)
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    zero = 0 * x
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return xp.reshape(xp.stack(rows, axis=-1), (*v.shape[:-1], 3, 3))


def rotation_from_rotvec(rotvec: Array) -> Array:
    """SO(3) exponential (Rodrigues) of rotation vectors [..., 3] in radians -> [..., 3, 3]; exact at and near
    zero."""
    xp = array_namespace(rotvec)
    theta2 = xp.sum(rotvec * rotvec, axis=-1)[..., None, None]
    small = theta2 < 1e-8
    safe2 = xp.where(small, xp.ones_like(theta2), theta2)
    theta = xp.sqrt(safe2)
    a = xp.where(small, 1 - theta2 / 6, xp.sin(theta) / theta)
    # 2 sin^2(theta / 2) = 1 - cos(theta), without the cancellation.
    b = xp.where(small, 0.5 - theta2 / 24, 2 * xp.sin(theta / 2) ** 2 / safe2)
    k = hat(rotvec)
    eye = xp.eye(3, dtype=rotvec.dtype, device=device(rotvec))
    return eye + a * k + b * (k @ k)


def rotvec_from_rotation(rotation: Array) -> Array:
    """SO(3) logarithm: [..., 3, 3] -> rotation vectors [..., 3] with norm in [0, pi]; steady near 0 and near
    pi."""
    xp = array_namespace(rotation)
    quat = quat_xyzw_from_rotation(rotation)
    vector, w = quat[..., :3], quat[..., 3:]
    norm2 = xp.sum(vector * vector, axis=-1)[..., None]
    small = norm2 < 1e-14
    norm = xp.sqrt(xp.where(small, xp.ones_like(norm2), norm2))
    angle_over_norm = xp.where(small, 2 / xp.where(small, w, xp.ones_like(w)), 2 * xp.atan2(norm, w) / norm)
    return vector * angle_over_norm


def quat_xyzw_from_rotation(rotation: Array) -> Array:
    """Unit quaternions [..., 4] (x, y, z, w) with w >= 0 of rotations [..., 3, 3]; pivots on the largest."""
    xp = array_namespace(rotation)
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    pivots = xp.stack([1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz], axis=-1)
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    candidates = xp.stack(
        [
            xp.stack([pivots[..., 0], xy, xz, wx], axis=-1),
            xp.stack([xy, pivots[..., 1], yz, wy], axis=-1),
            xp.stack([xz, yz, pivots[..., 2], wz], axis=-1),
            xp.stack([wx, wy, wz, pivots[..., 3]], axis=-1),
        ],
        axis=-2,
    )  # [..., 4 pivots, 4]
    best = xp.argmax(pivots, axis=-1)
    is_best = best[..., None] == xp.arange(4, device=device(rotation))
    quat = xp.sum(xp.where(is_best[..., None], candidates, xp.zeros_like(candidates)), axis=-2)
    quat = xp.where(quat[..., 3:] < 0, -quat, quat)
    return quat / xp.linalg.vector_norm(quat, axis=-1, keepdims=True)


def rotation_from_quat_xyzw(quat_xyzw: Array) -> Array:
    """Rotations [..., 3, 3] of quaternions [..., 4] (x, y, z, w), which need not be of unit length."""
    xp = array_namespace(quat_xyzw)
    quat = quat_xyzw / xp.linalg.vector_norm(quat_xyzw, axis=-1, keepdims=True)
    k = hat(quat[..., :3])
    eye = xp.eye(3, dtype=quat.dtype, device=device(quat))
    return eye + 2 * quat[..., 3][..., None, None] * k + 2 * (k @ k)


def rotation_angle(rotation: Array) -> Array:
    """Angle in radians of rotations [..., 3, 3]; steady for small angles, unlike arccos of the trace."""
    xp = array_namespace(rotation)
    return xp.linalg.vector_norm(rotvec_from_rotation(rotation), axis=-1)


# Similarity transforms


@dataclass(frozen=True, kw_only=True, slots=True)
class Sim3:
    """a_from_b similarity: p_a = scale * rotation p_b + translation."""

    scale: float
    rotation: Array
    """[3, 3]"""
    translation: Array
    """[3], in units of a"""

    def points(self, points_in_b: Array) -> Array:
        """Maps points [..., 3] of b into a."""
        return self.scale * (points_in_b @ self.rotation.mT) + self.translation

    def poses(self, b_from_cam: Array) -> Array:
        """Maps camera poses [..., 3, 4]; the result stays rigid (rotation rotated, centre mapped)."""
        xp = array_namespace(b_from_cam)
        centre = self.points(b_from_cam[..., 3])
        return xp.concat([self.rotation @ b_from_cam[..., :3], centre[..., None]], axis=-1)

    def inverse(self) -> Sim3:
        """b_from_a."""
        rotation = self.rotation.mT
        return Sim3(
            scale=1 / self.scale, rotation=rotation, translation=-(rotation @ self.translation) / self.scale
        )


def umeyama(
    points_in_a: Array, points_in_b: Array, *, with_scale: bool = True, weights: Array | None = None
) -> Sim3:
    """Least-squares a_from_b of paired points [N, 3] (Umeyama, PAMI 1991, Eq. 34-43), optionally weighted
    [N].

    Raises ValueError when the points of b have no extent, where neither rotation nor scale is defined.
    """
    xp = array_namespace(points_in_a, points_in_b)
    if weights is None:
        weights = xp.ones_like(points_in_a[:, 0])
    weights = weights / xp.sum(weights)
    mean_a = xp.sum(weights[:, None] * points_in_a, axis=0)
    mean_b = xp.sum(weights[:, None] * points_in_b, axis=0)
    a, b = points_in_a - mean_a, points_in_b - mean_b
    variance_b = xp.sum(weights[:, None] * b * b)
    rounding = 16 * float(xp.finfo(b.dtype).eps)
    if not float(variance_b) > rounding**2 * float(xp.sum(weights[:, None] * points_in_b * points_in_b)):
        raise ValueError("umeyama: the points to align have no extent")
    u, singular, vt = xp.linalg.svd((weights[:, None] * a).mT @ b)
    sign = xp.ones_like(singular)
    if float(xp.linalg.det(u) * xp.linalg.det(vt)) < 0:
        sign = xp.concat([sign[:2], -sign[2:]])
    rotation = (u * sign) @ vt
    scale = float(xp.sum(singular * sign) / variance_b) if with_scale else 1.0
    return Sim3(scale=scale, rotation=rotation, translation=mean_a - scale * (rotation @ mean_b))


# Intrinsics


@dataclass(frozen=True, kw_only=True, slots=True)
class Intrinsics:
    """Camera intrinsics in pixels of a stated image size, for one frame or for many."""

    fxfycxcy_px: Array
    """[..., 4]: fx, fy, cx, cy in pixels."""
    width: int
    height: int
    model: str = "pinhole"
    """A key of CAMERA_MODELS."""
    distortion: tuple[float, ...] = ()
    """The model's parameters (k1, k2), shared by all frames; dimensionless, so they survive a resize."""

    def __post_init__(self) -> None:
        if self.model not in CAMERA_MODELS:
            raise ValueError(f"camera model {self.model!r}: known are {sorted(CAMERA_MODELS)}")
        if len(self.distortion) != CAMERA_MODELS[self.model]:
            raise ValueError(
                f"{self.model} takes {CAMERA_MODELS[self.model]} parameters, got {self.distortion}"
            )

    def resized(self, width: int, height: int) -> Intrinsics:
        """The same camera after the image is resized to width x height."""
        xp = array_namespace(self.fxfycxcy_px)
        sx, sy = width / self.width, height / self.height
        f = self.fxfycxcy_px
        factors = xp.asarray([sx, sy, sx, sy], dtype=f.dtype, device=device(f))
        return replace(self, fxfycxcy_px=f * factors, width=width, height=height)

    def cropped(self, left: int, top: int, width: int, height: int) -> Intrinsics:
        """The same camera after the box (left, top, width, height) is cut out."""
        xp = array_namespace(self.fxfycxcy_px)
        f = self.fxfycxcy_px
        shift = xp.asarray([0.0, 0.0, left, top], dtype=f.dtype, device=device(f))
        return replace(self, fxfycxcy_px=f - shift, width=width, height=height)

    def matrix(self) -> Array:
        """K [..., 3, 3] of the pinhole part."""
        xp = array_namespace(self.fxfycxcy_px)
        fx, fy, cx, cy = (self.fxfycxcy_px[..., i] for i in range(4))
        zero = 0 * fx
        rows = [fx, zero, cx, zero, fy, cy, zero, zero, zero + 1]
        return xp.reshape(xp.stack(rows, axis=-1), (*fx.shape, 3, 3))

    def fov_rad(self) -> Array:
        """Full field of view [..., 2] (horizontal, vertical) through the principal point, in radians.

        Measured between the border pixels' rays, so lens distortion counts and a fisheye may exceed pi; NaN
        where the lens model has no ray at a border.
        """
        xp = array_namespace(self.fxfycxcy_px)
        cx, cy = self.fxfycxcy_px[..., 2], self.fxfycxcy_px[..., 3]
        zero = 0 * cx
        borders = [(zero, cy), (zero + self.width, cy), (cx, zero), (cx, zero + self.height)]
        pixels = xp.stack([xp.stack(border, axis=-1) for border in borders], axis=-2)  # [..., 4, 2]
        rays = unproject(pixels, self)
        # The two rays of a pair lie in one plane with the optical axis: x-z for left and right, y-z for up
        # and down.
        angle_x, angle_y = xp.atan2(rays[..., 0], rays[..., 2]), xp.atan2(rays[..., 1], rays[..., 2])
        return xp.stack([angle_x[..., 1] - angle_x[..., 0], angle_y[..., 3] - angle_y[..., 2]], axis=-1)


def focal_px_from_fov(fov_rad: float, size_px: int) -> float:
    """Focal length in pixels of a pinhole camera that sees `fov_rad` across `size_px` pixels."""
    return 0.5 * size_px / math.tan(0.5 * fov_rad)


def project(points_in_cam: Array, intrinsics: Intrinsics) -> Array:
    """Pixels [..., N, 2] of points [..., N, 3]; NaN where the point is not in front of the camera, or so far
    off axis that the lens polynomial has turned back and would fold it into the image.

    Intrinsics broadcast over the leading dimensions: fxfycxcy_px is [4] or [..., 4].
    """
    xp = array_namespace(points_in_cam)
    z = points_in_cam[..., 2]
    in_front = z > 1e-9
    safe_z = xp.where(in_front, z, xp.ones_like(z))
    x, y = points_in_cam[..., 0] / safe_z, points_in_cam[..., 1] / safe_z
    factor, is_single = _distortion_factor(xp, x * x + y * y, intrinsics)
    f = intrinsics.fxfycxcy_px[..., None, :]
    u = f[..., 0] * factor * x + f[..., 2]
    v = f[..., 1] * factor * y + f[..., 3]
    nan = xp.full_like(u, math.nan)
    visible = in_front & is_single
    return xp.stack([xp.where(visible, u, nan), xp.where(visible, v, nan)], axis=-1)


def unproject(pixels: Array, intrinsics: Intrinsics) -> Array:
    """Unit rays in the camera frame [..., N, 3] of pixels [..., N, 2]; NaN where the lens model has no such
    ray."""
    xp = array_namespace(pixels)
    f = intrinsics.fxfycxcy_px[..., None, :]
    x = (pixels[..., 0] - f[..., 2]) / f[..., 0]
    y = (pixels[..., 1] - f[..., 3]) / f[..., 1]
    if intrinsics.model == "pinhole":
        z = xp.ones_like(x)
    else:
        radius_d2 = x * x + y * y
        is_off_axis = radius_d2 > 1e-24
        radius_d = xp.sqrt(xp.where(is_off_axis, radius_d2, xp.ones_like(radius_d2)))
        if intrinsics.model == "radial":
            sine, z = _invert_odd_polynomial(xp, radius_d, intrinsics.distortion), xp.ones_like(x)
        else:
            theta = _invert_odd_polynomial(xp, radius_d, intrinsics.distortion)
            sine, z = xp.sin(theta), xp.where(is_off_axis, xp.cos(theta), xp.ones_like(x))
        ratio = xp.where(is_off_axis, sine / radius_d, xp.ones_like(x))
        x, y = x * ratio, y * ratio
    rays = xp.stack([x, y, z], axis=-1)
    return rays / xp.linalg.vector_norm(rays, axis=-1, keepdims=True)


def _distortion_factor(xp: Any, radius2: Array, intrinsics: Intrinsics) -> tuple[Array, Array]:
    """Distorted over undistorted radius as a function of the squared z = 1 radius, and whether that is before
    the polynomial's turning point."""
    if intrinsics.model == "pinhole":
        return xp.ones_like(radius2), xp.ones_like(radius2, dtype=xp.bool)
    k1, k2 = intrinsics.distortion
    turn = _turning_point(k1, k2)
    if intrinsics.model == "radial":
        return 1 + radius2 * (k1 + k2 * radius2), radius2 < turn * turn
    is_off_axis = radius2 > 1e-16
    radius = xp.sqrt(xp.where(is_off_axis, radius2, xp.ones_like(radius2)))
    theta = xp.atan(radius)
    theta2 = theta * theta
    factor = xp.where(is_off_axis, theta * (1 + theta2 * (k1 + k2 * theta2)) / radius, xp.ones_like(radius))
    return factor, (theta < turn) | ~is_off_axis


def _turning_point(k1: float, k2: float) -> float:
    """The smallest t > 0 where t (1 + k1 t^2 + k2 t^4) stops growing, infinity where it never does."""
    a, b = 5 * k2, 3 * k1  # The slope is 1 + b s + a s^2 with s = t^2.
    discriminant = b * b - 4 * a
    if discriminant < 0:
        return math.inf
    # 2 / (-b +- root) are the roots s, written so that a = 0 needs no case of its own.
    root = math.sqrt(discriminant)
    turns = [2 / denominator for denominator in (-b - root, -b + root) if denominator > 0]
    return math.sqrt(min(turns)) if turns else math.inf


def _invert_odd_polynomial(xp: Any, target: Array, k: tuple[float, ...]) -> Array:
    """Solves t (1 + k1 t^2 + k2 t^4) = target >= 0 on the branch that starts at 0; NaN where it has no such
    t."""
    k1, k2 = k
    turn = _turning_point(k1, k2)
    t = xp.clip(target, 0.0, turn)
    low, high = 0 * t, turn + 0 * t
    for _ in range(40):
        t2 = t * t
        error = t * (1 + t2 * (k1 + k2 * t2)) - target
        low, high = xp.where(error < 0, t, low), xp.where(error < 0, high, t)
        slope = 1 + t2 * (3 * k1 + 5 * k2 * t2)
        step = t - error / xp.where(xp.abs(slope) < 1e-6, 1e-6 + 0 * slope, slope)
        # Near the turning point Newton's step leaves the branch: halve what is left of it instead.
        t = xp.where((step >= low) & (step <= high), step, 0.5 * (low + high))
    t2 = t * t
    valid = xp.abs(t * (1 + t2 * (k1 + k2 * t2)) - target) < 1e-9 + 1e-5 * target
    return xp.where(valid, t, xp.full_like(t, math.nan))


# Ray maps


def pixel_centres(xp: Any, width: int, height: int, **kwargs: Any) -> Array:
    """Pixel centres [height, width, 2] as (x + 0.5, y + 0.5) in the array namespace `xp`."""
    x = xp.arange(width, **kwargs) + 0.5
    y = xp.arange(height, **kwargs) + 0.5
    shape = (height, width)
    return xp.stack([xp.broadcast_to(x[None, :], shape), xp.broadcast_to(y[:, None], shape)], axis=-1)


def plucker_ray_map(world_from_cam: Array, intrinsics: Intrinsics) -> Array:
    """Pluecker rays [..., height, width, 6] = (d, o x d): unit direction in world, moment about the world's
    origin.

    One camera per leading index: world_from_cam [..., 3, 4], fxfycxcy_px [4] or [..., 4].
    """
    xp = array_namespace(world_from_cam)
    height, width = intrinsics.height, intrinsics.width
    pixels = pixel_centres(xp, width, height, dtype=world_from_cam.dtype, device=device(world_from_cam))
    pixels = xp.reshape(pixels, (height * width, 2))
    lead = world_from_cam.shape[:-2]
    rays_in_cam = unproject(xp.broadcast_to(pixels, (*lead, height * width, 2)), intrinsics)
    directions = rays_in_cam @ world_from_cam[..., :3].mT
    origins = xp.broadcast_to(world_from_cam[..., None, :, 3], directions.shape)
    rays = xp.concat([directions, xp.linalg.cross(origins, directions)], axis=-1)
    return xp.reshape(rays, (*lead, height, width, 6))

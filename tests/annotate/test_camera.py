"""Cameras against scipy, OpenCV, pycolmap, evo, finite differences and their own inverses."""

import math

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from evo.core.geometry import umeyama_alignment
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldline.annotate import camera
from worldline.annotate.camera import Intrinsics, Sim3

RNG = np.random.default_rng(7)
LENSES = [("pinhole", ()), ("radial", (-0.21, 0.06)), ("radial", (0.12, -0.01)), ("fisheye", (-0.03, 0.004))]


def random_transforms(*shape, seed=0):
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(math.prod(shape), rng=rng).as_matrix().reshape(*shape, 3, 3)
    return np.concatenate([rotations, rng.normal(size=(*shape, 3, 1))], axis=-1)


def lens(model, distortion, width=640, height=360):
    fxfycxcy_px = np.array([410.0, 430.0, 325.5, 171.0])
    return Intrinsics(fxfycxcy_px=fxfycxcy_px, width=width, height=height, model=model, distortion=distortion)


def points_in_view(num, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.5, 9, num)
    return np.stack([rng.uniform(-0.75, 0.75, num) * z, rng.uniform(-0.4, 0.4, num) * z, z], axis=-1)


# Rigid transforms


def test_transform_and_compose_equal_homogeneous_matrices():
    a_from_b, b_from_c = random_transforms(4, 1, seed=1), random_transforms(3, seed=2)
    points = RNG.normal(size=(4, 3, 11, 3))
    a_from_c = camera.compose(a_from_b, b_from_c)
    expected = camera.as_matrix(a_from_b) @ camera.as_matrix(b_from_c)
    np.testing.assert_allclose(camera.as_matrix(a_from_c), expected, atol=1e-14)
    by_hand = np.einsum("ijxy,ijny->ijnx", expected[..., :3, :3], points) + expected[..., None, :3, 3]
    np.testing.assert_allclose(camera.transform(a_from_c, points), by_hand, atol=1e-14)


def test_invert_equals_matrix_inverse_and_undoes():
    a_from_b = random_transforms(2, 5)
    expected = np.linalg.inv(camera.as_matrix(a_from_b))
    np.testing.assert_allclose(camera.as_matrix(camera.invert(a_from_b)), expected, atol=1e-13)
    np.testing.assert_allclose(
        camera.compose(a_from_b, camera.invert(a_from_b)), camera.identity(np, 2, 5), atol=1e-14
    )


def test_identity_shapes_and_writable():
    eye = camera.identity(np, 2, 3)
    assert eye.shape == (2, 3, 3, 4)
    eye[0, 0, 0, 3] = 5.0
    assert eye[1, 2, 0, 3] == 0.0  # Not a view of one shared matrix.
    torch_eye = camera.identity(torch, 4, dtype=torch.float32)
    assert torch_eye.shape == (4, 3, 4)
    assert torch_eye.dtype == torch.float32
    assert camera.identity(np).shape == (3, 4)


def test_hat_is_the_cross_product():
    v, u = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 3))
    np.testing.assert_allclose((camera.hat(v) @ u[..., None])[..., 0], np.cross(v, u), atol=1e-15)


# Rotations


@pytest.mark.parametrize(
    "angle", [0.0, 1e-12, 1e-7, 9.9e-5, 1.01e-4, 1e-3, 0.5, 2.0, math.pi - 1e-9, math.pi, 5.0]
)
def test_exponential_equals_scipy(angle):
    axes = RNG.normal(size=(20, 3))
    rotvec = angle * axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    expected = Rotation.from_rotvec(rotvec).as_matrix()
    np.testing.assert_allclose(camera.rotation_from_rotvec(rotvec), expected, atol=3e-16 + 1e-15)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-7, 1e-4, 0.3, 3.0, math.pi - 1e-4, math.pi - 1e-8])
def test_logarithm_undoes_exponential(angle):
    axes = RNG.normal(size=(50, 3))
    axes = np.concatenate([axes, np.eye(3), -np.eye(3)])
    rotvec = angle * axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    rotation = Rotation.from_rotvec(rotvec).as_matrix()
    np.testing.assert_allclose(camera.rotvec_from_rotation(rotation), rotvec, atol=2e-15)


def test_logarithm_at_pi_has_the_right_angle_and_axis():
    axes = RNG.normal(size=(50, 3))
    rotvec = (
        math.pi
        * np.concatenate([axes, np.eye(3)])
        / np.linalg.norm(np.concatenate([axes, np.eye(3)]), axis=-1)[:, None]
    )
    rotation = camera.rotation_from_rotvec(rotvec)
    log = camera.rotvec_from_rotation(rotation)
    np.testing.assert_allclose(np.linalg.norm(log, axis=-1), math.pi, atol=1e-12)
    np.testing.assert_allclose(camera.rotation_from_rotvec(log), rotation, atol=1e-12)


def test_quaternions_equal_scipy():
    rotation = np.concatenate([Rotation.random(200, rng=RNG).as_matrix(), np.eye(3)[None]])
    half_turns = Rotation.from_rotvec(
        math.pi * np.eye(3)
    ).as_matrix()  # Each makes another pivot the largest.
    rotation = np.concatenate([rotation, half_turns])
    quat = camera.quat_xyzw_from_rotation(rotation)
    expected = Rotation.from_matrix(rotation).as_quat()
    assert np.all(quat[:, 3] >= 0)
    same_sign = np.sign(np.sum(quat * expected, axis=-1, keepdims=True))
    np.testing.assert_allclose(quat * same_sign, expected, atol=1e-14)
    np.testing.assert_allclose(camera.rotation_from_quat_xyzw(3.7 * quat), rotation, atol=1e-14)


@pytest.mark.parametrize("angle", [1e-10, 1e-7, 1e-3, 1.0, math.pi - 1e-7])
def test_rotation_angle_keeps_small_angles(angle):
    axis = np.array([0.36, -0.48, 0.8])
    base = Rotation.random(rng=3).as_matrix()
    small = base @ Rotation.from_rotvec(angle * axis).as_matrix()
    assert camera.rotation_angle(base.T @ small) == pytest.approx(angle, rel=1e-5, abs=5e-16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_equals_numpy(dtype):
    tolerance = 3e-6 if dtype == torch.float32 else 1e-13
    a_from_b, b_from_c = random_transforms(5, seed=3), random_transforms(5, seed=4)
    points = RNG.normal(size=(5, 8, 3))
    rotvec = RNG.normal(size=(5, 3))

    def results(a, b, p, v):
        log = camera.rotvec_from_rotation(a[..., :3])
        return [
            camera.transform(a, p),
            camera.compose(a, b),
            camera.invert(a),
            camera.as_matrix(a),
            camera.rotation_from_rotvec(v),
            log,
            camera.quat_xyzw_from_rotation(a[..., :3]),
            camera.rotation_angle(a[..., :3]),
        ]

    expected = results(a_from_b, b_from_c, points, rotvec)
    actual = results(*(torch.tensor(x, dtype=dtype) for x in (a_from_b, b_from_c, points, rotvec)))
    for tensor, array in zip(actual, expected, strict=True):
        assert tensor.dtype == dtype
        np.testing.assert_allclose(tensor.numpy(), array, atol=tolerance)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 1.01e-4, 0.4, 3.1])
def test_exponential_and_logarithm_gradients(angle):
    rotvec = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64) * angle
    rotvec.requires_grad_()
    jacobian = torch.autograd.functional.jacobian(camera.rotation_from_rotvec, rotvec)
    step = 1e-6
    for axis in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[axis]
        difference = camera.rotation_from_rotvec(rotvec + shift) - camera.rotation_from_rotvec(rotvec - shift)
        np.testing.assert_allclose(jacobian[..., axis], difference.detach() / (2 * step), atol=1e-8)
    round_trip = torch.autograd.functional.jacobian(
        lambda v: camera.rotvec_from_rotation(camera.rotation_from_rotvec(v)), rotvec
    )
    np.testing.assert_allclose(round_trip, np.eye(3), atol=1e-7)


def test_angle_gradient_is_finite_at_identity():
    rotation = torch.eye(3, requires_grad=True)
    camera.rotation_angle(rotation).backward()
    assert torch.isfinite(rotation.grad).all()


# Similarities


def test_sim3_inverse_points_and_poses():
    a_from_b = Sim3(
        scale=2.5, rotation=Rotation.random(rng=1).as_matrix(), translation=np.array([1.0, -2, 3])
    )
    points = RNG.normal(size=(7, 3))
    np.testing.assert_allclose(a_from_b.inverse().points(a_from_b.points(points)), points, atol=1e-14)
    b_from_cam = random_transforms(7)
    a_from_cam = a_from_b.poses(b_from_cam)
    np.testing.assert_allclose(
        a_from_cam[:, :, :3] @ a_from_cam[:, :, :3].mT, np.tile(np.eye(3), (7, 1, 1)), atol=1e-14
    )
    # A point seen by the camera keeps its direction there; its depth grows by the scale.
    in_cam = camera.transform(camera.invert(b_from_cam), points[:, None])
    mapped = camera.transform(camera.invert(a_from_cam), a_from_b.points(points)[:, None])
    np.testing.assert_allclose(mapped, 2.5 * in_cam, atol=1e-13)


@pytest.mark.parametrize("with_scale", [True, False])
def test_umeyama_equals_evo_and_is_optimal(with_scale):
    points_in_b = RNG.normal(size=(40, 3)) * [3, 1, 0.2]
    truth = Sim3(scale=1.7, rotation=Rotation.random(rng=5).as_matrix(), translation=np.array([4.0, 0, -1]))
    points_in_a = truth.points(points_in_b) + 0.05 * RNG.normal(size=(40, 3))
    found = camera.umeyama(points_in_a, points_in_b, with_scale=with_scale)
    rotation, translation, scale = umeyama_alignment(points_in_b.T, points_in_a.T, with_scale)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found.translation, translation, atol=1e-12)
    assert found.scale == pytest.approx(scale, rel=1e-12)
    best = np.sum((found.points(points_in_b) - points_in_a) ** 2)
    for _ in range(50):
        nudge = Rotation.from_rotvec(0.01 * RNG.normal(size=3)).as_matrix()
        other = Sim3(
            scale=found.scale * (1 + 0.01 * RNG.normal() * with_scale),
            rotation=nudge @ found.rotation,
            translation=found.translation + 0.01 * RNG.normal(size=3),
        )
        assert np.sum((other.points(points_in_b) - points_in_a) ** 2) > best


def test_umeyama_never_mirrors():
    points_in_b = RNG.normal(size=(30, 3))
    found = camera.umeyama(points_in_b * [1, 1, -1], points_in_b)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


def test_umeyama_plane_is_exact():
    points_in_b = RNG.normal(size=(30, 3)) * [1, 1, 0]
    truth = Sim3(scale=0.3, rotation=Rotation.random(rng=6).as_matrix(), translation=np.array([4.0, 0, -1]))
    found = camera.umeyama(truth.points(points_in_b), points_in_b)
    np.testing.assert_allclose(found.rotation, truth.rotation, atol=1e-12)


def test_umeyama_weights_equal_repeats():
    points_in_a, points_in_b = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3))
    weights = np.array([1.0, 3, 2, 1, 4])
    repeat = np.repeat(np.arange(5), weights.astype(int))
    weighted = camera.umeyama(points_in_a, points_in_b, weights=weights)
    repeated = camera.umeyama(points_in_a[repeat], points_in_b[repeat])
    np.testing.assert_allclose(weighted.rotation, repeated.rotation, atol=1e-12)
    np.testing.assert_allclose(weighted.translation, repeated.translation, atol=1e-12)
    assert weighted.scale == pytest.approx(repeated.scale)


def test_umeyama_torch_and_no_extent():
    points_in_a, points_in_b = RNG.normal(size=(9, 3)), RNG.normal(size=(9, 3))
    expected = camera.umeyama(points_in_a, points_in_b)
    found = camera.umeyama(torch.tensor(points_in_a), torch.tensor(points_in_b))
    np.testing.assert_allclose(found.rotation.numpy(), expected.rotation, atol=1e-12)
    assert found.scale == pytest.approx(expected.scale)
    with pytest.raises(ValueError, match="no extent"):
        camera.umeyama(points_in_a, np.ones((9, 3)))


# Intrinsics


def test_intrinsics_refuse_wrong_models():
    f = np.array([1.0, 1, 0, 0])
    with pytest.raises(ValueError, match="known are"):
        Intrinsics(fxfycxcy_px=f, width=2, height=2, model="brown")
    with pytest.raises(ValueError, match="takes 2"):
        Intrinsics(fxfycxcy_px=f, width=2, height=2, model="radial", distortion=(0.1,))


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_project_equals_opencv_with_its_pixel_origin(model, distortion):
    intrinsics, points = lens(model, distortion), points_in_view(200)
    matrix = intrinsics.matrix()
    matrix[:2, 2] -= 0.5  # OpenCV puts (0, 0) at the first pixel's centre.
    still = np.zeros(3)
    if model == "fisheye":
        coefficients = np.array([*distortion, 0.0, 0.0])
        expected, _ = cv2.fisheye.projectPoints(points[:, None], still, still, matrix, coefficients)
    else:
        coefficients = np.array([*(distortion or (0.0, 0.0)), 0.0, 0.0])
        expected, _ = cv2.projectPoints(points, still, still, matrix, coefficients)
    np.testing.assert_allclose(camera.project(points, intrinsics) - 0.5, expected[:, 0], atol=1e-9)


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_project_equals_pycolmap(model, distortion):
    fx, cx, cy = 410.0, 325.5, 171.0
    names = {"pinhole": "SIMPLE_PINHOLE", "radial": "RADIAL", "fisheye": "RADIAL_FISHEYE"}
    colmap = pycolmap.Camera(model=names[model], width=640, height=360, params=[fx, cx, cy, *distortion])
    intrinsics = Intrinsics(
        fxfycxcy_px=np.array([fx, fx, cx, cy]), width=640, height=360, model=model, distortion=distortion
    )
    points = points_in_view(100)
    expected = colmap.img_from_cam(points)
    np.testing.assert_allclose(camera.project(points, intrinsics), expected, atol=1e-9)
    back = colmap.cam_from_img(expected)
    rays = camera.unproject(expected, intrinsics)
    np.testing.assert_allclose(rays[:, :2] / rays[:, 2:], back, atol=1e-6)


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_unproject_undoes_project(model, distortion):
    intrinsics, points = lens(model, distortion), points_in_view(300)
    rays = camera.unproject(camera.project(points, intrinsics), intrinsics)
    np.testing.assert_allclose(rays, points / np.linalg.norm(points, axis=-1, keepdims=True), atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(
    model=st.sampled_from(["radial", "fisheye"]),
    k1=st.floats(-0.6, 0.6),
    k2=st.floats(-0.3, 0.3),
    radius=st.floats(0, 1.5),
)
@example(model="radial", k1=0.5, k2=-0.125, radius=1.5)  # close before the turning point
def test_any_lens_either_inverts_or_says_nan(model, k1, k2, radius):
    intrinsics = Intrinsics(
        fxfycxcy_px=np.array([500.0, 500, 320, 240]), width=640, height=480, model=model, distortion=(k1, k2)
    )
    point = np.array([[radius * 0.6, radius * 0.8, 1.0]])
    pixel = camera.project(point, intrinsics)
    if np.isnan(pixel).any():
        angle = radius if model == "radial" else math.atan(radius)
        slopes = 1 + 3 * k1 * np.linspace(0, angle, 500) ** 2 + 5 * k2 * np.linspace(0, angle, 500) ** 4
        assert slopes.min() < 1e-3  # Refused only where the polynomial turns back on the way.
        return
    ray = camera.unproject(pixel, intrinsics)
    again = camera.project(ray / ray[:, 2:], intrinsics)
    # Compared in the image: at the turning point itself the ray is not determined, the pixel is.
    np.testing.assert_allclose(again, pixel, atol=1e-2)


def test_points_behind_and_folded_points_are_nan():
    intrinsics = lens("radial", (-0.3, 0.0))  # Turns back at r = 1.054.
    pixels = camera.project(np.array([[0.0, 0, -1], [0, 0, 0], [1.0, 0, 1], [1.2, 0, 1]]), intrinsics)
    assert np.isnan(pixels).all(axis=-1).tolist() == [True, True, False, True]
    beyond = np.array([[325.5 + 410 * 0.75, 171.0]])  # The largest distorted radius is 0.703.
    assert np.isnan(camera.unproject(beyond, intrinsics)).all()


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_projection_gradients_are_finite_and_right(model, distortion):
    f = torch.tensor([410.0, 430.0, 325.5, 171.0], dtype=torch.float64)
    points = torch.tensor(points_in_view(4), dtype=torch.float64)
    points = torch.cat([points, torch.tensor([[0.0, 0, 2]], dtype=torch.float64)])  # On the optical axis.

    def pixels(p, f):
        return camera.project(
            p, Intrinsics(fxfycxcy_px=f, width=640, height=360, model=model, distortion=distortion)
        )

    def rays(x):
        return camera.unproject(
            x, Intrinsics(fxfycxcy_px=f, width=640, height=360, model=model, distortion=distortion)
        )

    assert torch.autograd.gradcheck(pixels, (points.requires_grad_(), f.clone().requires_grad_()))
    centre = torch.tensor(
        [[325.5, 171.0], [326.0, 170.5], [10.5, 20.5]], dtype=torch.float64, requires_grad=True
    )
    assert torch.isfinite(torch.autograd.grad(rays(centre).sum(), centre)[0]).all()


def test_hidden_points_do_not_poison_gradients():
    f = torch.tensor([410.0, 430.0, 325.5, 171.0], requires_grad=True)
    intrinsics = Intrinsics(fxfycxcy_px=f, width=640, height=360, model="radial", distortion=(-0.3, 0.0))
    pixels = camera.project(torch.tensor([[0.1, 0.2, 1.0], [0, 0, -1.0], [1.4, 0, 1.0]]), intrinsics)
    torch.where(torch.isfinite(pixels), pixels, 0.0).sum().backward()
    assert torch.isfinite(f.grad).all()


def test_resize_and_crop_follow_the_image():
    """A ramp image is resized by OpenCV: the pixel that shows a point moves exactly as the intrinsics say."""
    intrinsics = lens("radial", (-0.1, 0.01))
    points = points_in_view(50)
    before = camera.project(points, intrinsics)
    small = camera.project(points, intrinsics.resized(320, 120))
    np.testing.assert_allclose(small, before * [320 / 640, 120 / 360], atol=1e-10)
    ramp = np.tile(np.arange(640, dtype=np.float32) + 0.5, (360, 1))  # Each pixel holds its centre's x.
    resized_ramp = cv2.resize(ramp, (320, 120), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose((np.arange(320) + 0.5) * 2, resized_ramp[60], atol=1e-3)
    cut = intrinsics.cropped(100, 20, 300, 200)
    np.testing.assert_allclose(camera.project(points, cut), before - [100, 20], atol=1e-10)
    assert (cut.width, cut.height) == (300, 200)


def test_per_frame_intrinsics_broadcast():
    per_frame = np.array([[400.0, 400, 320, 180], [500, 500, 330, 170]])
    many = Intrinsics(fxfycxcy_px=per_frame, width=640, height=360)
    points = np.stack([points_in_view(6), points_in_view(6, seed=2)])
    together = camera.project(points, many)
    for i in range(2):
        one = Intrinsics(fxfycxcy_px=per_frame[i], width=640, height=360)
        np.testing.assert_array_equal(together[i], camera.project(points[i], one))
        np.testing.assert_array_equal(camera.unproject(together, many)[i], camera.unproject(together[i], one))
    assert many.matrix().shape == (2, 3, 3)
    np.testing.assert_array_equal(many.matrix()[1], [[500, 0, 330], [0, 500, 170], [0, 0, 1]])


def test_field_of_view():
    fov = math.radians(70)
    focal_px = camera.focal_px_from_fov(fov, 640)
    f = np.array([focal_px, focal_px, 320.0, 180.0])
    found = Intrinsics(fxfycxcy_px=f, width=640, height=360).fov_rad()
    np.testing.assert_allclose(found, [fov, 2 * math.atan(180 / focal_px)], atol=1e-12)
    # An equidistant fisheye sees size / focal radians, here more than half a turn.
    fisheye = Intrinsics(
        fxfycxcy_px=np.array([160.0, 160, 320, 180]),
        width=640,
        height=360,
        model="fisheye",
        distortion=(0.0, 0.0),
    )
    np.testing.assert_allclose(fisheye.fov_rad(), [4.0, 2.25], atol=1e-9)


# Ray maps


def test_pixel_centres():
    grid = camera.pixel_centres(np, 3, 2)
    np.testing.assert_array_equal(grid[0], [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]])
    np.testing.assert_array_equal(grid[1, 2], [2.5, 1.5])


@pytest.mark.parametrize(("model", "distortion"), LENSES)
def test_pluecker_rays_pass_through_the_points_their_pixels_show(model, distortion):
    f = np.array([[9.0, 9.5, 4.2, 3.1], [8.0, 8.0, 4.5, 3.5]])
    intrinsics = Intrinsics(fxfycxcy_px=f, width=9, height=7, model=model, distortion=distortion)
    world_from_cam = random_transforms(2, seed=9)
    rays = camera.plucker_ray_map(world_from_cam, intrinsics)
    assert rays.shape == (2, 7, 9, 6)
    direction, moment = rays[..., :3], rays[..., 3:]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=-1), 1.0, atol=1e-12)
    for depth in (0.3, 5.0):
        points = world_from_cam[:, None, None, :, 3] + depth * direction
        np.testing.assert_allclose(np.cross(points, direction), moment, atol=1e-12)  # Any point of the line.
        in_cam = camera.transform(camera.invert(world_from_cam), points.reshape(2, 63, 3))
        seen = camera.project(in_cam, intrinsics).reshape(2, 7, 9, 2)
        np.testing.assert_allclose(seen, np.tile(camera.pixel_centres(np, 9, 7), (2, 1, 1, 1)), atol=1e-8)


def test_pluecker_torch_equals_numpy_and_differentiates():
    intrinsics = lens("fisheye", (-0.03, 0.004), width=6, height=4)
    world_from_cam = random_transforms(2, seed=3)
    expected = camera.plucker_ray_map(world_from_cam, intrinsics)
    tensor = torch.tensor(world_from_cam, dtype=torch.float32, requires_grad=True)
    torch_lens = Intrinsics(
        fxfycxcy_px=torch.tensor(intrinsics.fxfycxcy_px, dtype=torch.float32),
        width=6,
        height=4,
        model="fisheye",
        distortion=(-0.03, 0.004),
    )
    rays = camera.plucker_ray_map(tensor, torch_lens)
    np.testing.assert_allclose(rays.detach().numpy(), expected, atol=5e-6)
    rays.sum().backward()
    assert torch.isfinite(tensor.grad).all()

"""The renderer and the lens against exact projection: corners, depth, moving objects, missing drivers."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from worldline.annotate.camera import Intrinsics, invert, project, rotation_from_rotvec, transform, unproject
from worldline.datasets.schema import MissingBackend
from worldline.datasets.synthetic_lens import Lens
from worldline.datasets.synthetic_mesh import FIRST_MOVING, Mesh
from worldline.datasets.synthetic_renderer import Renderer
from worldline.datasets.synthetic_textures import SIZE_PX, Texture

CELLS = 8
SIDE_M = 2.0
NO_OBJECTS = np.zeros((0, 3, 4))
OFF_CENTRE = Intrinsics(fxfycxcy_px=np.array([410.0, 455.0, 331.3, 166.8]), width=640, height=362)


def checkers(rng: np.random.Generator) -> Texture:
    """Soft-edged, so that what is measured is the geometry and not the detector's trouble with hard steps."""
    cell = np.indices((SIZE_PX, SIZE_PX)) // (SIZE_PX // CELLS)
    soft = cv2.GaussianBlur((60 + 140 * (cell.sum(axis=0) % 2)).astype(np.uint8), (0, 0), 2)
    return np.repeat(soft[..., None], 3, axis=2)


def board() -> tuple[Mesh, np.ndarray]:
    """A checkerboard in the plane y = 0 and its inner corners [49, 3] in the scene."""
    mesh = Mesh(np.random.default_rng(0))
    half = SIDE_M / 2
    mesh.quad(
        np.array([[-half, 0, half], [half, 0, half], [half, 0, -half], [-half, 0, -half]]),
        mesh.texture(checkers),
    )
    ticks = np.arange(1, CELLS) * SIDE_M / CELLS - half
    x, z = np.meshgrid(ticks, -ticks)
    return mesh, np.stack([x, 0 * x, z], axis=-1).reshape(-1, 3)


def looking_north(position: tuple[float, float, float], rotvec: tuple[float, float, float]) -> np.ndarray:
    """scene_from_cam of a camera that looks along +y, then turned by rotvec in its own frame."""
    base = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    return np.column_stack([base @ rotation_from_rotvec(np.array(rotvec)), position])


def even_textures(mesh: Mesh) -> np.ndarray:
    """The mesh's textures without the large-scale unevenness, whose gradients would pull corners."""
    textures = mesh.textures()
    textures[0] = 128
    return textures


VIEWS = [
    looking_north((0.1, -2.6, 0.05), (0.0, 0.0, 0.0)),
    looking_north((-1.2, -2.2, 0.4), (-0.1, 0.45, 0.2)),
    looking_north((0.9, -2.0, -0.7), (0.25, -0.35, -0.6)),
]


def corner_errors_px(image: np.ndarray, expected_px: np.ndarray) -> np.ndarray:
    """Distances [N] from expected corners to the sub-pixel corners found near them."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    start = (
        (expected_px - 0.5).astype(np.float32).reshape(-1, 1, 2)
    )  # OpenCV counts from the first pixel's centre
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
    found = cv2.cornerSubPix(grey, start + 0.7, (8, 8), (-1, -1), criteria)
    return np.linalg.norm(found[:, 0] + 0.5 - expected_px, axis=1)


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_corners_are_where_project_says(view: int) -> None:
    mesh, corners = board()
    with Renderer(mesh.vertices(), even_textures(mesh)) as renderer:
        image = renderer.image(OFF_CENTRE, VIEWS[view], NO_OBJECTS)
    expected_px = project(transform(invert(VIEWS[view]), corners), OFF_CENTRE)
    is_seen = (np.abs(expected_px - [320, 181]) < [305, 166]).all(axis=1)
    assert is_seen.sum() > 25
    errors = corner_errors_px(image, expected_px[is_seen])
    assert np.median(errors) < 0.02
    assert errors.max() < 0.06


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_depth_is_the_intersection_of_ray_and_plane(view: int) -> None:
    mesh, _ = board()
    with Renderer(mesh.vertices(), mesh.textures()) as renderer:
        depth_m, objects = renderer.depth(OFF_CENTRE, VIEWS[view], NO_OBJECTS)
    expected_m, is_inside = plane_depth_m(OFF_CENTRE, VIEWS[view])
    assert np.isfinite(depth_m[is_inside]).all()
    np.testing.assert_allclose(depth_m[is_inside], expected_m[is_inside], rtol=1e-4)
    assert np.isinf(depth_m[objects != 0]).all()
    assert is_inside.mean() > 0.1


def plane_depth_m(camera: Intrinsics, scene_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the plane y = 0 at pixel centres, and which pixels lie a pixel or so inside the board."""
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = unproject(np.stack([u, v], axis=-1), camera)
    rays_z1 = rays / rays[..., 2:]
    directions = rays_z1 @ scene_from_cam[:, :3].T
    depth_m = -scene_from_cam[1, 3] / directions[..., 1]
    hits = scene_from_cam[:, 3] + depth_m[..., None] * directions
    inside = (np.abs(hits[..., [0, 2]]) < SIDE_M / 2 - 0.02).all(axis=-1) & (depth_m > 0)
    return depth_m, inside


def test_a_moving_object_stands_where_its_transform_puts_it() -> None:
    mesh, _ = board()
    small = np.array([[-0.2, 0, 0.2], [0.2, 0, 0.2], [0.2, 0, -0.2], [-0.2, 0, -0.2]])
    mesh.quad(small, mesh.texture(checkers), object_idx=FIRST_MOVING)
    moved = np.column_stack([np.eye(3), [0.5, -1.0, 0.3]])
    with Renderer(mesh.vertices(), mesh.textures()) as renderer:
        depth_m, objects = renderer.depth(OFF_CENTRE, VIEWS[0], moved[None])
    is_object = objects == FIRST_MOVING
    np.testing.assert_allclose(depth_m[is_object], 1.6, rtol=1e-4)
    centre = project(transform(invert(VIEWS[0]), np.array([[0.5, -1.0, 0.3]])), OFF_CENTRE)[0]
    rows, columns = np.nonzero(is_object)
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], centre, atol=0.5)
    sides = OFF_CENTRE.fxfycxcy_px[:2] * 0.4 / 1.6
    assert is_object.sum() == pytest.approx(sides.prod(), rel=0.03)


def test_too_many_moving_objects_are_refused() -> None:
    mesh, _ = board()
    with Renderer(mesh.vertices(), mesh.textures()) as renderer, pytest.raises(ValueError, match="at most"):
        renderer.image(OFF_CENTRE, VIEWS[0], np.zeros((100, 3, 4)))


LENSES = [
    ("radial", (-0.25, 0.06), 420.0),
    ("radial", (0.12, 0.02), 420.0),
    ("fisheye", (0.03, -0.01), 330.0),
]


@pytest.mark.parametrize(("model", "distortion", "focal_px"), LENSES)
def test_bent_corners_and_depth_are_exact(model: str, distortion: tuple[float, ...], focal_px: float) -> None:
    camera = Intrinsics(
        fxfycxcy_px=np.array([focal_px, focal_px * 1.03, 318.0, 184.0]),
        width=640,
        height=360,
        model=model,
        distortion=distortion,
    )
    mesh, corners = board()
    view = looking_north((0.1, -1.5, -0.03), (0.05, 0.1, 0.05))
    lens = Lens(camera)
    with Renderer(mesh.vertices(), even_textures(mesh)) as renderer:
        image = lens.image(renderer.image(lens.source, view, NO_OBJECTS))
        source_depth_m, objects = renderer.depth(lens.source, view, NO_OBJECTS)
    expected_px = project(transform(invert(view), corners), camera)
    is_seen = (np.abs(expected_px - [320, 180]) < [300, 160]).all(axis=1)
    assert is_seen.sum() > 20
    errors = corner_errors_px(image, expected_px[is_seen])
    assert np.median(errors) < 0.02
    assert errors.max() < 0.06
    expected_m, is_inside = plane_depth_m(camera, view)
    np.testing.assert_allclose(lens.depth(source_depth_m)[is_inside], expected_m[is_inside], rtol=1e-4)
    assert (lens.labels(objects)[is_inside] == 0).all()


def test_a_lens_beyond_a_pinhole_is_refused() -> None:
    wide = Intrinsics(
        fxfycxcy_px=np.array([190.0, 190, 320, 180]),
        width=640,
        height=360,
        model="fisheye",
        distortion=(0.0, 0.0),
    )
    with pytest.raises(ValueError, match="degrees off its axis"):
        Lens(wide)
    folded = Intrinsics(
        fxfycxcy_px=np.array([200.0, 200, 320, 180]),
        width=640,
        height=360,
        model="radial",
        distortion=(-0.4, 0.0),
    )
    with pytest.raises(ValueError, match="have no ray"):
        Lens(folded)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, _ = board()
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(MissingBackend, match=r"worldline\[render\]"):
        Renderer(mesh.vertices(), mesh.textures())


def test_missing_driver_names_the_system_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    moderngl = pytest.importorskip("moderngl")
    mesh, _ = board()

    def refuse(**_: object) -> None:
        raise Exception("cannot detect the display")

    monkeypatch.setattr(moderngl, "create_context", refuse)
    with pytest.raises(MissingBackend, match=r"cannot detect the display.*libegl1"):
        Renderer(mesh.vertices(), mesh.textures())

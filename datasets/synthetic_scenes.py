"""A scene's name and a random generator in, a furnished textured mesh and the free space for cameras out.

Sizes are those of the real world: rooms 2.7 m high, doors 2.05 m, lanes 3.5 m, cars 4.2 m. Frame: x east, y
north, z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldline.datasets import synthetic_prints as prints
from worldline.datasets import synthetic_textures as textures
from worldline.datasets.camera_paths import FreeSpace
from worldline.datasets.synthetic_mesh import Mesh
from worldline.datasets.synthetic_streets import outdoor, street


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A mesh under construction (moving objects are added later) and where cameras may go in it."""

    mesh: Mesh
    space: FreeSpace


def build_scene(name: str, *, seed: int, route_length_m: float) -> Scene:
    """Builds a scene; equal seeds give equal scenes.

    route_length_m: how far a camera may travel along the route; long scenes are built to that length.
    Raises ValueError for an unknown name.
    """
    if name not in _SCENES:
        raise ValueError(f"scene {name!r}: known are {sorted(_SCENES)}")
    mesh = Mesh(np.random.default_rng([seed, sorted(_SCENES).index(name)]))
    return Scene(mesh=mesh, space=_SCENES[name](mesh, route_length_m))


# Rooms


def _wall(
    mesh: Mesh, start: np.ndarray, end: np.ndarray, height_m: float, layer: int, tile_m: float = 2.1
) -> None:
    """A wall from start to end [2], left to right as seen from inside."""
    corners = [[*start, height_m], [*end, height_m], [*end, 0], [*start, 0]]
    mesh.quad(np.array(corners), layer, tile_m=tile_m)


def _hang(
    mesh: Mesh,
    start: np.ndarray,
    end: np.ndarray,
    along_m: float,
    bottom_m: float,
    size_m: tuple[float, float],
    layer: int,
) -> None:
    """A flat print 1.5 cm before the wall start -> end, its left edge `along_m` from the start."""
    direction = (end - start) / np.linalg.norm(end - start)
    # Left to right as seen from inside: the inside is to the right-hand rear, i.e. at (-dy, dx) turned by pi.
    inward = np.array([direction[1], -direction[0]])
    left = start + along_m * direction + 0.015 * inward
    right = left + size_m[0] * direction
    top = bottom_m + size_m[1]
    mesh.quad(np.array([[*left, top], [*right, top], [*right, bottom_m], [*left, bottom_m]]), layer)


def _dress_wall(mesh: Mesh, start: np.ndarray, end: np.ndarray, height_m: float) -> None:
    """Hangs pictures, posters, windows and doors side by side along a wall."""
    rng, length = mesh.rng, float(np.linalg.norm(end - start))
    at = rng.uniform(0.1, 0.4)
    while at < length - 0.5:
        kind = rng.choice(["picture", "poster", "paper", "window", "door"], p=[0.33, 0.3, 0.12, 0.15, 0.1])
        if kind == "door" and at + 1.0 < length:
            size, bottom, layer = (0.95, 2.05), 0.0, mesh.texture(prints.door)
        elif kind == "window" and at + 1.5 < length:
            size, bottom, layer = (1.4, 1.25), 0.9, mesh.texture(prints.window)
        else:
            make = {"picture": prints.picture, "paper": prints.paper}.get(str(kind), prints.poster)
            wide = min(rng.uniform(0.35, 1.0), length - at - 0.1)
            tall = wide * rng.uniform(0.7, 1.4)
            size, bottom, layer = (
                (wide, tall),
                min(rng.uniform(1.0, 1.6), height_m - tall - 0.1),
                mesh.texture(make),
            )
        _hang(mesh, start, end, at, bottom, size, layer)
        at += size[0] + rng.uniform(0.08, 0.5)


def _shell(
    mesh: Mesh, width_m: float, depth_m: float, height_m: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Floor, ceiling and four dressed walls around the origin; returns the walls, left to right."""
    rng, w, d = mesh.rng, width_m / 2, depth_m / 2
    floor = [(textures.planks, 1.6), (textures.tiles, 2.4), (textures.carpet, 2.5)][int(rng.integers(3))]
    mesh.quad(
        np.array([[-w, d, 0], [w, d, 0], [w, -d, 0], [-w, -d, 0]]), mesh.texture(floor[0]), tile_m=floor[1]
    )
    ceiling = np.array([[-w, -d, height_m], [w, -d, height_m], [w, d, height_m], [-w, d, height_m]])
    mesh.quad(ceiling, mesh.texture(textures.plaster), tile_m=2.3, tint=1.15)
    corners = np.array([[-w, -d], [-w, d], [w, d], [w, -d]])
    walls = [(corners[k], corners[(k + 1) % 4]) for k in range(4)]
    material = mesh.texture((textures.plaster, textures.plaster, textures.brick)[int(rng.integers(3))])
    for start, end in walls:
        accent = mesh.texture((textures.plaster, textures.cloth, textures.planks)[int(rng.integers(3))])
        _wall(mesh, start, end, height_m, accent if rng.random() < 0.25 else material)
        _dress_wall(mesh, start, end, height_m)
    return walls


def _furnish(mesh: Mesh, walls: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Stands shelves, cabinets, sofas, plants and parcels along the walls, at most 0.6 m deep."""
    rng = mesh.rng
    for start, end in walls:
        direction = (end - start) / np.linalg.norm(end - start)
        inward = np.array([direction[1], -direction[0]])
        heading = float(np.arctan2(inward[0], inward[1]))
        at, length = rng.uniform(0.65, 1.0), float(np.linalg.norm(end - start))
        while at < length - 1.2:
            kind = int(rng.integers(5))
            wide = float((rng.uniform(0.7, 1.1), 0.9, min(1.7, length - at - 0.65), 0.5, 0.6)[kind])
            deep = (0.32, 0.45, 0.6, 0.45, 0.5)[kind]
            foot = [*(start + (at + wide / 2) * direction + (deep / 2 + 0.02) * inward), 0.0]
            if kind == 0:
                layers = [mesh.texture(prints.shelf), mesh.texture(textures.planks)]
                mesh.box(foot, (wide, deep, rng.uniform(1.4, 2.1)), layers, heading_rad=heading)
            elif kind == 1:
                mesh.box(
                    foot, (wide, deep, 0.85), [mesh.texture(textures.planks)], heading_rad=heading, tile_m=0.8
                )
                _clutter(mesh, np.array([foot[0], foot[1], 0.85]), 0.2, 3)
            elif kind == 2:
                cover = mesh.texture(textures.cloth)
                mesh.box(foot, (wide, deep, 0.42), [cover], heading_rad=heading, tile_m=0.9)
                back = [*(np.array(foot[:2]) - 0.22 * inward), 0.0]
                mesh.box(back, (wide, 0.14, 0.85), [cover], heading_rad=heading, tile_m=0.9)
            elif kind == 3:
                mesh.box(
                    foot, (0.3, 0.3, 0.35), [mesh.texture(textures.brick)], heading_rad=heading, tile_m=0.5
                )
                mesh.blob([*foot[:2], 0.8], (0.28, 0.28, 0.5), mesh.texture(textures.leaves), tile_m=0.5)
            else:
                for level in range(int(rng.integers(1, 4))):
                    turn = heading + rng.uniform(-0.2, 0.2)
                    layers = [mesh.texture(prints.cardboard)]
                    mesh.box([*foot[:2], 0.33 * level], (0.5, 0.4, 0.33), layers, heading_rad=turn)
            at += wide + rng.uniform(0.1, 0.7)


def _clutter(mesh: Mesh, centre: np.ndarray, spread_m: float, count: int) -> None:
    """Sets small things (books, boxes, cups, frames) on a surface around `centre` [3]."""
    rng = mesh.rng
    for _ in range(count):
        foot = centre + np.array([*rng.uniform(-spread_m, spread_m, 2), 0.0])
        size = (rng.uniform(0.05, 0.26), rng.uniform(0.05, 0.2), rng.uniform(0.02, 0.26))
        makes = (prints.cardboard, prints.picture, prints.poster, prints.shelf, textures.cloth, prints.paper)
        layers = [mesh.texture(makes[int(rng.integers(len(makes)))]) for _ in range(3)]
        mesh.box(foot, size, layers, heading_rad=rng.uniform(-np.pi, np.pi), is_print_top=True)


def _table(mesh: Mesh, size_m: tuple[float, float], height_m: float) -> None:
    """A table around the origin with legs."""
    w, d = size_m
    wood = mesh.texture(textures.planks)
    for x in (-w / 2 + 0.06, w / 2 - 0.06):
        for y in (-d / 2 + 0.06, d / 2 - 0.06):
            mesh.box([x, y, 0], (0.07, 0.07, height_m - 0.04), [wood], tile_m=0.6)
    mesh.box([0, 0, height_m - 0.04], (w, d, 0.04), [wood], tile_m=0.9)


def _ellipse(x_m: float, y_m: float, from_rad: float) -> np.ndarray:
    """24 ground points of an ellipse around the origin."""
    angle = from_rad + np.arange(24) * 2 * np.pi / 24
    return np.stack([x_m * np.cos(angle), y_m * np.sin(angle), 0 * angle], axis=-1)


def _room(mesh: Mesh, route_length_m: float) -> FreeSpace:
    """A furnished room about 6.5 x 5.5 x 2.7 m with a table in its middle."""
    rng = mesh.rng
    width, depth = rng.uniform(6.0, 7.5), rng.uniform(5.0, 6.2)
    _furnish(mesh, _shell(mesh, width, depth, 2.7))
    _table(mesh, (1.3, 0.8), 0.75)
    _clutter(mesh, np.array([0, 0, 0.75]), 0.35, 14)
    rug = np.array([[-1.4, 1.0, 0.012], [1.4, 1.0, 0.012], [1.4, -1.0, 0.012], [-1.4, -1.0, 0.012]])
    mesh.quad(rug, mesh.texture(textures.carpet))
    return FreeSpace(
        route_in_scene=_ellipse(width / 2 - 1.35, depth / 2 - 1.25, rng.uniform(0, 2 * np.pi)),
        is_closed=True,
        eye_height_m=1.6,
        target_in_scene=np.array([0.0, 0.0, 1.0]),
        reach_m=0.7,
        ahead_m=1.6,
        walking_m_s=0.7,
        looks_at_target=True,
    )


def _desk(mesh: Mesh, route_length_m: float) -> FreeSpace:
    """A crowded desk seen from close by, in a room."""
    rng = mesh.rng
    _furnish(mesh, _shell(mesh, 6.0, 5.4, 2.7))
    _table(mesh, (1.7, 0.9), 0.74)
    for x in (-0.45, 0.2):
        layers = [mesh.texture(prints.screen), mesh.texture(textures.concrete)]
        mesh.box([x, 0.22, 0.86], (0.55, 0.05, 0.34), layers, heading_rad=rng.uniform(-0.3, 0.3))
        mesh.box([x, 0.24, 0.74], (0.22, 0.16, 0.14), [mesh.texture(textures.concrete)], tile_m=0.4)
    _clutter(mesh, np.array([0.35, -0.05, 0.74]), 0.36, 16)
    _clutter(mesh, np.array([-0.4, -0.08, 0.74]), 0.32, 16)
    for _ in range(7):
        x, y, turn = rng.uniform(-0.6, 0.6), rng.uniform(-0.32, 0.1), rng.uniform(-0.5, 0.5)
        foot = [x, y, 0.741 + 0.002 * rng.integers(1, 4)]
        mesh.box(foot, (0.21, 0.3, 0.003), [mesh.texture(prints.paper)], heading_rad=turn, is_print_top=True)
    return FreeSpace(
        route_in_scene=_ellipse(1.55, 1.25, -np.pi / 2 + rng.uniform(-0.25, 0.25)),
        is_closed=True,
        eye_height_m=1.25,
        target_in_scene=np.array([0.0, 0.0, 0.85]),
        reach_m=0.45,
        ahead_m=0.55,
        walking_m_s=0.7,
        looks_at_target=True,
    )


def _corridor(mesh: Mesh, route_length_m: float) -> FreeSpace:
    """A straight corridor 2.3 m wide with doors, notices, lamps and things along the walls."""
    rng, half, height = mesh.rng, 1.15, 2.6
    south, north = -4.0, route_length_m + 16.0
    floor = mesh.texture(textures.tiles if rng.random() < 0.6 else textures.planks)
    for y in np.arange(south, north, 4.0):
        corners = np.array([[-half, y + 4, 0], [half, y + 4, 0], [half, y, 0], [-half, y, 0]])
        mesh.quad(corners, floor, tile_m=2.0)
        above = corners[::-1] + np.array([0, 0, height])
        mesh.quad(above, mesh.texture(textures.plaster, int(rng.integers(3))), tile_m=2.4)
        lamp = np.array([[-0.3, y + 1, 0], [0.3, y + 1, 0], [0.3, y + 2.2, 0], [-0.3, y + 2.2, 0]])
        mesh.quad(lamp + np.array([0, 0, height - 0.02]), mesh.texture(prints.paper), tint=1.4)
    north = float(np.arange(south, north, 4.0)[-1] + 4.0)
    layer = mesh.texture(textures.plaster if rng.random() < 0.6 else textures.brick)
    west = (np.array([-half, south]), np.array([-half, north]))
    east = (np.array([half, north]), np.array([half, south]))
    ends = [
        (np.array([-half, north]), np.array([half, north])),
        (np.array([half, south]), np.array([-half, south])),
    ]
    for start, end in (west, east, *ends):
        _wall(mesh, start, end, height, layer)
        _dress_wall(mesh, start, end, height)
    for y in np.arange(south + 1, north - 1, 2.7):
        x = float(rng.choice([-1, 1])) * 0.95
        makes = (prints.cardboard, prints.shelf, textures.planks, textures.cloth)
        layers = [mesh.texture(makes[int(rng.integers(4))])]
        mesh.box(
            [x, y + rng.uniform(0, 1.5), 0], (0.36, rng.uniform(0.3, 0.9), rng.uniform(0.35, 1.3)), layers
        )
    return FreeSpace(
        route_in_scene=np.array([[0.0, y, 0.0] for y in np.linspace(0, north - 8, 8)]),
        is_closed=False,
        eye_height_m=1.6,
        target_in_scene=np.array([0.0, 6.0, 1.4]),
        reach_m=0.5,
        ahead_m=route_length_m + 8.0,
        orbit_rad=0.08,
        walking_m_s=1.4,
        looks_at_target=False,
    )


def _plane(mesh: Mesh, route_length_m: float) -> FreeSpace:
    """One flat mural and nothing else: every point the camera can see lies in the plane y = 0."""
    half_width, cell = route_length_m + 26.0, 1.7
    makes = (
        prints.poster,
        textures.brick,
        prints.picture,
        prints.facade,
        textures.plaster,
        prints.shelf,
        textures.carpet,
        textures.rock,
    )
    layers = [mesh.texture(make) for make in makes for _ in range(3)]
    columns, rows = int(np.ceil(2 * half_width / cell)), int(np.ceil(36.0 / cell))
    x, z = np.meshgrid(np.arange(columns) * cell - half_width, 18.0 - np.arange(rows) * cell)
    corner = np.stack([x, 0 * x, z], axis=-1).reshape(-1, 3)
    offsets = np.array([[0, 0, 0], [cell, 0, 0], [cell, 0, -cell], [0, 0, -cell]])
    unit = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    # Each cell shows another cut-out of its texture, so that no two look alike.
    uv = unit * mesh.rng.uniform(0.7, 1.0, (len(corner), 1, 1)) + mesh.rng.random((len(corner), 1, 2))
    choice = mesh.rng.integers(len(layers), size=len(corner))
    for k, layer in enumerate(layers):
        mesh.quads(corner[choice == k][:, None] + offsets, layer, uv[choice == k])
    return FreeSpace(
        route_in_scene=np.array([[x, -3.2, 0.0] for x in np.linspace(0, route_length_m + 4, 6)]),
        is_closed=False,
        eye_height_m=1.6,
        target_in_scene=np.array([0.0, 0.0, 1.6]),
        reach_m=1.2,
        ahead_m=1.8,
        walking_m_s=1.4,
        gaze_rad=-np.pi / 2,
        looks_at_target=True,
    )


_SCENES: dict[str, Callable[[Mesh, float], FreeSpace]] = {
    "room": _room,
    "desk": _desk,
    "corridor": _corridor,
    "plane": _plane,
    "street": street,
    "outdoor": outdoor,
}
SCENES = tuple(_SCENES)
"""Known scenes."""

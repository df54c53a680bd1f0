"""A mesh in, a street or an open landscape built into it and its free space out: the outdoor scenes."""

from __future__ import annotations

import numpy as np

from worldline.datasets import synthetic_prints as prints
from worldline.datasets import synthetic_textures as textures
from worldline.datasets.camera_paths import FreeSpace
from worldline.datasets.synthetic_mesh import Mesh

LANE_M, PARKING_M, PAVEMENT_M = 3.5, 2.1, 3.2
"""Widths of a lane, a parking strip and a pavement; a street has two of each."""

KERB_M = 0.13
"""Height of the kerb."""


class _Line:
    """A curved centre line on flat ground, by distance travelled; heading 0 is north."""

    def __init__(self, distance_m: np.ndarray, heading_rad: np.ndarray) -> None:
        step = np.diff(distance_m, prepend=distance_m[0])
        direction = np.stack([np.sin(heading_rad), np.cos(heading_rad)], axis=-1)
        points = np.cumsum(direction * step[:, None], axis=0)
        origin = np.argmin(np.abs(distance_m))
        self.distance_m, self.heading_rad = distance_m, heading_rad
        self.points = points - points[origin]

    def at(self, distance_m: float, lateral_m: float, height_m: float = 0.0) -> tuple[list[float], float]:
        """A point (x, y, z) `lateral_m` to the right of the line, and the line's heading there."""
        x, y = (float(np.interp(distance_m, self.distance_m, self.points[:, k])) for k in range(2))
        heading = float(np.interp(distance_m, self.distance_m, self.heading_rad))
        return [x + lateral_m * np.cos(heading), y - lateral_m * np.sin(heading), height_m], heading

    def beside(self, lateral_m: float, height_m: float = 0.0) -> np.ndarray:
        """The line shifted to the right: [K, 3]."""
        right = np.stack([np.cos(self.heading_rad), -np.sin(self.heading_rad)], axis=-1)
        shifted = self.points + lateral_m * right
        return np.column_stack([shifted, np.full(len(shifted), height_m)])


def _curved_line(mesh: Mesh, route_length_m: float) -> _Line:
    """Straight at the start, then bends with radii of 60 m and more."""
    distance = np.arange(-24.0, route_length_m + 130.0, 3.0)
    amplitude = mesh.rng.uniform(0.25, 0.55) * mesh.rng.choice([-1, 1])
    wave = mesh.rng.uniform(170.0, 260.0)
    ahead = np.maximum(distance - 12.0, 0.0)
    heading = amplitude * (1 - np.cos(2 * np.pi * ahead / wave))
    return _Line(distance, heading)


def _road(mesh: Mesh, line: _Line) -> None:
    """Carriageway, markings, repairs, kerbs and pavements."""
    rng = mesh.rng
    edge, outer = LANE_M + PARKING_M, LANE_M + PARKING_M + PAVEMENT_M
    mesh.strip(line.beside(-edge), line.beside(edge), mesh.texture(textures.asphalt), tile_m=3.7)
    slab = mesh.texture(textures.tiles if rng.random() < 0.5 else textures.concrete)
    kerb = mesh.texture(textures.concrete)
    for side in (-1, 1):
        inner_line, outer_line = line.beside(side * edge, KERB_M), line.beside(side * (outer + 1.5), KERB_M)
        left, right = (outer_line, inner_line) if side < 0 else (inner_line, outer_line)
        mesh.strip(left, right, slab, tile_m=2.0)
        low, high = line.beside(side * edge), inner_line
        left, right = (high, low) if side < 0 else (low, high)
        mesh.strip(left, right, kerb, tile_m=1.1, tint=1.25)
    paint = mesh.texture(prints.paper)
    for distance in np.arange(line.distance_m[0], line.distance_m[-1] - 4, 7.5):
        for lateral, width, length in ((0.0, 0.16, 3.0), (-LANE_M, 0.12, 1.6), (LANE_M, 0.12, 1.6)):
            _decal(mesh, line, distance, lateral, (width, length), paint, tint=0.95)
    for distance in np.arange(line.distance_m[0], line.distance_m[-1] - 4, 5.3):
        make = (textures.asphalt, textures.concrete, textures.tiles)[int(rng.integers(3))]
        size = rng.uniform(0.5, 1.4), rng.uniform(0.5, 2.2)
        _decal(
            mesh, line, distance, rng.uniform(-4.5, 4.5), size, mesh.texture(make), tint=rng.uniform(0.5, 1.2)
        )


def _decal(
    mesh: Mesh,
    line: _Line,
    distance_m: float,
    lateral_m: float,
    size_m: tuple[float, float],
    layer: int,
    *,
    tint: float,
) -> None:
    """A flat rectangle (across, along) lying 2 cm above the road."""
    w, d = size_m[0] / 2, size_m[1] / 2
    ends = [(distance_m + d, lateral_m - w), (distance_m + d, lateral_m + w)]
    ends += [(distance_m - d, lateral_m + w), (distance_m - d, lateral_m - w)]
    mesh.quad(np.array([line.at(s, x, 0.02)[0] for s, x in ends]), layer, tile_m=max(size_m) / 1.5, tint=tint)


def _houses(mesh: Mesh, line: _Line) -> None:
    """A row of houses on each side: shops or brick below, painted storeys above, gaps here and there."""
    rng = mesh.rng
    for side in (-1, 1):
        at = line.distance_m[0] - rng.uniform(0, 6)
        while at < line.distance_m[-1] - 6:
            wide, tall, deep = rng.uniform(8, 15), rng.uniform(9, 17), 10.0
            setback = LANE_M + PARKING_M + PAVEMENT_M + rng.uniform(-0.2, 0.7)
            foot, heading = line.at(at + wide / 2, side * (setback + deep / 2), KERB_M)
            facing = heading - side * np.pi / 2
            ground = mesh.texture(prints.shopfront if rng.random() < 0.6 else textures.brick)
            tint = rng.uniform(0.8, 1.15, 3)
            mesh.box(
                foot, (wide, deep, 3.4), [ground, mesh.texture(textures.brick)], heading_rad=facing, tint=tint
            )
            upper = [foot[0], foot[1], KERB_M + 3.4]
            layers = [mesh.texture(prints.facade), mesh.texture(textures.brick)]
            mesh.box(upper, (wide, deep, tall - 3.4), layers, heading_rad=facing, tint=tint)
            sign, _ = line.at(
                at + wide * rng.uniform(0.2, 0.8), side * (setback - 0.35), rng.uniform(2.6, 3.6)
            )
            mesh.box(sign, (0.08, 0.7, 0.8), [mesh.texture(prints.poster)], heading_rad=facing)
            at += wide + (rng.uniform(2, 5) if rng.random() < 0.25 else 0.0)


def _street_things(mesh: Mesh, line: _Line) -> list[float]:
    """Parked cars, trees, lamps, signs and bins; returns a point (x, y, z) on a parked car near the start."""
    rng = mesh.rng
    target, _ = line.at(5.5, -(LANE_M + 1.0), 0.8)
    for side in (-1, 1):
        for distance in np.arange(line.distance_m[0] + 2, line.distance_m[-1] - 2, 5.6):
            is_target = side < 0 and 2.0 < distance < 8.0
            if rng.random() < 0.45 and not is_target:
                continue
            foot, heading = line.at(distance + rng.uniform(-0.4, 0.4), side * (LANE_M + 1.05), 0.12)
            parked_car(mesh, foot, heading + rng.uniform(-0.03, 0.03) + np.pi * (side < 0))
        for distance in np.arange(line.distance_m[0], line.distance_m[-1], 9.0):
            where = distance + rng.uniform(-2, 2)
            foot, heading = line.at(where, side * (LANE_M + PARKING_M + 0.6), KERB_M)
            kind = int(rng.integers(4))
            if kind == 0:
                mesh.box(foot, (0.28, 0.28, 2.9), [mesh.texture(textures.rock)], tile_m=0.7, tint=0.8)
                crown = [foot[0], foot[1], 4.3]
                mesh.blob(crown, (1.5, 1.5, 1.7), mesh.texture(textures.leaves), tile_m=1.6, lumps=0.3)
            elif kind == 1:
                mesh.box(foot, (0.13, 0.13, 5.2), [mesh.texture(textures.concrete)], tile_m=0.5, tint=0.55)
            elif kind == 2:
                mesh.box(foot, (0.07, 0.07, 2.2), [mesh.texture(textures.concrete)], tile_m=0.4, tint=0.7)
                board = [foot[0], foot[1], 2.2 + KERB_M]
                mesh.box(board, (0.75, 0.05, 0.75), [mesh.texture(prints.poster)], heading_rad=heading)
            else:
                layers = [mesh.texture(prints.poster), mesh.texture(textures.planks)]
                mesh.box(foot, (0.5, 0.5, rng.uniform(0.8, 1.3)), layers, heading_rad=heading)
    return target


def parked_car(mesh: Mesh, foot: list[float], heading_rad: float, object_idx: int = 0) -> None:
    """A van-like car 1.8 x 4.2 x 1.5 m whose front looks along the heading; its wheels are printed on."""
    number = int(mesh.rng.integers(12))
    layers = [mesh.texture(prints.car_end, number), mesh.texture(prints.car, number)]
    mesh.box(foot, (1.75, 4.2, 1.4), layers, heading_rad=heading_rad, object_idx=object_idx)
    roof = [foot[0], foot[1], foot[2] + 1.4]
    mesh.box(
        roof,
        (1.2, 2.0, 0.12),
        [mesh.texture(prints.cardboard)],
        heading_rad=heading_rad,
        object_idx=object_idx,
    )


def street(mesh: Mesh, route_length_m: float) -> FreeSpace:
    """A curved street with houses, parked cars, trees and lamps; cameras keep to the right-hand lane."""
    line = _curved_line(mesh, route_length_m)
    mesh.sky(mesh.texture(textures.sky), 900.0)
    meadow = mesh.texture(textures.grass)
    mesh.strip(line.beside(-60.0, -0.1), line.beside(60.0, -0.1), meadow, tile_m=4.0)
    _road(mesh, line)
    _houses(mesh, line)
    target = _street_things(mesh, line)
    is_route = (line.distance_m >= 0) & (line.distance_m <= route_length_m + 40)
    return FreeSpace(
        route_in_scene=line.beside(LANE_M / 2)[is_route],
        is_closed=False,
        eye_height_m=1.65,
        target_in_scene=np.array(target),
        reach_m=1.2,
        ahead_m=min(route_length_m + 10.0, 25.0),
        walking_m_s=1.4,
        looks_at_target=False,
    )


# Landscape


def outdoor(mesh: Mesh, route_length_m: float) -> FreeSpace:
    """Rolling meadow with a path, rocks, trees, fences and sheds; the ground is nowhere flat."""
    rng = mesh.rng
    mesh.sky(mesh.texture(textures.sky), 900.0)
    wave = rng.uniform(0, 2 * np.pi, 6)

    def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        hills = 0.9 * np.sin(x / 11 + wave[0]) * np.sin(y / 13 + wave[1]) + 0.5 * np.sin(
            y / 6 + x / 9 + wave[2]
        )
        far = np.maximum(np.abs(x) - 14, 0) * 0.16 * (1 + 0.5 * np.sin(y / 21 + wave[3]))
        return hills + far + 0.08 * np.sin(x / 1.7 + wave[4]) * np.sin(y / 1.9 + wave[5])

    def path_x(y: np.ndarray) -> np.ndarray:
        return 2.2 * (1 - np.cos(y / 14)) * np.sign(wave[0] - np.pi)

    length = max(route_length_m, 12.0)
    x, y = np.meshgrid(np.arange(-56.0, 56.1, 1.4), np.arange(length + 70.0, -24.0, -1.4))
    uv = np.stack([x, -y], axis=-1) / 3.1
    mesh.grid(np.stack([x, y, height(x, y)], axis=-1), uv, mesh.texture(textures.grass))
    along = np.arange(-20.0, length + 60, 0.7)
    edges = [
        np.stack([path_x(along) + s, along, height(path_x(along) + s, along) + 0.07], axis=-1)
        for s in (-0.8, 0.8)
    ]
    mesh.strip(edges[0], edges[1], mesh.texture(textures.asphalt), tile_m=2.3, tint=1.2)
    for _ in range(int(3.5 * (length + 60))):
        where_y = rng.uniform(-18, length + 60)
        off = rng.choice([-1, 1]) * (1.9 + rng.exponential(6.0))
        where_x = float(path_x(np.array(where_y))) + off
        foot = [where_x, where_y, float(height(np.array(where_x), np.array(where_y))) - 0.1]
        _landscape_thing(mesh, foot, abs(off))
    route_y = np.arange(0.0, length + 20, 3.0)
    route = np.stack([path_x(route_y), route_y, height(path_x(route_y), route_y) + 0.07], axis=-1)
    beside = np.array(float(path_x(np.array(6.0))) + 1.6)
    look = np.array([float(beside), 6.0, float(height(beside, np.array(6.0))) + 0.6])
    mesh.box(
        [look[0], look[1], look[2] - 0.7], (0.9, 0.7, 1.0), [mesh.texture(prints.cardboard)], heading_rad=0.4
    )
    return FreeSpace(
        route_in_scene=route,
        is_closed=False,
        eye_height_m=1.6,
        target_in_scene=look,
        reach_m=0.9,
        ahead_m=4.0,
        walking_m_s=1.4,
        looks_at_target=False,
    )


def _landscape_thing(mesh: Mesh, foot: list[float], off_path_m: float) -> None:
    """A rock, a bush, a tree, a post or (far from the path) a shed."""
    rng, kind = mesh.rng, int(mesh.rng.integers(10))
    if kind < 4:
        size = rng.uniform(0.12, 0.6)
        mesh.blob(
            foot, (size, size * rng.uniform(0.7, 1.2), size * 0.8), mesh.texture(textures.rock), tile_m=0.8
        )
    elif kind < 6:
        size = rng.uniform(0.25, 0.7)
        mesh.blob(
            [*foot[:2], foot[2] + 0.4 * size], (size, size, size), mesh.texture(textures.leaves), tile_m=0.9
        )
    elif kind < 8 and off_path_m > 3.4:
        mesh.box(foot, (0.3, 0.3, 2.6), [mesh.texture(textures.rock)], tile_m=0.8, tint=0.8)
        radius = rng.uniform(1.0, 1.9)
        mesh.blob(
            [*foot[:2], foot[2] + 3.4],
            (radius, radius, radius * 1.2),
            mesh.texture(textures.leaves),
            tile_m=1.6,
        )
    elif kind == 8 and off_path_m > 7.0:
        layers = [mesh.texture(prints.door), mesh.texture(textures.planks), mesh.texture(textures.brick)]
        mesh.box(foot, (2.6, 3.2, 2.4), layers, heading_rad=rng.uniform(-np.pi, np.pi))
    else:
        mesh.box(foot, (0.12, 0.12, 1.2), [mesh.texture(textures.planks)], tile_m=0.5)
        if rng.random() < 0.5:
            board = [*foot[:2], foot[2] + 1.2]
            mesh.box(
                board, (0.6, 0.05, 0.45), [mesh.texture(prints.poster)], heading_rad=rng.uniform(-0.6, 0.6)
            )

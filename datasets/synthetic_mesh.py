"""Quads, boxes, blobs and strips in, one vertex array with textures out: the clay of rendered scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worldline.datasets.synthetic_textures import Texture, macro, variant

STATIC, SKY, FIRST_MOVING = 0, 1, 2
"""Object numbers: what stands still, what is infinitely far away, and the first of what moves."""

NUM_VARIANTS = 24
"""Different textures of each kind that scenes draw from."""

_PALETTE_SIZE = 4
"""Textures of one kind in one scene: bounds its memory and the time to make it."""

_SUN = np.array([0.35, -0.45, 0.82])


class Mesh:
    """Collects textured triangles; corners of a face go clockwise from its top-left as seen.

    Frame: x east, y north, z up, metres.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._parts: list[np.ndarray] = []
        self._layer_of: dict[tuple[str, int], int] = {}
        self._textures: list[Texture] = []
        self._palettes: dict[str, np.ndarray] = {}
        self.texture(macro, number=0)

    def texture(self, make: Callable[[np.random.Generator], Texture], number: int | None = None) -> int:
        """Layer number of a texture of this kind; a random variant unless a number is given."""
        name = make.__name__
        if number is None:
            if name not in self._palettes:
                self._palettes[name] = self.rng.choice(NUM_VARIANTS, size=_PALETTE_SIZE, replace=False)
            number = int(self.rng.choice(self._palettes[name]))
        key = (name, number)
        if key not in self._layer_of:
            self._layer_of[key] = len(self._textures)
            self._textures.append(variant(make, number))
        return self._layer_of[key]

    def vertices(self) -> np.ndarray:
        """[N, 10] float32, three rows a triangle: position, texture uv, layer, object number, tint rgb."""
        return np.concatenate(self._parts).astype(np.float32)

    def textures(self) -> np.ndarray:
        """[L, S, S, 3] uint8; layer 0 is the large-scale unevenness."""
        return np.stack(self._textures)

    def quads(
        self,
        corners: np.ndarray,
        layer: int,
        uv: np.ndarray,
        *,
        tint: float | np.ndarray = 1.0,
        object_idx: int = STATIC,
    ) -> None:
        """Adds quads: corners [Q, 4, 3], uv [Q, 4, 2]; tint scales the colour (scalar or rgb [3])."""
        right, down = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
        normal = -np.cross(right, down)
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
        shade = 0.66 + 0.36 * np.clip(normal @ _SUN, 0, 1) + 0.05 * normal[:, 0]
        shade = np.ones_like(shade) if object_idx == SKY else shade
        rows = np.empty((len(corners), 4, 10))
        rows[..., 0:3], rows[..., 3:5] = corners, uv
        rows[..., 5], rows[..., 6] = layer, object_idx
        rows[..., 7:10] = np.asarray(tint) * shade[:, None, None]
        self._parts.append(rows[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 10))

    def quad(
        self,
        corners: np.ndarray,
        layer: int,
        *,
        tile_m: float | None = None,
        tint: float | np.ndarray = 1.0,
        object_idx: int = STATIC,
    ) -> None:
        """Adds one face: its print fills it, or a material repeats every `tile_m` metres."""
        corners = np.asarray(corners, dtype=np.float64)
        uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        if tile_m is not None:
            size = [np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0])]
            uv = uv * size / tile_m + self.rng.random(2)
        self.quads(corners[None], layer, uv[None], tint=tint, object_idx=object_idx)

    def box(
        self,
        foot: Sequence[float] | np.ndarray,
        size: Sequence[float],
        layers: Sequence[int],
        *,
        heading_rad: float = 0.0,
        tile_m: float | None = None,
        tint: float | np.ndarray = 1.0,
        object_idx: int = STATIC,
        is_print_top: bool = False,
    ) -> None:
        """Adds a box without its bottom: `foot` is the middle of its base, `size` is (width, depth, height).

        `layers` are textures of (front and back, sides, top), cycled; the front looks along `heading_rad`.
        """
        w, d, h = size[0] / 2, size[1] / 2, size[2]
        turn = np.array(
            [[np.cos(heading_rad), np.sin(heading_rad)], [-np.sin(heading_rad), np.cos(heading_rad)]]
        )  # columns: box x and y axes in the scene; heading 0 looks along +y
        plan = np.array([[-w, -d], [w, -d], [w, d], [-w, d]]) @ turn.T
        low = np.column_stack([plan, np.zeros(4)]) + foot
        high = low + np.array([0, 0, h])
        faces = [  # seen from outside: back, right, front, left
            [high[0], high[1], low[1], low[0]],
            [high[1], high[2], low[2], low[1]],
            [high[2], high[3], low[3], low[2]],
            [high[3], high[0], low[0], low[3]],
        ]
        for k, face in enumerate(faces):
            layer = layers[k % 2 % len(layers)]
            self.quad(np.array(face), layer, tile_m=tile_m, tint=tint, object_idx=object_idx)
        top_tile = None if is_print_top else tile_m or max(size[0], size[1])
        top = np.array([high[3], high[2], high[1], high[0]])
        self.quad(top, layers[-1], tile_m=top_tile, tint=tint, object_idx=object_idx)

    def blob(
        self,
        centre: Sequence[float],
        radii: Sequence[float],
        layer: int,
        *,
        tile_m: float,
        lumps: float = 0.25,
    ) -> None:
        """Adds a lumpy ellipsoid (a rock, a bush, a crown of leaves) of 10 x 6 faces."""
        columns, rows = 10, 6
        longitude = np.linspace(0, 2 * np.pi, columns + 1)
        latitude = np.linspace(np.pi / 2, -np.pi / 2, rows + 1)
        scale = 1 + lumps * self.rng.uniform(-1, 1, (rows + 1, columns + 1))
        scale[:, -1] = scale[:, 0]
        scale[0], scale[-1] = scale[0, 0], scale[-1, 0]
        lon, lat = np.meshgrid(longitude, latitude)
        unit = np.stack([np.cos(lat) * np.sin(lon), np.cos(lat) * np.cos(lon), np.sin(lat)], axis=-1)
        points = np.asarray(centre) + scale[..., None] * unit * np.asarray(
            radii
        )  # [rows + 1, columns + 1, 3]
        uv = np.stack([lon * max(radii[0], radii[1]), -lat * radii[2]], axis=-1) / tile_m + self.rng.random(2)
        self.grid(points[:, ::-1], uv[:, ::-1], layer)

    def grid(self, points: np.ndarray, uv: np.ndarray, layer: int, *, tint: float = 1.0) -> None:
        """Adds a curved sheet: points [R, C, 3] and uv [R, C, 2]; rows go down and columns right as seen."""

        def cells(values: np.ndarray) -> np.ndarray:
            block = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]], axis=2)
            return block.reshape(-1, 4, values.shape[-1])

        self.quads(cells(points), layer, cells(uv), tint=tint)

    def strip(
        self, left: np.ndarray, right: np.ndarray, layer: int, *, tile_m: float, tint: float = 1.0
    ) -> None:
        """Adds a ribbon between two lines [K, 3] that run the same way, to be seen from above."""
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff((left + right) / 2, axis=0), axis=1))])
        width = float(np.linalg.norm(right[0] - left[0]))
        uv_left = np.column_stack([np.zeros(len(along)), -along])
        uv_right = uv_left + np.array([width, 0])
        points = np.stack([left, right], axis=1)[::-1]  # the far end is up as seen
        uv = np.stack([uv_left, uv_right], axis=1)[::-1] / tile_m
        self.grid(points, uv, layer, tint=tint)

    def sky(self, layer: int, radius_m: float) -> None:
        """Adds a cube of sky around the origin, meant to travel with the camera."""
        r = radius_m
        ring = np.array([[-r, -r], [-r, r], [r, r], [r, -r]])
        for k in range(4):
            (x0, y0), (x1, y1) = ring[k], ring[(k + 1) % 4]
            face = np.array([[[x0, y0, r], [x1, y1, r], [x1, y1, -r], [x0, y0, -r]]])
            uv = np.array([[[k, 0.0], [k + 1, 0.0], [k + 1, 2.0], [k, 2.0]]])
            self.quads(face, layer, uv, object_idx=SKY)
        top = np.array([[[-r, -r, r], [r, -r, r], [r, r, r], [-r, r, r]]])
        self.quads(top, layer, np.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]), object_idx=SKY)

"""A random generator in, an image of a surface out: what rendered scenes are dressed in.

Every function returns [S, S, 3] uint8 with S = SIZE_PX. Materials tile seamlessly;
the prints of synthetic_prints.py fill one face. All mix several scales, as natural images do, so that corners
exist at any viewing distance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import scipy.fft

SIZE_PX = 512
"""Side of a texture; at a usual 2 m per tile a texel is 4 mm, like a pixel of a 640-pixel camera at 2 m."""

_NUM_FIELDS = 5

Texture = np.ndarray
"""[S, S, 3] uint8 RGB."""


# Building blocks


def fractal(
    rng: np.random.Generator, slope: float = 1.2, stretch: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Seamless noise [S, S] float32, mean 0, deviation 1, whose amplitude falls as frequency ** -slope.

    `stretch` (along x, along y) above 1 packs the pattern closer across that direction. A shifted and
    mirrored copy of one of a few stored fields: their synthesis takes longer than the rest of a texture.
    """
    field = _field(slope, stretch, int(rng.integers(_NUM_FIELDS)))
    shift_y, shift_x = (int(v) for v in rng.integers(SIZE_PX, size=2))
    flip_y, flip_x = (int(v) for v in rng.choice([-1, 1], size=2))
    return np.roll(field, (shift_y, shift_x), axis=(0, 1))[::flip_y, ::flip_x]


@lru_cache(maxsize=128)
def _field(slope: float, stretch: tuple[float, float], number: int) -> np.ndarray:
    """Spectral synthesis of one noise field [S, S] float32."""
    rng = np.random.default_rng([number, 1])
    fx = np.fft.rfftfreq(SIZE_PX, 1 / SIZE_PX)[None, :] * stretch[0]
    fy = np.fft.fftfreq(SIZE_PX, 1 / SIZE_PX)[:, None] * stretch[1]
    radius = np.hypot(fx, fy).astype(np.float32)
    radius[0, 0] = 1.0
    parts = rng.standard_normal((2, *radius.shape), dtype=np.float32)
    spectrum = (parts[0] + np.complex64(1j) * parts[1]) * radius ** np.float32(-slope)
    spectrum[0, 0] = 0.0
    noise = scipy.fft.irfft2(spectrum, s=(SIZE_PX, SIZE_PX))
    return (noise / noise.std()).astype(np.float32)


def vivid(rng: np.random.Generator, low: float = 40, high: float = 225) -> np.ndarray:
    return rng.uniform(low, high, 3)


def muted(rng: np.random.Generator, low: float, high: float, spread: float = 18.0) -> np.ndarray:
    """A nearly grey colour: most of the built world is."""
    return np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0, 255)


def shaded(value: np.ndarray, colour: np.ndarray, contrast: float) -> np.ndarray:
    """Shades one colour [3] by noise [S, S]: [S, S, 3] float32."""
    return (np.asarray(colour, np.float32) * (1 + contrast * value[..., None])).astype(np.float32)


def done(image: np.ndarray) -> Texture:
    return np.clip(image, 0, 255).astype(np.uint8)


def islands(rng: np.random.Generator, share: float, slope: float = 1.5) -> np.ndarray:
    """Mask [S, S] float32 of irregular patches with crisp outlines that cover about `share`."""
    noise = fractal(rng, slope)
    edge = np.quantile(noise[::4, ::4], 1 - share)
    return np.clip((noise - edge) * 12 + 0.5, 0, 1)


def specks(rng: np.random.Generator, count: int, radius_px: tuple[float, float]) -> np.ndarray:
    """Mask [S, S] uint8 of random dots, seamless."""
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    for x, y, r in zip(*rng.integers(0, SIZE_PX, (2, count)), rng.uniform(*radius_px, count), strict=True):
        for dx in (-SIZE_PX, 0, SIZE_PX):
            for dy in (-SIZE_PX, 0, SIZE_PX):
                if -r <= x + dx <= SIZE_PX + r and -r <= y + dy <= SIZE_PX + r:
                    cv2.circle(mask, (int(x + dx), int(y + dy)), max(1, round(r)), 255, -1, cv2.LINE_AA)
    return mask


def overlay(image: np.ndarray, mask: np.ndarray, colour: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Blends a colour in where the mask (uint8 or float 0-1) is set."""
    alpha = mask.astype(np.float32) * (strength / (255 if mask.dtype == np.uint8 else 1))
    return image + (np.asarray(colour, np.float32) - image) * alpha[..., None]


def rectangle(
    image: np.ndarray, box: tuple[float, float, float, float], colour: np.ndarray, fill: int = -1
) -> None:
    """Draws (left, top, right, bottom) in pixels into `image` in place; fill > 0 is a line width."""
    left, top, right, bottom = (round(v) for v in box)
    cv2.rectangle(image, (left, top), (right, bottom), tuple(float(c) for c in colour), fill)


# Materials (seamless)


def macro(rng: np.random.Generator) -> Texture:
    """Large-scale unevenness around mid grey, multiplied over every surface so that tiles do not repeat."""
    return done(np.repeat((128 + 30 * fractal(rng, 1.5))[..., None], 3, axis=2))


def plaster(rng: np.random.Generator) -> Texture:
    """A painted wall: soft unevenness, repaired patches, chips and scratches."""
    base = muted(rng, 130, 215)
    image = shaded(fractal(rng, 1.0), base, 0.05)
    image = overlay(image, islands(rng, 0.16), base * rng.uniform(0.72, 0.9), 0.6)
    image = overlay(image, islands(rng, 0.05, 1.3), base * rng.uniform(0.4, 0.7), 0.6)
    image = overlay(image, specks(rng, 260, (0.6, 3.0)), base * 0.45, 0.8)
    return done(overlay(image, specks(rng, 120, (0.6, 4.0)), np.minimum(base * 1.3, 255), 0.7))


def concrete(rng: np.random.Generator) -> Texture:
    base = muted(rng, 105, 165, 8)
    image = shaded(fractal(rng, 0.9), base, 0.12)
    image = overlay(image, islands(rng, 0.12), base * 0.62, 0.5)
    return done(overlay(image, specks(rng, 500, (0.6, 3.0)), base * 0.45, 0.8))


def brick(rng: np.random.Generator) -> Texture:
    """Running bond of 16 courses; each brick has its own colour."""
    rows, columns = 16, 6
    base = np.array([rng.uniform(120, 185), rng.uniform(65, 110), rng.uniform(50, 90)])
    image = shaded(fractal(rng, 0.8), muted(rng, 150, 195), 0.08)
    height, width = SIZE_PX / rows, SIZE_PX / columns
    tones = rng.uniform(0.65, 1.25, (rows, columns))
    for row in range(rows):
        for column in range(-1, columns):
            left = (column + 0.5 * (row % 2)) * width
            tone = base * tones[row, column]
            rectangle(image, (left + 3, row * height + 3, left + width - 3, (row + 1) * height - 3), tone)
    image = image * (1 + 0.14 * fractal(rng, 0.7)[..., None])
    return done(overlay(image, islands(rng, 0.06), base * 0.4, 0.5))


def planks(rng: np.random.Generator) -> Texture:
    """Wooden boards with grain and knots."""
    base = np.array([rng.uniform(110, 190), rng.uniform(75, 130), rng.uniform(40, 85)])
    image = shaded(fractal(rng, 1.0, (0.12, 1.0)), base, 0.16)
    rows = 8
    height = SIZE_PX // rows
    for row in range(rows):
        image[row * height : (row + 1) * height] *= rng.uniform(0.72, 1.2)
        image[row * height : row * height + 3] *= 0.35
        for cut in rng.integers(0, SIZE_PX, 2):
            image[row * height : (row + 1) * height, cut : cut + 3] *= 0.4
    return done(overlay(image, specks(rng, 45, (1.0, 5.0)), base * 0.35, 0.9))


def tiles(rng: np.random.Generator) -> Texture:
    """A tiled floor: two tones, veins, worn grout."""
    count = int(rng.choice([4, 6, 8]))
    size = SIZE_PX / count
    one, other = muted(rng, 150, 215), muted(rng, 70, 140)
    image = np.zeros((SIZE_PX, SIZE_PX, 3), np.float32)
    for row in range(count):
        for column in range(count):
            tone = (one if (row + column) % 2 else other) * rng.uniform(0.85, 1.12)
            rectangle(image, (column * size, row * size, (column + 1) * size, (row + 1) * size), tone)
            rectangle(
                image, (column * size, row * size, (column + 1) * size, (row + 1) * size), one * 0.45, 3
            )
    image *= 1 + 0.08 * fractal(rng, 0.9)[..., None]
    veins = (np.abs(fractal(rng, 1.5)) < 0.035).astype(np.float32)
    image = overlay(image, veins, other * 0.6, 0.6)
    return done(overlay(image, specks(rng, 200, (0.6, 2.5)), other * 0.4, 0.8))


def carpet(rng: np.random.Generator) -> Texture:
    """A woven ornament, mirrored in x and y, over a fuzzy pile."""
    quarter = np.zeros((SIZE_PX // 2, SIZE_PX // 2, 3), np.float32) + vivid(rng, 60, 140)
    for _ in range(34):
        centre = tuple(int(v) for v in rng.integers(0, SIZE_PX // 2, 2))
        colour = tuple(float(c) for c in vivid(rng, 30, 220))
        if rng.random() < 0.5:
            cv2.circle(
                quarter, centre, int(rng.integers(4, 34)), colour, int(rng.choice([-1, 3, 5])), cv2.LINE_AA
            )
        else:
            corners = np.array(centre) + rng.integers(-36, 36, (4, 2))
            cv2.fillConvexPoly(quarter, cv2.convexHull(corners.astype(np.int32)), colour, cv2.LINE_AA)
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    image = np.concatenate([half, half[::-1]], axis=0)
    return done(image * (1 + 0.16 * fractal(rng, 0.5)[..., None]))


def asphalt(rng: np.random.Generator) -> Texture:
    """A road: grit, darker repairs with sharp borders, cracks."""
    base = muted(rng, 85, 120, 5)
    image = shaded(fractal(rng, 0.6), base, 0.13)
    image = overlay(image, islands(rng, 0.2, 1.7), base * 0.72, 0.6)
    for _ in range(5):
        left, top, w, h = rng.integers([20, 20, 40, 40], [380, 380, 110, 110])
        rectangle(image, (left, top, left + w, top + h), base * rng.uniform(0.55, 1.35))
    image *= 1 + 0.1 * fractal(rng, 0.4)[..., None]
    cracks = (np.abs(fractal(rng, 1.6)) < 0.02).astype(np.float32)
    image = overlay(image, cracks, base * 0.3, 0.9)
    return done(overlay(image, specks(rng, 700, (0.6, 2.2)), base * 1.55, 0.7))


def grass(rng: np.random.Generator) -> Texture:
    base = np.array([rng.uniform(85, 120), rng.uniform(110, 140), rng.uniform(50, 70)])
    image = shaded(fractal(rng, 0.55), base, 0.22)
    image = overlay(image, islands(rng, 0.18), np.array([135, 115, 80]), 0.7)
    image = overlay(image, specks(rng, 160, (1, 4)), np.array([150, 145, 130]), 0.9)
    return done(overlay(image, specks(rng, 120, (0.6, 2.2)), vivid(rng, 120, 235), 0.9))


def rock(rng: np.random.Generator) -> Texture:
    base = muted(rng, 95, 160, 15)
    image = shaded(fractal(rng, 1.0), base, 0.22)
    image = overlay(image, (np.abs(fractal(rng, 1.5)) < 0.06).astype(np.float32), base * 0.35, 0.8)
    return done(overlay(image, islands(rng, 0.12), np.array([105, 115, 70]), 0.6))


def leaves(rng: np.random.Generator) -> Texture:
    """Foliage: many overlapping leaves, lit and shaded."""
    base = np.array([rng.uniform(45, 90), rng.uniform(80, 120), rng.uniform(30, 55)])
    image = shaded(fractal(rng, 0.9), base * 0.5, 0.3)
    for _ in range(900):
        centre = tuple(int(v) for v in rng.integers(0, SIZE_PX, 2))
        axes = (int(rng.integers(4, 13)), int(rng.integers(2, 6)))
        tone = tuple(float(c) for c in np.clip(base * rng.uniform(0.5, 1.9), 0, 255))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, tone, -1, cv2.LINE_AA)
    return done(image)


def cloth(rng: np.random.Generator) -> Texture:
    """Patterned fabric: stripes, checks or dots."""
    base, other = vivid(rng), vivid(rng)
    image = shaded(fractal(rng, 0.7), base, 0.12)
    kind, step = rng.integers(3), int(rng.choice([32, 64]))
    for k in range(0, SIZE_PX, step):
        if kind < 2:
            image[k : k + step // 3] = image[k : k + step // 3] * 0.3 + other * 0.7
        if kind == 1:
            image[:, k : k + step // 4] = image[:, k : k + step // 4] * 0.5 + other[::-1] * 0.5
    if kind == 2:
        image = overlay(image, specks(rng, 130, (6, 16)), other)
    image = overlay(image, islands(rng, 0.1), base * 0.5, 0.5)
    return done(image * (1 + 0.1 * fractal(rng, 1.2)[..., None]))


def sky(rng: np.random.Generator) -> Texture:
    """Blue with soft clouds."""
    cloud = np.clip(fractal(rng, 1.6, (0.6, 1.0)) * 0.5 + rng.uniform(0.1, 0.5), 0, 1)
    return done(
        overlay(np.full((SIZE_PX, SIZE_PX, 3), (118, 160, 215), np.float32), cloud, np.array([238, 240, 244]))
    )


@lru_cache(maxsize=256)
def variant(make: Callable[[np.random.Generator], Texture], number: int) -> Texture:
    """One of many textures of a kind, made once per process (0.1 s, 0.8 MB each); treat it as read-only."""
    image = make(np.random.default_rng([number, *make.__name__.encode()]))
    image.flags.writeable = False
    return image

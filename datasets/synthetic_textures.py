"""A random generator in, an image of a surface out: the materials and prints that rendered scenes are dressed in.

Every function returns [S, S, 3] uint8 with S = SIZE_PX. Materials (plaster, brick, asphalt ...) tile seamlessly; prints
(posters, facades, doors ...) fill one face. All mix several scales, as natural images do, so that corners exist at any
viewing distance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

SIZE_PX = 512
"""Side of a texture; at a usual 2 m per tile one texel is 4 mm, a pixel of a 640-pixel camera at 2 m distance."""

Texture = np.ndarray
"""[S, S, 3] uint8 RGB."""

_LETTERS = "ABCDEFGHIJKLMNOPRSTUVWXYZ0123456789"


# Building blocks


def fractal(
    rng: np.random.Generator, slope: float = 1.2, stretch: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Seamless noise [S, S] float32, mean 0, deviation 1, whose amplitude falls as frequency ** -slope.

    `stretch` (along x, along y) above 1 draws the pattern out in that direction, as wood grain is.
    """
    fx = np.fft.rfftfreq(SIZE_PX, 1 / SIZE_PX)[None, :] * stretch[0]
    fy = np.fft.fftfreq(SIZE_PX, 1 / SIZE_PX)[:, None] * stretch[1]
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    spectrum = rng.standard_normal((SIZE_PX, SIZE_PX // 2 + 1, 2)) @ np.array([1, 1j])
    spectrum *= radius**-slope
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(SIZE_PX, SIZE_PX))
    return (noise / noise.std()).astype(np.float32)


def _colour(rng: np.random.Generator, low: float = 40, high: float = 225) -> np.ndarray:
    return rng.uniform(low, high, 3)


def _muted(rng: np.random.Generator, low: float, high: float, spread: float = 18.0) -> np.ndarray:
    """A nearly grey colour: most of the built world is."""
    return np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0, 255)


def _paint(value: np.ndarray, colour: np.ndarray, contrast: float) -> np.ndarray:
    """Shades one colour [3] by noise [S, S]: [S, S, 3] float32."""
    return (np.asarray(colour, np.float32) * (1 + contrast * value[..., None])).astype(np.float32)


def _done(image: np.ndarray) -> Texture:
    return np.clip(image, 0, 255).astype(np.uint8)


def _islands(rng: np.random.Generator, share: float, slope: float = 1.5) -> np.ndarray:
    """Mask [S, S] float32 of irregular patches with crisp outlines that cover about `share`."""
    noise = fractal(rng, slope)
    edge = np.quantile(noise, 1 - share)
    return np.clip((noise - edge) * 12 + 0.5, 0, 1)


def _specks(rng: np.random.Generator, count: int, radius_px: tuple[float, float]) -> np.ndarray:
    """Mask [S, S] uint8 of random dots, seamless."""
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    for x, y, r in zip(*rng.integers(0, SIZE_PX, (2, count)), rng.uniform(*radius_px, count), strict=True):
        for dx in (-SIZE_PX, 0, SIZE_PX):
            for dy in (-SIZE_PX, 0, SIZE_PX):
                if -r <= x + dx <= SIZE_PX + r and -r <= y + dy <= SIZE_PX + r:
                    cv2.circle(mask, (int(x + dx), int(y + dy)), max(1, round(r)), 255, -1, cv2.LINE_AA)
    return mask


def _overlay(image: np.ndarray, mask: np.ndarray, colour: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Blends a colour in where the mask (uint8 or float 0-1) is set."""
    alpha = mask.astype(np.float32) * (strength / (255 if mask.dtype == np.uint8 else 1))
    return image * (1 - alpha[..., None]) + np.asarray(colour, np.float32) * alpha[..., None]


def _text(image: np.ndarray, rng: np.random.Generator, left: int, top: int, width: int, size: float) -> None:
    """Writes one line of random words into `image` in place."""
    length = max(1, int(width / (19 * size)))
    letters = "".join(rng.choice(list(_LETTERS + "   "), length))
    colour = tuple(int(c) for c in rng.integers(0, 90, 3))
    thickness = max(1, round(2.2 * size))
    cv2.putText(image, letters, (left, top), cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness, cv2.LINE_AA)


def _rectangle(
    image: np.ndarray, box: tuple[float, float, float, float], colour: np.ndarray, fill: int = -1
) -> None:
    """Draws (left, top, right, bottom) in pixels into `image` in place; fill > 0 is a line width."""
    left, top, right, bottom = (round(v) for v in box)
    cv2.rectangle(image, (left, top), (right, bottom), tuple(float(c) for c in colour), fill)


# Materials (seamless)


def macro(rng: np.random.Generator) -> Texture:
    """Grey large-scale unevenness around mid grey; multiplied over every surface so that tiles do not repeat."""
    return _done(np.repeat((128 + 30 * fractal(rng, 1.1))[..., None], 3, axis=2))


def plaster(rng: np.random.Generator) -> Texture:
    """A painted wall: soft unevenness, repaired patches, chips and scratches."""
    base = _muted(rng, 130, 215)
    image = _paint(fractal(rng, 1.0), base, 0.05)
    image = _overlay(image, _islands(rng, 0.16), base * rng.uniform(0.72, 0.9), 0.6)
    image = _overlay(image, _islands(rng, 0.05, 1.3), base * rng.uniform(0.4, 0.7), 0.6)
    image = _overlay(image, _specks(rng, 260, (0.6, 3.0)), base * 0.45, 0.8)
    return _done(_overlay(image, _specks(rng, 120, (0.6, 4.0)), np.minimum(base * 1.3, 255), 0.7))


def concrete(rng: np.random.Generator) -> Texture:
    base = _muted(rng, 105, 165, 8)
    image = _paint(fractal(rng, 0.9), base, 0.12)
    image = _overlay(image, _islands(rng, 0.12), base * 0.62, 0.5)
    return _done(_overlay(image, _specks(rng, 500, (0.6, 3.0)), base * 0.45, 0.8))


def brick(rng: np.random.Generator) -> Texture:
    """Running bond of 16 courses; each brick has its own colour."""
    rows, columns = 16, 6
    base = np.array([rng.uniform(120, 185), rng.uniform(65, 110), rng.uniform(50, 90)])
    image = _paint(fractal(rng, 0.8), _muted(rng, 150, 195), 0.08)
    height, width = SIZE_PX / rows, SIZE_PX / columns
    tones = rng.uniform(0.65, 1.25, (rows, columns))
    for row in range(rows):
        for column in range(-1, columns):
            left = (column + 0.5 * (row % 2)) * width
            tone = base * tones[row, column]
            _rectangle(image, (left + 3, row * height + 3, left + width - 3, (row + 1) * height - 3), tone)
    image = image * (1 + 0.14 * fractal(rng, 0.7)[..., None])
    return _done(_overlay(image, _islands(rng, 0.06), base * 0.4, 0.5))


def planks(rng: np.random.Generator) -> Texture:
    """Wooden boards with grain and knots."""
    base = np.array([rng.uniform(110, 190), rng.uniform(75, 130), rng.uniform(40, 85)])
    image = _paint(fractal(rng, 1.0, (0.12, 1.0)), base, 0.16)
    rows = 8
    height = SIZE_PX // rows
    for row in range(rows):
        image[row * height : (row + 1) * height] *= rng.uniform(0.72, 1.2)
        image[row * height : row * height + 3] *= 0.35
        for cut in rng.integers(0, SIZE_PX, 2):
            image[row * height : (row + 1) * height, cut : cut + 3] *= 0.4
    return _done(_overlay(image, _specks(rng, 45, (1.0, 5.0)), base * 0.35, 0.9))


def tiles(rng: np.random.Generator) -> Texture:
    """A tiled floor: two tones, veins, worn grout."""
    count = int(rng.choice([4, 6, 8]))
    size = SIZE_PX / count
    one, other = _muted(rng, 150, 215), _muted(rng, 70, 140)
    image = np.zeros((SIZE_PX, SIZE_PX, 3), np.float32)
    for row in range(count):
        for column in range(count):
            tone = (one if (row + column) % 2 else other) * rng.uniform(0.85, 1.12)
            _rectangle(image, (column * size, row * size, (column + 1) * size, (row + 1) * size), tone)
            _rectangle(
                image, (column * size, row * size, (column + 1) * size, (row + 1) * size), one * 0.45, 3
            )
    image *= 1 + 0.08 * fractal(rng, 0.9)[..., None]
    veins = (np.abs(fractal(rng, 1.5)) < 0.035).astype(np.float32)
    image = _overlay(image, veins, other * 0.6, 0.6)
    return _done(_overlay(image, _specks(rng, 200, (0.6, 2.5)), other * 0.4, 0.8))


def carpet(rng: np.random.Generator) -> Texture:
    """A woven ornament, mirrored in x and y, over a fuzzy pile."""
    quarter = np.zeros((SIZE_PX // 2, SIZE_PX // 2, 3), np.float32) + _colour(rng, 60, 140)
    for _ in range(34):
        centre = tuple(int(v) for v in rng.integers(0, SIZE_PX // 2, 2))
        colour = tuple(float(c) for c in _colour(rng, 30, 220))
        if rng.random() < 0.5:
            cv2.circle(
                quarter, centre, int(rng.integers(4, 34)), colour, int(rng.choice([-1, 3, 5])), cv2.LINE_AA
            )
        else:
            corners = np.array(centre) + rng.integers(-36, 36, (4, 2))
            cv2.fillConvexPoly(quarter, cv2.convexHull(corners.astype(np.int32)), colour, cv2.LINE_AA)
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    image = np.concatenate([half, half[::-1]], axis=0)
    return _done(image * (1 + 0.16 * fractal(rng, 0.5)[..., None]))


def asphalt(rng: np.random.Generator) -> Texture:
    """A road: grit, darker repairs with sharp borders, cracks."""
    base = _muted(rng, 85, 120, 5)
    image = _paint(fractal(rng, 0.6), base, 0.13)
    image = _overlay(image, _islands(rng, 0.2, 1.7), base * 0.72, 0.6)
    for _ in range(5):
        left, top, w, h = rng.integers([20, 20, 40, 40], [380, 380, 110, 110])
        _rectangle(image, (left, top, left + w, top + h), base * rng.uniform(0.55, 1.35))
    image *= 1 + 0.1 * fractal(rng, 0.4)[..., None]
    cracks = (np.abs(fractal(rng, 1.6)) < 0.02).astype(np.float32)
    image = _overlay(image, cracks, base * 0.3, 0.9)
    return _done(_overlay(image, _specks(rng, 700, (0.6, 2.2)), base * 1.55, 0.7))


def grass(rng: np.random.Generator) -> Texture:
    base = np.array([rng.uniform(85, 120), rng.uniform(110, 140), rng.uniform(50, 70)])
    image = _paint(fractal(rng, 0.55), base, 0.22)
    image = _overlay(image, _islands(rng, 0.18), np.array([135, 115, 80]), 0.7)
    image = _overlay(image, _specks(rng, 160, (1, 4)), np.array([150, 145, 130]), 0.9)
    return _done(_overlay(image, _specks(rng, 120, (0.6, 2.2)), _colour(rng, 120, 235), 0.9))


def rock(rng: np.random.Generator) -> Texture:
    base = _muted(rng, 95, 160, 15)
    image = _paint(fractal(rng, 1.0), base, 0.22)
    image = _overlay(image, (np.abs(fractal(rng, 1.5)) < 0.06).astype(np.float32), base * 0.35, 0.8)
    return _done(_overlay(image, _islands(rng, 0.12), np.array([105, 115, 70]), 0.6))


def leaves(rng: np.random.Generator) -> Texture:
    """Foliage: many overlapping leaves, lit and shaded."""
    base = np.array([rng.uniform(45, 90), rng.uniform(80, 120), rng.uniform(30, 55)])
    image = _paint(fractal(rng, 0.9), base * 0.5, 0.3)
    for _ in range(900):
        centre = tuple(int(v) for v in rng.integers(0, SIZE_PX, 2))
        axes = (int(rng.integers(4, 13)), int(rng.integers(2, 6)))
        tone = tuple(float(c) for c in np.clip(base * rng.uniform(0.5, 1.9), 0, 255))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, tone, -1, cv2.LINE_AA)
    return _done(image)


def cloth(rng: np.random.Generator) -> Texture:
    """Patterned fabric: stripes, checks or dots."""
    base, other = _colour(rng), _colour(rng)
    image = _paint(fractal(rng, 0.7), base, 0.12)
    kind, step = rng.integers(3), int(rng.choice([32, 64]))
    for k in range(0, SIZE_PX, step):
        if kind < 2:
            image[k : k + step // 3] = image[k : k + step // 3] * 0.3 + other * 0.7
        if kind == 1:
            image[:, k : k + step // 4] = image[:, k : k + step // 4] * 0.5 + other[::-1] * 0.5
    if kind == 2:
        image = _overlay(image, _specks(rng, 130, (6, 16)), other)
    image = _overlay(image, _islands(rng, 0.1), base * 0.5, 0.5)
    return _done(image * (1 + 0.1 * fractal(rng, 1.2)[..., None]))


def sky(rng: np.random.Generator) -> Texture:
    """Blue with soft clouds."""
    cloud = np.clip(fractal(rng, 1.6, (0.6, 1.0)) * 0.5 + rng.uniform(0.1, 0.5), 0, 1)
    return _done(
        _overlay(
            np.full((SIZE_PX, SIZE_PX, 3), (118, 160, 215), np.float32), cloud, np.array([238, 240, 244])
        )
    )


# Prints (one face each)


def picture(rng: np.random.Generator) -> Texture:
    """A framed painting: a landscape-like field with shapes on it."""
    value = np.clip(fractal(rng, 1.6) * 0.3 + 0.5, 0, 1)[..., None]
    image = (_colour(rng) * value + _colour(rng) * (1 - value)).astype(np.float32)
    for _ in range(16):
        colour = tuple(float(c) for c in _colour(rng, 20, 240))
        corners = rng.integers(30, SIZE_PX - 30, 2) + rng.integers(-80, 80, (5, 2))
        cv2.fillPoly(image, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    image *= 1 + 0.12 * fractal(rng, 0.8)[..., None]
    _rectangle(image, (0, 0, SIZE_PX - 1, SIZE_PX - 1), _muted(rng, 30, 110), 36)
    return _done(image)


def poster(rng: np.random.Generator) -> Texture:
    """A printed sheet: heading, lines of text, a picture, coloured boxes."""
    paper = _muted(rng, 205, 245, 10)
    image = _done(_paint(fractal(rng, 1.2), paper, 0.03))
    _rectangle(image, (0, 0, SIZE_PX, rng.integers(60, 130)), _colour(rng))
    _text(image, rng, 20, 70, 470, 1.6)
    left, top = rng.integers([20, 130], [180, 250])
    small = cv2.resize(picture(rng), (int(rng.integers(150, 280)), int(rng.integers(120, 200))))
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    for line in range(int(rng.integers(5, 9))):
        _text(image, rng, 20, 370 + 20 * line, int(rng.integers(260, 470)), 0.55)
    for _ in range(5):
        x, y, w, h = rng.integers([0, 0, 20, 20], [430, 480, 90, 70])
        _rectangle(image, (x, y, x + w, y + h), _colour(rng))
    return image


def paper(rng: np.random.Generator) -> Texture:
    """A page of text with a ruled table."""
    image = _done(_paint(fractal(rng, 1.2), _muted(rng, 215, 245, 6), 0.02))
    for line in range(18):
        _text(image, rng, 30, 40 + 26 * line, int(rng.integers(200, 450)), 0.6)
    x, y = rng.integers(60, 280, 2)
    for k in range(5):
        cv2.line(image, (int(x), int(y + 30 * k)), (int(x + 180), int(y + 30 * k)), (40, 40, 60), 2)
        cv2.line(image, (int(x + 45 * k), int(y)), (int(x + 45 * k), int(y + 120)), (40, 40, 60), 2)
    return image


def shelf(rng: np.random.Generator) -> Texture:
    """Book spines on five boards."""
    image = np.zeros((SIZE_PX, SIZE_PX, 3), np.float32) + _muted(rng, 25, 60)
    row_px = SIZE_PX // 5
    for row in range(5):
        bottom, x = (row + 1) * row_px - 10, 6
        while x < SIZE_PX - 12:
            width, height = int(rng.integers(10, 34)), int(rng.integers(55, row_px - 14))
            colour = _colour(rng, 30, 230)
            _rectangle(image, (x, bottom - height, min(x + width, SIZE_PX - 6) - 2, bottom), colour)
            band = bottom - int(rng.uniform(0.4, 0.85) * height)
            _rectangle(image, (x + 2, band, min(x + width, SIZE_PX - 6) - 4, band + 8), 255 - colour)
            x += width
        _rectangle(image, (0, bottom, SIZE_PX, bottom + 10), np.array([120, 85, 50]) * rng.uniform(0.7, 1.2))
    return _done(image * (1 + 0.1 * fractal(rng, 0.7)[..., None]))


def cardboard(rng: np.random.Generator) -> Texture:
    """A parcel: tape, label, print."""
    image = _done(_paint(fractal(rng, 0.9), np.array([175, 135, 90]), 0.09))
    _rectangle(image, (0, 225, SIZE_PX, 285), np.array([205, 180, 130]))
    x, y = rng.integers(20, 240, 2)
    _rectangle(image, (x, y, x + 210, y + 150), np.array([240, 240, 235]))
    for line in range(5):
        _text(image, rng, int(x + 10), int(y + 28 + 26 * line), 190, 0.6)
    _text(image, rng, 30, 480, 450, 1.6)
    return image


def screen(rng: np.random.Generator) -> Texture:
    """A monitor with windows and text."""
    image = _done(_paint(fractal(rng, 1.6), _colour(rng, 30, 120), 0.3))
    for _ in range(4):
        x, y, w, h = rng.integers([20, 20, 150, 120], [260, 300, 300, 220])
        _rectangle(image, (x, y, x + w, y + h), _muted(rng, 190, 250))
        _rectangle(image, (x, y, x + w, y + 22), _colour(rng, 40, 140))
        for line in range(int(h // 24) - 1):
            _text(image, rng, int(x + 8), int(y + 44 + 22 * line), int(w * rng.uniform(0.4, 0.9)), 0.5)
    _rectangle(image, (0, 0, SIZE_PX - 1, SIZE_PX - 1), np.array([18, 18, 20]), 26)
    return image


def door(rng: np.random.Generator) -> Texture:
    """A panelled door with a frame, a handle and a sign."""
    base = _muted(rng, 90, 190, 30)
    image = _paint(fractal(rng, 1.0, (1.0, 0.15)), base, 0.08)
    _rectangle(image, (0, 0, SIZE_PX - 1, SIZE_PX - 1), base * 0.45, 44)
    for top, bottom in ((60, 220), (260, 470)):
        _rectangle(image, (80, top, 235, bottom), base * 0.7, 8)
        _rectangle(image, (275, top, 430, bottom), base * 0.7, 8)
    cv2.circle(image, (458, 265), 16, (40.0, 40.0, 35.0), -1, cv2.LINE_AA)
    image = _overlay(image, _specks(rng, 80, (0.8, 3.0)), base * 0.4, 0.8)
    result = _done(image)
    _rectangle(result, (170, 80, 340, 140), _muted(rng, 215, 245))
    _text(result, rng, 180, 122, 150, 1.0)
    return result


def window(rng: np.random.Generator) -> Texture:
    """Panes with a bright, blurred outdoors behind them."""
    view = cv2.resize(sky(rng), (SIZE_PX, SIZE_PX)).astype(np.float32)
    ground = int(rng.integers(250, 380))
    view[ground:] = leaves(rng)[ground:]
    for _ in range(7):
        x, w, h = rng.integers([0, 30, 40], [450, 110, 240])
        _rectangle(view, (x, ground - h, x + w, ground + 30), _muted(rng, 80, 190))
    for k in (0, SIZE_PX // 2, SIZE_PX - 1):
        cv2.line(view, (k, 0), (k, SIZE_PX), (235.0, 232.0, 225.0), 26)
        cv2.line(view, (0, k), (SIZE_PX, k), (235.0, 232.0, 225.0), 26)
    return _done(view)


def facade(rng: np.random.Generator) -> Texture:
    """Four storeys of windows on a brick, plaster or concrete wall, with sills, curtains, stains and pipes."""
    wall = (brick, plaster, concrete)[int(rng.integers(3))](rng)
    image = np.tile(cv2.resize(wall, (SIZE_PX // 2, SIZE_PX // 2), interpolation=cv2.INTER_AREA), (2, 2, 1))
    trim, rows, columns = _muted(rng, 60, 235), 4, int(rng.integers(3, 6))
    cell_w, cell_h = SIZE_PX / columns, SIZE_PX / rows
    wide, tall = rng.uniform(0.4, 0.62), rng.uniform(0.5, 0.68)
    for row in range(rows):
        for column in range(columns):
            left, top = (column + 0.5 - wide / 2) * cell_w, (row + 0.5 - tall / 2) * cell_h
            right, bottom = left + wide * cell_w, top + tall * cell_h
            _rectangle(image, (left, top, right, bottom), _muted(rng, 25, 105))
            if rng.random() < 0.55:
                part = rng.uniform(0.15, 0.95)
                _rectangle(image, (left, top, right, top + part * (bottom - top)), _muted(rng, 130, 235, 30))
            middle = (left + right) / 2
            cv2.line(
                image, (round(middle), round(top)), (round(middle), round(bottom)), tuple(trim.tolist()), 3
            )
            _rectangle(image, (left, top, right, bottom), trim, 4)
            _rectangle(image, (left - 5, bottom, right + 5, bottom + 6), trim * 0.75)
    pipe = int(rng.integers(5, SIZE_PX - 15))
    _rectangle(image, (pipe, 0, pipe + 7, SIZE_PX), _muted(rng, 50, 120))
    _rectangle(image, (0, 0, SIZE_PX, 10), trim * 0.8)
    return _done(image * (1 + 0.07 * fractal(rng, 1.2)[..., None]))


def shopfront(rng: np.random.Generator) -> Texture:
    """Ground floor: sign, display windows with goods, a door."""
    image = _done(_paint(fractal(rng, 1.0), _muted(rng, 70, 160, 30), 0.12))
    _rectangle(image, (0, 0, SIZE_PX, 110), _colour(rng))
    _text(image, rng, 25, 80, 460, 2.0)
    door_at = int(rng.choice([20, 190, 360]))
    for left in (20, 190, 360):
        _rectangle(image, (left, 140, left + 135, 480), _muted(rng, 25, 75))
        if left == door_at:
            _rectangle(image, (left, 140, left + 135, 480), _colour(rng), 16)
            continue
        for _ in range(12):
            x, y, w, h = rng.integers([left, 190, 12, 15], [left + 110, 440, 50, 90])
            _rectangle(image, (x, y, min(x + w, left + 130), min(y + h, 478)), _colour(rng, 60, 240))
        _rectangle(image, (left, 140, left + 135, 480), _muted(rng, 150, 235), 5)
    return image


def car(rng: np.random.Generator) -> Texture:
    """The side of a car as a flat print: paint, windows, door seams, wheels."""
    paint = _colour(rng, 30, 225)
    image = _done(_paint(fractal(rng, 1.4), paint, 0.08))
    _rectangle(image, (0, 400, SIZE_PX, SIZE_PX), paint * 0.4)
    for left, right in ((60, 230), (260, 440)):
        _rectangle(image, (left, 60, right, 210), np.array([35, 42, 50]))
        _rectangle(image, (left + 15, 80, left + int(rng.integers(40, 110)), 190), np.array([95, 110, 125]))
    for x in (245, 455, 45):
        cv2.line(image, (x, 50), (x, 400), tuple((paint * 0.35).tolist()), 4)
    for x in (110, 400):
        cv2.circle(image, (x, 430), 78, (20, 20, 22), -1, cv2.LINE_AA)
        cv2.circle(image, (x, 430), 42, (150, 150, 155), -1, cv2.LINE_AA)
        for angle in np.arange(5) * 2 * np.pi / 5:
            tip = (int(x + 38 * np.cos(angle)), int(430 + 38 * np.sin(angle)))
            cv2.line(image, (x, 430), tip, (60, 60, 65), 8, cv2.LINE_AA)
    _rectangle(image, (330, 260, 390, 276), np.array([40, 40, 40]))
    return image


def car_end(rng: np.random.Generator) -> Texture:
    """Front or back of a car: window, lamps, number plate, bumper."""
    paint = _colour(rng, 30, 225)
    image = _done(_paint(fractal(rng, 1.4), paint, 0.08))
    _rectangle(image, (50, 40, 460, 210), np.array([40, 46, 54]))
    _rectangle(image, (90, 60, 250, 190), np.array([90, 104, 118]))
    for left in (20, 400):
        _rectangle(image, (left, 260, left + 90, 330), np.array([200, 60, 50]))
        _rectangle(image, (left, 260, left + 90, 330), np.array([30, 30, 30]), 6)
    _rectangle(image, (165, 270, 350, 330), np.array([235, 235, 230]))
    _text(image, rng, 178, 318, 170, 1.2)
    _rectangle(image, (0, 385, SIZE_PX, SIZE_PX), np.array([35, 35, 38]))
    return image


def face(rng: np.random.Generator) -> Texture:
    """A head seen from any side: hair above, skin below, eyes and mouth."""
    skin, hair = (
        np.array([rng.uniform(110, 225), rng.uniform(80, 175), rng.uniform(60, 145)]),
        _muted(rng, 20, 110),
    )
    image = _paint(fractal(rng, 1.2), skin, 0.06)
    image[:190] = _paint(fractal(rng, 0.7), hair, 0.3)[:190]
    for x in (160, 350):
        cv2.ellipse(image, (x, 270), (44, 24), 0, 0, 360, (235.0, 235.0, 230.0), -1, cv2.LINE_AA)
        cv2.circle(image, (x, 270), 16, (40.0, 30.0, 25.0), -1, cv2.LINE_AA)
    cv2.ellipse(image, (256, 420), (70, 18), 0, 0, 360, (150.0, 60.0, 60.0), -1, cv2.LINE_AA)
    return _done(image)


@lru_cache(maxsize=192)
def variant(make: Callable[[np.random.Generator], Texture], number: int) -> Texture:
    """One of many textures of a kind, made once per process (0.1 s, 0.8 MB each); treat it as read-only."""
    image = make(np.random.default_rng([number, *make.__name__.encode()]))
    image.flags.writeable = False
    return image

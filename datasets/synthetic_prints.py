"""A random generator in, an image that fills one face out: posters, shelves, doors, facades, cars."""

from __future__ import annotations

import cv2
import numpy as np

from worldline.datasets.synthetic_textures import (
    SIZE_PX,
    Texture,
    brick,
    concrete,
    done,
    fractal,
    leaves,
    muted,
    overlay,
    plaster,
    rectangle,
    shaded,
    sky,
    specks,
    vivid,
)

_LETTERS = "ABCDEFGHIJKLMNOPRSTUVWXYZ0123456789"


def _text(image: np.ndarray, rng: np.random.Generator, left: int, top: int, width: int, size: float) -> None:
    """Writes one line of random words into `image` in place."""
    length = max(1, int(width / (19 * size)))
    letters = "".join(rng.choice(list(_LETTERS + "   "), length))
    colour = tuple(int(c) for c in rng.integers(0, 90, 3))
    thickness = max(1, round(2.2 * size))
    cv2.putText(image, letters, (left, top), cv2.FONT_HERSHEY_SIMPLEX, size, colour, thickness, cv2.LINE_AA)


def picture(rng: np.random.Generator) -> Texture:
    """A framed painting: a landscape-like field with shapes on it."""
    value = np.clip(fractal(rng, 1.6) * 0.3 + 0.5, 0, 1)[..., None]
    image = (vivid(rng) * value + vivid(rng) * (1 - value)).astype(np.float32)
    for _ in range(16):
        colour = tuple(float(c) for c in vivid(rng, 20, 240))
        corners = rng.integers(30, SIZE_PX - 30, 2) + rng.integers(-80, 80, (5, 2))
        cv2.fillPoly(image, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    image *= 1 + 0.12 * fractal(rng, 0.8)[..., None]
    rectangle(image, (0, 0, SIZE_PX - 1, SIZE_PX - 1), muted(rng, 30, 110), 36)
    return done(image)


def poster(rng: np.random.Generator) -> Texture:
    """A printed sheet: heading, lines of text, a picture, coloured boxes."""
    paper = muted(rng, 205, 245, 10)
    image = done(shaded(fractal(rng, 1.2), paper, 0.03))
    rectangle(image, (0, 0, SIZE_PX, int(rng.integers(60, 130))), vivid(rng))
    _text(image, rng, 20, 70, 470, 1.6)
    left, top = rng.integers([20, 130], [180, 250])
    small = cv2.resize(picture(rng), (int(rng.integers(150, 280)), int(rng.integers(120, 200))))
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    for line in range(int(rng.integers(5, 9))):
        _text(image, rng, 20, 370 + 20 * line, int(rng.integers(260, 470)), 0.55)
    for _ in range(5):
        x, y, w, h = rng.integers([0, 0, 20, 20], [430, 480, 90, 70])
        rectangle(image, (x, y, x + w, y + h), vivid(rng))
    return image


def paper(rng: np.random.Generator) -> Texture:
    """A page of text with a ruled table."""
    image = done(shaded(fractal(rng, 1.2), muted(rng, 215, 245, 6), 0.02))
    for line in range(18):
        _text(image, rng, 30, 40 + 26 * line, int(rng.integers(200, 450)), 0.6)
    x, y = rng.integers(60, 280, 2)
    for k in range(5):
        cv2.line(image, (int(x), int(y + 30 * k)), (int(x + 180), int(y + 30 * k)), (40, 40, 60), 2)
        cv2.line(image, (int(x + 45 * k), int(y)), (int(x + 45 * k), int(y + 120)), (40, 40, 60), 2)
    return image


def shelf(rng: np.random.Generator) -> Texture:
    """Book spines on five boards."""
    image = np.zeros((SIZE_PX, SIZE_PX, 3), np.float32) + muted(rng, 25, 60)
    row_px = SIZE_PX // 5
    for row in range(5):
        bottom, x = (row + 1) * row_px - 10, 6
        while x < SIZE_PX - 12:
            width, height = int(rng.integers(10, 34)), int(rng.integers(55, row_px - 14))
            colour = vivid(rng, 30, 230)
            rectangle(image, (x, bottom - height, min(x + width, SIZE_PX - 6) - 2, bottom), colour)
            band = bottom - int(rng.uniform(0.4, 0.85) * height)
            rectangle(image, (x + 2, band, min(x + width, SIZE_PX - 6) - 4, band + 8), 255 - colour)
            x += width
        rectangle(image, (0, bottom, SIZE_PX, bottom + 10), np.array([120, 85, 50]) * rng.uniform(0.7, 1.2))
    return done(image * (1 + 0.1 * fractal(rng, 0.7)[..., None]))


def cardboard(rng: np.random.Generator) -> Texture:
    """A parcel: tape, label, print."""
    image = done(shaded(fractal(rng, 0.9), np.array([175, 135, 90]), 0.09))
    rectangle(image, (0, 225, SIZE_PX, 285), np.array([205, 180, 130]))
    x, y = rng.integers(20, 240, 2)
    rectangle(image, (x, y, x + 210, y + 150), np.array([240, 240, 235]))
    for line in range(5):
        _text(image, rng, int(x + 10), int(y + 28 + 26 * line), 190, 0.6)
    _text(image, rng, 30, 480, 450, 1.6)
    return image


def screen(rng: np.random.Generator) -> Texture:
    """A monitor with windows and text."""
    image = done(shaded(fractal(rng, 1.6), vivid(rng, 30, 120), 0.3))
    for _ in range(4):
        x, y, w, h = rng.integers([20, 20, 150, 120], [260, 300, 300, 220])
        rectangle(image, (x, y, x + w, y + h), muted(rng, 190, 250))
        rectangle(image, (x, y, x + w, y + 22), vivid(rng, 40, 140))
        for line in range(int(h // 24) - 1):
            _text(image, rng, int(x + 8), int(y + 44 + 22 * line), int(w * rng.uniform(0.4, 0.9)), 0.5)
    rectangle(image, (0, 0, SIZE_PX - 1, SIZE_PX - 1), np.array([18, 18, 20]), 26)
    return image


def door(rng: np.random.Generator) -> Texture:
    """A panelled door with a frame, a handle and a sign."""
    base = muted(rng, 90, 190, 30)
    image = shaded(fractal(rng, 1.0, (1.0, 0.15)), base, 0.08)
    rectangle(image, (0, 0, SIZE_PX - 1, SIZE_PX - 1), base * 0.45, 44)
    for top, bottom in ((60, 220), (260, 470)):
        rectangle(image, (80, top, 235, bottom), base * 0.7, 8)
        rectangle(image, (275, top, 430, bottom), base * 0.7, 8)
    cv2.circle(image, (458, 265), 16, (40.0, 40.0, 35.0), -1, cv2.LINE_AA)
    image = overlay(image, specks(rng, 80, (0.8, 3.0)), base * 0.4, 0.8)
    result = done(image)
    rectangle(result, (170, 80, 340, 140), muted(rng, 215, 245))
    _text(result, rng, 180, 122, 150, 1.0)
    return result


def window(rng: np.random.Generator) -> Texture:
    """Panes with a bright, blurred outdoors behind them."""
    view = cv2.resize(sky(rng), (SIZE_PX, SIZE_PX)).astype(np.float32)
    ground = int(rng.integers(250, 380))
    view[ground:] = leaves(rng)[ground:]
    for _ in range(7):
        x, w, h = rng.integers([0, 30, 40], [450, 110, 240])
        rectangle(view, (x, ground - h, x + w, ground + 30), muted(rng, 80, 190))
    for k in (0, SIZE_PX // 2, SIZE_PX - 1):
        cv2.line(view, (k, 0), (k, SIZE_PX), (235.0, 232.0, 225.0), 26)
        cv2.line(view, (0, k), (SIZE_PX, k), (235.0, 232.0, 225.0), 26)
    return done(view)


def facade(rng: np.random.Generator) -> Texture:
    """Four storeys of windows with sills and curtains on a brick, plaster or concrete wall."""
    wall = (brick, plaster, concrete)[int(rng.integers(3))](rng)
    image = np.tile(cv2.resize(wall, (SIZE_PX // 2, SIZE_PX // 2), interpolation=cv2.INTER_AREA), (2, 2, 1))
    trim, rows, columns = muted(rng, 60, 235), 4, int(rng.integers(3, 6))
    cell_w, cell_h = SIZE_PX / columns, SIZE_PX / rows
    wide, tall = rng.uniform(0.4, 0.62), rng.uniform(0.5, 0.68)
    for row in range(rows):
        for column in range(columns):
            left, top = (column + 0.5 - wide / 2) * cell_w, (row + 0.5 - tall / 2) * cell_h
            right, bottom = left + wide * cell_w, top + tall * cell_h
            rectangle(image, (left, top, right, bottom), muted(rng, 25, 105))
            if rng.random() < 0.55:
                part = rng.uniform(0.15, 0.95)
                rectangle(image, (left, top, right, top + part * (bottom - top)), muted(rng, 130, 235, 30))
            middle = (left + right) / 2
            cv2.line(
                image, (round(middle), round(top)), (round(middle), round(bottom)), tuple(trim.tolist()), 3
            )
            rectangle(image, (left, top, right, bottom), trim, 4)
            rectangle(image, (left - 5, bottom, right + 5, bottom + 6), trim * 0.75)
    pipe = int(rng.integers(5, SIZE_PX - 15))
    rectangle(image, (pipe, 0, pipe + 7, SIZE_PX), muted(rng, 50, 120))
    rectangle(image, (0, 0, SIZE_PX, 10), trim * 0.8)
    return done(image * (1 + 0.07 * fractal(rng, 1.2)[..., None]))


def shopfront(rng: np.random.Generator) -> Texture:
    """Ground floor: sign, display windows with goods, a door."""
    image = done(shaded(fractal(rng, 1.0), muted(rng, 70, 160, 30), 0.12))
    rectangle(image, (0, 0, SIZE_PX, 110), vivid(rng))
    _text(image, rng, 25, 80, 460, 2.0)
    door_at = int(rng.choice([20, 190, 360]))
    for left in (20, 190, 360):
        rectangle(image, (left, 140, left + 135, 480), muted(rng, 25, 75))
        if left == door_at:
            rectangle(image, (left, 140, left + 135, 480), vivid(rng), 16)
            continue
        for _ in range(12):
            x, y, w, h = rng.integers([left, 190, 12, 15], [left + 110, 440, 50, 90])
            rectangle(image, (x, y, min(x + w, left + 130), min(y + h, 478)), vivid(rng, 60, 240))
        rectangle(image, (left, 140, left + 135, 480), muted(rng, 150, 235), 5)
    return image


def car(rng: np.random.Generator) -> Texture:
    """The side of a car as a flat print: paint, windows, door seams, wheels."""
    paint = vivid(rng, 30, 225)
    image = done(shaded(fractal(rng, 1.4), paint, 0.08))
    rectangle(image, (0, 400, SIZE_PX, SIZE_PX), paint * 0.4)
    for left, right in ((60, 230), (260, 440)):
        rectangle(image, (left, 60, right, 210), np.array([35, 42, 50]))
        rectangle(image, (left + 15, 80, left + int(rng.integers(40, 110)), 190), np.array([95, 110, 125]))
    for x in (245, 455, 45):
        cv2.line(image, (x, 50), (x, 400), tuple((paint * 0.35).tolist()), 4)
    for x in (110, 400):
        cv2.circle(image, (x, 430), 78, (20, 20, 22), -1, cv2.LINE_AA)
        cv2.circle(image, (x, 430), 42, (150, 150, 155), -1, cv2.LINE_AA)
        for angle in np.arange(5) * 2 * np.pi / 5:
            tip = (int(x + 38 * np.cos(angle)), int(430 + 38 * np.sin(angle)))
            cv2.line(image, (x, 430), tip, (60, 60, 65), 8, cv2.LINE_AA)
    rectangle(image, (330, 260, 390, 276), np.array([40, 40, 40]))
    return image


def car_end(rng: np.random.Generator) -> Texture:
    """Front or back of a car: window, lamps, number plate, bumper."""
    paint = vivid(rng, 30, 225)
    image = done(shaded(fractal(rng, 1.4), paint, 0.08))
    rectangle(image, (50, 40, 460, 210), np.array([40, 46, 54]))
    rectangle(image, (90, 60, 250, 190), np.array([90, 104, 118]))
    for left in (20, 400):
        rectangle(image, (left, 260, left + 90, 330), np.array([200, 60, 50]))
        rectangle(image, (left, 260, left + 90, 330), np.array([30, 30, 30]), 6)
    rectangle(image, (165, 270, 350, 330), np.array([235, 235, 230]))
    _text(image, rng, 178, 318, 170, 1.2)
    rectangle(image, (0, 385, SIZE_PX, SIZE_PX), np.array([35, 35, 38]))
    return image


def face(rng: np.random.Generator) -> Texture:
    """A head seen from any side: hair above, skin below, eyes and mouth."""
    skin, hair = rng.uniform(110, 235) * np.array([1.0, 0.78, 0.64]), muted(rng, 20, 110)
    image = shaded(fractal(rng, 1.2), skin, 0.06)
    image[:190] = shaded(fractal(rng, 0.7), hair, 0.3)[:190]
    for x in (160, 350):
        cv2.ellipse(image, (x, 270), (44, 24), 0, 0, 360, (235.0, 235.0, 230.0), -1, cv2.LINE_AA)
        cv2.circle(image, (x, 270), 16, (40.0, 30.0, 25.0), -1, cv2.LINE_AA)
    cv2.ellipse(image, (256, 420), (70, 18), 0, 0, 360, (150.0, 60.0, 60.0), -1, cv2.LINE_AA)
    return done(image)

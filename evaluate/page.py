"""Tables, pictures and a ledger in, one HTML page out that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from worldline.datasets.commit_log import replace_file

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .7rem; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums } tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100%; image-rendering: pixelated } figure { margin: 1rem 0 } figcaption { color: #555 }
"""


def page_html(
    title: str,
    notes: Sequence[str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, np.ndarray],
) -> str:
    """The page's text. A table is a list of rows with equal keys; a picture is [H, W, 3] uint8 RGB."""
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(note)}</p>" for note in notes)]
    for name, rows in tables.items():
        parts.append(f"<h2>{html.escape(name)}</h2>{_table(rows)}")
    for caption, picture in pictures.items():
        text = html.escape(caption)
        parts.append(
            f'<figure><img alt="{text}" src="{_png(picture)}"><figcaption>{text}</figcaption></figure>'
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def write_page(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())


def film_strips(strips: Mapping[str, np.ndarray], *, height_px: int = 120) -> np.ndarray:
    """Videos [F, h, w, 3] uint8 of one size under each other, their names written in, as one picture."""
    rows = []
    for name, frames in strips.items():
        factor = max(1, round(height_px / frames.shape[1]))
        large = np.concatenate(list(frames.repeat(factor, axis=1).repeat(factor, axis=2)), axis=1)
        band = np.full((24, large.shape[1], 3), 255, np.uint8)
        cv2.putText(band, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
        rows += [band, large]
    return np.concatenate(rows)


def line_plot(title: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One curve as [H, W, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x, y, lw=1)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>no rows</p>"
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return '<td class="number">unknown</td>'
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    kind = ' class="number"' if isinstance(value, int) else ""
    return f"<td{kind}>{html.escape(str(value))}</td>"


def _png(picture: np.ndarray) -> str:
    _, data = cv2.imencode(".png", picture[..., ::-1])
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"

"""A clip in, what is to be seen in it in words out: objects, place and look, never what the camera does.

A caption that says "the camera pans left" teaches a model to take the trajectory from the text instead of from the
poses. `camera_words` finds such wording; sentences with it are dropped, and a caption of nothing else is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from worldline.annotate.backends import load_backend

BACKENDS = {"qwen_vl": "worldline.annotate.backends.qwen_vl:QwenVlCaptioner"}
HOW_TO_INSTALL = {"qwen_vl": "pip install 'worldline[content]'"}
MEASURED, SIDECAR = "measured", "sidecar"

PROMPT = (
    "Describe this scene for someone who will paint it: the place, the objects and their layout, materials, light, "
    "weather and style. One paragraph of at most 80 words. Do not mention the camera, the viewer, the video, or any "
    "movement of the point of view."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionConfig:
    """Where captions come from."""

    backend: str = MEASURED
    """measured (attributes of the picture, no weights), sidecar (a file beside the video), or qwen_vl."""
    weights: str | None = None
    """Folder or Hugging Face name of other weights; None: the published ones."""
    device: str | None = None
    """torch device; None: a GPU where there is one."""
    num_looks: int = 4
    """Pictures a clip that a backend sees, spread evenly."""
    max_tokens: int = 160
    """Most that a language model may say: 80 words and some room."""
    prompt: str = PROMPT
    """What a language model is asked."""

    def __post_init__(self) -> None:
        if self.backend not in (MEASURED, SIDECAR, *BACKENDS):
            raise ValueError(
                f"caption backend {self.backend!r}: {MEASURED}, {SIDECAR}, {', '.join(BACKENDS)}"
            )
        if self.num_looks < 1 or self.max_tokens < 1:
            raise ValueError("num_looks and max_tokens must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """What a clip's caption is, or why it has none."""

    text: str | None
    """None: no caption."""
    backend: str
    camera_words: tuple[str, ...] = ()
    """Wording about the camera in sentences that were dropped."""


class Captioner(Protocol):
    """A backend: made once from a CaptionConfig, called for each clip."""

    def __call__(self, frames: Sequence[np.ndarray]) -> str:
        """Pictures [H, W, 3] uint8 RGB of one clip, in order of time -> what is in them."""


def make_captioner(config: CaptionConfig) -> Captioner | None:
    """The backend that looks at pictures, loaded; None for measured and sidecar. Raises MissingBackend."""
    if config.backend in BACKENDS:
        made: Captioner = load_backend(config.backend, BACKENDS, HOW_TO_INSTALL)(config)
        return made
    return None


def caption_clip(
    row: Mapping[str, Any],
    frames: Sequence[np.ndarray],
    config: CaptionConfig,
    captioner: Captioner | None = None,
) -> Caption:
    """The caption of one row of the trajectory table; `frames`: some of its pictures, [H, W, 3] uint8 RGB.

    Raises ValueError for a sidecar that cannot be read.
    """
    if config.backend == SIDECAR:
        text = _from_sidecar(row)
    elif config.backend == MEASURED:
        return Caption(text=measured_caption(row, frames), backend=MEASURED)
    else:
        captioner = captioner or make_captioner(config)
        text = captioner(frames) if captioner else None
    kept, words = without_camera(text or "")
    return Caption(text=kept or None, backend=config.backend, camera_words=tuple(words))


# Wording about the camera

_MOVES = (
    r"(?:pan(?:s|ned|ning)?|tilt(?:s|ed|ing)?|zoom(?:s|ed|ing)?|mov(?:es?|ed|ing)|track(?:s|ed|ing)?|follow(?:s|ed|ing)?|"
    r"rotat(?:es?|ed|ing)|turn(?:s|ed|ing)?|glid(?:es?|ing)|fl(?:y|ies|ew|ying)|advanc(?:es?|ed|ing)|"
    r"travel(?:s|l?ed|l?ing)?|dolly|dollies|push(?:es|ed|ing)?|pull(?:s|ed|ing)?|sweep(?:s|ing)?|swept|"
    r"circl(?:es?|ed|ing)|orbit(?:s|ed|ing)?|descend(?:s|ed|ing)?|ascend(?:s|ed|ing)?|ris(?:es?|ing)|rose|"
    r"approach(?:es|ed|ing)?|shift(?:s|ed|ing)?|walk(?:s|ed|ing)?|drift(?:s|ed|ing)?|swing(?:s|ing)?|swings|"
    r"retreat(?:s|ed|ing)?|rides?|riding|driv(?:es?|ing)|drove|pass(?:es|ed|ing)?|head(?:s|ed|ing)|proceed(?:s|ed|ing)?|"
    r"transition(?:s|ed|ing)?|slid(?:es?|ing)|hover(?:s|ed|ing)?|spin(?:s|ning)?|swivel(?:s|ed|ing)?|navigat(?:es?|ing)|"
    r"progress(?:es|ed|ing)|focus(?:es|ed|ing)?|reveal(?:s|ed|ing)?|remain(?:s|ed|ing)?|stay(?:s|ed|ing)?|"
    r"captur(?:es?|ed|ing)|go(?:es|ing)?|arc(?:s|ing)|tracks)"
)
_SLOWLY = (
    r"(?:\w+ly |then |now |also |first |is |are |was |begins to |starts to |begins |starts |continues to |"
    r"continues |keeps )"
)
_WAY = (
    r"(?:forwards?|backwards?|left|right|leftwards?|rightwards?|upwards?|downwards?|up|down|through|along|across|"
    r"around|past|over|towards?|into|in|out|closer|away|ahead|onwards?|further|between|back|to|from)"
)
_GOING = (
    r"(?:moving|walking|driving|flying|gliding|turning|panning|heading|travell?ing|riding|advancing|descending|"
    r"ascending|zooming|tilting|drifting|strolling|cycling|sailing|floating|circling|orbiting|approaching)"
)
_PATTERNS = tuple(
    re.compile(text, re.IGNORECASE)
    for text in (
        # Who films, and what it does.
        r"\b(?:camera ?man|camera|viewpoint|vantage point|point of view|pov|cinematographer|gimbal)(?:'s)?"
        rf"(?:,? [\w-]+){{0,4}}?,? {_MOVES}\b",
        rf"\b(?:the|a) drone {_SLOWLY}*{_MOVES}\b",
        # What is shown, with the verb close by: "the view shifts", but not "the view of rising hills".
        rf"\b(?:view|scene|video|clip|footage|frame|perspective|shot|image|viewer|we|observer) {_SLOWLY}*"
        rf"(?:{_MOVES}) {_SLOWLY}*{_WAY}\b",
        rf"\b(?:view|perspective|shot|footage|frame) {_SLOWLY}*(?:pan|tilt|zoom|rotat|shift|glid|swivel)\w*\b",
        r"\bcamera (?:movements?|motions?|work|pans?|tilts?|shakes?|angle (?:changes|shifts)|moves|path|trajectory)\b",
        r"\b(?:panning|tracking|dolly|zooming|orbiting|hand-?held|crane|steadicam|trucking|pull-?back|push-?in|"
        r"fly-?(?:through|over|by)|sweeping|moving|walking|first-person walking|pov) (?:shots?|camera|footage|video|view|tour)\b",
        r"\b(?:fly|walk|drive)-(?:through|over|by)\b|\b(?:flythrough|flyover|walkthrough)\b",
        r"\bzoom(?:s|ed|ing)? (?:in|out)\b",
        rf"\bpan(?:s|ned|ning) (?:slowly |smoothly |gently |quickly )?{_WAY}\b",
        rf"\bas (?:we|you|one|the viewer|the observer) {_SLOWLY}*{_MOVES}\b",
        # A sentence that begins with a going of nobody: "Moving forward along the canal, ..."
        rf"^\W*(?:slowly |smoothly |steadily |gently )?{_GOING} (?:slowly |smoothly |steadily |gently )?{_WAY}\b",
        r"\b(?:tilt(?:s|ing)?|pan(?:s|ning)?) (?:up|down|left|right)(?:wards?)?\b",
        r"\bego-?motion\b|\bthe camera (?:is|stays|remains) (?:static|still|stationary|fixed|steady)\b",
        r"\b(?:static|stationary|fixed|moving|shaky|steady) camera\b",
    )
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def camera_words(text: str) -> list[str]:
    """Wording in the text that tells what the camera does, sentence by sentence; empty: none."""
    found = []
    for sentence in _SENTENCE.split(text.strip()):
        match = next((match for pattern in _PATTERNS if (match := pattern.search(sentence))), None)
        if match:
            found.append(match[0].strip())
    return found


def without_camera(text: str) -> tuple[str, list[str]]:
    """The text without sentences that tell what the camera does, and the wording that told it."""
    sentences = [sentence for sentence in _SENTENCE.split(text.strip()) if sentence]
    kept = [sentence for sentence in sentences if not camera_words(sentence)]
    return " ".join(kept), [words for sentence in sentences for words in camera_words(sentence)]


# Captions from what was measured

_HUES = (
    (15, "red"),
    (40, "orange"),
    (70, "yellow"),
    (160, "green"),
    (200, "cyan"),
    (260, "blue"),
    (320, "purple"),
)


def measured_caption(row: Mapping[str, Any], frames: Sequence[np.ndarray]) -> str:
    """A caption that says it is one of measured attributes: light, contrast, palette, people, text. What is unknown is
    left out."""
    parts = [
        _level(row.get("luminance"), ((40, "dark"), (80, "dim"), (170, "evenly lit"), (256, "bright"))),
        _level(row.get("contrast"), ((30, "flat contrast"), (70, None), (256, "strong contrast"))),
        _level(
            row.get("saturation"),
            ((15, "greyscale"), (60, "muted colours"), (110, None), (256, "vivid colours")),
        ),
        _palette(frames),
        _level(row.get("blur"), ((0.55, None), (1.01, "soft or blurred"))),
        *(_counted(row.get(f"num_{kind}"), kind) for kind in ("people", "vehicles", "animals")),
        _level(
            row.get("moving_share"),
            ((0.05, "a still scene"), (0.25, None), (1.01, "much moves in the scene")),
        ),
    ]
    if row.get("text_backend") == "rapidocr":
        parts.append(_level(row.get("text_area_share"), ((0.002, None), (1.01, "text in the picture"))))
    return "Measured attributes: " + ", ".join(part for part in parts if part) + "."


def _level(value: float | None, levels: tuple[tuple[float, str | None], ...]) -> str | None:
    if value is None or value != value:
        return None
    return next((word for limit, word in levels if value < limit), None)


def _counted(value: float | None, kind: str) -> str | None:
    if value is None or value != value:
        return None
    return f"about {round(value)} {kind}" if value >= 1.5 else f"no {kind}" if value < 0.5 else None


def _palette(frames: Sequence[np.ndarray]) -> str | None:
    """The one or two hues that cover the most, of those that cover a tenth of the picture."""
    if not len(frames):
        return None
    small = np.concatenate([cv2.resize(frame, (64, 36), interpolation=cv2.INTER_AREA) for frame in frames])
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV).reshape(-1, 3).astype(np.float64)
    is_coloured = (hsv[:, 1] > 60) & (hsv[:, 2] > 40)
    hues_deg = 2 * hsv[is_coloured, 0]
    limits = [limit for limit, _ in _HUES]
    names = np.array([name for _, name in _HUES] + ["red"])
    found, counts = np.unique(names[np.searchsorted(limits, hues_deg, side="right")], return_counts=True)
    order = [k for k in np.argsort(-counts) if counts[k] > 0.1 * len(hsv)][:2]
    return "mostly " + " and ".join(found[k] for k in order) if order else None


# Captions that somebody wrote


def _from_sidecar(row: Mapping[str, Any]) -> str | None:
    """Of `<video>.caption.txt`, or of `<video>.captions.json`: a list of {caption, start_s, end_s}, of which those
    that cover most of the clip count. None where there is none."""
    if not row.get("path"):
        return None
    plain, listed = Path(f"{row['path']}.caption.txt"), Path(f"{row['path']}.captions.json")
    try:
        if plain.exists():
            return plain.read_text(encoding="utf-8").strip() or None
        if not listed.exists():
            return None
        entries = json.loads(listed.read_text(encoding="utf-8"))
        covers = [
            (min(entry["end_s"], row["end_s"]) - max(entry["start_s"], row["start_s"]), entry["caption"])
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"caption of {row['path']}: {type(error).__name__} {error}") from error
    length_s, text = max(covers, default=(0.0, ""))
    return text if length_s > 0.5 * (row["end_s"] - row["start_s"]) else None

"""Control strings in, camera poses out: "w-40,dw-24,none-8" is keys held, a dash, frames, joined by commas.

w/s go forward and back, a/d turn left and right, i/k look up and down, j/l step left and right, none holds
still. Walking stays level whatever the pitch. N frames of action give N + 1 poses, the first the identity.
The released SANA-WM pipeline reads j/l as turns and a/d as steps; its backend parses strings by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worldline.annotate.camera import rotation_from_rotvec

KEYS = {
    "w": ("forward", 1),
    "s": ("forward", -1),
    "l": ("right", 1),
    "j": ("right", -1),
    "d": ("yaw", 1),
    "a": ("yaw", -1),
    "i": ("pitch", 1),
    "k": ("pitch", -1),
}
"""What a key changes, and in which sense; right, clockwise from above and up are positive."""

MAX_FRAMES = 1_000_000
"""Of one string, so that a slip of the keyboard ends in a message and not in the memory's end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionConfig:
    """How fast keys move the camera."""

    step_m: float = 0.025
    """Metres a frame, 0.4 m/s at 16 frames/s: the speed SANA-WM's paths are limited to."""
    turn_deg: float = 0.6
    """Degrees a frame, 9.6 deg/s at 16 frames/s."""
    ease_frames: int = 6
    """Frames over which a key's speed rises after it is pressed and falls before it is let go; 0 is none. A
    key held for n frames moves n - min(ease_frames, n // 2) full steps."""
    max_pitch_deg: float = 60.0
    """Looking up and down stops here."""

    def __post_init__(self) -> None:
        if not (self.step_m >= 0 and self.turn_deg >= 0):
            raise ValueError(f"steps must be 0 or more, got {self.step_m} m and {self.turn_deg} deg")
        if self.ease_frames < 0:
            raise ValueError(f"ease_frames counts frames, got {self.ease_frames}")
        if not 0 <= self.max_pitch_deg < 90:
            raise ValueError(f"max_pitch_deg must lie in 0 ... 90, got {self.max_pitch_deg}")


def parse_actions(text: str) -> list[str]:
    """Keys held during each frame, "" for none. Raises ValueError naming the part it cannot read."""
    held: list[str] = []
    for part in text.replace(" ", "").lower().split(","):
        keys, dash, count = part.rpartition("-")
        if not dash or not count.isdecimal() or int(count) == 0:
            raise ValueError(f"action {part!r}: write keys, a dash and a number of frames, as in w-40")
        keys = "" if keys == "none" else keys
        if (unknown := set(keys) - set(KEYS)) or (part[0] == "-"):
            raise ValueError(
                f"action {part!r}: unknown keys {sorted(unknown)}; known are {''.join(KEYS)}, none"
            )
        if len(held) + int(count) > MAX_FRAMES:
            raise ValueError(f"an action string may have {MAX_FRAMES} frames")
        held.extend([keys] * int(count))
    return held


def poses_of_actions(text: str, config: ActionConfig | None = None) -> np.ndarray:
    """first_from_cam [N + 1, 3, 4] of N frames of action, OpenCV axes, metres."""
    config = config or ActionConfig()
    held = parse_actions(text)
    change = {name: np.zeros(len(held)) for name in ("forward", "right", "yaw", "pitch")}
    for key, (name, sign) in KEYS.items():
        change[name] += sign * _eased(np.array([key in keys for keys in held]), config.ease_frames)
    limit = math.radians(config.max_pitch_deg)
    turn = math.radians(config.turn_deg)
    pitch = np.empty(len(held) + 1)
    pitch[0] = 0.0
    for i, step in enumerate(turn * change["pitch"]):
        pitch[i + 1] = min(max(pitch[i] + step, -limit), limit)
    yaw = np.concatenate([[0.0], np.cumsum(turn * change["yaw"])])
    # The step of a frame goes along its mean heading, so that walking a curve closes the same circle
    # whatever the frame rate.
    heading = 0.5 * (yaw[1:] + yaw[:-1])
    forward, right = config.step_m * change["forward"], config.step_m * change["right"]
    steps = np.stack(
        [
            np.sin(heading) * forward + np.cos(heading) * right,
            np.zeros(len(held)),
            np.cos(heading) * forward - np.sin(heading) * right,
        ],
        axis=-1,
    )
    position = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    about_y = rotation_from_rotvec(yaw[:, None] * np.array([0.0, 1.0, 0.0]))
    about_x = rotation_from_rotvec(pitch[:, None] * np.array([1.0, 0.0, 0.0]))
    return np.concatenate([about_y @ about_x, position[:, :, None]], axis=-1)


def _eased(is_held: np.ndarray, ease_frames: int) -> np.ndarray:
    """Speed [N] in 0 ... 1 of a key: 1 where held, with smooth ramps at the ends of each run."""
    speed = is_held.astype(np.float64)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_held.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2):
        num = min(ease_frames, (stop - start) // 2)
        t = (np.arange(num) + 0.5) / max(num, 1)
        ramp = t * t * (3 - 2 * t)
        speed[start : start + num] = ramp
        speed[stop - num : stop] = ramp[::-1]
    return speed

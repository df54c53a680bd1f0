"""Control strings in, camera poses out: "w-40,dw-24,none-8" is keys held, a dash, frames, joined by commas.

w/s go forward and back, a/d turn left and right, i/k look up and down, j/l step left and right, none holds
still. Walking stays level whatever the pitch. N frames of action give N + 1 poses, the first the identity.
`ActionStepper` goes frame by frame, for keys that are pressed while the video is made; a string is nothing but its
steps. So easing may not look ahead: a key that is let go comes to rest in the frames after.
The released SANA-WM pipeline reads j/l as turns and a/d as steps; its backend parses strings by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
    """Frames over which a key's speed rises after it is pressed and falls after it is let go; 0 is none. A key held
    for n >= ease_frames frames moves n full steps, in n + ease_frames frames."""
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


class ActionStepper:
    """A camera that keys move frame by frame; `pose` is where it is."""

    def __init__(self, config: ActionConfig | None = None) -> None:
        self.config = config or ActionConfig()
        self._x, self._z, self._yaw, self._pitch = 0.0, 0.0, 0.0, 0.0
        self._pressed = dict.fromkeys(KEYS, 0)
        """Frames of easing each key has behind it, ease_frames at full speed."""

    @property
    def pose(self) -> np.ndarray:
        """first_from_cam [3, 4], OpenCV axes, metres; the identity before the first step."""
        sin_yaw, cos_yaw = math.sin(self._yaw), math.cos(self._yaw)
        sin_pitch, cos_pitch = math.sin(self._pitch), math.cos(self._pitch)
        return np.array(  # rotation about y by yaw, after that about x by pitch
            [
                [cos_yaw, sin_yaw * sin_pitch, sin_yaw * cos_pitch, self._x],
                [0.0, cos_pitch, -sin_pitch, 0.0],
                [-sin_yaw, cos_yaw * sin_pitch, cos_yaw * cos_pitch, self._z],
            ]
        )

    def step(self, keys: str) -> np.ndarray:
        """The pose after one more frame with these keys held, "" for none. Raises ValueError for an unknown key."""
        if unknown := set(keys) - set(KEYS):
            raise ValueError(f"unknown keys {sorted(unknown)}; known are {''.join(KEYS)}")
        change = {"forward": 0.0, "right": 0.0, "yaw": 0.0, "pitch": 0.0}
        for key, (name, sign) in KEYS.items():
            change[name] += sign * self._speed(key, key in keys)
        turn, limit = math.radians(self.config.turn_deg), math.radians(self.config.max_pitch_deg)
        self._pitch = min(max(self._pitch + turn * change["pitch"], -limit), limit)
        before, self._yaw = self._yaw, self._yaw + turn * change["yaw"]
        # The step of a frame goes along its mean heading, so that walking a curve closes the same circle
        # whatever the frame rate.
        heading = 0.5 * (before + self._yaw)
        forward, right = self.config.step_m * change["forward"], self.config.step_m * change["right"]
        self._x += math.sin(heading) * forward + math.cos(heading) * right
        self._z += math.cos(heading) * forward - math.sin(heading) * right
        return self.pose

    def _speed(self, key: str, is_held: bool) -> float:
        """Mean speed 0 ... 1 of a key during this frame: a smooth ramp up or down, read at the frame's middle."""
        before, ease = self._pressed[key], self.config.ease_frames
        after = self._pressed[key] = min(before + 1, ease) if is_held else max(before - 1, 0)
        if ease == 0:
            return float(is_held)
        t = 0.5 * (before + after) / ease
        return t * t * (3 - 2 * t)


def poses_of_actions(text: str, config: ActionConfig | None = None) -> np.ndarray:
    """first_from_cam [N + 1, 3, 4] of N frames of action, OpenCV axes, metres."""
    stepper = ActionStepper(config)
    return np.stack([stepper.pose, *(stepper.step(keys) for keys in parse_actions(text))])

"""The question a vision-language model is asked about a clip, and its answer read into columns.

SANA-WM and SpatialVID let such a model count people, vehicles and animals and flag what other scores do not see.
"""

from __future__ import annotations

import json
import re
from typing import Any

FLAGS = {
    "animation": "drawn, rendered or game footage",
    "screen_recording": "a recording of a computer or phone screen",
    "collage": "several pictures shown at once",
    "graphics": "large titles, logos, charts or stickers over the picture",
    "edited": "effects, filters or blends between pictures",
    "time_lapse": "time lapse, slow motion or reversed footage",
    "close_up": "faces or single things fill most of the picture",
    "obstructed": "the lens is covered, wet or behind a window",
    "low_quality": "blurred, noisy, very dark, overexposed or strongly compressed",
    "not_a_place": "no place that a camera could move through",
}
"""What makes a clip unfit to learn a camera's motion from."""

UNREADABLE = "unreadable_answer"
"""The flag of a model that did not answer in the form asked for; its verdict is unknown."""

_KINDS = ("people", "vehicles", "animals")

VERDICT_PROMPT = (
    "These pictures are of one video clip, in order of time. Answer with one JSON object and nothing else: "
    '{"people": n, "vehicles": n, "animals": n, "flags": [...]}. The numbers are the most of each kind seen at '
    "once in a picture. In flags name all of these that apply, or none: "
    + "; ".join(f"{name} ({meaning})" for name, meaning in FLAGS.items())
    + "."
)


def read_verdict(answer: str) -> dict[str, Any]:
    """Columns of an answer to VERDICT_PROMPT: vlm_quality (1 no flag, 0 flagged), vlm_flags as JSON and the counts.

    Words around the object are passed over. An answer of another form, or with flags that were not offered, makes
    every column None but for vlm_flags, which says so.
    """
    unknown = dict.fromkeys(("vlm_quality", *(f"num_{kind}" for kind in _KINDS), "num_entities"))
    unreadable = unknown | {"vlm_flags": json.dumps([UNREADABLE])}
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        said = json.loads(found[0]) if found else None
    except ValueError:
        return unreadable
    if not isinstance(said, dict) or set(said) != {*_KINDS, "flags"}:
        return unreadable
    counts, flags = [said[kind] for kind in _KINDS], said["flags"]
    is_counted = all(type(count) is int and count >= 0 for count in counts)
    if not is_counted or not isinstance(flags, list) or not set(map(str, flags)) <= set(FLAGS):
        return unreadable
    return {
        "vlm_quality": float(not flags),
        "vlm_flags": json.dumps(sorted(set(flags))),
        "num_entities": float(sum(counts)),
        **{f"num_{kind}": float(count) for kind, count in zip(_KINDS, counts, strict=True)},
    }

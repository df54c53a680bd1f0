"""Answers of a vision-language model read into columns, well and badly formed."""

from __future__ import annotations

import json

import pytest

from worldline.filters.content import COLUMNS
from worldline.filters.verdict import FLAGS, UNREADABLE, VERDICT_PROMPT, read_verdict


def test_an_answer_becomes_columns():
    said = 'Sure:\n```json\n{"people": 3, "vehicles": 1, "animals": 0, "flags": ["edited", "collage"]}\n```'
    assert read_verdict(said) == {
        "vlm_quality": 0.0,
        "vlm_flags": '["collage", "edited"]',
        "num_people": 3.0,
        "num_vehicles": 1.0,
        "num_animals": 0.0,
        "num_entities": 4.0,
    }
    passed = read_verdict('{"people": 0, "vehicles": 0, "animals": 0, "flags": []}')
    assert passed["vlm_quality"] == 1.0
    assert passed["vlm_flags"] == "[]"
    assert set(passed) == set(COLUMNS["qwen_vl"])


@pytest.mark.parametrize(
    "said",
    [
        "",
        "I see a street.",
        "{people: 3}",
        '{"people": 3, "vehicles": 1, "animals": 0}',
        '{"people": -1, "vehicles": 1, "animals": 0, "flags": []}',
        '{"people": true, "vehicles": 1, "animals": 0, "flags": []}',
        '{"people": 2.5, "vehicles": 1, "animals": 0, "flags": []}',
        '{"people": 3, "vehicles": 1, "animals": 0, "flags": ["ugly"]}',
        '{"people": 3, "vehicles": 1, "animals": 0, "flags": [["edited"]]}',
        '{"people": 3, "vehicles": 1, "animals": 0, "flags": "edited"}',
        '[{"people": 3}]',
    ],
)
def test_other_answers_are_unknown_and_said_to_be(said):
    found = read_verdict(said)
    assert json.loads(found.pop("vlm_flags")) == [UNREADABLE]
    assert set(found.values()) == {None}


def test_the_question_offers_every_flag():
    assert all(f"{name} ({meaning})" in VERDICT_PROMPT for name, meaning in FLAGS.items())

"""Loading of optional estimators: found, unknown, not installed, and broken inside worldline."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from worldline.annotate.backends import load_backend
from worldline.datasets.schema import MissingBackend

BACKENDS = {
    "ratio": "fractions:Fraction",
    "absent": "package_that_is_not_there:Model",
    "absent_inside": "package_that_is_not_there.models:Model",
    "ours_broken": "worldline.annotate.no_such_module:Model",
}
REMEDIES = {"absent": "pip install 'worldline[absent]'"}


def test_a_known_name_gives_its_class():
    assert load_backend("ratio", BACKENDS, {}) is Fraction


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        ValueError, match=re.escape("'rat': known are absent, absent_inside, ours_broken, ratio")
    ):
        load_backend("rat", BACKENDS, {})


@pytest.mark.parametrize("name", ["absent", "absent_inside"])
def test_a_missing_package_names_the_remedy(name):
    with pytest.raises(MissingBackend, match=r"package 'package_that_is_not_there'.*worldline\[absent\]"):
        load_backend(name, BACKENDS, {name: REMEDIES["absent"]})


def test_our_own_missing_module_is_a_bug_and_passes_through():
    with pytest.raises(ModuleNotFoundError, match=r"worldline\.annotate\.no_such_module"):
        load_backend("ours_broken", BACKENDS, REMEDIES)

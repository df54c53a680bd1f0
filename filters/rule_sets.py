"""Which clips are kept, as data: rules over columns of the trajectory table, and the sets of them that are known by
name.

A rule is a range or a list of allowed words. Published ranges are kept as published, also where our score is a
stand-in measured on the same scale (docs/curation.md says which). A clip whose score is unknown breaks the rule.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldline.datasets.schema import METRIC, OK, TRAJECTORIES, config_hash

DERIVED = {"duration_s": "end_s - start_s", "num_pixels": "width * height"}
"""Names that rules may use beside the table's columns -> their SQL."""

_PERMISSIVE = (
    r"cc0.*|cc-by(-[0-9.]+)?|(the-)?unlicen[sc]e|public-domain|pddl.*|odc-by.*|mit|isc|0bsd|"
    r"bsd(-[234]-clause)?|apache(-license)?(-?2(\.0)?)?|mit(-or-|-and-|/)apache-2\.0|apache-2\.0(-or-|-and-|/)mit"
)
"""Licences that ask for no more than to be named: no NC, ND or SA. Matched in lower case, blanks as hyphens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What one column must be for a clip to be kept. An unknown value always breaks it."""

    column: str
    """Of datasets/schema.py, or a key of DERIVED."""
    min: float | None = None
    """Smallest value that is kept, in the column's unit; None: no lower end."""
    max: float | None = None
    """Largest value that is kept; None: no upper end."""
    among: tuple[str, ...] = ()
    """Words that are kept, for a text column."""
    pattern: str = ""
    """Regular expression that the whole text must match, in lower case with blanks and underscores as hyphens."""
    reason: str = ""
    """What a person would say of a clip that breaks it, in a few words."""

    def __post_init__(self) -> None:
        if self.column not in DERIVED and self.column not in TRAJECTORIES.names:
            raise ValueError(f"rule on {self.column!r}: no such column (datasets/schema.py)")
        if pa.types.is_list(self.kind):
            raise ValueError(f"rule on {self.column}: a list a frame cannot be compared")
        has_range = self.min is not None or self.max is not None
        if has_range + bool(self.among) + bool(self.pattern) != 1:
            raise ValueError(f"rule on {self.column}: give min and max, or among, or pattern")
        if has_range == pa.types.is_string(self.kind):
            raise ValueError(f"rule on {self.column}: a range is for numbers, among and pattern for text")
        ends = [end for end in (self.min, self.max) if end is not None]
        if not all(math.isfinite(end) for end in ends) or ends != sorted(ends):
            raise ValueError(f"rule on {self.column}: min {self.min} and max {self.max} are no range")

    @property
    def kind(self) -> pa.DataType:
        return pa.float64() if self.column in DERIVED else TRAJECTORIES.field(self.column).type

    @property
    def range(self) -> str:
        """The rule's condition for a person."""
        if self.among or self.pattern:
            return " or ".join(self.among) or f"like {self.pattern}"
        if self.min is None or self.max is None:
            return f"<= {self.max:g}" if self.max is not None else f">= {self.min:g}"
        return f"{self.min:g} to {self.max:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleSet:
    """Rules in the order in which they are asked: the first that is broken is the clip's reason."""

    name: str
    about: str = ""
    rules: tuple[Rule, ...] = ()
    by_source: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    """Value of the source column -> rules that replace those on the same columns for its clips."""

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError(f"rule set {self.name!r} has no rules")
        for rules in (self.rules, *self.by_source.values()):
            columns = [rule.column for rule in rules]
            if doubled := {c for c in columns if columns.count(c) > 1}:
                raise ValueError(f"rule set {self.name!r}: several rules on {', '.join(sorted(doubled))}")

    def of_source(self, source: str | None) -> tuple[Rule, ...]:
        """The rules for clips of a source: the general ones, in their order, where it has no own."""
        own = {rule.column: rule for rule in self.by_source.get(source or "", ())}
        general = [own.pop(rule.column, rule) for rule in self.rules]
        return (*general, *own.values())

    def without(self, columns: tuple[str, ...]) -> RuleSet:
        """The set less its rules on some columns; ValueError for a column no rule is about."""
        known = {rule.column for rules in (self.rules, *self.by_source.values()) for rule in rules}
        if foreign := sorted(set(columns) - known):
            raise ValueError(
                f"{self.name} has no rule on {', '.join(foreign)}; it has {', '.join(sorted(known))}"
            )
        return dataclasses.replace(
            self,
            rules=tuple(rule for rule in self.rules if rule.column not in columns),
            by_source={
                source: tuple(rule for rule in rules if rule.column not in columns)
                for source, rules in self.by_source.items()
            },
        )

    def with_first(self, rule: Rule) -> RuleSet:
        """The set with one rule more, asked right after the first (which is on the status)."""
        return dataclasses.replace(self, rules=(*self.rules[:1], rule, *self.rules[1:]))

    def digest(self) -> str:
        """Changes with any rule and their order; not with the words of name and about."""
        return config_hash(
            [dataclasses.asdict(r) for r in self.rules],
            {s: [dataclasses.asdict(r) for r in rules] for s, rules in self.by_source.items()},
        )

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


_ANNOTATED = Rule(column="status", among=(OK,), reason="not annotated")


def _between(column: str, low: float | None, high: float | None, reason: str) -> Rule:
    return Rule(column=column, min=low, max=high, reason=reason)


def licence_rule(licences: tuple[str, ...]) -> Rule:
    """A rule that keeps these licences alone; the word `permissive` stands for those that ask only to be named."""
    if licences == ("permissive",):
        return Rule(column="licence", pattern=_PERMISSIVE, reason="licence not permissive")
    if "permissive" in licences:
        raise ValueError("licence: permissive stands alone; name the others without it")
    return Rule(column="licence", among=licences, reason="licence not among the wanted")


_WALKING = (
    _between("flow_576x320_px", 3, 50, "motion"),
    _between("num_entities", None, 25, "crowded"),
)
_GAME = (_between("vmaf_motion", 0.5, 100, "motion"), _between("dover", 0.25, None, "quality"))
_MIRA = (_between("dover", 0.4, None, "quality"),)
_SPLATS = (_between("vmaf_motion", 6, 50, "motion"), *_MIRA)

SANA_WM = RuleSet(
    name="sana_wm",
    about="SANA-WM (arXiv 2605.15178), ranges of its appendix B by source",
    rules=(
        _ANNOTATED,
        _between("vmaf_motion", 0.5, 50, "motion"),
        _between("flow_576x320_px", 3, 80, "motion"),
        _between("dover", 0.35, None, "quality"),
        _between("saturation", 0, 180, "colour"),
        _between("num_cuts", None, 1, "cuts"),
        _between("num_entities", None, 10, "crowded"),
        _between("fov_x_deg", 25, 120, "field of view"),
        _between("fov_y_deg", 25, 120, "field of view"),
        _between("focal_mismatch", None, 0.20, "focal lengths disagree"),
        _between("depth_scale_variation", None, 2.0, "scale not steady"),
    ),
    by_source={
        "sekai_walking": _WALKING,
        "sekai_game": _GAME,
        "miradata": _MIRA,
        "dl3dv": _MIRA,
        "dl3dv_gs": _SPLATS,
    },
)

SPATIALVID = RuleSet(
    name="spatialvid",
    about="SpatialVID: length, light, look, text and motion",
    rules=(
        _ANNOTATED,
        _between("duration_s", 3, 15, "length"),
        _between("luminance", 20, 140, "light"),
        _between("aesthetic", 4, None, "look"),
        _between("text_area_share", None, 0.3, "text"),
        _between("vmaf_motion", 2, 14, "motion"),
    ),
)

PERMISSIVE = RuleSet(
    name="permissive",
    about="what no use of the clip could do with: no path, black, frozen",
    rules=(
        _ANNOTATED,
        Rule(
            column="degeneracy",
            among=("ok", "static", "pure_rotation", "low_parallax", "planar", "zoom", "distorted"),
            reason="too short",
        ),
        _between("registered_share", 0.5, None, "path with gaps"),
        _between("luminance", 10, 245, "light"),
        _between("frozen_share", None, 0.8, "frozen"),
        _between("num_cuts", None, 1, "cuts"),
    ),
)

STRICT = RuleSet(
    name="strict",
    about="metric paths with small error bars and clean pictures; every score made without weights",
    rules=(
        _ANNOTATED,
        Rule(column="degeneracy", among=("ok",), reason="degenerate motion"),
        Rule(column="scale_status", among=(METRIC,), reason="not metric"),
        _between("scale_sigma", None, 0.15, "scale not certain"),
        _between("registered_share", 0.95, None, "path with gaps"),
        _between("reprojection_px", None, 1.5, "reprojection"),
        _between("sigma_share", None, 0.05, "path not certain"),
        _between("jump_share", None, 0.02, "path jumps"),
        _between("fov_x_deg", 25, 120, "field of view"),
        _between("focal_mismatch", None, 0.20, "focal lengths disagree"),
        _between("flow_576x320_px", 3, 80, "motion"),
        _between("vmaf_motion", 0.5, 50, "motion"),
        _between("moving_share", None, 0.5, "foreground moves"),
        _between("frozen_share", None, 0.1, "frozen"),
        _between("num_cuts", None, 0, "cuts"),
        _between("luminance", 20, 220, "light"),
        _between("clipped_share", None, 0.3, "exposure"),
        _between("blur", None, 0.6, "blurred"),
        _between("border_share", None, 0.1, "black bars"),
        _between("text_area_share", None, 0.1, "text"),
        _between("split_screen", None, 0.95, "split screen"),
    ),
)

RULE_SETS = {known.name: known for known in (SANA_WM, SPATIALVID, PERMISSIVE, STRICT)}


def load_rules(named: str) -> RuleSet:
    """The set of this name, or of this TOML or JSON file; ValueError says what is wrong with it.

    The file holds name, about, base (a known set whose rules are taken over; a rule on the same column replaces
    it), rules (a list of tables with a Rule's fields) and by_source (source -> such a list).
    """
    if named in RULE_SETS:
        return RULE_SETS[named]
    path = Path(named)
    if path.suffix.lower() not in (".toml", ".json"):
        raise ValueError(f"no rule set {named!r}: known are {', '.join(RULE_SETS)}, or a .toml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        return _from_content(content, path.stem)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_content(content: Any, stem: str) -> RuleSet:
    if not isinstance(content, dict):
        raise ValueError("must hold one table")
    if unknown := sorted(set(content) - {"name", "about", "base", "rules", "by_source"}):
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    base = content.get("base")
    if base is not None and base not in RULE_SETS:
        raise ValueError(f"no rule set {base!r} to start from: known are {', '.join(RULE_SETS)}")
    own = _rules(content.get("rules", []))
    by_source = {source: _rules(rules) for source, rules in content.get("by_source", {}).items()}
    if base is None:
        general: tuple[Rule, ...] = own if any(r.column == "status" for r in own) else (_ANNOTATED, *own)
    else:
        known = RULE_SETS[base]
        general = dataclasses.replace(known, by_source={"": own}).of_source("")
        by_source = {
            source: dataclasses.replace(
                known, rules=known.by_source.get(source) or rules, by_source={"": rules}
            ).of_source("")
            for source, rules in by_source.items()
        }
        by_source = dict(known.by_source) | by_source
    return RuleSet(
        name=content.get("name", stem), about=content.get("about", ""), rules=general, by_source=by_source
    )


def _rules(content: Any) -> tuple[Rule, ...]:
    if not isinstance(content, list):
        raise ValueError("rules must be a list of tables")
    return tuple(Rule(**{**rule, "among": tuple(rule.get("among", ()))}) for rule in content)

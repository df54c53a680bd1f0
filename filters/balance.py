"""Kept clips in, sampling weights out, as SQL: what is common weighs less, and copies share one weight.

A clip's cell is its path shape, its speed's octave and its source. A cell with n clips gets n ** (1 - strength) of
the draws: 0 leaves the data as it is, 1 gives every cell the same. Near-duplicates count as one clip, in the cell's n
too, and share that clip's weight. Rare cells are held to `max_boost`, so that a handful of odd clips is not shown
all the time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceConfig:
    """How evenly kinds of motion and sources are drawn."""

    strength: float = 0.5
    """0: as in the data, 1: every kind equally often; in between, shares are tempered, as usual for languages."""
    by_shape: bool = True
    """Path shapes are kinds (filters/camera.py)."""
    by_speed: bool = True
    """Octaves of the mean speed are kinds: 0.5 to 1 m/s, 1 to 2 m/s and so on; unknown is one too."""
    by_source: bool = True
    """Sources are kinds."""
    max_boost: float = 10.0
    """Most that a clip may weigh, over the commonest kind's clip."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength {self.strength} must be between 0 and 1")
        if not self.max_boost >= 1:
            raise ValueError(f"max_boost {self.max_boost} must be at least 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that the cells are made of."""
        shape = ("path_shape",) if self.by_shape else ()
        speed = ("speed_mean", "scale_status") if self.by_speed else ()
        return (*shape, *speed, "source")


def weighted_sql(config: BalanceConfig) -> str:
    """SQL that reads `kept` (place, group_id or null, `config.columns`) and gives place and weight, whose mean is 1."""
    kinds = ["'all'"]
    if config.by_shape:
        kinds.append("path_shape")
    if config.by_speed:
        # Speeds in arbitrary units say nothing beside metric ones: one kind, as unknown ones are.
        kinds.append("CASE WHEN scale_status = 'metric' AND speed_mean > 0 THEN floor(log2(speed_mean)) END")
    if config.by_source:
        kinds.append("source")
    return _WEIGHTED.format(cell=", ".join(kinds), strength=config.strength, max_boost=config.max_boost)


# Joins on aggregates, not windows: windows would sort every row.
_WEIGHTED = """
WITH copies AS (
  SELECT group_id, count(*) AS num_copies FROM kept WHERE group_id IS NOT NULL GROUP BY group_id
), placed AS (
  SELECT place, hash({cell}) AS cell, 1.0 / coalesce(num_copies, 1) AS part
  FROM kept LEFT JOIN copies USING (group_id)
), cells AS (
  SELECT cell, sum(part) AS num FROM placed GROUP BY cell
), raw AS (
  SELECT cell, least(pow(num / (SELECT max(num) FROM cells), -{strength}), {max_boost}) AS boost FROM cells
), mean AS (
  SELECT sum(part * boost) / count(*) AS mean_weight FROM placed JOIN raw USING (cell)
)
SELECT place, part * boost / mean_weight AS weight FROM placed JOIN raw USING (cell), mean
"""

"""Tables of any older schema version in, tables of this version out.

A new nullable column keeps the version: older rows have null there. A column that goes, or changes type or
meaning, raises `SCHEMA_VERSION` and adds the step from the version before to `STEPS`; a test holds every version's
columns and fails when they change without one.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from worldline.datasets.schema import SCHEMA_VERSION

STEPS: dict[int, Callable[[pa.Table], pa.Table]] = {}
"""Version -> the function that turns a table of it into one of the next."""


def version_of(schema: pa.Schema) -> int:
    """ValueError where the schema states none."""
    stated = (schema.metadata or {}).get(b"worldline_schema")
    if stated is None:
        raise ValueError("the table states no schema version; worldline did not write it")
    return int(stated)


def upgraded(
    table: pa.Table,
    schema: pa.Schema,
    *,
    current: int = SCHEMA_VERSION,
    steps: dict[int, Callable[[pa.Table], pa.Table]] | None = None,
) -> pa.Table:
    """The table with exactly `schema`'s columns; absent ones are null.

    Raises ValueError for a version that is newer than `current` or has no step, for a column the schema lacks, and
    for one whose type does not fit.
    """
    steps = STEPS if steps is None else steps
    version = version_of(table.schema)
    if version > current:
        raise ValueError(
            f"schema version {version}, this is worldline for version {current}: update worldline"
        )
    for step in range(version, current):
        if step not in steps:
            raise ValueError(f"no way from schema version {step} to {step + 1}")
        table = steps[step](table)
    if unknown := [name for name in table.column_names if name not in schema.names]:
        raise ValueError(f"columns that version {current} does not know: {', '.join(unknown)}")
    columns = []
    for field in schema:
        if field.name in table.column_names:
            try:
                columns.append(table[field.name].cast(field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"column {field.name}: {error}") from error
        elif field.nullable:
            columns.append(pa.nulls(len(table), field.type))
        else:
            raise ValueError(f"column {field.name} is missing and may not be null")
    return pa.table(columns, schema=schema)

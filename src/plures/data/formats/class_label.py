"""Hugging Face's ClassLabel: numbers in a Parquet file whose names stand in the schema's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plures.errors import BadData, Problem
from plures.files import parse_json


def label_names(schema: Any) -> dict[str, list[str]]:
    """The names of each column of ClassLabels, or of lists of them, from a pyarrow schema; {} if there are none."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {str(column): _names(feature) for column, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # no metadata, or others
        return {}
    return {column: names for column, names in found.items() if names}


def _names(feature: Any) -> list[str]:
    """A feature is {"names": [...], "_type": "ClassLabel"}, or a list of these in one of three spellings."""
    inside = feature[0] if isinstance(feature, list) and len(feature) == 1 else feature
    if isinstance(inside, dict) and isinstance(inside.get("feature"), dict):
        inside = inside["feature"]
    names = inside.get("names") if isinstance(inside, dict) and inside.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def with_names(batch: Any, names: dict[str, list[str]], first: int, file: Path) -> Any:
    """A pyarrow batch whose numbers are names; -1, which stands for no label, is null. first: its first row.

    Raises:
        BadData: for a number that has no name.
    """
    for place, column in enumerate(batch.schema.names):
        cells = batch.column(place)
        kind = cells.type
        inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        if column not in names or not pa.types.is_integer(inner):
            continue
        numbers = cells.flatten() if inner is not kind else cells
        known = numbers.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        if len(known) and (known.min() < -1 or known.max() >= len(names[column])):
            strange = known[(known < -1) | (known >= len(names[column]))][0]
            what = f"column '{column}' holds {strange}, and the file names {len(names[column])} classes"
            raise BadData([Problem(str(file), first, what, f"0 to {len(names[column]) - 1}")], False)
        spelt = [None if n is None or n < 0 else names[column][n] for n in numbers.to_pylist()]
        shown = pa.array(spelt, pa.string())
        if inner is not kind:
            lengths = [0 if one is None else len(one) for one in cells.to_pylist()]
            shown = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), shown)
        batch = batch.set_column(place, column, shown)
    return batch

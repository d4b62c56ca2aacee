"""Records as pandas DataFrames. Knows fields and types, nothing of what the records mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import BaseModel

from apex4_probe.errors import ApexError

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")
Dtype = Literal["float64", "boolean"]


def section_of(sections: Mapping[str, T], name: str) -> T:
    """The section called ``name``. Raises ApexError listing those that exist."""
    if name not in sections:
        raise ApexError(f"to_frame: no section {name!r:.40}, expected {', '.join(sections)}, layers or kernels")
    return sections[name]


def flat(model: type[BaseModel], records: Sequence[BaseModel], about: Mapping[str, Any]) -> DataFrame:
    """A row a record, a column a field of ``model``; of a field that is a mapping, a column for each of its keys."""
    return _frame([record.model_dump() for record in records], _dtypes(model), about)


def nested(
    outer: type[BaseModel],
    inner: type[BaseModel],
    records: Sequence[BaseModel],
    field: str,
    about: Mapping[str, Any],
) -> DataFrame:
    """A row for every record in ``field`` of every record, the outer fields repeated; one row where it holds none."""
    rows: list[dict[str, Any]] = []
    for record in records:
        head = record.model_dump(exclude={field})
        parts = [part.model_dump() for part in getattr(record, field)] or [{}]
        rows.extend({**head, **part} for part in parts)
    columns = {name: kind for name, kind in (_dtypes(outer) | _dtypes(inner)).items() if name != field}
    return _frame(rows, columns, about)


def _frame(rows: list[dict[str, Any]], columns: Mapping[str, Dtype | None], about: Mapping[str, Any]) -> DataFrame:
    import pandas as pd

    frame: DataFrame = pd.json_normalize(rows) if rows else pd.DataFrame(columns=list(columns))
    # Where values are absent pandas would make a column of objects, which no arithmetic and no filter accepts.
    frame = frame.astype(
        {name: kind for name, kind in columns.items() if kind and name in frame and frame[name].dtype == object}
    )
    frame.attrs.update(about)
    return frame


def _dtypes(model: type[BaseModel]) -> dict[str, Dtype | None]:
    """Every field of ``model``, and for numbers and truth values, absent or not, the dtype of its column."""
    found: dict[str, Dtype | None] = {}
    for name, info in model.model_fields.items():
        types = {info.annotation, *get_args(info.annotation)}
        found[name] = "float64" if types & {int, float} else "boolean" if bool in types else None
    return found

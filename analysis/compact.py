"""All cells of a run folder in one typed table, RUN/results.parquet, for pandas, polars and DuckDB. tokred itself never reads it:
the truth are the files it was made of, which it names with their hashes."""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tokred.analysis.rows import Row, rows_with_records, write_whole
from tokred.record import Store

NAME = "results.parquet"
MADE_OF = b"tokred_files"  # in the metadata of the file: JSON, path relative to the run folder -> sha256


def compact(store: Store) -> Path:
    """A line for each metric of each cell: the columns of metrics.csv; ``spec``, the cell as its record has it, in JSON and
    without the seed; ``keys``, the records it was made of."""
    pa, parquet = _pyarrow()
    made_of = dict(_hashes(store))  # first: what is written meanwhile makes it stale, and not wrong
    lines = [
        {
            **asdict(row),
            "spec": json.dumps({axis: value for axis, value in records[0].cell.items() if axis != "seed"}),
            "keys": [record.key for record in records],
        }
        for row, records in rows_with_records(store, every_metric=True)
    ]
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    hints = get_type_hints(Row)
    columns = [pa.field(one.name, kinds[_kind(hints[one.name])]) for one in fields(Row)]
    columns += [pa.field("spec", pa.string()), pa.field("keys", pa.list_(pa.string()))]
    schema = pa.schema(columns, metadata={MADE_OF: json.dumps(made_of)})
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(lines, schema=schema), file)
    return write_whole(store.folder / NAME, file.getvalue())


def is_current(store: Store) -> bool:
    """Whether there is one, of the very files that are there now."""
    _, parquet = _pyarrow()
    path = store.folder / NAME
    if not path.is_file():
        return False
    try:
        made_of = json.loads((parquet.read_schema(path).metadata or {})[MADE_OF])
    except (KeyError, ValueError, OSError):  # another's, or none that can be read
        return False
    return made_of == dict(_hashes(store))


def _hashes(store: Store) -> Iterator[tuple[str, str]]:
    """Of the plan, and of the records, predictions and timings."""
    found = [*store.cells.glob("*.json"), *store.cells.glob("*.predictions.npz"), *store.timings.glob("*.json")]
    for path in [store.folder / "plan.json", *sorted(found)]:
        yield path.relative_to(store.folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()


def _kind(hint: Any) -> type:
    """That of ``float | None`` is float."""
    return next(kind for kind in (get_args(hint) or (hint,)) if kind is not type(None))


def _pyarrow() -> tuple[Any, Any]:
    if find_spec("pyarrow") is None:
        raise ValueError("a Parquet file needs pyarrow: pip install tokred[parquet]; results.csv has the same numbers")
    import pyarrow
    from pyarrow import parquet

    return pyarrow, parquet

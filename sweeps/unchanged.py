"""Whether the figures and the report of a run folder are those of what is in it: then a sweep that had nothing to run need not
take longer to draw them again than for all else.

    RUN/drawn.json    ``drawn_from``, the hash of what they were made of; ``num_figures``; ``drawn``: path relative to
                      RUN -> sha256, of all that lies where they are
"""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import tokred.analysis
from tokred.record import DRAWN, Store, key_of
from tokred.sealed import Damaged, read_json, seal_of, write_json

DRAW_WITH = ("matplotlib", "seaborn", "altair", "vl-convert-python")


def drawn_from(store: Store) -> str:
    """A hash of what is drawn, and by what."""
    plan, folder = store.plan(), Path(tokred.analysis.__file__).parent
    kinds = ("json", "predictions.npz", "trace.npz")
    cells = [path for key in plan["keys"] for kind in kinds if (path := store.cells / f"{key}.{kind}").is_file()]
    sources = sorted([*folder.rglob("*.py"), *folder.glob("report/templates/*")])
    return key_of(
        [
            str(store.folder),
            plan.get("timings"),
            [[path.name, seal_of(path)] for path in (*cells, *sorted(store.timings.glob("*.json")))],
            [[path.name, _hash(path)] for path in sources],
            [[name, version(name)] for name in DRAW_WITH],
        ]
    )


def num_drawn(store: Store, source: str) -> int | None:
    """How many figures were drawn from this; None where there were none yet, or one, a table or the report is another by now."""
    path = store.folder / DRAWN
    try:
        noted = read_json(path) if path.is_file() else {}
    except Damaged:
        return None
    is_so = noted.get("drawn_from") == source and noted.get("drawn") == dict(_drawn(store))
    return noted.get("num_figures") if is_so else None


def note_drawn(store: Store, source: str, num_figures: int) -> None:
    """``source``: as it was before they were drawn: what is written meanwhile makes them stale, and not wrong."""
    noted = {"drawn_from": source, "num_figures": num_figures, "drawn": dict(_drawn(store))}
    write_json(store.folder / DRAWN, noted)


def _drawn(store: Store) -> Iterator[tuple[str, str]]:
    for pattern in ("figures/*", "tables/*", "report.*"):
        for path in sorted(store.folder.glob(pattern)):
            if path.is_file():
                yield path.relative_to(store.folder).as_posix(), _hash(path)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

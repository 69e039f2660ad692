"""Finished cells to Lightning's loggers: the numbers of results.csv, with the cell's own specification as hyperparameters.

    RUN/logs/csv/NAME/             metrics.csv and hparams.yaml
    RUN/logs/tensorboard/NAME/     to be seen with tensorboard --logdir RUN/logs/tensorboard
    RUN/logs/wandb/                a run for each cell, of the group RUN; only WANDB_MODE=online sends them, else they stay here
    RUN/logs/logged/LOGGER/NAME    the hash of what was logged, so that a sweep that goes on logs nothing twice

A cell with its seeds is one run, as it is one line of results.csv, and is logged once its accuracy and its timing are there. When
its numbers change, as by a later timing, its run is replaced.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokred.analysis.rows import Row, grouped, names_of, rows_with_records
from tokred.record import Record, Store, key_of

OF_METRIC = (
    *("value", "low", "high", "difference", "difference_low", "difference_high"),
    *("num_samples", "num_clusters", "seed_sd"),
)


@dataclass(frozen=True)
class Run:
    """What is logged of a cell. ``metrics``: METRIC/FIELD, and the fields of a row that no metric has for itself."""

    name: str
    title: str
    hyperparameters: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def digest(self) -> str:
        return key_of([self.hyperparameters, self.metrics])


def check_installed(loggers: Sequence[str]) -> None:
    """Raises ValueError where one of them needs a package that is not there."""
    for logger in loggers:
        if logger != "csv" and find_spec(logger) is None:
            raise ValueError(f"loggers=[{logger}] needs {logger}: pip install tokred[loggers], or leave it out")


def unlogged(loggers: Sequence[str], keys: Sequence[str], store: Store) -> Iterator[tuple[str, Run]]:
    """Each logger with each run of these cells that it does not have as it is now."""
    if not loggers:
        return
    for run in runs(store, keys):
        yield from ((logger, run) for logger in loggers if not is_logged(logger, run, store))


def runs(store: Store, keys: Sequence[str]) -> list[Run]:
    """Of the cells with these keys."""
    found = rows_with_records(store, every_metric=True, keys=keys)
    return [_run(cell) for cell in grouped(found, lambda pair: pair[1][0].key)]


def is_logged(logger: str, run: Run, store: Store) -> bool:
    mark = _mark(logger, run, store)
    return mark.is_file() and mark.read_text() == run.digest


def log(logger: str, run: Run, store: Store) -> None:
    """In place of an earlier run of this cell."""
    LOGGERS[logger](run, store.folder)
    mark = _mark(logger, run, store)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(run.digest)


def _mark(logger: str, run: Run, store: Store) -> Path:
    return store.folder / "logs" / "logged" / logger / run.name


def _run(cell: Sequence[tuple[Row, list[Record]]]) -> Run:
    """``cell``: a row for each of its metrics, the headline first."""
    row, record = cell[0][0], cell[0][1][0]
    spec = {axis: value for axis, value in record.cell.items() if axis != "seed"}
    title = " ".join(filter(None, (row.backbone, row.label, row.schedule, row.shape)))
    if row.status != "done":  # beside the seeds that are done, it is a line of its own
        title = f"{title} {row.status}"
    fields = {name: value for name, value in asdict(row).items() if name not in names_of(record.cell)}
    said = {name: value for name, value in fields.items() if isinstance(value, str)}
    counted = {name: value for name, value in fields.items() if name not in said and name not in OF_METRIC}
    measured = {f"{one.metric}/{name}": getattr(one, name) for one, _ in cell if one.metric for name in OF_METRIC}
    metrics = {name: value for name, value in (measured | counted).items() if value is not None}
    name = f"{re.sub(r'[^A-Za-z0-9.=]+', '_', title)[:100]}-{key_of([spec, row.status])[:8]}"
    return Run(name, title, spec | said, metrics)


def _to_csv(run: Run, folder: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    _remove(folder / "logs" / "csv" / run.name)
    logger = CSVLogger(folder / "logs", name="csv", version=run.name)
    logger.log_hyperparams(run.hyperparameters)
    logger.log_metrics(run.metrics, step=0)
    logger.finalize("success")


def _to_tensorboard(run: Run, folder: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    _remove(folder / "logs" / "tensorboard" / run.name)
    logger = TensorBoardLogger(folder / "logs", name="tensorboard", version=run.name)
    logger.log_hyperparams(run.hyperparameters, run.metrics, step=0)
    logger.finalize("success")


def _to_wandb(run: Run, folder: Path) -> None:
    """Of the same id when it is logged again. Nothing leaves this machine but where WANDB_MODE says so."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(
        name=run.title,
        save_dir=folder / "logs",
        id=key_of([str(folder.resolve()), run.name])[:16],
        project=os.environ.get("WANDB_PROJECT", "tokred"),
        group=folder.resolve().name,
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings=wandb.Settings(console="off", silent=True),
    )
    logger.log_hyperparams(run.hyperparameters)
    logger.log_metrics(run.metrics)
    logger.experiment.finish(exit_code=0 if run.hyperparameters["status"] in ("done", "refused") else 1)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


LOGGERS: dict[str, Callable[[Run, Path], None]] = {"csv": _to_csv, "tensorboard": _to_tensorboard, "wandb": _to_wandb}

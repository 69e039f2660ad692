"""Lightning's loggers get the numbers of results.csv, each cell once, and none of them ends a sweep."""

import csv

import pytest
from omegaconf import OmegaConf

from tests.records import full_run
from tokred.analysis.rows import rows, write_csv
from tokred.record import Store
from tokred.sweeps import logs
from tokred.sweeps.cli import sweep

TINY = [
    *(
        "methods=[tome]",
        "backbones=mini_mean",
        "sizes.depth=3",
        "sizes.embed_dim=24",
        "sizes.patch_size=16",
        "weights=random",
    ),
    *("data.num_clips=4", "batch_size=4", "timing.rounds=0", "traces=0", "r=8"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Many made-up cells, some refused, one failed, with seeds and timings."""
    store = full_run(tmp_path_factory.mktemp("run")).finish([("eager", 8)])
    for logger, run in list(logs.unlogged(["csv"], store.plan()["keys"], store)):
        logs.log(logger, run, store)
    return store


def lines_of(store):
    """results.csv, as anybody reads it: by what names a cell."""
    with open(write_csv(rows(store), store.folder / "results.csv"), newline="") as file:
        return {name_of(line): line for line in csv.DictReader(file)}


def name_of(line):
    return " ".join(
        filter(
            None, (line["backbone"], line["method"], line["options"], line["schedule"], line["shape"], line["status"])
        )
    )


def logged_of(store):
    """By the same names what the CSV logger wrote."""
    titles = {run.name: run for run in logs.runs(store, store.plan()["keys"])}
    found = {}
    for folder in (store.folder / "logs" / "csv").iterdir():
        with open(folder / "metrics.csv", newline="") as file:
            (metrics,) = csv.DictReader(file)
        title = titles[folder.name].title.removesuffix(" refused").removesuffix(" failed").removesuffix(" invalid")
        hyperparameters = OmegaConf.to_container(OmegaConf.load(folder / "hparams.yaml"))
        found[f"{title} {hyperparameters['status']}"] = metrics, hyperparameters
    return found


def test_every_line_of_the_results_is_a_run(store):
    assert logged_of(store).keys() == lines_of(store).keys()


def test_the_numbers_are_those_of_the_results(store):
    lines = lines_of(store)
    for name, (metrics, hyperparameters) in logged_of(store).items():
        for field, value in metrics.items():
            metric, _, own = field.rpartition("/")
            assert field == "step" or lines[name][own] == value, (name, field)
            assert metric in ("", hyperparameters["metric"])


def test_accuracy_macs_and_speed_are_logged(store):
    metrics, _ = logged_of(store)["mini_cls tome budget 0.7 decreasing done"]
    assert {
        "accuracy/value",
        "accuracy/low",
        "accuracy/num_samples",
        "accuracy/difference",
        "gmacs",
        "speedup",
    } <= metrics.keys()


def test_the_specification_of_the_cell_is_in_the_hyperparameters(store):
    _, found = logged_of(store)["mini_cls tome budget 0.7 decreasing done"]
    assert found["method"] == "tome" and found["schedule"]["amount"] == 0.7 and found["data"]["name"] == "moving_shapes"


def test_a_sweep_that_goes_on_logs_nothing_twice(store):
    assert list(logs.unlogged(["csv"], store.plan()["keys"], store)) == []


def test_a_cell_whose_numbers_changed_takes_the_place_of_its_earlier_run(tmp_path):
    run = logs.Run("a-1", "a", {"status": "done"}, {"gmacs": 1.0})
    store = Store(tmp_path)
    for speedup in (1.5, 2.0):
        logs.log("csv", logs.Run("a-1", "a", run.hyperparameters, {"speedup": speedup}), store)
    assert (tmp_path / "logs/csv/a-1/metrics.csv").read_text() == "speedup,step\n2.0,0\n"


def test_tensorboard_shows_the_same_numbers_and_hyperparameters(store):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import plugin_data_pb2

    (run,) = [
        one for one in logs.runs(store, store.plan()["keys"]) if one.title == "mini_cls tome budget 0.7 decreasing"
    ]
    logs.log("tensorboard", run, store)
    events = reader.EventAccumulator(str(store.folder / "logs" / "tensorboard" / run.name)).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert {name: len(points) for name, points in scalars.items()} == dict.fromkeys(run.metrics, 1)
    for name, (point,) in scalars.items():
        assert point.value == pytest.approx(run.metrics[name], rel=1e-6), name  # they are kept in float32
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["method"].string_value == "tome" and shown["schedule/amount"].number_value == 0.7


def test_wandb_stays_offline_unless_told_otherwise(store, monkeypatch):
    """A fake in place of the run, which alone would talk to a server or a disk."""
    wandb, begun = pytest.importorskip("wandb"), []

    class Fake:
        def __init__(self, **options):
            begun.append(options)
            self.config, self.id, self.logged = self, options["id"], begun

        def update(self, hyperparameters, **_):
            begun.append(hyperparameters)

        def log(self, metrics):
            begun.append(metrics)

        def finish(self, exit_code):
            begun.append(exit_code)

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", Fake)
    (run,) = [
        one for one in logs.runs(store, store.plan()["keys"]) if one.title == "mini_cls tome budget 0.7 decreasing"
    ]
    logs.log("wandb", run, store)
    options, hyperparameters, metrics, code = begun
    assert options["mode"] == "offline" and options["group"] == store.folder.name and options["name"] == run.title
    assert (hyperparameters["method"], metrics, code) == ("tome", run.metrics, 0)


@pytest.mark.slow
def test_wandb_writes_a_run_that_can_be_sent_later(store, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logs.log("wandb", logs.runs(store, store.plan()["keys"])[0], store)
    assert list((store.folder / "logs" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_logger_that_is_not_installed_is_one_line_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    assert sweep([*TINY, "loggers=[wandb]", f"out={tmp_path / 'run'}"]) == 2
    line = "error: loggers=[wandb] needs wandb: pip install tokred[loggers], or leave it out\n"
    assert capsys.readouterr().err == line and not (tmp_path / "run").exists()


def test_a_logger_that_fails_ends_no_sweep_and_is_asked_once(tmp_path, monkeypatch, capsys):
    asked = []

    def fails(run, folder):
        asked.append(run)
        raise OSError("the server is down\nand more of it")

    monkeypatch.setitem(logs.LOGGERS, "csv", fails)
    assert sweep([*TINY, f"out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("not logged to csv: OSError: the server is down; the same command tries again\n") == len(asked) == 1
    )
    assert (tmp_path / "results.csv").is_file()


def test_without_loggers_nothing_is_logged(tmp_path):
    assert sweep([*TINY, "loggers=[]", f"out={tmp_path}"]) == 0
    assert not (tmp_path / "logs").exists()

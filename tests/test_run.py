"""Cells to records: whole, once, going on after an interruption, and with a reason where they fail."""

import io
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import tokred
from tests.videos import write
from tokred import METHODS, create_backbone, list_methods, lit, timing
from tokred.analysis.rows import rows, write_csv
from tokred.analysis.table import print_table
from tokred.data import MovingShapes, create_data, video
from tokred.open_files import Died
from tokred.record import NULL, Store
from tokred.sweeps import accuracy, run
from tokred.sweeps.claims import Claims
from tokred.sweeps.cli import sweep
from tokred.sweeps.config import read_config
from tokred.sweeps.plan import make_plan
from tokred.sweeps.run import device_of, run_plan

NUM_CLIPS = 8
SMALL = {"depth": 3, "embed_dim": 24, "patch_size": 16}  # 64 tokens a clip
TINY = [
    *(f"sizes.{name}={n}" for name, n in SMALL.items()),
    *("backbones=mini_mean", f"data.num_clips={NUM_CLIPS}", "batch_size=4", "timing.rounds=0", "r=8"),
]
METHODS_THAT_FAIL = '''
"""Methods with something wrong in them."""

import torch

from tokred import METHODS, Assignment, Method


class First(Method):
    def assign(self, tokens, attention, keep):
        index_BK = torch.arange(keep).expand(len(tokens.x_BNC), keep)
        return Assignment.select(index_BK, tokens.num)


@METHODS.register("raises")
class Raises(First):
    def assign(self, tokens, attention, keep):
        raise RuntimeError("out of luck")


@METHODS.register("raises_later")
class RaisesLater(First):
    batch = 0

    def assign(self, tokens, attention, keep):
        if self.batch:
            raise RuntimeError("out of luck")
        return super().assign(tokens, attention, keep)


@METHODS.register("gives_nan")
class GivesNaN(First):
    def reduce(self, tokens, attention, keep):
        tokens = super().reduce(tokens, attention, keep)
        return tokens.with_x(tokens.x_BNC * float("nan"))
'''


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers goes with it."""
    list_methods()
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Those of a small model, in a file: an accuracy, though one by chance."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(create_backbone("mini_mean", weights="random", **SMALL).state_dict(), path)
    return f"weights={path}"


@pytest.fixture
def failing(tmp_path):
    (tmp_path / "failing.py").write_text(METHODS_THAT_FAIL)
    return f"plugins={tmp_path / 'failing.py'}"


class Run:
    """One call of a sweep's inside: ``tally``, ``store``, ``cells``."""

    def __init__(self, folder, *words):
        config = read_config([*TINY, *words])
        for path in config.plugins:
            tokred.registry.load_file(path)
        data = create_data(**config.data)
        plan = make_plan(config, data)
        self.store, self.cells = Store(folder).create(), [cell for group in plan for cell in group.cells]
        self.said = io.StringIO()
        self.tally = run_plan(plan, config, data, self.store, Console(file=self.said, width=200))

    @property
    def records(self):
        return [self.store.get(cell.key) for cell in self.cells]

    def record(self, method):
        (found,) = [record for record in self.records if record.cell["method"] == method]
        return found


def outcome(store):
    """What a run came to: results and predictions by key, without the conditions."""
    found = {}
    for record in store.records():
        arrays = store.predictions(record.key) if record.status == "done" else {}
        found[record.key] = (replace(record, conditions={}), {name: array.tolist() for name, array in arrays.items()})
    return found


# Records


def test_every_cell_is_a_record_with_its_predictions(weights, tmp_path):
    ran = Run(tmp_path, weights, "methods=[tome,random_drop]", "seeds=2")
    assert [record.status for record in ran.records] == ["done"] * 4
    for cell in ran.cells:
        assert ran.store.predictions(cell.key)["index"].tolist() == list(range(NUM_CLIPS))


def test_a_record_says_what_was_counted_and_under_what_conditions(weights, tmp_path):
    record = Run(tmp_path, weights, "methods=tome").record("tome")
    assert record.result["tokens"] == [56, 48, 40] and record.result["num_input_tokens"] == 64
    assert 0 < record.result["gmacs"] < record.result["gmacs_unreduced"]
    assert record.result["num_samples"] == NUM_CLIPS and record.result["num_broken"] == 0
    assert record.conditions["torch"] == torch.__version__ and record.conditions["batch_size"] == 4


@pytest.mark.parametrize("method", ["tome", "vid_tldr"])
def test_predictions_are_those_of_reduce_clip_by_clip(method, weights, tmp_path):
    ran = Run(tmp_path, weights, f"methods={method}")
    backbone = create_backbone("mini_mean", weights=weights.removeprefix("weights="), **SMALL)
    model, source = tokred.reduce(backbone, method, r=8), MovingShapes(NUM_CLIPS)
    with torch.inference_mode():
        clips = [source.read(index, backbone.sample_shape, backbone.preprocess()) for index in range(NUM_CLIPS)]
        expected = [int(model(clip[None]).argmax()) for clip in clips]
    record = ran.record(method)
    assert ran.store.predictions(record.key)["prediction"].tolist() == expected
    assert record.result["num_correct"] == sum(source.label(index) == expected[index] for index in range(NUM_CLIPS))


def test_a_metric_is_an_accuracy_where_weights_and_labels_fit(weights, tmp_path):
    assert Run(tmp_path, weights, "methods=tome").record("tome").result["metric"] == "accuracy"


def test_a_refused_cell_is_a_record_with_its_reason(weights, tmp_path):
    ran = Run(tmp_path, weights, "methods=[tome,evit]")
    record = ran.record("evit")
    assert record.status == "refused" and "class token" in record.reason and record.result == {}
    assert (ran.tally.done, ran.tally.refused, ran.tally.failed) == (2, 1, 0)


def test_the_clips_of_a_backbone_are_read_once_for_all_cells(quick, weights, tmp_path, monkeypatch):
    reads, read = [], MovingShapes.read

    def counted(self, index, *arguments):
        reads.append(index)
        return read(self, index, *arguments)

    monkeypatch.setattr(MovingShapes, "read", counted)
    Run(tmp_path, weights, "methods=[tome,vid_tldr]", "timing.rounds=20")
    assert reads == list(range(NUM_CLIPS))


def test_without_a_terminal_each_cell_is_a_line(weights, tmp_path):
    said = Run(tmp_path, weights, "methods=[tome,evit]").said.getvalue().splitlines()
    assert said == [f"mini_mean (1/1): {cell}" for cell in ("none: done", "tome r 8: done", "evit r 8: refused")]


def test_a_cells_line_tells_it_from_the_others(weights, tmp_path):
    words = ["methods=[tome,random_drop]", "options.tome.matching=[bipartite,kth]", "seeds=2"]
    words += ["r=null", "budget=[0.8,0.7]", "shape=[constant,front]", "layers=[[0],[0,1]]"]
    said = Run(tmp_path, weights, *words).said.getvalue().splitlines()
    assert len(said) == len(set(said)) == 1 + (2 + 2) * 2 * 2 * 2
    assert "mini_mean (1/1): tome matching=kth budget 0.7 front layers [0, 1]: done" in said


def test_mixed_precision_runs(weights, tmp_path):
    record = Run(tmp_path, weights, "methods=tome", "precision=bf16-mixed").record("tome")
    assert record.status == "done" and record.conditions["precision"] == "bf16-mixed"


# Going on


def test_a_second_run_does_no_forward_pass(quick, weights, tmp_path, monkeypatch):
    words = [weights, "methods=[tome,random_drop]", "seeds=2", "timing.rounds=20"]
    first = outcome(Run(tmp_path, *words).store)
    monkeypatch.setattr(accuracy, "evaluate", lambda *_, **__: pytest.fail("a cell was run again"))
    monkeypatch.setattr(timing, "beside", lambda *_, **__: pytest.fail("a cell was timed again"))
    again = Run(tmp_path, *words)
    assert again.tally.kept == again.tally.done == 4 and outcome(again.store) == first


def test_a_larger_sweep_runs_only_what_is_new(weights, tmp_path):
    Run(tmp_path, weights, "methods=tome")
    assert Run(tmp_path, weights, "methods=[tome,vid_tldr]").tally.kept == 2


def test_an_interrupted_run_goes_on_to_the_same_results(weights, tmp_path, monkeypatch):
    words = [weights, "methods=[tome,random_drop]", "r=[4,8]", "seeds=2", "cells_per_pass=3"]
    whole = Run(tmp_path / "whole", *words)
    batches, test_step = [], lit._Pass.test_step

    def interrupted(self, *arguments):
        batches.append(len(self.models))
        if len(batches) == 4:  # a pass has two batches: at the end of the second
            raise KeyboardInterrupt
        return test_step(self, *arguments)

    monkeypatch.setattr(lit._Pass, "test_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "half", *words)
    assert len(whole.cells) == 7 and len(Store(tmp_path / "half").records()) == 3
    again = Run(tmp_path / "half", *words)
    assert (again.tally.kept, again.tally.done) == (3, 7)
    assert batches == [3, 3, 3, 3, 3, 3, 1, 1]
    assert outcome(again.store) == outcome(whole.store)


# One pass


SHARED = ["methods=[tome,vid_tldr,random_drop,raises,ats]", "r=null", "tokens=[[64,56,48],[64,56,40]]", "seeds=2"]


@pytest.mark.parametrize("cells_per_pass", [1, 4])
@pytest.mark.parametrize("known", [True, False])
def test_cells_come_to_the_same_however_many_share_a_pass(cells_per_pass, known, weights, failing, tmp_path):
    words = [weights if known else "weights=random", failing, *SHARED]
    together = outcome(Run(tmp_path / "together", *words).store)
    assert outcome(Run(tmp_path / "apart", *words, f"cells_per_pass={cells_per_pass}").store) == together
    assert len(together) == 1 + 2 + 2 + 4 + 2 + 2


def test_a_pass_holds_no_more_cells_than_it_is_given(weights, tmp_path, monkeypatch):
    sizes, evaluate = [], accuracy.evaluate
    monkeypatch.setattr(
        accuracy,
        "evaluate",
        lambda some, *given, **options: (sizes.append(len(some)), evaluate(some, *given, **options)),
    )
    Run(tmp_path, weights, "methods=[evit,tome,random_drop]", "seeds=4", "cells_per_pass=4")  # evit is refused
    assert sizes == [4, 2]


def test_a_pass_keeps_no_more_than_there_is_room_for(tmp_path, monkeypatch):
    """Tokens of 8 clips with 24 channels in float32: 64 of the unreduced model, 32 or 16 of the others."""
    sizes, evaluate = [], accuracy.evaluate
    monkeypatch.setattr(
        accuracy,
        "evaluate",
        lambda some, *given, **options: (sizes.append(len(some)), evaluate(some, *given, **options)),
    )
    free = 2 * 8 * 24 * 4 * 64  # of which half is taken
    monkeypatch.setattr(accuracy.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    words = ["task=retrieval", "weights=random", "backbones=mini_umt", "methods=random_drop", "seeds=2"]
    Run(tmp_path, *words, "r=null", "tokens=[[64,64,32],[64,64,16]]")
    assert sizes == [1, 2, 2]  # 64; 32 + 32; 16 + 16


def test_a_cell_that_fails_in_the_middle_of_a_pass_leaves_the_others_alone(weights, failing, tmp_path, monkeypatch):
    """At the second batch, when it has taken one."""
    monkeypatch.setattr(lit._Pass, "test_step", failing_later(lit._Pass.test_step))
    ran = Run(tmp_path / "ran", weights, failing, "methods=[tome,raises_later,vid_tldr]")
    assert [record.status for record in ran.records] == ["done", "done", "failed", "done"]
    assert ran.record("raises_later").reason == "RuntimeError: out of luck"
    alone = Run(tmp_path / "alone", weights, "methods=[tome,vid_tldr]")
    for method in ("none", "tome", "vid_tldr"):
        assert ran.record(method).result == alone.record(method).result


def failing_later(test_step):
    def step(self, batch, number):
        METHODS["raises_later"].batch = number
        return test_step(self, batch, number)

    return step


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_file_is_decoded_once_for_all_cells(num_workers, tmp_path, monkeypatch):
    notes, decode = tmp_path / "notes", video.read_clip
    notes.mkdir()
    for number in range(5):
        write(tmp_path / "videos" / f"{number}.mp4", 10)

    def noted(path, *arguments, **options):  # in files, which a worker process can write too
        name = Path(path).stem
        (notes / f"{name}-{len(list(notes.glob(f'{name}-*')))}").touch()
        return decode(path, *arguments, **options)

    monkeypatch.setattr(video, "read_clip", noted)
    monkeypatch.setattr(lit, "CACHE_BYTES", 0)
    words = ["data=video_folder", f"data.root={tmp_path / 'videos'}", "weights=random", f"workers={num_workers}"]
    words = [word for word in TINY if not word.startswith("data.")] + [*words, "traces=0"]  # else a few once more
    assert sweep([*words, "methods=[tome,vid_tldr,random_drop]", "r=[4,8]", f"out={tmp_path / 'run'}"]) == 0
    assert sorted(path.name for path in notes.iterdir()) == [f"{number}-0" for number in range(5)]
    assert len(Store(tmp_path / "run").records()) == 1 + 2 + 2 + 2 * 3


# What goes wrong


def test_a_method_that_raises_is_a_failed_record_and_the_sweep_goes_on(weights, failing, tmp_path):
    ran = Run(tmp_path, weights, failing, "methods=[raises,tome]")
    assert [record.status for record in ran.records] == ["done", "failed", "done"]
    assert ran.record("raises").reason == "RuntimeError: out of luck"
    assert (ran.tally.done, ran.tally.failed) == (2, 1)


def test_logits_that_are_no_numbers_are_invalid(weights, failing, tmp_path):
    record = Run(tmp_path, weights, failing, "methods=gives_nan").record("gives_nan")
    assert record.status == "invalid" and record.result == {}
    assert record.reason == f"the scores of {NUM_CLIPS} samples are not finite (the first of them: 0, 1, 2, 3, 4)"


@pytest.fixture
def tried(monkeypatch):
    """The methods that are run, from here on."""
    names, evaluate = [], accuracy.evaluate

    def noted(evaluations, *arguments, **options):
        names.extend(evaluation.model.method.name for evaluation in evaluations)
        return evaluate(evaluations, *arguments, **options)

    monkeypatch.setattr(accuracy, "evaluate", noted)
    return names


@pytest.mark.parametrize(("word", "again"), [("retry=null", []), ("retry=failed", ["raises", "gives_nan"])])
def test_what_failed_is_tried_again_where_that_is_asked_for(word, again, tried, weights, failing, tmp_path):
    words = [weights, failing, "methods=[tome,raises,gives_nan]"]
    Run(tmp_path, *words)
    tried.clear()
    assert Run(tmp_path, *words, word).tally.kept == 4 - len(again)
    assert tried == again


def test_a_cell_that_was_killed_from_outside_is_tried_again(tried, weights, tmp_path):
    ran = Run(tmp_path, weights, "methods=tome")
    ran.store.add(replace(ran.record("tome"), status="failed", kind="killed", result={}))
    tried.clear()
    assert Run(tmp_path, weights, "methods=tome").record("tome").status == "done" and tried == ["tome"]


def test_what_another_process_has_is_left_to_it(tried, weights, failing, tmp_path):
    words = [weights, failing, "methods=[tome,raises]"]
    ran = Run(tmp_path, *words)
    tried.clear()
    with Claims(tmp_path) as another:
        another.take(ran.record("raises").key)
        assert Run(tmp_path, *words, "retry=failed").tally.kept == 3 and tried == []


def test_a_record_that_is_gone_at_the_end_is_a_cell_that_is_not_done(weights, tmp_path, monkeypatch, capsys):
    run_part = run.run_part

    def forgetting(plan, config, data, store, *rest):
        run_part(plan, config, data, store, *rest)
        store.forget(plan[0].cells[1].key)

    monkeypatch.setattr(run, "run_part", forgetting)
    assert sweep([*TINY, weights, "methods=tome", "traces=0", "loggers=[]", f"out={tmp_path / 'run'}"]) == 3
    assert "1 cells have no record" in capsys.readouterr().out


def test_a_sweep_says_how_failed_cells_are_tried_again(weights, failing, tmp_path, capsys):
    words = [*TINY, weights, failing, "methods=[raises,tome]", f"out={tmp_path / 'run'}"]
    assert sweep(words) == 3
    assert "1 cells failed; they are tried again with retry=failed" in capsys.readouterr().out


@pytest.mark.parametrize(("methods", "code"), [("[raises,tome]", 3), ("[gives_nan,tome]", 3), ("[tome,evit]", 0)])
def test_the_exit_code_says_whether_cells_failed(methods, code, weights, failing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep([*TINY, weights, failing, f"methods={methods}", "out=run"]) == code
    assert (tmp_path / "run" / "results.csv").is_file()


def test_the_exit_code_says_that_all_cells_failed(weights, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(accuracy, "evaluate", fail)
    assert sweep([*TINY, weights, "methods=tome", f"out={tmp_path / 'run'}"]) == 4
    assert "RuntimeError: no memory left" in capsys.readouterr().out


def test_a_plugin_is_compared_like_any_other_method(weights, tmp_path):
    (tmp_path / "mine.py").write_text(
        METHODS_THAT_FAIL.replace("raise RuntimeError", "return super().assign(tokens, attention, keep)  #")
    )
    record = Run(tmp_path, weights, f"plugins={tmp_path / 'mine.py'}", "methods=raises").record("raises")
    assert record.status == "done" and record.result["tokens"] == [56, 48, 40]


def test_cuda_without_a_device_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=cuda was asked for, but torch sees no CUDA device"):
        device_of(read_config(["device=cuda"]))


def test_half_precision_without_a_device_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="precision=16-mixed needs CUDA"):
        device_of(read_config(["precision=16-mixed"]))


@pytest.mark.parametrize("known", [True, False])
def test_a_cell_without_memory_runs_on_smaller_batches_to_the_same_result(known, weights, tmp_path, monkeypatch):
    words = [weights if known else "weights=random", "methods=[tome,vid_tldr]"]
    whole, assign = Run(tmp_path / "whole", *words), METHODS["tome"].assign

    def limited(self, tokens, *rest):
        if len(tokens.x_BNC) > 1:
            torch.empty(2**60)
        return assign(self, tokens, *rest)

    monkeypatch.setattr(METHODS["tome"], "assign", limited)
    short = Run(tmp_path / "short", *words)
    sizes = {record.cell["method"]: record.conditions["batch_size"] for record in short.records}
    assert sizes == {"none": 4, "vid_tldr": 4, "tome": 1}
    assert short.record("tome").result == whole.record("tome").result


def test_where_the_unreduced_model_lacks_memory_those_compared_with_it_wait_for_it(tmp_path, monkeypatch):
    whole, evaluate = Run(tmp_path / "whole", "weights=random", "methods=tome"), accuracy.evaluate

    def limited(evaluations, samples, **options):
        if samples.batches.loader.batch_size > 2:
            evaluations[0].give_up(MemoryError())
            evaluations = evaluations[1:]
        return evaluate(evaluations, samples, **options)

    monkeypatch.setattr(accuracy, "evaluate", limited)
    short = Run(tmp_path / "short", "weights=random", "methods=tome")
    assert [record.result for record in short.records] == [record.result for record in whole.records]


def test_a_cell_that_one_sample_is_too_much_for_fails(weights, tmp_path, monkeypatch):
    def none_left(*_):
        raise MemoryError("no memory left")

    monkeypatch.setattr(METHODS["tome"], "assign", none_left)
    record = Run(tmp_path, weights, "methods=tome").record("tome")
    assert (record.status, record.reason) == ("failed", "MemoryError: no memory left")
    assert record.conditions["batch_size"] == 1


# Agreement


def test_agreement_is_the_share_of_the_unreduced_models_predictions(tmp_path):
    ran = Run(tmp_path, "weights=random", "methods=random_drop", "r=20", "seeds=1")
    unreduced, reduced = (ran.store.predictions(cell.key) for cell in ran.cells)
    record = ran.record("random_drop")
    assert record.result["metric"] == "agreement" and record.result["why_agreement"] == "the weights are random"
    assert record.result["num_correct"] == int((unreduced["prediction"] == reduced["prediction"]).sum())
    assert np.array_equal(reduced["reference"], unreduced["prediction"])


def test_the_unreduced_model_agrees_with_itself(tmp_path):
    assert Run(tmp_path, "weights=random", "methods=none").record("none").result["value"] == 1


def test_agreement_is_called_that_in_table_and_csv(tmp_path):
    found = rows(Run(tmp_path, "weights=random", "methods=tome").store)
    file = io.StringIO()
    print_table(found, Console(file=file, width=160))
    assert "agreement" in file.getvalue() and "accuracy" not in file.getvalue()
    text = write_csv(found, tmp_path / "results.csv").read_text()
    assert "agreement" in text and "accuracy" not in text


def test_where_the_unreduced_model_fails_there_is_nothing_to_agree_with(tmp_path, monkeypatch):
    evaluate = accuracy.evaluate

    def fail_unreduced(evaluations, *arguments, **options):
        evaluations[0].give_up(RuntimeError("no memory left"))
        return evaluate(evaluations[1:], *arguments, **options)

    monkeypatch.setattr(accuracy, "evaluate", fail_unreduced)
    ran = Run(tmp_path, "weights=random", "methods=tome")
    assert [record.status for record in ran.records] == ["failed", "failed"]
    assert "no unreduced model to agree with" in ran.record("tome").reason


# Speed


@pytest.fixture
def quick(monkeypatch):
    """Timing without its warm-up; remembers the runs of each measurement."""
    monkeypatch.setattr(timing, "WARM_UP_S", 0.0)
    monkeypatch.setattr(timing, "MIN_BLOCK_MS", 0.0)
    measured, beside = [], timing.beside

    def remembered(unreduced, runs, **options):
        measured.append(list(runs))
        return beside(unreduced, runs, **options)

    monkeypatch.setattr(timing, "beside", remembered)
    return measured


def test_a_method_and_schedule_is_timed_once_whatever_its_seeds(quick, weights, tmp_path):
    ran = Run(tmp_path, weights, "methods=[tome,random_drop]", "seeds=3", "timing.rounds=20")
    keys = {(cell.spec["method"], cell.spec["seed"]): cell.key for cell in ran.cells}
    assert quick == [["null", keys["tome", None], keys["random_drop", 0]]]


def test_a_timing_holds_what_it_takes_to_compute_it_anew(quick, weights, tmp_path):
    (found,) = Run(tmp_path, weights, "methods=tome", "timing.rounds=20", "timing.batch_size=2").store.all_timings()
    null = found.models[NULL].speedup
    assert found.batch_size == 2 and found.mode == "eager" and len(found.models) == 2
    for key, model in found.models.items():
        lists = (model.times_ms, model.unreduced_ms, model.cpu_ms, model.unreduced_cpu_ms, model.place)
        assert {len(values) for values in lists} == {20}
        ratios = sorted(b / t for b, t in zip(model.unreduced_ms, model.times_ms))
        assert model.speedup == [(ratios[9] + ratios[10]) / 2, ratios[5], ratios[14]]
        assert model.verdict == (timing.control(null) if key == NULL else timing.verdict(model.speedup, null))
    assert found.resolution == max(max(end, 1 / end) for end in null) - 1


def test_a_timing_takes_a_kilobyte_for_a_model_at_most(quick, weights, tmp_path):
    """With the 30 rounds of the protocol a tenth more."""
    store = Run(tmp_path, weights, "methods=[tome,vid_tldr]", "r=[4,8]", "timing.rounds=20").store
    (path,) = store.timings.iterdir()
    assert path.stat().st_size < 5 * 1024 + 512  # four cells, the null control, conditions


def test_a_timing_says_how_many_threads_it_had_and_how_busy_the_machine_was(quick, weights, tmp_path):
    (found,) = Run(tmp_path, weights, "methods=tome", "timing.rounds=20").store.all_timings()
    assert found.conditions["threads"] == torch.get_num_threads() and len(found.conditions["load"]) == 2
    assert {"cores", "cpu_pressure", "cpu_stolen"} < found.conditions.keys()
    assert "batch_size" not in found.conditions  # that of accuracies would be


def test_on_another_processor_speed_is_measured_anew_and_accuracy_is_not(quick, weights, tmp_path, monkeypatch):
    words = [weights, "methods=tome", "timing.rounds=20"]
    before = Run(tmp_path, *words).records
    monkeypatch.setattr("tokred.sweeps.conditions.processor", lambda: "another")
    again = Run(tmp_path, *words)
    assert again.records == before and len(quick) == 2
    devices = {found.conditions["device"] for found in again.store.all_timings()}
    assert devices == {before[0].conditions["device"], "cpu (another)"}


def test_each_batch_size_is_measured_for_all_models(quick, weights, tmp_path):
    words = [weights, "methods=[tome,vid_tldr]", "timing.rounds=20", "timing.batch_size=[1,3]"]
    ran = Run(tmp_path, *words)
    timings = {found.batch_size: found for found in ran.store.all_timings()}
    assert timings.keys() == {1, 3} and timings[1].models.keys() == timings[3].models.keys()
    assert all(timings[3].models[key].peak_mib > 2 * timings[1].models[key].peak_mib > 0 for key in timings[1].models)
    assert {row.timing_batch_size for row in rows(ran.store)} == {1}


@pytest.fixture(params=["cuda", "cpu"])
def out_of_memory(request, monkeypatch):
    """vid_tldr has room for batches of 4 at most; the allocators' errors are their own."""
    forward = tokred.ReducedModel.forward

    def limited(self, x, *arguments):
        if self.method.name == "vid_tldr" and len(x) > 4:
            if request.param == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation.")
            torch.empty(2**60)
        return forward(self, x, *arguments)

    monkeypatch.setattr(tokred.ReducedModel, "forward", limited)


def test_out_of_memory_in_one_model_drops_the_batch_size_for_all(quick, out_of_memory, weights, tmp_path):
    words = [weights, "methods=[tome,vid_tldr]", "timing.rounds=20", "timing.batch_size=[8,2]"]
    store = Run(tmp_path, *words).store
    timings = {found.batch_size: found for found in store.all_timings()}
    reason = "vid_tldr r 8 ran out of memory, so this batch size is dropped for all"
    assert timings[8].models == {} and set(timings[8].left_out.values()) == {reason}
    assert len(timings[8].left_out) == len(timings[2].models) == 3 and timings[2].left_out == {}
    assert {row.timing_batch_size for row in rows(store)} == {2}


def test_a_batch_size_that_was_dropped_is_said_at_the_end(quick, out_of_memory, weights, tmp_path, capsys):
    words = [*TINY, weights, "methods=[tome,vid_tldr]", "timing.rounds=20", "timing.batch_size=[8,2]"]
    assert sweep([*words, f"out={tmp_path / 'run'}"]) == 0
    said = "Not timed: mini_mean, eager, batch 8: vid_tldr r 8 ran out of memory, so this batch size is dropped for all"
    assert said in " ".join(capsys.readouterr().out.split())  # a narrow terminal breaks the line
    lines = (tmp_path / "run" / "timings.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3 and sum("dropped for all" in line for line in lines) == 3


def test_a_batch_size_that_was_dropped_is_tried_again(quick, weights, tmp_path, monkeypatch):
    words, measure = [weights, "methods=tome", "timing.rounds=20"], timing.beside

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(timing, "beside", out_of_memory)  # in the middle of the rounds
    (found,) = Run(tmp_path, *words).store.all_timings()
    assert set(found.left_out.values()) == {"the measurement ran out of memory, so this batch size is dropped for all"}
    monkeypatch.setattr(timing, "beside", measure)
    (found,) = Run(tmp_path, *words).store.all_timings()
    assert len(found.models) == 2 and found.left_out == {}


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_model_that_fails_at_a_batch_size_is_left_out_and_the_others_are_timed(
    error, quick, weights, tmp_path, monkeypatch
):
    forward = tokred.ReducedModel.forward

    def odd(self, x, *arguments):
        if self.method.name == "vid_tldr" and len(x) == 7:
            raise error("seven is odd\nand a long trace")
        return forward(self, x, *arguments)

    monkeypatch.setattr(tokred.ReducedModel, "forward", odd)
    words = [weights, "methods=[tome,vid_tldr]", "timing.rounds=20", "timing.batch_size=7"]
    (found,) = Run(tmp_path, *words).store.all_timings()
    assert list(found.left_out.values()) == ["seven is odd"] and len(found.models) == 2


BREAKS = '''
"""A method whose graph breaks."""

import torch

from tokred import METHODS, Assignment, Method


@METHODS.register("breaks")
class Breaks(Method):
    def assign(self, tokens, attention, keep):
        torch._dynamo.graph_break()
        return Assignment.select(torch.arange(keep).expand(len(tokens.x_BNC), keep), tokens.num)
'''


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A sweep in two modes. Without torch.compile's code generation, which takes minutes; the one graph of each model is still
    demanded. Of one forward dynamo keeps a single graph here in place of eight, and the reduced models share theirs."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "breaks.py").write_text(BREAKS)
    words = [f"plugins={folder / 'breaks.py'}", "methods=[breaks,tome,random_drop]", "weights=random", "seeds=1"]
    words += ["sizes.depth=1", "timing.modes=[eager,compiled]", "timing.rounds=20", "timing.batch_size=1"]
    list_methods()
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(recompile_limit=1):
        patch.setattr(METHODS, "_classes", dict(METHODS._classes))
        patch.setattr(timing, "WARM_UP_S", 0.0)
        patch.setattr(timing, "MIN_BLOCK_MS", 0.0)
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        return Run(folder, *words)


def of_mode(ran, mode):
    (found,) = [found for found in ran.store.all_timings() if found.mode == mode]
    return found


def test_compiled_models_are_timed_apart_with_the_time_it_took_to_compile_them(compiled):
    assert {model.compile_s for model in of_mode(compiled, "eager").models.values()} == {None}
    assert all(model.compile_s > 0 for model in of_mode(compiled, "compiled").models.values())


def test_as_many_models_are_compiled_as_there_are(compiled):
    assert {compiled.record(name).key for name in ("tome", "random_drop")} < of_mode(compiled, "compiled").models.keys()


def test_a_model_that_is_no_one_graph_is_left_out_of_the_compiled_rows_alone(compiled):
    left_out = {mode: list(of_mode(compiled, mode).left_out) for mode in ("eager", "compiled")}
    assert left_out == {"eager": [], "compiled": [compiled.record("breaks").key]}


def test_the_table_shows_the_mode_that_was_named_first(compiled):
    assert {row.timing_mode for row in rows(compiled.store)} == {"eager"}


def test_cuda_graphs_without_a_device_are_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="timing.modes=cuda_graph needs CUDA; on a CPU the modes are eager and compiled"
    ):
        device_of(read_config(["timing.modes=[eager,cuda_graph]"]))


def test_a_timing_holds_what_the_reduction_takes_of_each_cells_time(quick, weights, tmp_path):
    ran = Run(tmp_path, weights, "methods=tome", "timing.rounds=20", "timing.batch_size=2")
    (found,) = ran.store.all_timings()
    assert 0 < found.models[ran.cells[1].key].reduction_time_share < 1
    assert found.models[NULL].reduction_time_share is None


def test_a_timing_needs_no_more_clips_than_there_are(quick, weights, tmp_path):
    (found,) = Run(tmp_path, weights, "methods=tome", "timing.rounds=20", "timing.batch_size=20").store.all_timings()
    assert found.batch_size == 20 > NUM_CLIPS


@pytest.mark.parametrize(
    ("word", "num_timings"),
    [("timing.rounds=20", 1), ("timing.rounds=21", 2), ("timing.batch_size=3", 2), ("timing.batch_size=[3,8]", 2)],
)
def test_other_conditions_are_timed_anew(word, num_timings, quick, weights, tmp_path):
    for more in ([], [word]):
        store = Run(tmp_path, weights, "methods=tome", "timing.rounds=20", *more).store
    assert len(quick) == len(store.all_timings()) == num_timings


def test_no_rounds_measure_nothing(quick, weights, tmp_path):
    assert Run(tmp_path, weights, "methods=tome", "timing.rounds=0").store.all_timings() == [] and quick == []


def test_a_cell_that_failed_is_not_timed_until_it_runs(quick, weights, failing, tmp_path):
    words = [weights, failing, "methods=[raises,tome]", "timing.rounds=20", "retry=failed"]
    first = Run(tmp_path, *words)
    tome, raises = first.record("tome").key, first.record("raises").key
    assert quick == [["null", tome]]
    METHODS["raises"].assign = METHODS["raises"].__mro__[1].assign  # mended, as by a machine with more memory
    plan_again(tmp_path, words)
    assert quick[1:] == [["null", raises, tome]]


def plan_again(folder, words):
    """A run that leaves the plugins as they are."""
    Run(folder, *(word for word in words if not word.startswith("plugins=")))


def test_a_timing_that_fails_is_tried_once_and_said_and_the_records_stay(quick, weights, tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("out of luck\nand a long trace")

    monkeypatch.setattr(timing, "beside", fail)
    words = [*TINY, weights, "methods=tome", f"out={tmp_path / 'run'}", "timing.rounds=20"]
    assert sweep(words) == 0
    said = capsys.readouterr().out
    assert "speed was not measured: out of luck\n" in said and said.count("rounds of 2 models") == 1
    (found,) = Store(tmp_path / "run").all_timings()
    assert found.models == {} and set(found.left_out.values()) == {"speed was not measured: out of luck"}
    assert all(record.status == "done" for record in Store(tmp_path / "run").planned())


def test_the_unreduced_model_alone_is_not_timed(quick, weights, tmp_path):
    assert Run(tmp_path, weights, "methods=none", "timing.rounds=20").store.all_timings() == []


# Counts that differ by sample


VARYING = '''
"""Keeps the tokens whose first channel is above a threshold."""

import torch

from tokred import METHODS, Assignment, Method


@METHODS.register("bright")
class Bright(Method):
    varies = True
    conserves_mass = False

    def __init__(self, least: float = 0.0):
        super().__init__()
        self.least = least

    def assign(self, tokens, attention, keep):
        place_N = torch.arange(tokens.num)
        stays_BN = ((tokens.x_BNC[..., 0] > self.least) | (place_N == 0)) & (place_N < tokens.num_real()[:, None])
        index_BK = (~stays_BN).long().argsort(dim=1, stable=True)[:, :keep]
        return Assignment.select(index_BK, tokens.num, place_N[:keep] < stays_BN.sum(1, keepdim=True))

    def knob(self, num_tokens):
        return "least", 9.0, -9.0
'''


@pytest.fixture
def varying(tmp_path):
    """A method whose counts differ by sample, 8 clips to calibrate it on, and no fixed amount."""
    (tmp_path / "bright.py").write_text(VARYING)
    return ["r=null", f"plugins={tmp_path / 'bright.py'}", "methods=bright", "calibration.num_clips=8"]


def left_by_clip(weights, split="test", **options):
    """(N, L): how many tokens leave each layer, clip by clip; and the model."""
    backbone = create_backbone("mini_mean", weights=weights.removeprefix("weights="), **SMALL)
    model, source = tokred.reduce(backbone, "bright", **options), MovingShapes(NUM_CLIPS, split)
    with torch.inference_mode():
        clips = [source.read(index, backbone.sample_shape, backbone.preprocess()) for index in range(NUM_CLIPS)]
        return np.array([[int(num) for num in model.trace(clip[None]).num_B] for clip in clips]), model


def test_tokens_of_a_record_are_mean_deviation_and_95th_percentile_of_the_samples(weights, varying, tmp_path):
    result = Run(tmp_path, weights, *varying, "budget=null").record("bright").result
    num_NL, _ = left_by_clip(weights)
    assert len(np.unique(num_NL[:, -1])) > 1
    assert result["tokens"] == pytest.approx(num_NL.mean(0))
    assert result["tokens_sd"] == pytest.approx(num_NL.std(0))
    assert result["tokens_p95"] == pytest.approx(np.quantile(num_NL, 0.95, axis=0))


def test_gmacs_of_a_record_are_the_mean_of_what_each_sample_costs(weights, varying, tmp_path):
    result = Run(tmp_path, weights, *varying, "budget=null").record("bright").result
    num_NL, model = left_by_clip(weights)
    gmacs_N = np.array([model.cost(tokens).gmacs for tokens in num_NL.tolist()])
    assert result["gmacs"] == pytest.approx(gmacs_N.mean(), rel=1e-6)  # whole MACs of some millions
    assert result["gmacs_sd"] == pytest.approx(gmacs_N.std()) and gmacs_N.std() > 0
    assert result["gmacs_p95"] == pytest.approx(np.quantile(gmacs_N, 0.95))
    assert sum(result["gmacs_by_part"].values()) == pytest.approx(result["gmacs"])


def test_padded_gmacs_are_those_of_the_longest_of_each_batch(weights, varying, tmp_path):
    result = Run(tmp_path, weights, *varying, "budget=null", "batch_size=5").record("bright").result
    num_NL, model = left_by_clip(weights)
    first, second = (model.cost(batch.max(0).tolist()).gmacs for batch in (num_NL[:5], num_NL[5:]))
    assert result["gmacs_padded"] == pytest.approx((5 * first + 3 * second) / 8)
    assert result["gmacs_padded"] > result["gmacs"]


def test_one_by_one_nothing_is_padded(weights, varying, tmp_path):
    result = Run(tmp_path, weights, *varying, "budget=null", "batch_size=1").record("bright").result
    assert result["gmacs_padded"] == pytest.approx(result["gmacs"], rel=1e-6)


def test_predictions_do_not_depend_on_the_batch(weights, varying, tmp_path):
    one, four = (
        Run(tmp_path / size, weights, *varying, "budget=null", f"batch_size={size}").store.records()
        for size in ("1", "4")
    )
    right = [[record.result["num_correct"] for record in records] for records in (one, four)]
    counts = [[record.result["tokens"] for record in records] for records in (one, four)]
    assert right[0] == right[1] and counts[0] == counts[1]


def test_a_record_says_how_its_budget_was_met_on_other_samples(weights, varying, tmp_path):
    record = Run(tmp_path, weights, *varying, "budget=[0.7]").record("bright")
    found = record.result["calibration"]
    assert record.cell["calibration"] == {"name": "moving_shapes", "num_clips": 8, "split": "validation"}
    assert found["option"] == "least" and found["num_samples"] == 8
    num_NL, model = left_by_clip(weights, "validation", least=found["value"])
    share = np.mean([model.cost(tokens).macs for tokens in num_NL.tolist()]) / model.unreduced_cost().macs
    assert found["share"] == pytest.approx(share) == pytest.approx(0.7, rel=0.02)


def test_a_record_spends_what_its_own_samples_need(weights, varying, tmp_path):
    result = Run(tmp_path, weights, *varying, "budget=[0.7]").record("bright").result
    num_NL, model = left_by_clip(weights, least=result["calibration"]["value"])
    assert result["gmacs"] == pytest.approx(np.mean([model.cost(t).gmacs for t in num_NL.tolist()]), rel=1e-6)


def test_calibration_samples_are_read_once_for_all_budgets(weights, varying, tmp_path, monkeypatch):
    reads, read = [], MovingShapes.read

    def counted(self, index, *arguments):
        reads.append((self.split, index))
        return read(self, index, *arguments)

    monkeypatch.setattr(MovingShapes, "read", counted)
    ran = Run(tmp_path, weights, *varying, "budget=[0.8,0.7]")
    assert [record.status for record in ran.records] == ["done"] * 3
    assert sorted(reads) == [(split, index) for split in ("test", "validation") for index in range(8)]


def test_the_calibrated_option_is_the_one_that_is_timed(quick, weights, varying, tmp_path, monkeypatch):
    timed, build = [], accuracy.build_method

    def seen(cell, **solved):
        timed.append(solved)
        return build(cell, **solved)

    measure = timing.beside
    monkeypatch.setattr(accuracy, "build_method", seen)
    monkeypatch.setattr(timing, "beside", lambda *a, **k: (timed.append("timing"), measure(*a, **k))[1])
    record = Run(tmp_path, weights, *varying, "budget=[0.7]", "timing.rounds=20").record("bright")
    assert timed[-2:] == [{"least": record.result["calibration"]["value"]}, "timing"]


def test_a_budget_that_cannot_be_met_is_refused_with_the_nearest(weights, varying, tmp_path):
    ran = Run(tmp_path, weights, *varying, "budget=[0.02]")
    record = ran.record("bright")
    assert record.status == "refused" and "the nearest it reaches on the 8 calibration samples is" in record.reason


def test_a_row_of_it_has_its_difference_to_the_unreduced_model_and_the_spread_of_its_tokens(weights, varying, tmp_path):
    ran = Run(tmp_path, weights, *varying, "budget=[0.7]")
    (row,) = [row for row in rows(ran.store) if row.method == "bright"]
    result = ran.record("bright").result
    unreduced = ran.record("none").result
    assert row.difference == pytest.approx((result["num_correct"] - unreduced["num_correct"]) / NUM_CLIPS)
    assert row.num_tokens == result["tokens"][-1] and row.num_tokens_sd == result["tokens_sd"][-1]
    assert row.num_tokens_p95 == result["tokens_p95"][-1] and row.gmacs_padded == result["gmacs_padded"]


def test_a_row_of_another_method_has_no_spread_of_tokens(weights, tmp_path):
    (row,) = [row for row in rows(Run(tmp_path, weights, "methods=tome").store) if row.method == "tome"]
    assert row.num_tokens == 40 and row.num_tokens_sd is row.num_tokens_p95 is row.gmacs_padded is None


def test_where_only_calibrated_cells_are_timed_the_unreduced_model_has_a_speed(quick, weights, varying, tmp_path):
    store = Run(tmp_path, weights, *varying, "budget=[0.7]", "timing.rounds=20").store
    assert [row.speedup for row in rows(store) if row.method == "none"] == [1.0]


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_videos_of_different_lengths_are_retrieved_and_asked_about(task, varying, tmp_path):
    words = [*varying, f"task={task}", "backbones=mini_umt", "weights=random", "data.num_clips=3", "budget=null"]
    found = [Run(tmp_path / size, *words, f"batch_size={size}") for size in ("1", "3")]
    assert [record.status for ran in found for record in ran.records] == ["done"] * 4
    one, three = (ran.record("bright").result for ran in found)
    assert one["tokens"] == three["tokens"] and one["tokens_sd"][-1] > 0
    assert one["metrics"] == three["metrics"]


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", ["classification", "retrieval", "qa"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_all_cells_and_the_timing_run_on_cuda(task, precision, tmp_path):
    """The cells of a group share a backbone, which Lightning moves to the CPU after each."""
    backbone = "mini_mean" if task == "classification" else "mini_umt"
    words = [f"task={task}", f"backbones={backbone}", "device=cuda", f"precision={precision}", "data.num_clips=16"]
    assert sweep([*words, "methods=[tome,vid_tldr]", "budget=[0.6]", "batch_size=8", f"out={tmp_path}"]) == 0
    assert [record.status for record in Store(tmp_path).records()] == ["done"] * 3
    assert len(Store(tmp_path).all_timings()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_all_modes_are_measured_on_cuda(precision, tmp_path):
    words = ["backbones=mini_mean", "device=cuda", f"precision={precision}", "data.num_clips=8", "batch_size=8"]
    modes = "timing.modes=[eager,compiled,cuda_graph]"
    assert sweep([*words, "methods=[tome]", "budget=[0.6]", modes, f"out={tmp_path}"]) == 0
    timings = {found.mode: found for found in Store(tmp_path).all_timings()}
    assert timings.keys() == {"eager", "compiled", "cuda_graph"}
    for mode, found in timings.items():
        assert len(found.models) == 2 and found.left_out == {}
        for model in found.models.values():
            assert model.cpu_ms == [] and model.peak_mib > 0
            assert model.reserved_mib is None if mode == "cuda_graph" else model.reserved_mib > model.peak_mib


def test_where_another_process_of_a_pass_died_no_cell_has_a_record(weights, tmp_path, monkeypatch):
    """What the supervisor makes of that is its own affair: which cell it was shows when each runs alone."""

    def lose_another(*_, **__):
        raise Died(1, -signal.SIGSEGV)

    monkeypatch.setattr(accuracy, "evaluate", lose_another)
    with pytest.raises(Died):
        Run(tmp_path, weights)
    assert list((tmp_path / "cells").iterdir()) == []

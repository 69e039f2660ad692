"""The pass over the data: predictions in order, what is invalid or unreadable, batches decoded once, Ctrl+C."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tokred import lit
from tokred.data import DataSource, Preprocess
from tokred.data.loading import Unreadable
from tokred.lit import EvaluationData
from tokred.tasks.classification import Classifying
from tokred.tokens import Tokens

SHAPE, NUM_CLASSES = (3, 2, 2), 4
BACKBONE = SimpleNamespace(
    sample_shape=SHAPE, preprocess=Preprocess, depth=1, head=lambda tokens: tokens.x_BNC.squeeze(1)
)


class Pictures(DataSource):
    """Seven noise pictures with labels 0, 1, 2, 0, ...; those in ``broken`` cannot be read."""

    name, kind, has_labels = "pictures", "image", True

    def __init__(self, broken=()):
        self.broken, self.reads = set(broken), []

    def __len__(self):
        return 7

    def label(self, index):
        return index % 3

    def read(self, index, sample_shape, preprocess):
        self.reads.append(index)
        if index in self.broken:
            raise Unreadable(f"{index}.png", "cut short")
        return torch.randn(sample_shape, generator=torch.Generator().manual_seed(index))

    def digest(self):
        return ""

    def description(self):
        return {"name": self.name}


class Model(nn.Module):
    """Of one layer; logits from a linear map. ``nan_at``, ``fails_at``: samples, by the first of their values, whose logits are
    not a number, and at which it raises."""

    backbone, method = BACKBONE, SimpleNamespace(varies=False)

    def __init__(self, nan_at=None, fails_at=None):
        super().__init__()
        self.linear, self.nan_at, self.fails_at, self.calls = nn.Linear(12, NUM_CLASSES), nan_at, fails_at, 0
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs):
        return BACKBONE.head(self.fed(0, self.embedded(inputs), None, inputs))

    def embedded(self, inputs):
        return Tokens(inputs.flatten(1)[:, None])

    def halves(self):
        return [(), (self,)]

    def attended(self, layer, tokens, inputs):
        return tokens, None

    def between(self, layer, tokens, attention, inputs):
        return tokens, attention

    def fed(self, layer, tokens, attention, inputs):
        self.calls += 1
        logits_B1K = self.linear(tokens.x_BNC)
        if self.nan_at is not None:
            logits_B1K[inputs[:, 0, 0, 0] == self.nan_at, :, 1] = float("nan")
        if self.fails_at is not None and (inputs[:, 0, 0, 0] == self.fails_at).any():
            raise RuntimeError("out of luck")
        return tokens.with_x(logits_B1K)


def data_of(source, batch_size=3):
    return EvaluationData(source, BACKBONE, batch_size=batch_size)


def evaluate(model, samples, *, on_batch=lambda: None, precision="32-true"):
    evaluation = Classifying(model)
    lit.evaluate([evaluation], samples, on_batch=on_batch, precision=precision)
    return evaluation.outcome()


def first_value(index):
    return Pictures().read(index, SHAPE, Preprocess())[0, 0, 0].item()


@torch.no_grad()
def one_by_one(model, source):
    return [int(model(source.read(index, SHAPE, Preprocess())[None]).argmax()) for index in range(len(source))]


def test_predictions_are_the_models_sample_by_sample():
    source, model = Pictures(), Model()
    expected = one_by_one(model, source)
    found = evaluate(model, data_of(source))
    assert found.arrays["prediction"].tolist() == expected and len(set(expected)) > 1


def test_index_and_label_stand_beside_each_prediction():
    found = evaluate(Model(), data_of(Pictures()))
    assert found.arrays["index"].tolist() == list(range(7)) and found.arrays["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_sample_that_cannot_be_read_is_named_and_left_out():
    found = evaluate(Model(), data_of(Pictures(broken=[1, 6])))
    assert found.arrays["index"].tolist() == [0, 2, 3, 4, 5]
    assert [tuple(problem) for problem in found.problems] == [("1.png", "cut short"), ("6.png", "cut short")]


def test_a_batch_of_unreadable_samples_is_not_run():
    model = Model()
    evaluate(model, data_of(Pictures(broken=[3, 4, 5])))
    assert model.calls == 2


def test_where_nothing_can_be_read_the_first_file_is_named():
    with pytest.raises(ValueError, match=r"not one of the 7 files could be read; the first: 0.png: cut short"):
        evaluate(Model(), data_of(Pictures(broken=range(7))))


def test_logits_that_are_not_finite_are_named_by_sample():
    assert evaluate(Model(nan_at=first_value(4)), data_of(Pictures())).invalid == (4,)


def test_progress_is_told_of_every_batch():
    told = []
    evaluate(Model(), data_of(Pictures(broken=[3, 4, 5])), on_batch=lambda: told.append(1))
    assert len(told) == 3


def test_the_model_keeps_its_weights_and_their_type():
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, data_of(Pictures()), precision="bf16-mixed")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Batches are decoded once


def test_a_second_pass_reads_no_file():
    source = Pictures()
    samples = data_of(source)
    first, second = (evaluate(Model(), samples) for _ in range(2))
    assert sorted(source.reads) == list(range(7))
    assert all(np.array_equal(value, second.arrays[name]) for name, value in first.arrays.items())


def test_a_second_pass_names_the_broken_files_again():
    samples = data_of(Pictures(broken=[2]))
    assert evaluate(Model(), samples).problems == evaluate(Model(), samples).problems != ()


def test_without_room_each_pass_reads_the_files(monkeypatch):
    monkeypatch.setattr(lit, "CACHE_BYTES", 100)
    source = Pictures()
    samples = data_of(source)
    first, second = (evaluate(Model(), samples) for _ in range(2))
    assert sorted(source.reads) == sorted(2 * list(range(7)))
    assert first.arrays["prediction"].tolist() == second.arrays["prediction"].tolist()


def test_a_pass_that_was_broken_off_is_not_taken_for_a_whole_one():
    source = Pictures()
    batches = data_of(source).test_dataloader()
    next(iter(batches))
    for _ in range(2):
        assert [batch.index_B.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(source.reads) == 3 + 7


def test_the_model_is_left_where_it_ran(monkeypatch):
    """Lightning leaves it on the CPU; the next cell, and the timing, run the same backbone."""
    moves = []
    for name in ("cpu", "to"):
        original = getattr(lit._Pass, name)
        monkeypatch.setattr(
            lit._Pass,
            name,
            lambda self, *to, _o=original, _n=name, **kw: (moves.append((_n, *to)), _o(self, *to, **kw))[1],
        )
    evaluate(Model(), data_of(Pictures()))
    assert moves[-1] == ("to", "cpu") and ("cpu",) in moves[:-1]


# Many models in a pass


def evaluate_all(models, samples, **options):
    evaluations = [Classifying(model) for model in models]
    lit.evaluate(evaluations, samples, **options)
    return evaluations


def test_each_of_many_models_gets_what_it_gets_alone():
    samples, models = data_of(Pictures(broken=[2])), [Model() for _ in range(3)]
    for evaluation, alone in zip(evaluate_all(models, samples), models, strict=True):
        expected = evaluate(alone, data_of(Pictures(broken=[2])))
        found = evaluation.outcome()
        assert found.problems == expected.problems != ()
        assert all(np.array_equal(value, expected.arrays[name]) for name, value in found.arrays.items())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_many_models_read_each_sample_once(num_workers, tmp_path):
    class Noted(Pictures):
        """Reads are notes in a folder, which a worker process can write too."""

        def read(self, index, *arguments):
            (tmp_path / f"{index}-{len(list(tmp_path.glob(f'{index}-*')))}").touch()
            return super().read(index, *arguments)

    samples = EvaluationData(Noted(), BACKBONE, batch_size=3, num_workers=num_workers)
    evaluate_all([Model() for _ in range(5)], samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{index}-0" for index in range(7)]


def test_a_model_that_fails_says_why_and_the_others_go_on():
    models = [Model(), Model(fails_at=first_value(4)), Model()]
    first, failed, last = evaluate_all(models, data_of(Pictures()))
    with pytest.raises(ValueError, match="^RuntimeError: out of luck$"):
        failed.outcome()
    expected = evaluate(Model(), data_of(Pictures())).arrays["prediction"]
    for evaluation in (first, last):
        assert np.array_equal(evaluation.outcome().arrays["prediction"], expected)


def test_a_model_that_failed_is_run_no_more():
    models = [Model(), Model(fails_at=first_value(1))]
    evaluate_all(models, data_of(Pictures()))
    assert [model.calls for model in models] == [3, 1]


def test_an_error_of_a_task_ends_its_model_alone(monkeypatch):
    first, second = Classifying(Model()), Classifying(Model())
    monkeypatch.setattr(first, "take", lambda tokens, batch: [][0])
    lit.evaluate([first, second], data_of(Pictures()))
    assert first.failed == "IndexError: list index out of range" and second.failed is None


def test_where_all_models_failed_no_further_file_is_read():
    source = Pictures()
    evaluate_all([Model(fails_at=first_value(0)), Model(fails_at=first_value(1))], data_of(source))
    assert max(source.reads) == 2


def test_a_model_that_failed_keeps_no_tensors():
    """An error holds the frames that it went through, and they the tokens of a batch."""
    import gc
    import weakref

    model, seen = Model(), []

    def fail(layer, tokens, attention, inputs):
        seen.append(weakref.ref(tokens))
        raise RuntimeError("out of memory")

    model.fed = fail
    evaluations = evaluate_all([model, Model()], data_of(Pictures()))
    gc.collect()
    assert evaluations[0].failed is not None and seen[0]() is None


# Ctrl+C


def test_an_interrupt_stays_one_and_the_next_one_is_heard():
    def interrupt():
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Model(), data_of(Pictures()), on_batch=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_outside_of_the_models_is_passed_on():
    def fail():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        evaluate(Model(), data_of(Pictures()), on_batch=fail)

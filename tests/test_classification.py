"""Classification: the class by the mean over views, and top-5 accuracy."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from tokred.data import Batch
from tokred.tasks.classification import TOP_5_FROM, Classifying

SHAPE = (3, 2, 2)


class Model(nn.Module):
    backbone = SimpleNamespace(sample_shape=SHAPE, head=lambda logits: logits)
    method = SimpleNamespace(varies=False)

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(12, num_classes)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs):
        return self.run(inputs)

    def run(self, inputs):
        assert inputs.shape[1:] == SHAPE
        return self.linear(inputs.flatten(1))


@torch.no_grad()
def outcome(model, inputs, label_B):
    evaluation = Classifying(model)
    batch = Batch(inputs, torch.tensor(label_B), torch.arange(len(inputs)), [])
    evaluation.take(model.run(inputs.reshape(-1, *SHAPE)), batch)
    return evaluation.outcome()


def draw(*shape):
    return torch.randn(*shape, *SHAPE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_of_several_views_the_mean_probability_decides():
    model, inputs = Model(4), draw(6, 3)
    expected = torch.stack(
        [torch.stack([model(view[None])[0].softmax(0) for view in views]).mean(0) for views in inputs]
    )
    assert outcome(model, inputs, [0] * 6).arrays["prediction"].tolist() == expected.argmax(1).tolist()
    assert expected.argmax(1).tolist() != model(inputs[:, 0]).argmax(1).tolist()


def test_the_same_view_twice_is_as_good_as_once():
    model, inputs = Model(4), draw(6)
    once, twice = outcome(model, inputs, [0] * 6), outcome(model, inputs[:, None].expand(-1, 2, *SHAPE), [0] * 6)
    assert once.arrays["prediction"].tolist() == twice.arrays["prediction"].tolist()


@pytest.mark.parametrize(("name", "top_k"), [("accuracy", 1), ("top-5 accuracy", 5)])
def test_accuracies_are_those_of_torchmetrics(name, top_k):
    model, inputs = Model(TOP_5_FROM), draw(200)
    label_B = torch.randint(TOP_5_FROM, (200,), generator=torch.Generator().manual_seed(2))
    found = outcome(model, inputs, label_B.tolist())
    ours = found.metrics[name].right(found.arrays).mean()
    with torch.no_grad():
        theirs = multiclass_accuracy(model(inputs), label_B, TOP_5_FROM, average="micro", top_k=top_k)
    assert ours == pytest.approx(theirs.item()) and 0 < ours < 1


def test_of_few_classes_there_is_no_top_5():
    assert list(outcome(Model(TOP_5_FROM - 1), draw(2), [0, 1]).metrics) == ["accuracy"]


def test_a_label_that_the_model_does_not_know_is_never_right():
    found = outcome(Model(TOP_5_FROM), draw(2), [TOP_5_FROM, -1])
    assert not any(metric.right(found.arrays).any() for metric in found.metrics.values())

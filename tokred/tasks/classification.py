"""Classification: the class of each sample; of several views of it, the class by the mean of their probabilities.

Dimension key: B batch, V views, K classes.
"""

import torch
from torch import Tensor

from tokred.data import Batch
from tokred.reduction import ReducedModel
from tokred.tasks.task import Evaluation, Metric, Outcome, Task
from tokred.tokens import Tokens

TOP_5_FROM = 50  # classes: below it, five guesses are most of what there is


class Classification(Task):
    """Accuracy, and top-5 accuracy where there are 50 classes or more."""

    name = "classification"

    def evaluation(self, model: ReducedModel) -> "Classifying":
        return Classifying(model)

    def why_agreement(self, weights: str) -> str:
        """Accuracy only where the labels can be those that the model was trained on."""
        if not self.backbone.gives_classes:
            raise ValueError(
                "the backbone gives a feature and no classes, so there is nothing to predict; add sizes.num_classes=K, with "
                "weights that hold the classifier (or weights=random)"
            )
        if why := super().why_agreement(weights):
            return why
        data, num_outputs = self.data, self._num_outputs()
        if not data.has_labels:
            return "the data has no labels"
        if data.classes and len(data.classes) != num_outputs:
            return f"the data has {len(data.classes)} classes, the model tells {num_outputs} apart"
        highest = -1 if data.classes else max(data.label(index) for index in range(len(data)))
        if highest >= num_outputs:
            return f"the data has labels up to {highest}, the model tells {num_outputs} classes apart"
        return ""

    def _num_outputs(self) -> int:
        parameter = next(self.backbone.parameters())
        with torch.inference_mode():
            return self.backbone(torch.zeros(1, *self.backbone.sample_shape, device=parameter.device)).shape[-1]


class Classifying(Evaluation):
    def __init__(self, model: ReducedModel):
        super().__init__(model)
        self._parts: list[tuple[Tensor, ...]] = []
        self._num_classes = 0

    def take(self, tokens: Tokens, batch: Batch) -> None:
        score_BK = self._scores(tokens, len(batch.index_B))
        self.invalid.extend(batch.index_B[~torch.isfinite(score_BK).all(-1)].tolist())
        label_B = batch.label_B.to(score_BK.device)
        known_B = (label_B >= 0) & (label_B < score_BK.shape[-1])
        of_label_B1 = score_BK.gather(1, label_B.where(known_B, 0)[:, None])
        rank_B = (score_BK > of_label_B1).sum(1).where(known_B, score_BK.shape[-1])
        self._num_classes = score_BK.shape[-1]
        self._parts.append(tuple(part.cpu() for part in (batch.index_B, batch.label_B, score_BK.argmax(-1), rank_B)))

    def _scores(self, tokens: Tokens, num_samples: int) -> Tensor:
        """(B, K) logits; where samples come as several views, the mean of their probabilities."""
        score_BK = self.model.backbone.head(tokens)
        if len(score_BK) == num_samples:
            return score_BK
        return score_BK.float().softmax(-1).unflatten(0, (num_samples, -1)).mean(1)

    @property
    def has_read(self) -> bool:
        return bool(self._parts)

    def found(self) -> Outcome:
        arrays = [torch.cat(part).numpy() for part in zip(*self._parts, strict=True)]
        names = ("index", "label", "prediction", "label_rank")
        metrics = {"accuracy": Metric()}
        if self._num_classes >= TOP_5_FROM:
            metrics["top-5 accuracy"] = Metric(ranks="label_rank", at=5)
        return Outcome(
            dict(zip(names, arrays, strict=True)), metrics, invalid=tuple(self.invalid), problems=tuple(self.problems)
        )

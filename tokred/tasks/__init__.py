"""What models are asked to do with what is left of the tokens: classify, retrieve, answer."""

from tokred.tasks.classification import Classification
from tokred.tasks.question_answering import QuestionAnswering
from tokred.tasks.retrieval import Retrieval
from tokred.tasks.task import Metric, Outcome, Task

__all__ = ["TASKS", "Classification", "Metric", "Outcome", "QuestionAnswering", "Retrieval", "Task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Retrieval, QuestionAnswering)}

"""What merging does to a real model: perplexities of composites on questions with answers."""

from hub_merge.evaluate.evaluation import Evaluation, evaluate
from hub_merge.evaluate.harness import run_tasks
from hub_merge.evaluate.language_model import LanguageModel
from hub_merge.evaluate.losses import Encoded, Loss
from hub_merge.evaluate.questions import Question, QuestionFormat, QuestionSet, read_questions
from hub_merge.evaluate.results import document, figures, results_of
from hub_merge.evaluate.statistics import Difference, Estimate, compare, compare_means, mean_perplexity, perplexity

__all__ = [
    "Difference",
    "Encoded",
    "Estimate",
    "Evaluation",
    "LanguageModel",
    "Loss",
    "Question",
    "QuestionFormat",
    "QuestionSet",
    "compare",
    "compare_means",
    "document",
    "evaluate",
    "figures",
    "mean_perplexity",
    "perplexity",
    "read_questions",
    "results_of",
    "run_tasks",
]

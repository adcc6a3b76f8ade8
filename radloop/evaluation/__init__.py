"""Scores of base, tuned and champion model, each with its noise and what is reached without looking."""

from radloop.evaluation.report import EvaluationReport
from radloop.evaluation.run import evaluate

__all__ = ["EvaluationReport", "evaluate"]

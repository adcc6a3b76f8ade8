"""Pairwise comparison of two systems' answers, by a language model or by rule."""

from radloop.judging.report import JudgeReport
from radloop.judging.run import judge

__all__ = ["JudgeReport", "judge"]

"""Phantom chest radiographs with exact findings, and the questions and reports that follow from them."""

from __future__ import annotations

from radloop.data.phantoms.findings import FINDINGS, Finding, Present
from radloop.data.phantoms.language import QUESTION_TYPES, Question, caption, questions, report
from radloop.data.phantoms.phantom import Phantom, Stream, make_phantom

__all__ = [
    "FINDINGS",
    "QUESTION_TYPES",
    "Finding",
    "Phantom",
    "Present",
    "Question",
    "Stream",
    "caption",
    "make_phantom",
    "questions",
    "report",
]

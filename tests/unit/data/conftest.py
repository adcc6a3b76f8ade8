"""The published VQA-RAD, read and validated once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from radloop.config import DataConfig, ValidationConfig
from radloop.data.corpus import Corpus
from radloop.data.ingest import ingest
from radloop.data.quality import ValidationReport, validate


@pytest.fixture(scope="session")
def vqa_rad(real_data: Callable[[str], Path]) -> tuple[Corpus, ValidationReport]:
    corpus = ingest(DataConfig(adapter="vqa_rad", path=str(real_data("vqa_rad"))))
    return corpus, validate(corpus, ValidationConfig(max_quarantined=0))

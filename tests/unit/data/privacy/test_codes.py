"""Codes of known words stay, and no name passes for one."""

from __future__ import annotations

import pytest

from radloop.data.privacy import is_code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CT",
        "chest",
        "AP AXIAL",
        "XTABLE LATERAL",
        "AP LLD",
        "Pelvic Cavity",
        "Brain_Tissue",
        "X-Ray",
        "T12",
    ],
)
def test_words_of_scanners_and_data_sets_stay(text: str) -> None:
    assert is_code(text)


@pytest.mark.parametrize(
    "text", ["SMITH", "CT of John Smith", "MRN 12345678", "CT 20200102", "CHEST_SMITH", "T123", "CT " * 30]
)
def test_names_and_numbers_do_not(text: str) -> None:
    assert not is_code(text)

"""A sample's own patient and study in its texts, as questions on health records name them."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

MIN_LENGTH = 6  # characters; a shorter number is also a measure, a lobe, a count
_COUNTED = "text: patient or study"
LEFT = "text: short number as of patient or study, left"
_LABELS = {
    "patient": r"patients?|pt\.?|subjects?|participants?|persons?|mrn|case",
    "study": r"study|studies|exam|examination|accession|acc\.?|visit|case",
}
_NUMBER_SIGN = r"(?:\s{0,2}(?:ids?\b|no\b\.?|nr\b\.?|numbers?\b|[#:=]))"
_NO_MEASURE = r"(?!\w|[.,/-]\d|\s?(?:mm|cm|ml|kg|hu|%|years?|yrs?|y/?o|months?|weeks?|days?)\b)"
# Stand in patient columns without being anybody's name, and in texts with another meaning.
_NOBODY = {"anonymous", "anonymised", "anonymized", "control", "healthy", "normal", "patient", "phantom",
           "subject", "unknown", "volunteer"}  # fmt: skip


class KnownIds:
    """Finds the identifiers of one sample in its texts, whatever their case.

    Args:
        ids: ("patient" or "study", identifier, pseudonym) of those that the sample has.
    """

    def __init__(self, ids: list[tuple[str, str, str]]) -> None:
        self._ids = ids

    def replace(self, text: str, removed: Counter[str]) -> str:
        """Put pseudonyms in their place; count what was replaced, and what is too short to tell.

        An identifier of six characters and more is replaced wherever it stands if it holds a digit, or
        is the patient's name; a shorter one only behind a word such as "patient" or "study no.".
        """
        for kind, number, pseudonym in self._ids:
            certain, short = _patterns(kind, number.strip())
            text, count = certain.subn(rf"\g<before>{pseudonym}", text)
            removed[_COUNTED] += count
            removed[LEFT] += len(short.findall(text)) if short else 0
        return text


@lru_cache(maxsize=4096)  # a patient's samples are close together
def _patterns(kind: str, number: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """What is replaced, and what can only be counted."""
    parts = re.findall(r"[^\W_]+", number)
    forms = [r"[\W_]{1,3}".join(map(re.escape, parts))] if parts else [re.escape(number)]
    has_digit = any(char.isdigit() for char in number)
    if len(parts) == 2 and not has_digit:  # "Smith^John" is also John Smith
        forms.append(rf"{parts[1]}[\W_]{{1,3}}{parts[0]}")
    # "s50414267" is study 50414267, but 1504142679 is not.
    edge = r"\d" if number.isdigit() else r"[^\W_]"
    found = rf"(?<!{edge})(?:{'|'.join(forms)})"
    is_name = kind == "patient" and number.lower() not in _NOBODY
    if len(number) >= MIN_LENGTH and (has_digit or is_name):
        return re.compile(rf"(?P<before>){found}(?!{edge})", re.IGNORECASE), None
    signs = "{0,3}" if has_digit else "{1,3}"  # "a" is no number in: the patient a nurse has seen
    label = rf"(?P<before>\b(?:{_LABELS[kind]}){_NUMBER_SIGN}{signs}\s{{0,2}})"
    return (
        re.compile(rf"{label}{found}{_NO_MEASURE}", re.IGNORECASE),
        re.compile(rf"(?<!\w){found}(?!\w)", re.IGNORECASE),
    )

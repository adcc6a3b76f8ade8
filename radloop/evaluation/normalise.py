"""When two answers count as the same text."""

from __future__ import annotations

import re
import unicodedata

RULES = (
    "Before answers are compared: Unicode NFKC and case folding; punctuation becomes a space (a decimal "
    "point stays, an apostrophe vanishes, symbols such as + < > stay); 'a', 'an', 'the' before another word "
    "are dropped; 'zero' to 'ten' become digits; spaces are collapsed. No synonyms: 'yes, abnormal' is "
    "not 'yes', and 'none' is not '0'."
)
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def normalise(text: str) -> str:
    """Return the comparable form of an answer or a question; the steps are in `RULES`.

    An article that ends the text is kept, so that choice 'A' and 'hepatitis A' survive. A text of
    punctuation only is kept as it is rather than emptied: '-' must not equal '?'.

    Source: VQA's official scorer (digits for number words, articles dropped, decimal points kept;
    GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py) and SQuAD's (articles,
    punctuation). Other than VQA's, a hyphen always separates ('x-ray' is 'x ray', not 'xray'),
    'none' is no number, and contractions are not spelled out.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    spaced = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", re.sub("['\u2019]", "", text))
    spaced = "".join(" " if _is_separator(character) else character for character in spaced)
    words = spaced.split()
    kept = [word for word in words[:-1] if word not in _ARTICLES] + words[-1:]
    return " ".join(_DIGITS.get(word, word) for word in kept) or " ".join(text.split())


def _is_separator(character: str) -> bool:
    return character != "." and unicodedata.category(character)[0] in "PZC"

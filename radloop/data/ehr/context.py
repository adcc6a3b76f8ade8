"""Text of a health record within a number of tokens: what bears on the question first, then the newest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

_WORD = re.compile(r"[^\W\d_]+")
# In questions of all kinds, and in names without meaning much.
_COMMON = frozenset((
    "after", "all", "also", "and", "any", "are", "been", "before", "between", "chest", "count", "did",
    "does", "during", "first", "for", "from", "given", "had", "has", "have", "her", "his", "hospital",
    "how", "last", "list", "many", "not", "number", "other", "patient", "patients", "since", "study",
    "than", "that", "the", "their", "then", "there", "this", "time", "unspecified", "was", "were",
    "what", "when", "where", "which", "while", "who", "with", "within", "without", "year", "years",
))  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One thing that is known of a patient.

    Attributes:
        time: Since when it is known.
        text: As it will be read.
        name: What it is about: a drug, a laboratory test, a diagnosis; "" where nothing can be asked for.
    """

    time: datetime
    text: str
    name: str = ""


def estimate_tokens(text: str) -> int:
    """Estimate how many tokens a large language model makes of the text, rather too many than too few.

    A token for every digit and mark, and for every two letters begun of a word. The tokenizer of the tiny
    base knows 635 tokens only and makes up to 1.5 times as many.
    """
    letters = [len(word) for word in _WORD.findall(text)]
    others = "".join(_WORD.sub(" ", text).split())
    return sum(-(-number // 2) for number in letters) + len(others)


def compose(
    head: str,
    sections: Mapping[str, Sequence[Entry]],
    *,
    question: str,
    budget: int,
    count_tokens: Callable[[str], int],
) -> str:
    """Write as many entries as fit, a line for each section.

    Args:
        head: First line; the first thing to stay.
        sections: Title to entries. An entry whose name shares words with the question comes before all
            others, and the newest before older ones; sections take turns.
        question: Any text.
        budget: Most tokens of the result.
        count_tokens: Of a text.

    Returns:
        A text of at most `budget` tokens, "" where not even the first line fits.
    """
    asked = words(question)
    ranked = {
        title: sorted(entries, key=lambda entry: _rank(entry, asked)) for title, entries in sections.items()
    }
    turns = [
        (not asked & words(entry.name), place, order, title, entry)
        for order, (title, entries) in enumerate(ranked.items())
        for place, entry in enumerate(entries)
    ]
    chosen = [(title, entry) for *_, title, entry in sorted(turns, key=lambda turn: turn[:3])]
    # More entries make a longer text, so the most that fit are found by halving; what is returned
    # has been counted, whatever the tokenizer makes of it.
    best, low, high = "", 0, len(chosen)
    while low <= high:
        middle = (low + high) // 2
        text = _write(head, sections, chosen[:middle])
        if count_tokens(text) <= budget:
            best, low = text, middle + 1
        else:
            high = middle - 1
    return best


def words(text: str) -> set[str]:
    """The words that tell what a text is about, in lower case and without a plural's s."""
    found = (word.removesuffix("s") for word in _WORD.findall(text.lower()) if word not in _COMMON)
    return {word for word in found if len(word) > 2}


def _rank(entry: Entry, asked: set[str]) -> tuple[float, float, str]:
    return -len(asked & words(entry.name)), -(entry.time - datetime.min).total_seconds(), entry.text


def _write(head: str, titles: Iterable[str], chosen: list[tuple[str, Entry]]) -> str:
    texts: dict[str, list[str]] = {title: [] for title in titles}
    for title, entry in chosen:
        texts[title].append(entry.text)
    return "\n".join([head, *(f"{title}: {'; '.join(found)}" for title, found in texts.items() if found)])

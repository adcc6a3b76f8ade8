"""How many questions VQA-RAD has about an image, and how long they are."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

# Counted over the 1,797 training rows (phrase_type freeform or para) of "VQA_RAD Dataset Public.json",
# https://osf.io/89kps/: number of images that have so many questions, and of questions and answers of so many
# words. The hub's training split (flaviagiammarino/vqa-rad) is these rows without exact duplicates.
QUESTIONS_OF_IMAGE = {1: 3, 2: 18, 3: 34, 4: 28, 5: 67, 6: 35, 7: 75, 8: 21, 9: 17, 10: 13, 11: 1, 12: 1}
QUESTION_WORDS = {3: 31, 4: 256, 5: 345, 6: 282, 7: 294, 8: 228, 9: 146, 10: 89, 11: 50, 12: 22}
QUESTION_WORDS |= {13: 27, 14: 10, 15: 6, 16: 2, 17: 3, 18: 2, 19: 2, 21: 2}
ANSWER_WORDS = {1: 1323, 2: 231, 3: 103, 4: 55, 5: 28, 6: 15, 7: 14, 8: 12, 9: 7, 10: 1, 13: 3, 14: 4, 17: 1}
NUM_PAIRS = 1793  # of the hub's training split
_TOKENS_PER_WORD = 1.3  # roughly what tokenizers of 32,000 to 152,000 entries make of such questions


class Pair(NamedTuple):
    """Length of a question and its answer in tokens, without what a chat template adds."""

    question: int
    answer: int


def epoch(seed: int = 0) -> list[list[Pair]]:
    """Return VQA-RAD's training rows, image by image; which lengths come together is drawn by `seed`."""
    generator = random.Random(seed)  # noqa: S311
    counts, questions, answers = (
        [value for value, count in table.items() for _ in range(count)]
        for table in (QUESTIONS_OF_IMAGE, QUESTION_WORDS, ANSWER_WORDS)
    )
    for values in (counts, questions, answers):
        generator.shuffle(values)
    pairs = (Pair(_num_tokens(q), _num_tokens(a)) for q, a in zip(questions, answers, strict=True))
    return [[next(pairs) for _ in range(count)] for count in counts]


def _num_tokens(words: int) -> int:
    return math.ceil(_TOKENS_PER_WORD * words)

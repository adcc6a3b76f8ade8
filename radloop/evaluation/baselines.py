"""What is reached without looking: the most common answer, and answers on other images."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa

from radloop.evaluation.normalise import normalise


class BlindMajority:
    """Answers each question with the most frequent training answer, without an image.

    Looks for the question's own text (normalised) among the training questions, then for its
    question type, its answer type, and last for any question. Equally frequent answers are
    decided by alphabet.
    """

    def __init__(self, train: pa.Table) -> None:
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        surfaces: dict[str, Counter[str]] = defaultdict(Counter)
        for row in train.select(_COLUMNS).to_pylist():
            answer = normalise(row["answers"][0])
            surfaces[answer][row["answers"][0]] += 1
            for key in _keys(row):
                counts[key][answer] += 1
        self._answers = {
            key: _most_common(surfaces[_most_common(counter)]) for key, counter in counts.items()
        }

    def answer(self, samples: pa.Table) -> list[str]:
        """Return one answer a row of `samples` (columns question, question_type, answer_type)."""
        return [
            next((self._answers[key] for key in _keys(row) if key in self._answers), "")
            for row in samples.select(_COLUMNS).to_pylist()
        ]


def shuffle_images(groups: dict[str, str], seed: int) -> dict[str, str] | None:
    """Give every image another image: a permutation that leaves none in its place.

    Images of one group (patient, study) are swapped for images of other groups; only where a group
    holds more than half of all images do some of them get one of their own group.

    Args:
        groups: Image id to its group.
        seed: Decides the permutation; the order of `groups` does not.

    Returns:
        Image id to the id of the image shown in its stead; None if there are fewer than two images.
    """
    if len(groups) < 2:
        return None
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = defaultdict(list)
    for image in sorted(groups):
        members[groups[image]].append(image)
    ordered = [
        members[name][position]
        for name in rng.permutation(sorted(members))
        for position in rng.permutation(len(members[name]))
    ]
    # Turning a list sorted by group by the size of its largest group carries every image out of its group.
    turn = max(map(len, members.values())) % len(ordered) or 1
    return dict(zip(ordered, ordered[turn:] + ordered[:turn], strict=True))


def seeded_order(items: list[str], seed: int) -> list[str]:
    """Return the items in a random order that the seed and the set of items decide."""
    return [str(item) for item in np.random.default_rng(seed).permutation(sorted(items))]


_COLUMNS = ["question", "answers", "question_type", "answer_type"]


def _keys(row: dict[str, str]) -> list[tuple[str, str]]:
    keys = [("question", normalise(row["question"]))]
    keys += [(kind, row[kind]) for kind in ("question_type", "answer_type") if row[kind]]
    return [*keys, ("any", "")]


def _most_common(counter: Counter[str]) -> str:
    return min(counter, key=lambda text: (-counter[text], text))

"""What a corpus holds, in counts: what the data report draws.

DuckDB counts where the tables lie, within a memory limit: a million samples take little more than a
thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radloop.data.corpus import Corpus
from radloop.data.imaging import resize, to_png, to_rgb
from radloop.data.storage import discard, scratch_folder
from radloop.errors import DataError

SPLITS = ("train", "validation", "test", "")
ANSWER_TYPES = ("closed", "open", "")
IMAGE_COLUMNS = ("modality", "body_part", "view", "format")
CARD_PIXELS = 256
_NUM_CARDS = 12
_NUM_TOP = {"label": 30, "answer": 15}
_NUM_VALUES = 12  # of other columns
_NUM_GROUPS, _NUM_TASKS = 20, 6  # whatever a table has in these columns
_LABEL_LENGTH, _CARD_LENGTH = 200, 400  # characters
_BINS_PER_DOUBLING = 6  # of image sizes
_MEMORY = "1GB"

# Words, and each punctuation mark by itself. Scripts without spaces count by the character.
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}"
_TOKEN = rf"[{_NO_SPACES}]|(?:_|[^\s\p{{P}}\p{{S}}\p{{Z}}{_NO_SPACES}])+|[\p{{P}}\p{{S}}]"
_ASCII_TOKEN = r"\w+|[^\w\s]"  # noqa: S105 (the same for ASCII, at twice the speed)
_LENGTHS = {"question": "question", "answer": "coalesce(answers[1], '')", "context": "context"}

_SPLIT = f"CASE WHEN split IN {SPLITS} THEN split ELSE '' END"
_ANSWERS = f"""(SELECT answers[1] AS answer,
    CASE WHEN answer_type IN {ANSWER_TYPES} THEN answer_type ELSE '' END AS series
    FROM samples WHERE task = ?)"""  # noqa: S608
_LABELS = f"(SELECT unnest(list_distinct(labels)) AS label, {_SPLIT} AS series FROM samples)"  # noqa: S608


class Frequency(NamedTuple):
    """A value and how often it occurs, by series (such as splits, in the order of `SPLITS`)."""

    value: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Frequencies:
    """How often the values of a column occur.

    Attributes:
        top: The commonest, in falling order.
        distinct: Number of different values.
        totals: Occurrences of all values, `top` or not, by series.
    """

    top: list[Frequency]
    distinct: int
    totals: tuple[int, ...]

    @property
    def occurrences(self) -> int:
        return sum(self.totals)

    @property
    def others(self) -> int:
        """Occurrences of the values that are not in `top`."""
        return self.occurrences - sum(sum(item.counts) for item in self.top)


class Group(NamedTuple):
    """Samples of one data set and task; the splits are in the order of `SPLITS`."""

    dataset: str
    task: str
    splits: tuple[int, ...]
    quarantined: int

    @property
    def samples(self) -> int:
        return sum(self.splits)


class Size(NamedTuple):
    """Images of about the same size, and their median width and height in pixels."""

    width: int
    height: int
    images: int


class Card(NamedTuple):
    """One sample as a person sees it; `png` is None where there is no picture to show."""

    png: bytes | None
    dataset: str
    task: str
    split: str
    question: str
    answer: str
    num_images: int


@dataclass(frozen=True)
class Overview:
    """Counts over a corpus.

    Attributes:
        groups: By data set and task, the largest ones; a split of unknown name counts as none.
        images: Frequencies by column of `IMAGE_COLUMNS`; an empty value counts as no value.
        sizes: Of the images that could be read.
        answers: By task, the first answers, by answer type in the order of `ANSWER_TYPES`; upper and
            lower case are one.
        labels: Samples by finding or concept, by split.
        question_types, languages: Samples by value.
        lengths: By task and "question", "answer" or "context": number of tokens to number of samples.
            Empty texts do not count.
        questions_per_image: Number of samples that use an image to number of such images; 0 are the
            images that none uses.
        cards: Accepted samples, spread over data sets and tasks.
    """

    num_samples: int
    num_images: int
    groups: list[Group]
    images: dict[str, Frequencies]
    sizes: list[Size]
    answers: dict[str, Frequencies]
    labels: Frequencies
    question_types: Frequencies
    languages: Frequencies
    lengths: dict[str, dict[str, dict[int, int]]]
    questions_per_image: dict[int, int]
    cards: list[Card]


def overview(corpus: Corpus, quarantined: np.ndarray) -> Overview:
    """Count what the corpus holds, and pick samples to show.

    Args:
        corpus: Any number of samples.
        quarantined: Of each sample whether it must not be used, bool, shape (num_samples,).
    """
    import duckdb

    folder = scratch_folder()
    with duckdb.connect(str(folder / "overview.duckdb")) as base:
        base.execute(f"SET memory_limit = '{_MEMORY}'; SET temp_directory = '{folder}'")
        images = corpus.images.drop_columns(["bytes", "uri", "perceptual_hash"])
        base.register("images", images)
        rows = pa.array(np.arange(len(quarantined), dtype=np.int64))
        samples = corpus.samples.rename_columns({"row": "row_in_file"}).append_column("row", rows)
        base.register("samples", samples.append_column("quarantined", pa.array(quarantined)))
        found = _count(base, corpus)
    discard(folder)
    return found


def _count(base: Any, corpus: Corpus) -> Overview:
    common = f"SELECT task FROM samples GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {_NUM_TASKS}"  # noqa: S608
    tasks = [task for (task,) in base.execute(common).fetchall()]
    return Overview(
        num_samples=corpus.samples.num_rows,
        num_images=corpus.images.num_rows,
        groups=_groups(base),
        images={column: _frequencies(base, "images", column) for column in IMAGE_COLUMNS},
        sizes=_sizes(base),
        answers={task: _frequencies(base, _ANSWERS, "answer", ANSWER_TYPES, values=[task]) for task in tasks},
        labels=_frequencies(base, _LABELS, "label", SPLITS),
        question_types=_frequencies(base, "samples", "question_type"),
        languages=_frequencies(base, "samples", "language"),
        lengths=_lengths(base, tasks),
        questions_per_image=_questions_per_image(base),
        cards=_cards(base, corpus),
    )


def _groups(base: Any) -> list[Group]:
    counts = ", ".join(f"count(*) FILTER (({_SPLIT}) = '{name}')" for name in SPLITS)
    rows = base.execute(
        f"SELECT dataset, task, [{counts}], count(*) FILTER (quarantined) FROM samples "  # noqa: S608
        f"GROUP BY dataset, task ORDER BY count(*) DESC, dataset, task LIMIT {_NUM_GROUPS}"
    ).fetchall()
    return [Group(dataset, task, tuple(counts), bad) for dataset, task, counts, bad in rows]


def _frequencies(
    base: Any, source: str, column: str, series: Sequence[str] = (), *, values: Sequence[str] = ()
) -> Frequencies:
    """Count the filled values of a column; by `series`, the source needs a column of that name."""
    # Reports are too long for keys.
    key = f"hash(lower(trim({column})))" if column == "answer" else f"trim({column})"
    counts = [f"count(*) FILTER (series = '{name}')" for name in series] or ["count(*)"]
    totals = ", ".join(f"(sum({count}) OVER ())::BIGINT" for count in counts)
    rows = base.execute(
        f"""SELECT max(left(trim({column}), {_LABEL_LENGTH})) AS value, [{", ".join(counts)}] AS counts,
            count(*) OVER () AS different, [{totals}] AS totals
        FROM {source} WHERE trim({column}) <> '' GROUP BY {key}
        ORDER BY count(*) DESC, value LIMIT {_NUM_TOP.get(column, _NUM_VALUES)}""",  # noqa: S608
        values,
    ).fetchall()
    top = [Frequency(value, tuple(counts)) for value, counts, _, _ in rows]
    return Frequencies(top, rows[0][2], tuple(rows[0][3])) if rows else Frequencies([], 0, (0,) * len(counts))


def _sizes(base: Any) -> list[Size]:
    """Sizes come together in bins of a sixth of a doubling: a picture shows no finer steps."""
    width, height = (f"floor({_BINS_PER_DOUBLING} * log2({side}))" for side in ("width", "height"))
    middle = "quantile_disc(width, 0.5), quantile_disc(height, 0.5)"
    rows = base.execute(
        f"SELECT {middle}, count(*) FROM images WHERE width > 0 AND height > 0 "  # noqa: S608
        f"GROUP BY {width}, {height} ORDER BY 3 DESC, 1, 2"
    ).fetchall()
    return [Size(*row) for row in rows]


def _lengths(base: Any, tasks: list[str]) -> dict[str, dict[str, dict[int, int]]]:
    found: dict[str, dict[str, dict[int, int]]] = {task: {name: {} for name in _LENGTHS} for task in tasks}
    for name, text in _LENGTHS.items():
        # As many bytes as characters: ASCII.
        tokens = (
            f"len(CASE WHEN strlen({text}) = length({text}) "
            f"THEN regexp_extract_all({text}, '{_ASCII_TOKEN}') "
            f"ELSE regexp_extract_all({text}, '{_TOKEN}') END)"
        )
        rows = base.execute(
            f"SELECT task, {tokens} AS tokens, count(*) FROM samples WHERE {text} <> '' "  # noqa: S608
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        for task, length, count in rows:
            if task in found:
                found[task][name][length] = count
    return found


def _questions_per_image(base: Any) -> dict[int, int]:
    rows = base.execute(
        """WITH used AS (
            SELECT id, count(*) AS times FROM (SELECT unnest(list_distinct(image_ids)) AS id FROM samples)
            GROUP BY id
        )
        SELECT coalesce(times, 0), count(*) FROM images LEFT JOIN used USING (id) GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    return dict(rows)


def _cards(base: Any, corpus: Corpus) -> list[Card]:
    """Take turns among data sets and tasks; within one, no picture twice before each was shown."""
    rows = base.execute(
        f"""WITH sample AS (
            SELECT row, dataset, task, hash(row) AS shuffled, coalesce(image_ids[1], '') AS image
            FROM samples WHERE NOT quarantined
        ), once AS (
            SELECT *, row_number() OVER (PARTITION BY dataset, task, image ORDER BY shuffled) AS again
            FROM sample
        ), turns AS (
            SELECT *, row_number() OVER (PARTITION BY dataset, task ORDER BY again, shuffled) AS turn
            FROM once QUALIFY turn <= {_NUM_CARDS}
        )
        SELECT row, image FROM turns ORDER BY turn, dataset, task LIMIT {_NUM_CARDS}"""  # noqa: S608
    ).fetchall()
    pictures = _thumbnails(corpus, [image for _, image in rows])
    columns = corpus.samples.select(["dataset", "task", "split", "question", "answers", "image_ids"])
    return [
        Card(
            pictures.get(image),
            dataset=sample["dataset"],
            task=sample["task"],
            split=sample["split"],
            question=sample["question"][:_CARD_LENGTH],
            answer=sample["answers"][0][:_CARD_LENGTH] if sample["answers"] else "",
            num_images=len(sample["image_ids"]),
        )
        for row, image in rows
        for sample in columns.slice(row, 1).to_pylist()
    ]


def _thumbnails(corpus: Corpus, image_ids: list[str]) -> dict[str, bytes]:
    """Decode just these images; those that cannot be read are left out: validation has said why."""
    found = pc.is_in(corpus.images["id"], pa.array(image_ids, pa.string()))
    pictures = {}
    for number in np.flatnonzero(found.to_numpy(zero_copy_only=False)) if image_ids else ():
        single = Corpus(corpus.images.slice(number, 1), corpus.samples.slice(0, 0), corpus.fingerprint)
        try:
            for image in single.encoded_images():
                rgb = to_rgb(image.data or b"", frame=image.frame, window=image.window)
                pictures[image.id] = to_png(resize(rgb, CARD_PIXELS))
        except DataError:
            continue
    return pictures

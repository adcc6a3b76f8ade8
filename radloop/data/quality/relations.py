"""What shows only when rows are held against each other: duplicates, contradictions, leakage.

DuckDB joins and groups the corpus' tables where they lie, within a memory limit, and spills to disk
beyond it: a million samples take little more than a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radloop.data.corpus import Corpus
from radloop.data.pictures import near_groups_of
from radloop.data.quality.suites import TASKS, SuiteName
from radloop.data.storage import discard, scratch_folder

if TYPE_CHECKING:
    import pandas as pd

LEAKS = ("patient", "study", "image", "near_image", "text")
_SUITE = f"CASE WHEN task IN {TASKS} THEN task ELSE 'common' END"
_BATCH_ROWS = 50_000
_MEMORY = "1GB"
_PLAIN = r"trim(regexp_replace(lower(nfc_normalize({})), '[^\p{{L}}\p{{M}}\p{{N}}]+', ' ', 'g'))"
# An answer keeps its symbols: "< 5" and "> 5" contradict each other, and "+" is an answer.
_ANSWER = "nfc_normalize(coalesce(answers[1], ''))"
_PLAIN_ANSWER = rf"trim(regexp_replace(lower({_ANSWER}), '[^\p{{L}}\p{{M}}\p{{N}}\p{{S}}]+', ' ', 'g'))"
_WORDS = r"len(regexp_extract_all({}, '\S+'))"
_VERBATIM = 20  # characters: shorter reports, such as "Normal chest.", are in each split of any data set

_WHOSE = "coalesce(nullif(s.namespace, ''), s.dataset)"  # hospitals number patients from 1, each its own

# Pictures are compared by their pixels where these could be read, else by their file.
_RELATIONS = f"""
CREATE TABLE image AS
    SELECT row, id, name, starts_with(id, 'missing:') AS missing,
        coalesce(nullif(pixel_hash, ''), id) AS picture, coalesce(look, id) AS look, study, patient,
        lower(regexp_extract(name, '([^/\\\\]+?)(\\.[A-Za-z]+)*$', 1)) AS stem
    FROM images LEFT JOIN looks USING (row);
CREATE TABLE used AS
    SELECT s.row, s.dataset, s.split, {_WHOSE} AS whose, u.image_id, i.row AS image_row, i.picture, i.look,
        i.stem, i.name, i.missing, coalesce(nullif(s.study, ''), i.study, '') AS study,
        coalesce(nullif(s.patient, ''), i.patient, '') AS patient
    FROM (SELECT row, unnest(image_ids) AS image_id FROM samples) u
    JOIN samples s USING (row) LEFT JOIN image i ON i.id = u.image_id;
CREATE TABLE pictures AS
    SELECT row, string_agg(coalesce(picture, image_id), ' ' ORDER BY picture) AS pictures,
        string_agg(coalesce(name, image_id), ', ' ORDER BY name) AS image,
        bool_or(image_row IS NULL) AS unknown_image
    FROM used GROUP BY row;
CREATE TABLE asked AS
    SELECT row, md5(concat_ws('|', coalesce(pictures, ''), CASE WHEN pictures IS NULL THEN patient END,
            md5(context), {_PLAIN.format("question")})) AS question,
        md5(coalesce(nullif({_PLAIN_ANSWER}, ''), trim({_ANSWER}))) AS answer
    FROM samples LEFT JOIN pictures USING (row);
CREATE TABLE agreement AS
    SELECT question, answer, count(*) AS times,
        count(*) FILTER (answer <> md5('')) OVER (PARTITION BY question) AS versions
    FROM asked GROUP BY question, answer;
CREATE TABLE keyed AS
    SELECT row, split, 'image' AS kind, picture AS key FROM used WHERE NOT missing
    UNION ALL SELECT row, split, 'near_image', look FROM used WHERE NOT missing
    UNION ALL SELECT row, split, 'study', whose || '|' || study FROM used WHERE study <> ''
    UNION ALL SELECT row, split, 'patient', whose || '|' || patient FROM used WHERE patient <> ''
    UNION ALL SELECT row, split, 'study', {_WHOSE} || '|' || study FROM samples s
        WHERE len(image_ids) = 0 AND study <> ''
    UNION ALL SELECT row, split, 'patient', {_WHOSE} || '|' || patient FROM samples s
        WHERE len(image_ids) = 0 AND patient <> ''
    UNION ALL SELECT row, split, 'text', md5({_PLAIN.format("answers[1]")}) FROM samples
        WHERE task IN ('report', 'caption') AND length(answers[1]) >= {_VERBATIM};
CREATE TABLE shared AS
    SELECT kind, key FROM keyed WHERE split IN ('train', 'validation', 'test')
    GROUP BY kind, key HAVING min(split) <> max(split);
CREATE TABLE leaks AS
    SELECT row, any_value(split) AS split,
        {", ".join(f"bool_or(kind = '{kind}') AS {kind}" for kind in LEAKS)}
    FROM keyed JOIN shared USING (kind, key) WHERE split IN ('validation', 'test') GROUP BY row;
UPDATE leaks SET near_image = near_image AND NOT image;
CREATE TABLE ids AS SELECT id FROM samples WHERE id <> '' GROUP BY id HAVING count(*) > 1;
"""
_SAMPLES = f"""
SELECT s.row, s.id, s.dataset, s.split, s.patient, s.study, s.task, s.question,
    coalesce(s.answers[1], '') AS answer, len(s.answers) AS num_answers, s.answer_type, s.question_type,
    s.language, s.context, coalesce(p.image, '') AS image, s.file, s.row_in_file,
    nullif(array_to_string(s.notes, '; '), '') AS notes,
    {_WORDS.format("s.question")} AS question_words,
    {_WORDS.format("coalesce(s.answers[1], '')")} AS answer_words,
    ids.id IS NOT NULL AS repeated_id,
    len(s.image_ids) = 0 AND s.task <> 'ehr' AS without_image,
    coalesce(p.unknown_image, false) AS unknown_image,
    g.times > 1 AS repeated, g.versions > 1 AS contested,
    contains(s.question || s.context || array_to_string(s.answers, ''), '\N{REPLACEMENT CHARACTER}')
        AS damaged_text,
    {", ".join(f"coalesce(l.{kind}, false) AS leaks_{kind}" for kind in LEAKS)}
FROM samples s JOIN asked a USING (row) JOIN agreement g ON g.question = a.question AND g.answer = a.answer
LEFT JOIN pictures p USING (row) LEFT JOIN leaks l USING (row) LEFT JOIN ids ON ids.id = s.id
WHERE {_SUITE} = ? ORDER BY s.row
"""
_IMAGES = """
WITH pictures AS (SELECT picture, count(*) AS files FROM image WHERE NOT missing GROUP BY picture),
    looks AS (SELECT look, count(DISTINCT picture) AS pictures FROM image WHERE NOT missing GROUP BY look),
    sets AS (SELECT image_row AS row, min(dataset) AS dataset FROM used GROUP BY image_row)
SELECT i.row, i.id, i.name AS image, coalesce(d.dataset, '') AS dataset, t.missing,
    CASE WHEN NOT t.missing THEN nullif(i.error, '') END AS error,
    i.width || ' x ' || i.height AS size, least(i.width, i.height) AS shortest_side,
    nullif(i.mode, '') AS mode, nullif(i.format, '') AS format, i.frames,
    i.blank, coalesce(p.files > 1, false) AS same_pixels,
    coalesce(l.pictures > 1, false) AS near_duplicate, i.burnt_in_text, i.modality, i.body_part, i.view,
    i.error AS note
FROM images i JOIN image t USING (row) LEFT JOIN pictures p ON p.picture = t.picture
LEFT JOIN looks l ON l.look = t.look LEFT JOIN sets d ON d.row = i.row ORDER BY i.row
"""
_ACROSS = """
WITH named AS (SELECT DISTINCT dataset, {key} AS key FROM used WHERE {condition})
SELECT a.dataset, b.dataset, count(*) FROM named a JOIN named b ON a.key = b.key AND a.dataset < b.dataset
GROUP BY ALL ORDER BY ALL
"""
_ACROSS_KINDS = {
    "pixels": ("picture", "NOT missing"),
    "near": ("look", "NOT missing"),
    "file name": ("stem", r"regexp_matches(stem, '\d{4}')"),  # "1.jpg" says nothing
}


class Relations:
    """The corpus' rows, each with what it has in common with others. Close it after use."""

    def __init__(self, corpus: Corpus) -> None:
        import duckdb

        self._folder = scratch_folder()
        self._base = duckdb.connect(str(self._folder / "relations.duckdb"))
        self._base.execute(f"SET memory_limit = '{_MEMORY}'")
        self._base.execute(f"SET temp_directory = '{self._folder}'")
        self._tables = {
            "images": _numbered(corpus.images.drop_columns(["bytes", "uri"])),
            "samples": _numbered(corpus.samples.rename_columns({"row": "row_in_file"})),
            "looks": _looks(corpus.images),
        }
        self._register(self._base)
        self._base.execute(_RELATIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._base.close()
        discard(self._folder)

    def suites(self) -> list[SuiteName]:
        """Return the suites that the samples need: of their task, or `common` if that is not known."""
        return [name for (name,) in self._rows(f"SELECT DISTINCT {_SUITE} FROM samples ORDER BY ALL")]

    def sample_frames(self, suite: SuiteName) -> Iterator[pd.DataFrame]:
        """Yield a suite's samples with the columns of `suites.SAMPLE_COLUMNS` and `row_in_file`."""
        yield from self._frames(_SAMPLES, [suite])

    def image_frames(self) -> Iterator[pd.DataFrame]:
        """Yield the images with the columns of `suites.IMAGE_COLUMNS`, and in `note` why one is missing."""
        yield from self._frames(_IMAGES, [])

    def users(self, image_rows: np.ndarray) -> pa.Table:
        """Return which samples use these images, and images that none uses.

        Returns:
            Table of image_row, row (null for no sample), id, file, row_in_file and notes, by image_row.
        """
        self._base.register("wanted", pa.table({"image_row": image_rows}))
        found: pa.Table = self._base.sql(
            """SELECT DISTINCT w.image_row, s.row, s.id, s.file, s.row_in_file
            FROM wanted w LEFT JOIN used u USING (image_row) LEFT JOIN samples s ON s.row = u.row
            ORDER BY w.image_row, s.row"""
        ).to_arrow_table()
        self._base.unregister("wanted")
        return found

    def leakage(self) -> dict[str, Any]:
        """Count the published test samples that share something with another published split.

        Returns:
            test_samples; by kind the leaking ones (`near_image`: those that `image` does not count);
            leaking_samples and share (0 to 1) of those that share a picture, exactly or nearly; and
            the distinct pictures test_images, other_images and shared_images.
        """
        kinds = ", ".join(f"count(*) FILTER ({kind})" for kind in LEAKS)
        counts = self._rows(f"SELECT {kinds} FROM leaks WHERE split = 'test'")[0]
        ((samples,),) = self._rows("SELECT count(*) FROM samples WHERE split = 'test'")
        ((leaking,),) = self._rows(
            "SELECT count(*) FROM leaks WHERE split = 'test' AND (image OR near_image)"
        )
        test, other, shared = self._rows(
            """WITH p AS (SELECT picture, bool_or(split = 'test') AS test, bool_or(split <> 'test') AS other
                FROM used WHERE split IN ('train', 'validation', 'test') AND NOT missing GROUP BY picture)
            SELECT count(*) FILTER (test), count(*) FILTER (other), count(*) FILTER (test AND other) FROM p"""
        )[0]
        return {
            "test_samples": samples,
            **dict(zip(LEAKS, counts, strict=True)),
            "leaking_samples": leaking,
            "share": leaking / samples if samples else 0.0,
            "test_images": test,
            "other_images": other,
            "shared_images": shared,
        }

    def duplicates(self) -> dict[str, Any]:
        """Count what occurs more than once.

        Returns:
            pixels, near_pixels: images that share all, or nearly all pixels with another file;
            questions, contested: samples that repeat image, question and answer, or contradict
            another answer to the same question on the same image; across_datasets: rows of two data
            sets, how they were matched, and the number of shared pictures.
        """
        ((pixels,),) = self._rows(
            "SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n FROM image WHERE NOT missing "
            "GROUP BY picture HAVING count(*) > 1)"
        )
        ((near,),) = self._rows(
            "SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n FROM image WHERE NOT missing "
            "GROUP BY look HAVING count(DISTINCT picture) > 1)"
        )
        repeated, contested = self._rows(
            "SELECT coalesce(sum(times) FILTER (times > 1), 0), "
            "coalesce(sum(times) FILTER (versions > 1), 0) FROM agreement"
        )[0]
        across = [
            {"datasets": [one, other], "by": kind, "images": count}
            for kind, (key, condition) in _ACROSS_KINDS.items()
            for one, other, count in self._rows(_ACROSS.format(key=key, condition=condition))
        ]
        return {
            "pixels": int(pixels),
            "near_pixels": int(near),
            "questions": int(repeated),
            "contested": int(contested),
            "across_datasets": across,
        }

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._base.execute(query).fetchall()
        return found

    def _frames(self, query: str, values: list[Any]) -> Iterator[pd.DataFrame]:
        # A cursor of its own: other queries may run between two frames.
        with self._base.cursor() as cursor:
            self._register(cursor)
            for batch in cursor.sql(query, params=values).to_arrow_reader(_BATCH_ROWS):
                yield batch.to_pandas()

    def _register(self, connection: Any) -> None:
        for name, table in self._tables.items():
            connection.register(name, table)


def _numbered(table: pa.Table) -> pa.Table:
    return table.append_column("row", pa.array(np.arange(table.num_rows, dtype=np.int64)))


def _looks(images: pa.Table) -> pa.Table:
    """Name the groups of images that look the same; images without such another one are left out."""
    groups = near_groups_of(images)
    rows = np.flatnonzero(groups >= 0)
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "look": pc.binary_join_element_wise("look", pc.cast(groups[rows], pa.string()), " "),
        }
    )

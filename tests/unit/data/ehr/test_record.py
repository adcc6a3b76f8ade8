from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.ehr import Record, estimate_tokens
from radloop.data.ehr.database import TABLES, Database
from radloop.data.ehr.times import read_time
from radloop.errors import DataError

UNTIL = datetime(2103, 5, 10, 12)
PATIENT = 10_000_032
Rows = dict[str, list[tuple[Any, ...]]]


def database(path: Path, rows: Rows, indexed: bool = False) -> Path:
    """A database with the columns that are read, without keys, as types of MIMIC have them."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        for table, columns in TABLES.items():
            kinds = [f"{name} {'INT' if name.endswith('_ID') else ''}" for name in columns]
            connection.execute(f"CREATE TABLE {table} ({', '.join(kinds)})")
            if indexed and "SUBJECT_ID" in columns:
                connection.execute(f"CREATE INDEX {table}_S ON {table} (SUBJECT_ID)")
            places = ", ".join("?" for _ in columns)
            connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows.get(table, []))  # noqa: S608 - constants
        connection.commit()
    return path


def stay(number: int, start: str, end: str | None) -> tuple[Any, ...]:
    return (PATIENT, number, start, end, "urgent", "medicare", "english", "married")


RECORD: Rows = {
    "PATIENTS": [(PATIENT, "f", "2039-05-11 00:00:00", None), (10_000_033, "m", "2039-01-01 00:00:00", None)],
    "ADMISSIONS": [
        stay(1, "2103-04-01 08:00:00", "2103-04-05 10:00:00"),
        stay(2, "2103-05-09 08:00:00", "2103-05-20 10:00:00"),
    ],
    "D_ICD_DIAGNOSES": [("j90", "pleural effusion"), ("i517", "cardiomegaly")],
    "DIAGNOSES_ICD": [
        (PATIENT, 1, "j90", "2103-04-01 08:00:00"),
        (PATIENT, 2, "i517", "2103-05-09 08:00:00"),
    ],
    "D_LABITEMS": [(50963, "ntprobnp"), (50912, "creatinine")],
    "LABEVENTS": [
        (PATIENT, 50963, "2103-04-01 09:00:00", 450.0, "pg/ml"),
        (PATIENT, 50963, "2103-05-09 09:00:00", 2310.0, "pg/ml"),
        (PATIENT, 50963, "2103-05-11 09:00:00", 9999.0, "pg/ml"),
        (PATIENT, 50912, "2103-05-10 09:00:00", 1.1, "mg/dl"),
        (10_000_033, 50912, "2103-05-10 09:00:00", 7.7, "mg/dl"),
    ],
    "PRESCRIPTIONS": [
        (PATIENT, "2103-04-01 10:00:00", "2103-04-03 10:00:00", "aspirin", "81", "mg", "po"),
        (PATIENT, "2103-05-09 10:00:00", "2103-05-17 10:00:00", "furosemide", "40", "mg", "iv"),
        (PATIENT, "2103-05-10 12:00:01", None, "morphine", "2", "mg", "iv"),
    ],
    "TB_CXR": [
        (PATIENT, 51, "a1-b2", "2103-04-01 08:30:00", "pa", 1),
        (PATIENT, 52, "c3-d4", "2103-05-10 12:00:00", "AP", 2),
    ],
}  # fmt: skip


def context(folder: Path, rows: Rows, until: datetime = UNTIL, **options: Any) -> str:
    return Record(database(folder / "x.db", rows)).context(PATIENT, until, **options)


def test_a_record_is_a_line_for_each_kind_of_row(tmp_path: Path) -> None:
    assert context(tmp_path, RECORD).splitlines() == [
        "Patient: F, 63 years, married, medicare, english",
        "Admissions: urgent since 2103-05-09; urgent 2103-04-01 to 2103-04-05",
        "Laboratory: creatinine 1.1 mg/dl (2103-05-10 09:00); "
        "ntprobnp 2310 pg/ml (2103-05-09 09:00, up from 450, n 2)",
        "Diagnoses: pleural effusion (2103-04-05)",
        "Prescriptions: furosemide 40 mg iv (since 2103-05-09, ongoing); "
        "aspirin 81 mg po (2103-04-01 to 2103-04-03)",
        "Earlier chest radiographs: 2103-04-01 08:30 PA",
    ]


def test_a_diagnosis_is_known_at_discharge_and_not_from_the_day_it_is_dated_to(tmp_path: Path) -> None:
    during = context(tmp_path, RECORD, datetime(2103, 4, 5, 9, 59))
    assert "effusion" not in during
    assert "pleural effusion" in context(tmp_path, RECORD, datetime(2103, 4, 5, 10))


def test_a_row_of_the_very_moment_is_known_and_a_second_later_not(tmp_path: Path) -> None:
    assert "morphine" not in context(tmp_path, RECORD, UNTIL)
    assert "morphine" in context(tmp_path, RECORD, UNTIL + timedelta(seconds=1))


def test_death_and_plain_dates_count_from_the_end_of_their_day(tmp_path: Path) -> None:
    rows = RECORD | {
        "PATIENTS": [(PATIENT, "f", None, "2103-05-10 00:00:00")],
        "LABEVENTS": [(PATIENT, 50912, "2103-05-10", 3.3, "mg/dl")],
    }
    assert not re.search("died|3.3", context(tmp_path, rows, UNTIL))
    assert re.search("died 2103-05-10.*3.3", context(tmp_path, rows, datetime(2103, 5, 11)), re.DOTALL)


def test_what_the_question_names_comes_first_and_survives_a_small_budget(tmp_path: Path) -> None:
    small = context(tmp_path, RECORD, budget=85, question="What was the last NTproBNP?")
    assert "ntprobnp 2310" in small
    assert "creatinine" not in small
    assert "ntprobnp" not in context(tmp_path, RECORD, budget=85, question="Was aspirin given?")
    assert "aspirin" in context(tmp_path, RECORD, budget=85, question="Was aspirin given?")


@pytest.mark.parametrize(
    "time", [None, "", "yesterday", "2103-13-01 00:00:00", 2103, b"\xff", "2103-05-01T00:00:00Z"]
)
def test_rows_without_a_readable_time_are_left_out_and_counted(tmp_path: Path, time: Any) -> None:
    rows = {table: list(found) for table, found in RECORD.items()}
    rows["LABEVENTS"].append((PATIENT, 50912, time, 6.66, "mg/dl"))
    rows["PRESCRIPTIONS"].append((PATIENT, time, None, "heparin", "1", "u", "iv"))
    rows["TB_CXR"].append((PATIENT, 53, "e5", time, "LL", None))
    rows["DIAGNOSES_ICD"] += [(PATIENT, 1, "i517", time), (PATIENT, 99, "i517", "2103-01-01 00:00:00")]
    record = Record(database(tmp_path / "x.db", rows))
    text = record.context(PATIENT, UNTIL)
    assert not re.search(r"6\.66|heparin|LL|cardiomegaly", text)
    assert record.unreadable_times(PATIENT) == 5
    assert record.unreadable_times(10_000_033) == 0


def test_unusual_values_stay_readable(tmp_path: Path) -> None:
    rows = RECORD | {
        "LABEVENTS": [
            (PATIENT, 50912, "2103-05-10 08:00:00", 1.0, "mg/dl"),
            (PATIENT, 50912, "2103-05-10 09:00:00", None, None),
            (PATIENT, 777, "2103-05-10 09:00:00", "text", "\n\0unit"),
        ],
        "PRESCRIPTIONS": [
            (PATIENT, "2103-05-10 09:00:00", "rubbish", "x" * 5000, None, b"\xff", float("inf"))
        ],
    }
    text = context(tmp_path, rows)
    assert "creatinine no number (2103-05-10 09:00, n 2)" in text
    assert "777 no number" in text
    assert f"{'x' * 80} (since 2103-05-10, ongoing)" in text


def test_an_unknown_patient_has_no_context_and_numbers_beyond_sqlite_are_unknown(tmp_path: Path) -> None:
    record = Record(database(tmp_path / "x.db", RECORD))
    assert [record.context(number, UNTIL) for number in (1, -1, 10**30)] == ["", "", ""]
    assert record.images_of(10**30) == []
    assert [image.image for image in record.images_of(52)] == ["c3-d4"]


# --- nothing of the future ------------------------------------------------------------------

LATER = "zq"
moments = st.integers(-3_000, 3_000).map(lambda minutes: UNTIL + timedelta(minutes=minutes))
ends = moments | st.none()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """A database with secrets in all that is later than `UNTIL`, and what of it there is at `UNTIL`."""
    full: Rows = {table: [] for table in TABLES}
    now: Rows = {table: [] for table in TABLES}
    numbers = iter(range(100, 10_000))

    def add(table: str, row: tuple[Any, ...], known: bool, current: tuple[Any, ...] | None = None) -> None:
        full[table].append(row)
        if known:
            now[table].append(row if current is None else current)

    death = draw(ends)
    dead = death is not None and death.replace(hour=23, minute=59, second=59) <= UNTIL
    person = (PATIENT, "f", "2050-01-01 00:00:00")
    add("PATIENTS", (*person, text(death)), True, (*person, text(death) if dead else None))
    for start, end in draw(st.lists(st.tuples(moments, ends), max_size=4)):
        number, word = next(numbers), secret(numbers, start)
        row: tuple[Any, ...] = (PATIENT, number, text(start))
        about = (word, word, word, word)
        add("ADMISSIONS", (*row, text(end), *about), start <= UNTIL, (*row, text(end, UNTIL), *about))
        for charted in draw(st.lists(moments, max_size=2)):
            known = charted <= UNTIL and start <= UNTIL and end is not None and end <= UNTIL
            code = f"c{next(numbers)}"
            title = f"diagnosis {code}" if known else f"{LATER}{code}"
            full["D_ICD_DIAGNOSES"].append((code, title))
            now["D_ICD_DIAGNOSES"].append((code, title))
            add("DIAGNOSES_ICD", (PATIENT, number, code, text(charted)), known)
    labels = [(item, f"lab {'abcd'[item]}") for item in range(4)]
    full["D_LABITEMS"], now["D_LABITEMS"] = labels, labels
    for time, item in draw(st.lists(st.tuples(moments, st.integers(0, 3)), max_size=8)):
        row = (PATIENT, item, text(time), float(next(numbers)), secret(numbers, time))
        add("LABEVENTS", row, time <= UNTIL)
    for start, end, drug in draw(st.lists(st.tuples(moments, ends, st.sampled_from("xyz")), max_size=6)):
        drug = secret(numbers, start) if start > UNTIL else f"drug {drug}"
        dose = (drug, str(next(numbers)), "mg", "po")
        row = (PATIENT, text(start), text(end), *dose)
        add("PRESCRIPTIONS", row, start <= UNTIL, (PATIENT, text(start), text(end, UNTIL), *dose))
    for time in draw(st.lists(moments, max_size=4)):
        row = (PATIENT, next(numbers), "a-b", text(time), secret(numbers, time), None)
        add("TB_CXR", row, time <= UNTIL)
    return full, now


def text(time: datetime | None, latest: datetime | None = None) -> str | None:
    return None if time is None or (latest and time > latest) else f"{time:%Y-%m-%d %H:%M:%S}"


def secret(numbers: Any, time: datetime) -> str:
    return f"{LATER if time > UNTIL else 'ok'}{next(numbers)}"


@settings(max_examples=80)
@given(
    both=pairs(), budget=st.integers(0, 400), question=st.sampled_from(["", "drug x, lab a or diagnosis?"])
)
def test_the_text_is_the_same_as_if_the_future_were_not_in_the_database(
    tmp_path_factory: pytest.TempPathFactory, both: tuple[Rows, Rows], budget: int, question: str
) -> None:
    folder = tmp_path_factory.mktemp("future")
    full, now = (
        Record(database(folder / f"{name}.db", rows)).context(
            PATIENT, UNTIL, budget=budget, question=question
        )
        for name, rows in (("full", both[0]), ("now", both[1]))
    )
    assert full == now
    assert LATER not in full
    for day in re.findall(r"\d{4}-\d\d-\d\d", full):
        assert day <= f"{UNTIL:%Y-%m-%d}"
    assert estimate_tokens(full) <= budget


# --- the database ---------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True])
def test_an_index_changes_nothing_but_the_time_and_the_file_is_never_written(
    tmp_path: Path, indexed: bool
) -> None:
    path = database(tmp_path / "x.db", RECORD, indexed)
    path.chmod(0o400)
    before = path.read_bytes(), path.stat().st_mtime_ns
    record = Record(path)
    (tmp_path / "other").mkdir()
    assert record.context(PATIENT, UNTIL) == context(tmp_path / "other", RECORD)
    assert indexed == record._database._has_index("LABEVENTS")
    for statement in ("DELETE FROM PATIENTS", "CREATE TEMP TABLE more (x)"):
        with pytest.raises(DataError, match="attempt to write"):
            record._database._rows(statement)
    record._database._rows("PRAGMA query_only = OFF")
    with pytest.raises(DataError, match="attempt to write"):
        record._database._rows("DELETE FROM PATIENTS")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_sql_in_a_question_or_in_the_rows_is_text(tmp_path: Path) -> None:
    attack = "'; DROP TABLE PATIENTS; -- \" OR 1=1"
    rows = RECORD | {"D_LABITEMS": [(50963, attack), (50912, "creatinine")]}
    path = database(tmp_path / "x.db", rows)
    record = Record(path)
    assert attack in record.context(PATIENT, UNTIL, question=attack)
    assert Record(path).context(PATIENT, UNTIL)


def test_a_patient_given_as_sql_finds_nobody(tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", RECORD, indexed=True)
    assert Database(path)._rows("SELECT * FROM PATIENTS WHERE SUBJECT_ID = ?", "1 OR 1=1") == []


def test_names_with_special_characters_are_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "a ?mode=rw#x%20"
    folder.mkdir()
    assert "Patient" in context(folder, RECORD)
    assert [path.name for path in folder.iterdir()] == ["x.db"]


def drop(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "x.db: cannot be read"),
        (lambda path: path.write_text("CREATE TABLE PATIENTS (x);"), "is no SQLite database.*build"),
        (lambda path: path.write_bytes(b""), "is no SQLite database"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "x.db: cannot be read: .*completely"),
        (lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000), "x.db: cannot be read"),
        (lambda path: drop(path, "DROP TABLE LABEVENTS"), "lacks the tables LABEVENTS; found: ADMIS"),
        (
            lambda path: drop(path, "ALTER TABLE TB_CXR RENAME STUDY_ID TO S"),
            "TB_CXR lacks the columns STUDY_ID",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "x.db: cannot be read"),
    ],
)
def test_unusable_databases_are_one_clear_error(
    tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    path = database(tmp_path / "x.db", RECORD)
    damage(path)
    with pytest.raises(DataError, match=words):
        Record(path).context(PATIENT, UNTIL)


def test_damage_inside_a_table_is_an_error_and_no_shorter_record(tmp_path: Path) -> None:
    rows = RECORD | {"LABEVENTS": [(PATIENT, 50912, "2103-01-01 00:00:00", 1.0, "x" * 200)] * 500}
    path = database(tmp_path / "x.db", rows)
    data = bytearray(path.read_bytes())
    noise = random.Random(0)
    for at in range(40_960, len(data)):
        data[at] = noise.randrange(256)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.db: cannot be read"):
        Record(path).context(PATIENT, UNTIL)


@given(st.text(max_size=30) | st.none() | st.integers() | st.floats() | st.binary(max_size=8))
def test_any_value_is_a_time_or_none(value: Any) -> None:
    assert read_time(value) is None or isinstance(value, str)

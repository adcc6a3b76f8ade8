# ruff: noqa: S608 - the words are ours
from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radloop.data.ehr import Record
from radloop.data.ehr.times import CURRENT_TIME
from tests.unit.data.ehr.test_record import Rows, database

PATIENT, OTHER = 11, 12
ROWS: Rows = {
    "ADMISSIONS": [
        (PATIENT, 1, "2103-02-01 00:00:00", "2103-02-09 00:00:00", "", "", "", ""),
        (PATIENT, 2, "2104-05-01 00:00:00", "2104-05-09 00:00:00", "", "", "", ""),
        (PATIENT, 3, "2105-11-30 00:00:00", None, "", "", "", ""),
    ],
    "TB_CXR": [
        (PATIENT, 51, "a", "2103-02-02 10:00:00", "PA", 1),
        (PATIENT, 51, "b", "2103-02-02 10:00:00", "LATERAL", 1),
        (PATIENT, 52, "c", "2103-02-04 10:00:00", "PA", 1),
        (PATIENT, 53, "d", "2104-05-02 10:00:00", "PA", 2),
        (PATIENT, 54, "e", "2104-12-20 10:00:00", "PA", None),
        (PATIENT, 55, "f", "2105-11-30 10:00:00", "PA", 3),
        (PATIENT, 56, "g", "2105-12-31 10:00:00", "PA", 3),
        (OTHER, 61, "h", "2105-06-01 10:00:00", "PA", None),
    ],
}
OWN = "select distinct tb_cxr.study_id from tb_cxr where tb_cxr.subject_id = 11"
TIME = "tb_cxr.studydatetime"
FIRST, LAST = f"order by {TIME} asc limit 1", f"order by {TIME} desc limit 1"
STAY = "select admissions.hadm_id from admissions where admissions.subject_id = 11"


def nested(condition: str, order: str = LAST) -> str:
    """A choice as EHRXQA writes most of them."""
    return f"select tb_cxr.study_id from tb_cxr where tb_cxr.study_id in ( {OWN} {condition} {order} )"


def asking(choice: str, name: str = "t1") -> str:
    return f'select func_vqa("is there a patient\'s device?", {name}.study_id) from ( {choice} ) as {name}'


def ago(unit: str, number: int, sign: str = "=", of: str = "") -> str:
    """Taken in the year, month or day so many before the present one."""
    now = f"datetime(current_time,'start of {unit}','-{number} {of or unit}')"
    return f"datetime({TIME},'start of {unit}') {sign} {now}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return database(tmp_path_factory.mktemp("studies") / "x.db", ROWS)


@pytest.fixture(scope="module")
def record(path: Path) -> Record:
    return Record(path)


def by_sqlite(path: Path, choice: str) -> list[int]:
    """What SQLite makes of the same words, as EHRXQA's own scripts mend them."""
    choice = choice.replace("current_time", f"'{CURRENT_TIME}'").replace("%y", "%Y").replace("< =", "<=")
    with closing(sqlite3.connect(path)) as connection:
        return sorted({study for (study, *_) in connection.execute(choice)})


@pytest.mark.parametrize(
    ("choice", "study"),
    [
        (nested(""), 56),
        (nested("", FIRST), 51),
        (nested(f"and strftime('%Y',{TIME}) = '2104'"), 54),
        (nested(f"and strftime('%y',{TIME}) = '2104'", FIRST), 53),
        (nested(f"and strftime('%y-%m',{TIME}) <= '2104-05'"), 53),
        (nested(f"and strftime('%y-%m-%d',{TIME}) < = '2103-02-03'"), 51),
        (nested("AND " + ago("year", 1)), 54),
        (nested(f"AND {ago('year', 0)} AND strftime('%m',{TIME}) = '11'"), 55),
        (nested("and " + ago("month", 1)), 55),
        (nested("and " + ago("day", 31)), 55),
        (nested(f"AND datetime({TIME}) >= datetime(current_time,'-1 month')", FIRST), 56),
        (nested(f"AND datetime({TIME}) <= datetime(current_time,'-2 year')"), 52),
        (nested(f"AND datetime({TIME}) <= datetime(current_time,'-400 day')"), 53),
        (f"{OWN} and tb_cxr.hadm_id in ( {STAY} and admissions.dischtime is not null "
         f"order by admissions.admittime desc limit 1 ) {FIRST}", 53),
        (f"{OWN} and tb_cxr.hadm_id in ( {STAY} and admissions.dischtime is null ) {FIRST}", 55),
        (f"{OWN} and tb_cxr.hadm_id in ( {STAY} order by admissions.admittime asc limit 1 ) {LAST}", 52),
        (f"{OWN} and {TIME} < ( select distinct {TIME} from tb_cxr where tb_cxr.study_id in "
         f"( {OWN} and strftime('%y',{TIME}) = '2104' {FIRST} ) ) {LAST}", 52),
        (f"{OWN} and {TIME} < ( select {TIME} from tb_cxr where tb_cxr.study_id = 53 ) {LAST}", 52),
        ("select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = 61", 61),
    ],
)  # fmt: skip
def test_published_choices_give_the_study_that_sqlite_gives(
    path: Path, record: Record, choice: str, study: int
) -> None:
    assert record.chosen_by(asking(choice)) == [study] == by_sqlite(path, choice)


def test_several_choices_are_given_oldest_first_and_words_may_be_written_otherwise(record: Record) -> None:
    last, first = asking(nested(""), "t1"), asking(nested("", FIRST), "t2")
    assert record.chosen_by(f"select ( {last} ) and ( {first} )") == [51, 56]
    assert record.chosen_by(f"{last} except {first}") == [51, 56]
    asked_for = "( select (func_vqa(“is it so?”, t1.study_id) = true) from"
    assert record.chosen_by(asking(nested("")).replace("'", "").replace("limit 1 )", "\n LIMIT  1)")) == [56]
    assert record.chosen_by(f"select {asked_for} ( {nested('')} ) as t1 ) and 1") == [56]


def test_where_no_study_fits_none_is_given(record: Record) -> None:
    assert record.chosen_by(asking(nested(f"and strftime('%y',{TIME}) = '2102'"))) == []
    assert record.chosen_by(asking(nested("").replace("= 11", "= 999"))) == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        "select 1",
        asking(OWN),  # all studies of the patient
        asking(nested("", "")),
        asking(nested("").replace("limit 1", "limit 2")),
        asking(nested("").replace("limit 1", "")),
        asking(nested(f"and strftime('%y',{TIME}) = '2104' or 1 = 1")),
        asking(nested(f"and strftime('%y',{TIME}) = 2104")),
        asking(nested(f"and strftime('%y',{TIME}) = '21%'")),
        asking(nested(f"and strftime('%M',{TIME}) = '02'")),
        asking(nested(f"and strftime('%y',{TIME}) > '2104'")),
        asking(nested("and " + ago("year", 1, of="month"))),
        asking(nested(f"and datetime({TIME}) >= datetime('now','-1 year')")),
        asking(f"select tb_cxr.study_id from tb_cxr where strftime('%y',{TIME}) = '2105' {LAST}"),
        asking(nested("")) + " ; drop table tb_cxr",
        asking(nested("")).replace("t1.study_id)", "t2.study_id)"),
        asking(nested("")) + " union " + asking(nested("", FIRST)),  # two choices of one name
        asking(nested("")) + " union " + asking(OWN, "t2"),
        asking("select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = 99999999999999999999999"),
        asking("select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = ٥١"),
        asking("select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = 51 union select 52"),
        asking("select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = -51"),
        asking("select tb_cxr.study_id from patients where tb_cxr.study_id = 51"),
        "\0" + asking(nested("")),
        asking(nested("")).replace("11", "11\0"),
        asking(nested(""))[:-9],
        "func_vqa",
        "func_vqa (",
        ") as t1 func_vqa ( 'x' , t1.study_id )",
    ],
)  # fmt: skip
def test_all_else_is_not_understood(record: Record, query: str) -> None:
    assert record.chosen_by(query) is None


@pytest.mark.parametrize(
    "query",
    [
        asking(nested("")) + " " * 100_000,
        "func_vqa ( 'x' , t1.study_id ) " + "from ( " * 20_000,
        asking(
            "select tb_cxr.study_id from tb_cxr where tb_cxr.study_id in ( " * 100 + OWN + LAST + " )" * 100
        ),
        "'" * 9_999,
        "( " * 3_000 + "func_vqa ( 'x' , t1.study_id )" + " )" * 1_900 + " as t1",
        "<" + " " * 9_990 + "x",
    ],
)
def test_long_and_deep_queries_are_refused_at_once(record: Record, query: str) -> None:
    start = time.perf_counter()
    assert record.chosen_by(query) is None
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("at", ["2104-05-02 10:00:00", None, "soon"])
def test_a_first_or_last_that_is_left_to_chance_is_not_given(tmp_path: Path, at: str | None) -> None:
    rows = {"TB_CXR": [(11, 53, "d", "2104-05-02 10:00:00", "PA", None), (11, 54, "e", at, "PA", None)]}
    assert Record(database(tmp_path / "x.db", rows)).chosen_by(asking(nested(""))) is None


WORDS = [*asking(nested(f"and strftime('%y',{TIME}) = '2104'")).split(" "), "'", '"', "\0", ";", "or", "1"]


@settings(max_examples=150)
@given(words=st.lists(st.sampled_from(WORDS), max_size=40), edits=st.data())
def test_damaged_queries_give_studies_of_the_named_patient_or_nothing(
    record: Record, words: list[str], edits: st.DataObject
) -> None:
    whole = asking(nested(f"and strftime('%y',{TIME}) = '2104'")).split(" ")
    at = edits.draw(st.integers(0, len(whole)))
    until = edits.draw(st.integers(at, len(whole)))
    for query in (" ".join(words), " ".join([*whole[:at], *words[:2], *whole[until:]])):
        assert set(record.chosen_by(query) or []) <= {51, 52, 53, 54, 55, 56}


times = st.datetimes(CURRENT_TIME.replace(year=2104), CURRENT_TIME).map(lambda at: at.replace(microsecond=0))


@st.composite
def conditions(draw: st.DrawFn) -> str:
    unit = draw(st.sampled_from(["year", "month", "day"]))
    sign, number = draw(st.sampled_from(["=", "<=", ">="])), draw(st.integers(0, 20))
    form, length = {"year": ("%Y", 4), "month": ("%Y-%m", 7), "day": ("%Y-%m-%d", 10)}[unit]
    part = f"strftime('{form}',{TIME}) {sign} '{str(draw(times))[:length]}'"
    since = f"datetime({TIME}) >= datetime(current_time,'-{number} {unit}')"
    return draw(st.sampled_from([part, ago(unit, number, sign), since]))


@settings(max_examples=60, deadline=None)
@given(
    found=st.lists(times, min_size=1, max_size=6, unique=True),
    terms=st.lists(conditions(), max_size=2),
    order=st.sampled_from([FIRST, LAST]),
)
def test_any_times_and_conditions_give_what_sqlite_gives(
    tmp_path_factory: pytest.TempPathFactory, found: list[object], terms: list[str], order: str
) -> None:
    rows = [(PATIENT, 50 + number, "a", str(at), "PA", None) for number, at in enumerate(found)]
    path = database(tmp_path_factory.getbasetemp() / "any.db", {"TB_CXR": rows})
    choice = nested(" ".join(f"and {term}" for term in terms), order)
    assert Record(path).chosen_by(asking(choice)) == by_sqlite(path, choice)

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from radloop.data.ehr.context import Entry, compose, estimate_tokens, words

START = datetime(2103, 1, 1)
entries = st.lists(
    st.builds(Entry, st.integers(0, 50).map(lambda day: START + timedelta(days=day)), st.text(max_size=12)),
    max_size=6,
)
counters = st.sampled_from(
    [estimate_tokens, len, lambda text: len(text.split()), lambda text: len(text) ** 2 % 97]
)


def test_sections_take_turns_and_the_newest_go_first() -> None:
    drugs = [Entry(START + timedelta(days=day), f"d{day}") for day in range(4)]
    labs = [Entry(START + timedelta(days=day), f"l{day}") for day in range(4)]
    text = compose("head", {"D": drugs, "L": labs}, question="", budget=21, count_tokens=len)
    assert text == "head\nD: d3; d2\nL: l3"


def test_entries_that_share_more_words_with_the_question_come_first() -> None:
    names = ["other", "white cells", "white blood cells"]
    labs = [Entry(START + timedelta(days=9 - day), name, name) for day, name in enumerate(names)]
    text = compose("head", {"L": labs}, question="How many white blood cell?", budget=99, count_tokens=len)
    assert text == "head\nL: white blood cells; white cells; other"


def test_words_are_those_that_tell_what_a_text_is_about() -> None:
    assert words("Has the patient had Pleural effusions (J90), unspecified?") == {"pleural", "effusion"}


@given(
    sections=st.dictionaries(st.text(max_size=5), entries, max_size=4),
    budget=st.integers(0, 80),
    count_tokens=counters,
    question=st.text(max_size=20),
)
def test_no_text_exceeds_the_budget_whatever_counts_it(sections, budget, count_tokens, question) -> None:  # type: ignore[no-untyped-def]
    text = compose("head", sections, question=question, budget=budget, count_tokens=count_tokens)
    assert text == "" or count_tokens(text) <= budget


@given(entries, st.integers(4, 200))
def test_what_is_left_out_would_not_have_fitted(labs: list[Entry], budget: int) -> None:
    text = compose("head", {"L": labs}, question="", budget=budget, count_tokens=len)
    whole = compose("head", {"L": labs}, question="", budget=10_000, count_tokens=len)
    assert len(text) <= budget
    assert whole.startswith(text)
    assert text == whole or len(text) + len("\nL: ") + max(len(lab.text) for lab in labs) > budget


def test_the_tiny_base_makes_at_most_half_as_many_tokens_more(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    import radloop.models
    from radloop.data.ehr import Record
    from radloop.data.phantoms.formats import Cohort
    from radloop.data.phantoms.formats.ehrxqa import LAYOUTS

    LAYOUTS["release"](tmp_path, Cohort(train=6, validation=0, test=0, size=24))
    record = Record(tmp_path / "database" / "mimic_iv_cxr" / "train" / "mimic_iv_cxr.db")
    tokenizer = Tokenizer.from_file(str(Path(radloop.models.__path__[0]) / "tiny_base" / "tokenizer.json"))
    for patient in (11_000_000, 11_000_001, 11_000_002):
        text = record.context(patient, datetime(2105, 1, 1))
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) <= 1.5 * estimate_tokens(text)

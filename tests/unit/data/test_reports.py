from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from radloop.data.phantoms import Stream, make_phantom, report
from radloop.data.reports import HEADERS, ReportOptions, sections

BODY = " The heart is normal.  No\n pneumothorax."
TIDY = "The heart is normal. No pneumothorax."
RULE = " " + "_" * 78 + "\n"


def test_the_public_example_has_all_its_sections(real_data: Callable[[str], Path]) -> None:
    found = sections((real_data("mimic_cxr_format") / "example_report.txt").read_text())
    assert list(found) == ["examination", "indication", "technique", "comparison", "findings", "impression"]
    assert found["examination"] == "CHEST (PA AND LAT)"
    assert found["indication"] == "___ year old woman with ?pleural effusion // ?pleural effusion"
    assert found["comparison"] == "___"
    assert found["findings"].startswith(
        "Cardiac size cannot be evaluated. Large left pleural effusion is new. Sm"
    )
    assert found["findings"].endswith("There are mild degenerative changes in the thoracic spine")
    assert found["impression"] == "Large left pleural effusion"


def test_the_table_is_the_published_one_but_for_one_entry(real_data: Callable[[str], Path]) -> None:
    published = json.loads((real_data("mimic_cxr_format") / "section_header_variants.json").read_text())
    differing = {variant: (entry["canonical"], HEADERS.get(variant)) for variant, entry in published.items()
                 if entry["canonical"] != HEADERS.get(variant)}  # fmt: skip
    assert differing == {"ndication": ("impression", "indication")}
    assert HEADERS.keys() == published.keys()


@pytest.mark.parametrize("variant", HEADERS)
@pytest.mark.parametrize("form", [" {}: \n \n{}", " {}:{}", "{}:\n{}", "\t{}:  {}", " {}:\n {}"])
def test_every_variant_of_a_header_begins_its_section(variant: str, form: str) -> None:
    other = "TECHNIQUE" if HEADERS[variant] != "technique" else "DATE"
    for before in ("", "                 FINAL REPORT\n", f" {other}: None.\n \n", f" {other}: None.\n"):
        found = sections(before + form.format(variant.upper(), BODY.strip()) + f"\n \n {other}: Done.")
        assert found[HEADERS[variant]] == TIDY, before
        assert found[other.lower()] == "Done."


def test_line_ends_do_not_matter() -> None:
    text = f" FINDINGS:\n{BODY}\n \n IMPRESSION: Fine."
    assert sections(text) == {"findings": TIDY, "impression": "Fine."}
    assert sections(text.replace("\n", "\r\n")) == sections(text.replace("\n", "\r")) == sections(text)


@pytest.mark.parametrize(
    "words",
    [
        "findings: are these",
        "Impression: is that",
        "In short the IMPRESSION: it grew",
        "measured at 10:30 in the evening",
        "T4:5 disc",
        "AP:lateral ratio",
        "see https://example.org",
    ],
)
def test_colons_inside_sentences_are_no_headers(words: str) -> None:
    found = sections(f" FINDINGS:\n The lung\n {words} and clear.\n \n IMPRESSION: Fine.")
    assert found == {"findings": f"The lung {words} and clear.", "impression": "Fine."}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("AP CHEST", "findings"),
        ("PORTABLE SUPINE", "findings"),
        ("IMPRESSION (PRELIMINARY)", "impression"),
        ("ADDITIONAL FINDINGS", "findings"),
        ("RELEVANT HISTORY", "history"),
        ("PRIOR  COMPARISON", "comparison"),
        ("RADIATION DOSE", "radiation dose"),
    ],
)
def test_unlisted_headers_go_by_their_words(header: str, name: str) -> None:
    assert sections(f" IMPRESSION: Fine.\n {header}: {TIDY}")[name] == TIDY


def test_of_a_section_twice_the_last_one_with_text_counts() -> None:
    assert sections(" FINDINGS: One.\n FINDINGS: Two.\n FINDINGS:\n \n IMPRESSION: Fine.") == {
        "findings": "Two.",
        "impression": "Fine.",
    }
    # A title that looks like a header, as in p10/p10103318/s57408307.
    assert (
        sections(" CHEST, PA LATERAL:\n \n INDICATION: Cough.\n \n FINDINGS: Clear.")["findings"] == "Clear."
    )


def test_an_addendum_on_top_leaves_the_report_alone() -> None:
    body = " EXAMINATION: CHEST\n FINDINGS: Clear.\n IMPRESSION: Fine.\n"
    title = " " * 33 + "FINAL REPORT\n"
    plain = {"examination": "CHEST", "findings": "Clear.", "impression": "Fine."}
    told = plain | {"addendum": "The tube is at ___."}
    assert sections(f"{title} ADDENDUM: The tube\n is at ___.\n{RULE}{title}{body}") == told
    assert sections(f"{title.replace('REPORT', 'ADDENDUM')} The tube is at ___.\n{RULE}{title}{body}") == told
    corrected = sections(f"{title} IMPRESSION: Wrong.\n{RULE}{title}{body}")
    assert corrected == plain
    assert (
        sections(f"{title}{body} The patient is\n ___\n at home.")["impression"]
        == "Fine. The patient is ___ at home."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" \n\n", {}),
        ("                FINAL REPORT\n \n", {}),
        ("Clear lungs.", {"last paragraph": "Clear lungs."}),
        (
            "                FINAL REPORT\n CHEST RADIOGRAPH\n \n Clear\n lungs.\n \n Normal heart.",
            {"preamble": "CHEST RADIOGRAPH", "last paragraph": "Clear lungs. Normal heart."},
        ),
        (
            " INDICATION: Cough.\n \n COMPARISON: None.\n \n Clear lungs.",
            {"indication": "Cough.", "comparison": "None.", "last paragraph": "Clear lungs."},
        ),
        (" COMPARISON: None.", {"comparison": "None."}),
        (" FINDINGS:\n COMPARISON: None.\n \n Clear.", {"comparison": "None.", "last paragraph": "Clear."}),
    ],
)
def test_without_findings_and_impression_there_is_a_last_paragraph(
    text: str, expected: dict[str, str]
) -> None:
    assert sections(text) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["EXAMINATION", "FINDINGS", "IMPRESSION", "WET READ"]),
                  st.lists(st.text("abc .,:;0_(", min_size=1, max_size=12), min_size=1, max_size=4)),
        min_size=1,
        unique_by=lambda pair: pair[0],
    )
)  # fmt: skip
def test_no_word_of_a_section_is_lost(parts: list[tuple[str, list[str]]]) -> None:
    text = "\n \n".join(f" {name}: " + "\n ".join(lines) for name, lines in parts)
    found = sections(text)
    words = " ".join(" ".join(lines) for _, lines in parts).split()
    assert " ".join(found.values()).split() == words
    assert found.keys() <= {name.lower() for name, _ in parts} | {"last paragraph"}


@given(st.text(max_size=200) | st.text("AB:_ \n", max_size=200))
def test_any_text_has_tidy_sections(text: str) -> None:
    for name, part in sections(text).items():
        assert part
        assert part == " ".join(part.split())
        assert name == name.lower()


@pytest.mark.parametrize("unit", ["A", "_", " ", "\n", "A:", "A: \n", " \n", "\n ", "_" * 30 + "\n", "A B "])
def test_long_reports_take_no_long_time(unit: str) -> None:
    sections(unit * (200_000 // len(unit)) + "x")


def test_options_choose_the_answer_and_the_context() -> None:
    found = {"findings": "Clear.", "impression": "Fine.", "indication": "Cough.", "comparison": "None."}
    both = ReportOptions()
    assert both.answer(found) == "FINDINGS: Clear.\nIMPRESSION: Fine."
    assert both.answer({"impression": "Fine."}) == "IMPRESSION: Fine."
    assert both.given(found) == both.answer({"indication": "Cough."}) == ""
    assert ReportOptions(target="findings").answer(found) == "Clear."
    assert ReportOptions(target="impression").answer({"findings": "Clear."}) == ""
    asked = ReportOptions(context=("indication", "comparison", "history"))
    assert asked.given(found) == "INDICATION: Cough.\nCOMPARISON: None."
    assert both.lacking == "report has no FINDINGS or IMPRESSION"
    assert ReportOptions(target="findings").lacking == "report has no FINDINGS"
    with pytest.raises(ValidationError):
        ReportOptions(context=("findings",))  # type: ignore[arg-type] # would give the answer away


def test_a_phantom_report_is_cut_and_put_together_again() -> None:
    text = report(make_phantom(Stream.TRAIN, 0, 1, 48))
    assert ReportOptions().answer(sections(text)) == text

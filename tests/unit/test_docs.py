"""docs/data.md tells what the code does: its names, its examples and what they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from radloop import config_reference
from radloop.config import DataConfig, RunConfig, ValidationConfig
from radloop.data.adapters import REGISTRY, get_adapter
from radloop.data.adapters.table import TARGETS
from radloop.data.imaging import WINDOWS
from radloop.data.ingest import ingest
from radloop.data.phantoms import formats
from radloop.data.phantoms.formats import Cohort
from radloop.data.quality.suites import IMAGE_COLUMNS, SAMPLE_COLUMNS, load_suites
from radloop.preflight import check_dataset

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text()


def section(title: str, level: int = 2) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^{'#' * level} {re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)", TEXT, re.M | re.S)
    assert found, title
    return found[1]


def names(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def rows(text: str) -> dict[str, list[str]]:
    """Lines of tables by their first cell."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if re.match(r"\| [^-]", line)]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def examples(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def choices(kind: Any) -> list[str]:
    """The texts that a type of `Literal`s allows."""
    inner = get_args(kind)
    texts = [value for value in inner if isinstance(value, str)]
    return texts + [text for one in inner if not isinstance(one, str) for text in choices(one)]


def test_all_links_of_the_document_lead_somewhere() -> None:
    titles = [title.lower() for title in re.findall("^#+ (.+)$", TEXT, re.M)]
    headings = {re.sub("[^a-z -]", "", title).replace(" ", "-") for title in titles}
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", TEXT):
        assert (ROOT / "docs" / target).is_file() if target else anchor in headings, target or anchor
    assert not re.search("TODO|FIXME|/work|/tmp", TEXT)


def test_all_adapters_are_described_and_no_other() -> None:
    assert set(re.findall("^### `(.+)`$", TEXT, re.M)) == set(REGISTRY)


@pytest.mark.parametrize("adapter", REGISTRY)
def test_all_options_are_described_with_their_values_and_no_other(adapter: str) -> None:
    fields = get_adapter(adapter).Options.model_fields
    table = rows(section(f"`{adapter}`", level=3))
    described = {name.strip("`"): " ".join(cells) for name, cells in table.items() if name.startswith("`")}
    assert set(described) == set(fields)
    for name, field in fields.items():
        default = [str(field.default)] if isinstance(field.default, int) else []
        for value in choices(field.annotation) + default:
            assert value in described[name], (name, value)


def test_all_phantom_formats_are_listed_and_no_other() -> None:
    listed = {name for cells in rows(section("Simulated data")).values() for name in names(" ".join(cells))}
    assert listed == set(formats.names())


def test_all_columns_of_the_suites_are_listed_and_no_other() -> None:
    samples, images = section("Quality suites").split("Columns of images:")
    samples = samples.split("Columns of samples:")[1]
    for text, columns in ((samples, SAMPLE_COLUMNS), (images, IMAGE_COLUMNS)):
        kinds = {"text": str, "number": int, "flag": bool}
        found = {
            name: kinds[kind]
            for kind, cells in rows(text).items()
            if kind in kinds
            for name in names(cells[0])
        }
        assert found == {name: type(value) for name, value in columns.items()}


def test_all_targets_of_a_table_are_described() -> None:
    assert {name for row in rows(section("Your own data")) for name in names(row)} == set(TARGETS)


def test_thresholds_and_windows_are_those_of_the_code() -> None:
    table = rows(section("Quarantine and thresholds"))
    assert {name.strip("`") for name in table if name.startswith("`")} - {"validation."} == set(
        ValidationConfig.model_fields
    )
    told = {name: cells[0] for name, cells in rows(section("DICOM")).items() if name in WINDOWS}
    assert told == {name: f"{centre} / {width} HU" for name, (centre, width) in WINDOWS.items()}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the table of phantoms that the document speaks of, as current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    formats.write("table", tmp_path / "own", Cohort(train=4, validation=2, test=2, size=144))
    return tmp_path


def test_the_config_of_your_own_data_runs(own: Path) -> None:
    (example,) = examples(section("Your own data"), "yaml")
    (own / "mine.yaml").write_text(example)
    corpus = ingest(RunConfig.read(own / "mine.yaml").data)
    with (own / "own" / "questions.csv").open() as file:
        assert corpus.samples.num_rows == len(list(file)) - 1
    assert corpus.images.num_rows == 8
    assert all(corpus.samples["patient"].to_pylist())
    assert not any(corpus.images["error"].to_pylist())


def test_several_data_sets_are_a_valid_config() -> None:
    (example,) = examples(section("Several data sets in one run"), "yaml")
    data = DataConfig.model_validate(yaml.safe_load(example)["data"])
    assert [source.adapter for source in data.sources] == ["vqa_rad", "slake"]


def test_the_suite_of_the_document_is_valid_and_does_what_it_says(tmp_path: Path) -> None:
    (example,) = examples(section("Quality suites"), "yaml")
    (tmp_path / "signed.yaml").write_text(example)
    before, after = ({check.reason for check in load_suites(files)["report"].checks}
                     for files in ([], [tmp_path / "signed.yaml"]))  # fmt: skip
    assert after - before == {"report was never signed"}
    assert before - after == {"report has fewer than 3 words"}


def test_a_check_prints_what_the_document_shows(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = examples(section("`radloop check`"), "json")
    assert check_dataset("table", own / "own", [], as_json=True, deidentify=False, folder=None)
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == json.loads(shown)


def test_the_reference_of_config_keys_is_that_of_the_schema() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    assert text == config_reference.reference(), "python -m radloop.config_reference > docs/config.md"


def test_every_config_key_is_described_with_its_bounds() -> None:
    listed = rows(config_reference.reference())
    assert all(cells[2] for key, cells in listed.items() if key != "key"), listed
    assert listed["`dropout`"][0] == "number at least 0 and below 1"
    assert listed["`max_steps`"][0] == "integer at least 1 or null"
    assert listed["`best_by`"][0] == "`last`, `validation_loss`, `exact_match`"
    assert listed["`adapter`"][1] == "needed"

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from radloop.artifact import Artifact
from radloop.config import EvaluationConfig, ModelConfig
from radloop.data.prepared import HELD_OUT, PREPARED_SAMPLES, PreparedData
from radloop.evaluation import EvaluationReport, evaluate
from radloop.evaluation.page import render
from radloop.evaluation.predict import predict
from radloop.evaluation.run import score_all
from tests.unit.scripted import CONFIG, Scripted, habit, half, prepared, report, sees, with_image_sets


def page_of(data: PreparedData, found: EvaluationReport) -> str:
    return render(data, found.predictions, found.metrics, 7)


def test_round_trip(tmp_path: Path) -> None:
    found = report(prepared(), base=habit, tuned=sees)
    assert isinstance(found, Artifact)
    found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions.arrow",
        "published.arrow",
        "metrics.json",
        "report.html",
    }
    again = EvaluationReport.load(tmp_path)
    assert again == found
    assert again.views() == {"report.html": found.page}


def test_facts_are_the_headline() -> None:
    facts = report(prepared(), base=habit, tuned=sees).facts()
    assert facts["exact_match"] == 1
    assert facts["n"] == 60
    assert "exact_match_champion" not in facts
    assert "exact_match_shuffled" not in report(prepared(num_test=1), base=habit, tuned=sees).facts()


def test_the_page_shows_figures_and_verdicts() -> None:
    data = prepared()
    found = report(data, base=habit, tuned=half, champion=habit)
    page = page_of(data, found)
    assert f"{100 * found.metrics['exact_match']:.1f} %" in page
    assert "uses the image: yes" in page
    assert "champion" in page
    assert page.count("data:image/png") >= 2 + 6 + 6  # two charts, and examples
    assert not re.search(r"(src|href)=\"?http", page)  # opens without a network


def test_the_page_shows_all_images_of_a_question() -> None:
    data = with_image_sets(prepared(num_test=2))
    train = data.samples.slice(4)
    samples = pa.concat_tables([data.samples.slice(0, 1), data.samples.slice(3, 1), train])
    data = PreparedData(data.images, samples, data.fingerprint)
    page = page_of(data, report(data, base=habit, tuned=sees))
    (picture,) = re.findall(r'class="card"><img src="data:image/png;base64,([^"]+)"', page)
    shown = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert shown.size == (16, 8)
    for place, name in enumerate(["image1", "image0"]):
        assert shown.crop((8 * place, 0, 8 * place + 8, 8)).tobytes() == data.image(name).tobytes()
    assert page.count('class="card"><div>') == 1  # of the question without an image


def test_the_page_does_without_what_cannot_be_computed() -> None:
    data = prepared(num_test=1)
    page = page_of(data, report(data, base=habit, tuned=sees))
    assert "uses the image: unknown" in page
    assert "champion" not in page.replace("{champion}", "")


def with_published(data: PreparedData) -> PreparedData:
    """The first ten test samples are published as such, and so are ten that a clean split gave to train."""
    rows = data.samples.to_pylist()
    for number, row in enumerate(rows):
        row["published_test"] = number < 10 or number >= len(rows) - 10
        if number >= len(rows) - 10:
            row["split"] = HELD_OUT
    return PreparedData(data.images, pa.Table.from_pylist(rows, schema=PREPARED_SAMPLES), data.fingerprint)


def test_the_published_split_is_scored_beside_the_clean_one() -> None:
    data = with_published(prepared())
    plain = report(prepared(), base=habit, tuned=sees)
    predictions = predict(data, {"base": lambda: Scripted(habit), "tuned": lambda: Scripted(sees)}, CONFIG, 7)
    found = score_all(data, predictions, CONFIG, 7)
    assert found.metrics["n"] == plain.metrics["n"] == 60
    assert found.metrics["published"]["n"] == 20
    assert set(found.predictions["split"].to_pylist()) == {"test"}
    assert found.published.num_rows == 20 * 4  # tuned, base, shuffled, blind
    held_out = set(data.samples.filter(pc.equal(data.samples["split"], HELD_OUT))["id"].to_pylist())
    assert not held_out & set(data.split("train")["id"].to_pylist())
    assert held_out <= set(found.published["sample_id"].to_pylist())
    assert found.scores()["exact_match_published"] == found.metrics["published"]["exact_match"] == 1
    assert found.facts()["exact_match_published"] == 1
    assert "On the published test split" in found.page
    assert "On the published test split" not in page_of(prepared(), plain)


def test_the_page_escapes_answers() -> None:
    data = prepared(num_test=4)

    def hostile(question: str, grey: int) -> str:
        return "<script>alert(1)</script>"

    page = page_of(data, report(data, base=hostile, tuned=hostile))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("names", [{"base"}, {"tuned"}, {"base", "tuned", "shuffled"}])
def test_evaluate_wants_base_and_tuned(names: set[str]) -> None:
    with pytest.raises(ValueError, match="needed: base, tuned; allowed: champion"):
        evaluate(prepared(), ModelConfig(), dict.fromkeys(names), EvaluationConfig(), 7)


def test_a_random_model_is_evaluated_the_same_twice(tmp_path: Path) -> None:
    from tests.unit.tiny import save_base

    model = ModelConfig(base=str(save_base(tmp_path / "base")))
    data = prepared(num_test=6, num_train=6)
    config = EvaluationConfig(max_new_tokens=4, batch_images=4, resamples=50)
    first, second = (evaluate(data, model, {"base": None, "tuned": None}, config, 7) for _ in range(2))
    assert first == second
    # Without an adapter, tuned is the base.
    assert first.metrics["gain"]["difference"] == 0
    assert first.metrics["exact_match"] == first.metrics["exact_match_base"]

"""`radloop check` and `radloop phantoms`, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from radloop.cli import app
from radloop.data.adapters import REGISTRY
from radloop.data.phantoms.formats import names
from radloop.errors import ConfigError, RadloopError

RUN = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))


def written(folder: Path, layout: str) -> Path:
    done = RUN.invoke(app, ["phantoms", "--format", layout, str(folder), "--train", "4", "--validation", "2",
                            "--test", "2", "--size", "48"])  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def check(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = RUN.invoke(app, ["check", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


OPTIONS = {"dicom": ["--option", "table=questions.csv"]}


@pytest.mark.parametrize("layout", names())
def test_every_layout_is_written_and_checked(tmp_path: Path, layout: str) -> None:
    dataset = layout.partition(":")[0]
    folder = written(tmp_path / "data", layout)
    code, found = check("--dataset", dataset, str(folder), *OPTIONS.get(dataset, []))
    assert code == 0, found
    assert found["accepted"] == found["samples"] > 0
    assert found["images"] == {"roco:chest": 6, "vqa_med_2019:mevf": 6}.get(layout, 8)
    assert (found["quarantined"], found["rejected"]) == ({}, [])
    assert found["rows"] >= sum(found["left_out"].values())


def test_every_adapter_but_the_generator_has_a_format() -> None:
    assert {layout.partition(":")[0] for layout in names()} == set(REGISTRY) - {"phantoms"}


def test_the_json_has_what_was_promised(tmp_path: Path) -> None:
    _, found = check("--dataset", "vqa_rad", str(written(tmp_path / "data", "vqa_rad")))
    assert {"rows", "images", "accepted", "quarantined", "leakage", "duplicates"} <= set(found)
    assert {"test_samples", "patient", "study", "image", "near_image", "text"} <= set(found["leakage"])
    assert {"pixels", "near_pixels", "questions", "contested", "across_datasets"} == set(found["duplicates"])


def test_unusable_data_is_exit_2_with_the_reasons(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", "slake")
    for image in (folder / "imgs").rglob("source.jpg"):
        image.unlink()
    code, found = check("--dataset", "slake", str(folder))
    assert code == 2
    assert found["quarantined"] == {"image file is missing": found["samples"]}
    assert "are quarantined" in found["rejected"][0]
    done = RUN.invoke(app, ["check", "--dataset", "slake", str(folder)])
    assert done.exit_code == 2
    assert "image file is missing; copy the file" in done.output
    assert "first: train.json row 1: xmlab" in done.output
    assert "source.jpg: the file is missing" in done.output


def test_what_cannot_be_read_at_all_is_one_message(tmp_path: Path) -> None:
    code, found = check("--dataset", "slake", str(tmp_path / "none"))
    assert (code, list(found)) == (2, ["error"])
    for arguments, words in (
        (["--dataset", "slak", "x"], "unknown adapter 'slak'; known: "),
        (["--dataset", "slake", str(tmp_path / "none")], "no such file or folder"),
        (["--dataset", "slake", str(tmp_path), "--option", "language"], "needed is KEY=VALUE"),
        (["--dataset", "slake", str(tmp_path), "--option", "language=[en"], "--option language: "),
        (["--option", "language=en"], "belong to --dataset"),
    ):
        error = RUN.invoke(app, ["check", *arguments]).exception
        assert isinstance(error, RadloopError)
        assert words in error.message


def test_the_report_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", "slake")
    next((folder / "imgs").rglob("source.jpg")).unlink()
    arguments = ["check", "--dataset", "slake", str(folder), "--report", str(tmp_path / "report")]
    done = RUN.invoke(app, arguments)
    assert f"report: {tmp_path / 'report' / 'validation.html'}; " in done.output
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"validation.html", "expectations_vqa.html", "expectations_images.html", "findings.csv"} <= names
    lines = (tmp_path / "report" / "findings.csv").read_text().splitlines()
    assert lines[0].startswith('"severity","row","sample_id","image","reason"')
    assert any("source.jpg: the file is missing" in line for line in lines)
    assert RUN.invoke(app, [*arguments, "--json"]).stdout.startswith("{")
    (tmp_path / "file").touch()
    error = RUN.invoke(app, [*arguments[:-1], str(tmp_path / "file" / "x")]).exception
    assert isinstance(error, RadloopError)
    assert "cannot be written" in error.message


def test_what_was_removed_is_shown(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", "mimic_cxr")
    done = RUN.invoke(app, ["check", "--dataset", "mimic_cxr", str(folder), "--deidentify"])
    assert "identifiers removed: 8 patient id" in done.output
    assert check("--dataset", "mimic_cxr", str(folder), "--deidentify")[1]["removed"]["patient id"] == 8


def test_options_reach_the_adapter(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", "slake")
    both = check("--dataset", "slake", str(folder), "--option", "language=both")[1]["samples"]
    assert both > check("--dataset", "slake", str(folder), "--option", "language=zh")[1]["samples"] > 0


def test_phantoms_are_never_written_over_something(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").touch()
    for folder in (tmp_path / "full", tmp_path / "full" / "precious.txt"):
        done = RUN.invoke(app, ["phantoms", "--format", "slake", str(folder)])
        assert "exists and is not empty" in str(done.exception)
    done = RUN.invoke(app, ["phantoms", "--format", "slak", str(tmp_path / "new")])
    assert isinstance(done.exception, ConfigError)
    assert "known: vqa_rad, vqa_rad:xlsx, " in done.exception.message
    assert not (tmp_path / "new").exists()


def test_the_command_itself_prints_json_only(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", "roco")
    command = [
        str(Path(sys.executable).with_name("radloop")),
        "check",
        "--dataset",
        "roco",
        str(folder),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["accepted"] == 8
    assert done.stderr == ""


def config_file(folder: Path, **sections: Any) -> str:
    """Write a run config over a few phantoms and return its path."""
    counts = {"train_images": 12, "validation_images": 3, "test_images": 3, "seed": 1}
    config = {
        "data": {"adapter": "phantoms", "options": counts},
        "preprocess": {"split": "official"},
        "finetune": {"max_steps": 3, "images_per_step": 4},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump({"parameters": {"config": config | sections}}))
    return str(folder / "run.yaml")


def test_a_config_is_checked_down_to_its_first_steps(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["check", config_file(tmp_path)])
    assert done.exit_code == 0, done.output
    starts = "verdict", "splits", "base", "parameters", "memory", "tokens per sample", "first batch", "time"
    places = [done.output.index(f"\n{start}: ") for start in starts]
    assert places == sorted(places)
    assert "    3 steps of " in done.output
    assert "ASSISTANT:[" in done.output


def test_a_config_is_checked_in_small_on_any_machine(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "configs" / "systems" / "rocov2_baseline_blip.yaml"
    done = RUN.invoke(app, ["check", "--tiny", str(file)])
    assert done.exit_code == 0, done.output
    assert "base: tiny-blip" in done.output
    assert "\n    \n" not in done.output  # BLIP has no image tokens to show
    content = yaml.safe_load(file.read_text())
    content["parameters"]["config"]["finetune"]["targets"] = ["lungs"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    error = RUN.invoke(app, ["check", "--tiny", str(tmp_path / "mine.yaml")]).exception
    assert str(error).startswith(f"{tmp_path / 'mine.yaml'}: cannot be run")
    error = RUN.invoke(app, ["check", "--dataset", "slake", "--tiny", "."]).exception
    assert "--tiny belongs to a run config" in str(error)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"finetune": {"targets": ["visoin"]}},
            "unknown group of layers 'visoin'; known: attention, ",
        ),
        ({"finetune": {"targets": ["vision"], "cache_features": True}}, "finetune.cache_features: got true"),
        ({"finetune": {"launch": "no.yaml"}}, "finetune.launch: no.yaml is no file"),
        ({"finetune": {"max_tokens": 70}}, "leaves no room for the answer in 70"),
        ({"model": {"base": "./none"}}, "base model ./none: there is no such folder"),
    ],
)
def test_what_would_stop_the_training_is_one_message(
    tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    error = RUN.invoke(app, ["check", config_file(tmp_path, **sections)]).exception
    assert isinstance(error, RadloopError)
    assert words in error.message
    assert error.exit_code == 2


def test_missing_shards_show_before_the_data_are_read(tmp_path: Path) -> None:
    from radloop.models.llava import Llava

    folder = tmp_path / "base"
    Llava().tiny(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = RUN.invoke(app, ["check", config_file(tmp_path, model={"base": str(folder)})])
    assert "names files that are not there: model-00001-of-00002.safetensors" in str(done.exception)
    assert "rows:" not in done.output

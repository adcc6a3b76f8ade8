"""How a run repeats, resumes and reacts to change, on corpora that train in seconds."""

import json
import os
import signal
import subprocess
import time

import pyarrow.feather as feather
import pytest

from radloop.data.phantoms import Stream, make_phantom, questions
from tests.e2e.project import Project

pytestmark = pytest.mark.timeout(600)

STATUS = """
import json, sys
from zenml.client import Client
run = Client().list_pipeline_runs(size=1, sort_by="desc:created").items[0]
steps = {name: str(step.status) for name, step in run.steps.items()}
uris = {name: {out: found[0].uri for out, found in step.outputs.items()} for name, step in run.steps.items()}
model = run.model_version.model.name if run.model_version else None
print(json.dumps({"steps": steps, "uris": uris, "model": model}))
"""

ROUND_TRIP = """
import json, os
from zenml.client import Client
from zenml.io import fileio
from zenml.utils import source_utils
client = Client()
run = client.list_pipeline_runs(size=1, sort_by="desc:created").items[0]
found = {}
for step in run.steps.values():
    for name, (artifact, *_) in step.outputs.items():
        value = artifact.load()
        kind = source_utils.load(artifact.materializer)
        uri = os.path.join(client.active_stack.artifact_store.path, "copies", name)
        fileio.makedirs(uri)
        materializer = kind(uri)
        materializer.save(value)
        again = materializer.load(type(value))
        same = materializer.compute_content_hash(again) == materializer.compute_content_hash(value)
        views = [str(view.type) for view in artifact.visualizations or []]
        facts = {"kind": kind.__module__, "same": same, "views": views}
        found[name] = facts | {"metadata": len(artifact.run_metadata)}
print(json.dumps(found))
"""


def last_run(project: Project) -> dict:
    return json.loads(project.run("python", "-c", STATUS).stdout.splitlines()[-1])


def write_release(folder, count: int = 24) -> list[dict]:
    """Phantoms in the layout of the original VQA-RAD release."""
    images = folder / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    rows = []
    for index in range(count):
        phantom = make_phantom(Stream.TRAIN, 601, index)
        (images / f"synpic{index}.png").write_bytes(phantom.png())
        for question in questions(phantom):
            rows.append(
                {
                    "qid": len(rows),
                    "phrase_type": "freeform" if index % 3 else "test_freeform",
                    "image_name": f"synpic{index}.png",
                    "image_organ": "CHEST",
                    "question": question.text,
                    "question_type": "PRES",
                    "answer": question.answer,
                    "answer_type": question.answer_type.upper(),
                }
            )
    write_rows(folder, rows)
    return rows


def write_rows(folder, rows: list[dict]) -> None:
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))


def versions(project: Project, name: str) -> list[dict]:
    return json.loads(project.run("radloop", "models", "--json", "--name", name).stdout)


def split_of(project: Project, name: str, number: int) -> dict[str, str]:
    code = f"""
import json
from pipelines._checked import _use_mlflow_of_the_stack
from radloop import registry
_use_mlflow_of_the_stack()
print(json.dumps(registry.split_of(registry.version({name!r}, {number}))))"""
    return json.loads(project.run("python", "-c", code).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def release(project: Project) -> tuple[str, list[dict]]:
    folder = project.root / "release"
    rows = write_release(folder)
    config = project.config(
        "release",
        model_name="release",
        data={"adapter": "vqa_rad", "path": str(folder), "options": {}},
        preprocess={"split": "by_image", "score_published": True},
    )
    project.run("radloop", "run", "-c", config)
    return config, rows


def test_every_artifact_has_its_own_materializer_a_view_and_survives_a_round_trip(
    project: Project, release: tuple[str, list[dict]]
) -> None:
    found = json.loads(project.run("python", "-c", ROUND_TRIP).stdout.splitlines()[-1])
    assert len(found) == 9
    for name, facts in found.items():
        assert facts["kind"].startswith("materializers."), (name, facts)
        assert facts["same"], (name, facts)
        assert set(facts["views"]) <= {"html", "image"}, (name, facts)
        assert facts["views"], (name, facts)
        assert facts["metadata"] > 1, (name, facts)


def test_one_changed_answer_changes_the_fingerprint_and_what_depends_on_it(
    project: Project, release: tuple[str, list[dict]]
) -> None:
    config, rows = release
    before = versions(project, "release")
    assert set(last_run(project)["steps"].values()) == {"completed"}

    changed = [dict(row) for row in rows]
    changed[3]["answer"] = "no" if changed[3]["answer"].lower() == "yes" else "yes"
    write_rows(project.root / "release", changed)
    project.run("radloop", "run", "-c", config)
    assert set(last_run(project)["steps"].values()) == {"completed"}
    after = versions(project, "release")
    assert len(after) == len(before) + 1
    assert after[0]["fingerprint"] != before[0]["fingerprint"]

    write_rows(project.root / "release", rows)


def test_a_changed_setting_re_runs_only_what_it_concerns(
    project: Project, release: tuple[str, list[dict]]
) -> None:
    folder = project.root / "release"
    config = project.config(
        "setting",
        model_name="setting",
        data={"adapter": "vqa_rad", "path": str(folder), "options": {}},
        preprocess={"split": "by_image", "score_published": True},
        evaluation={"max_new_tokens": 12},
    )
    project.run("radloop", "run", "-c", config)
    steps = last_run(project)["steps"]
    assert [steps[name] for name in ("ingest", "validate", "preprocess", "finetune")] == ["cached"] * 4
    assert steps["evaluate"] == "completed"


def test_two_runs_give_the_same_fingerprint_and_the_same_predictions(project: Project) -> None:
    results = []
    for name in ("first", "second"):
        path = project.root / project.config(name, model_name=name)
        path.write_text(path.read_text() + "enable_cache: false\n")
        project.run("radloop", "run", "-c", path.name)
        run = last_run(project)
        assert set(run["steps"].values()) == {"completed"}
        assert run["model"] == name
        table = feather.read_table(
            os.path.join(run["uris"]["evaluate"]["evaluation_report"], "predictions.arrow")
        )
        results.append((versions(project, name)[0]["fingerprint"], table))
    assert results[0][0] == results[1][0]
    assert results[0][1].num_rows > 300
    assert results[0][1].equals(results[1][1])


def test_a_run_killed_during_finetune_goes_on_from_the_cache(project: Project) -> None:
    config = project.config(
        "killed",
        model_name="killed",
        data={"options": {"train_images": 60, "seed": 502}},
        finetune={"epochs": 40},  # longer than a second run takes to be refused
    )
    process = subprocess.Popen(
        project.command("radloop", "run", "-c", config),
        cwd=project.root,
        env=project.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    for line in process.stdout:
        if "finetune: step" in line or ("finetune:" in line and "loss" in line):
            break
    else:
        raise AssertionError("the run ended before it came to finetune")
    second = project.run("radloop", "run", "-c", config, check=False)
    assert second.returncode == 2
    assert "another run of this project is under way" in second.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert versions(project, "killed") == []

    project.run("radloop", "run", "-c", config)
    steps = last_run(project)["steps"]
    assert [steps[name] for name in ("ingest", "validate", "preprocess")] == ["cached"] * 3
    assert steps["finetune"] == "completed"
    assert len(versions(project, "killed")) == 1


def test_new_data_makes_a_challenger(project: Project, release: tuple[str, list[dict]]) -> None:
    config, rows = release
    project.run("radloop", "promote", "1", "--name", "release")
    assert "nothing to do" in project.run("radloop", "retrain", "--if-new-data", "-c", config).stdout

    changed = [dict(row) for row in rows]
    changed[0]["question"] = "Is this a radiograph of the chest?"
    images = project.root / "release" / "VQA_RAD Image Folder"
    for index in range(12):
        name = f"synpic{900 + index}.png"
        (images / name).write_bytes(make_phantom(Stream.TRAIN, 602, index).png())
        new = {"qid": 9000 + index, "image_name": name, "phrase_type": "freeform"}
        changed.append(changed[0] | new)
    write_rows(project.root / "release", changed)
    started = time.monotonic()
    out = project.run("radloop", "retrain", "--if-new-data", "-c", config).stdout
    assert out.startswith("retraining: the data are ")
    assert "champion (release/1)" in out
    newest = versions(project, "release")[0]
    assert newest["aliases"] == ["challenger"]
    assert newest["promoted"] is False
    assert "champion release/1" in newest["reason"]
    assert time.monotonic() - started < 300
    before, after = (split_of(project, "release", number) for number in (1, newest["version"]))
    assert len(after) >= len(before) + 12
    assert {picture: after[picture] for picture in before} == before  # none moved between the splits
    assert "test" in before.values()


def test_bad_input_is_one_message_and_registers_nothing(project: Project) -> None:
    good = {"adapter": "vqa_rad", "options": {}}
    broken = project.root / "broken"
    write_release(broken, 6)
    for image in sorted((broken / "VQA_RAD Image Folder").iterdir())[:3]:
        image.write_bytes(b"not an image")
    cases = {
        "key": ({"finetune": {"lerning_rate": 1e-3}}, "unknown key 'lerning_rate'"),
        "type": ({"finetune": {"epochs": "many"}}, "finetune.epochs"),
        "folder": ({"data": good | {"path": "nowhere"}}, "nowhere"),
        "images": ({"data": good | {"path": str(broken)}}, "image cannot be read"),
        "base": ({"model": {"base": "./no_such_base"}}, "there is no such folder"),
        "target": ({"finetune": {"targets": ["atention"]}}, "known: attention"),
        "judge": ({"judge": {"judge": "openai"}}, "OPENAI_BASE_URL"),
    }
    for name, (changes, words) in cases.items():
        config = project.config(f"bad_{name}", model_name=f"bad-{name}", **changes)
        result = project.run("zenml", "pipeline", "run", "train_pipeline", "-c", config, check=False)
        assert result.returncode != 0, name
        assert words in result.stderr, (name, result.stderr)
        assert "Traceback" not in result.stderr + result.stdout, (name, result.stderr)
    registered = json.loads(project.run("radloop", "models", "--json").stdout)
    assert not [version for version in registered if version["name"].startswith("bad-")]


def test_an_unreachable_judge_is_found_before_training(project: Project) -> None:
    config = project.config("lonely", model_name="lonely", judge={"judge": "openai"})
    environment = {
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "OPENAI_API_KEY": "k",
        "RADLOOP_JUDGE_MODEL": "m",
    }
    result = project.run("radloop", "run", "-c", config, check=False, **environment)
    assert result.returncode == 2
    assert "127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr
    assert "finetune" not in result.stderr
    assert versions(project, "lonely") == []


def test_state_that_cannot_be_written_is_one_message(project: Project) -> None:
    home = str(project.root / "zenml_config.yaml" / "state")
    result = project.run("radloop", "run", check=False, RADLOOP_HOME=home)
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_value_of_zenml_is_one_message_and_a_schedule_is_explained(project: Project) -> None:
    path = project.root / project.config("zenml_value", schedule={"cron": "0 3 * * 1"})
    refused = project.run("radloop", "schedule", "-c", path.name, check=False)
    assert refused.returncode == 2
    assert "takes none" in refused.stderr
    assert (
        f"0 3 * * 1 cd {project.root} && .venv/bin/radloop retrain --if-new-data -c {path.name}"
        in refused.stderr
    )
    path.write_text(path.read_text() + "enable_cache: maybe\n")
    result = project.run("radloop", "run", "-c", path.name, check=False)
    assert result.returncode == 2
    assert "enable_cache" in result.stderr
    assert "Traceback" not in result.stderr

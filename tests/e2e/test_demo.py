"""What a newcomer does: run the default, look at the result, serve it, ask it, run again."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from radloop.data.phantoms import Stream, make_phantom, questions
from tests import served
from tests.e2e.project import Project, make_project

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The project after the literal command of the README, and what that printed."""
    project = make_project(tmp_path_factory.mktemp("demo"))
    return project, project.run("zenml", "pipeline", "run", "train_pipeline").stderr


def models(project: Project) -> list[dict]:
    return json.loads(project.run("radloop", "models", "--json").stdout)


def test_the_demo_learns_to_look_and_is_promoted(demo: tuple[Project, str]) -> None:
    (version,) = models(demo[0])
    scores = version["metrics"]
    assert version["version"] == 1
    assert version["aliases"] == ["champion"]
    assert version["promoted"] is True
    assert version["reason"].startswith("promoted: ")
    assert version["bento"].startswith("radloop:v1-")
    assert len(version["fingerprint"]) == 16
    assert scores["n"] > 2500
    assert scores["exact_match"] >= 0.90
    assert scores["exact_match_base"] < 0.40
    assert 0.50 < scores["exact_match_blind"] < 0.65
    assert scores["exact_match_shuffled"] < scores["exact_match"] - 0.2


def test_nothing_of_the_run_lies_outside_the_state_folder(demo: tuple[Project, str]) -> None:
    project = demo[0]
    known = {"radloop", "steps", "pipelines", "materializers", "deployment", "stacks", "configs"}
    assert {path.name for path in project.root.iterdir()} <= known | {
        "train_pipeline.py", "zenml_config.yaml", ".zen", ".radloop",
    }  # fmt: skip


def test_no_pickle_in_the_stores(demo: tuple[Project, str]) -> None:
    files = [path for path in demo[0].home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert not [
        path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
    ]


def test_a_second_run_takes_everything_from_the_cache_and_prints_the_table(demo: tuple[Project, str]) -> None:
    started = time.monotonic()
    out = demo[0].run("radloop", "run").stdout
    seconds = time.monotonic() - started
    assert "9 of 9 steps from the cache" in out
    for words in (
        "exact match, tuned",
        "blind: majority answer",
        "gate: looks at the image",
        "alias champion",
        "radloop serve",
    ):
        assert words in out, out
    assert len(models(demo[0])) == 1
    assert seconds < 40


def test_the_pyfunc_answers_in_a_fresh_process(demo: tuple[Project, str], tmp_path: Path) -> None:
    phantom = make_phantom(Stream.TEST, 11, 0)
    asked = questions(phantom)
    (tmp_path / "x.png").write_bytes(phantom.png())
    code = (
        "import json, sys, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model('models:/radloop@champion')\n"
        "image = open(sys.argv[1], 'rb').read()\n"
        "frame = pd.DataFrame({'image': [image] * (len(sys.argv) - 2), 'question': sys.argv[2:]})\n"
        "print(json.dumps(list(model.predict(frame))))\n"
    )
    out = demo[0].run("python", "-c", code, str(tmp_path / "x.png"), *[q.text for q in asked]).stdout
    answers = json.loads(out.strip().splitlines()[-1])
    right = sum(
        answer.lower() == question.answer.lower() for answer, question in zip(answers, asked, strict=True)
    )
    assert right >= len(asked) - 2, (answers, asked)


@pytest.fixture(scope="module")
def endpoint(demo: tuple[Project, str]) -> Iterator[str]:
    port = served.free_port()
    process = subprocess.Popen(
        demo[0].command("radloop", "serve", "--port", str(port)),
        cwd=demo[0].root,
        env=demo[0].env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/readyz", process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None, f"the server stopped with {process.returncode}"
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within two minutes")


def test_the_endpoint_says_what_it_serves_and_answers(demo: tuple[Project, str], endpoint: str) -> None:
    served = httpx.get(f"{endpoint}/model").json()
    assert served["version"] == 1
    assert served["alias"] == "champion"
    assert served["fingerprint"] == models(demo[0])[0]["fingerprint"]
    right = total = 0
    for index in range(5):
        phantom = make_phantom(Stream.TEST, 12, index)
        for question in questions(phantom):
            reply = httpx.post(
                f"{endpoint}/answer",
                files={"image": ("x.png", io.BytesIO(phantom.png()), "image/png")},
                data={"question": question.text},
                timeout=60,
            )
            assert reply.status_code == 200, reply.text
            right += reply.json()["answer"].lower() == question.answer.lower()
            total += 1
    assert right / total > 0.75


def test_retrain_sees_that_there_is_no_new_data(demo: tuple[Project, str]) -> None:
    result = demo[0].run("radloop", "retrain", "--if-new-data")
    assert result.stdout.startswith("nothing to do: the data are those of champion version 1")
    assert len(models(demo[0])) == 1


def test_the_page_in_a_browser(demo: tuple[Project, str], endpoint: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    executable = served.chromium()
    port = served.free_port()
    process = subprocess.Popen(
        demo[0].command("radloop", "app", "--endpoint", endpoint, "--port", str(port)),
        cwd=demo[0].root,
        env=demo[0].env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    phantom = make_phantom(Stream.TEST, 12, 1)
    (tmp_path / "x.png").write_bytes(phantom.png())
    question = questions(phantom)[0]
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        with sync_playwright() as playwright:
            page = playwright.chromium.launch(
                executable_path=executable, args=list(served.CHROMIUM)
            ).new_page()
            page.goto(f"http://127.0.0.1:{port}")
            served.upload(page, tmp_path / "x.png")
            assert question.answer.lower() in served.ask(page, question.text).lower()
            assert page.get_by_text("radloop version 1").first.is_visible()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)

"""A registered version, as its pyfunc, its Bento and its endpoint answer: the same everywhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image

from radloop import packaging, registry
from radloop.answering import Answerer
from radloop.config import ModelConfig
from radloop.data.phantoms.phantom import Stream, make_phantom
from radloop.errors import RadloopError
from tests import served
from tests.served import Server

QUESTIONS = ("Is the heart enlarged?", "How many nodules are there?", "Which side?")
PNG = make_phantom(Stream.VALIDATION, 3, 0).png()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("state")
    with served.state(folder):
        yield folder


@pytest.fixture(scope="module")
def adapter(home: Path) -> Path:
    return served.make_adapter(home / "adapter", ModelConfig())


@pytest.fixture(scope="module")
def champion(home: Path, adapter: Path) -> registry.Version:
    registry.promote("radloop", served.register(adapter, "radloop").version, "gates passed")
    found = registry.champion("radloop")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def expected(champion: registry.Version) -> dict[str, tuple[str, float]]:
    answerer = Answerer(registry.adapter_folder(champion))
    replies = {question: answerer.answer(PNG, question) for question in QUESTIONS}
    return {question: (reply.text, round(reply.confidence, 4)) for question, reply in replies.items()}


@pytest.fixture(scope="module")
def endpoint(home: Path, champion: registry.Version) -> Iterator[Server]:
    with served.endpoint(home, "radloop") as server:
        yield server


def post(endpoint: Server, image: bytes, question: str) -> httpx.Response:
    return httpx.post(
        f"{endpoint.url}/answer", files={"image": image}, data={"question": question}, timeout=60
    )


def encoded(kind: str, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_the_pyfunc_answers_in_a_fresh_process(
    home: Path, champion: registry.Version, expected: dict[str, tuple[str, float]], tmp_path: Path
) -> None:
    (tmp_path / "image.png").write_bytes(PNG)
    program = f"""
import json, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/radloop@champion")
png = open("image.png", "rb").read()
questions = {list(QUESTIONS)!r}
print(json.dumps(list(model.predict(pandas.DataFrame({{"image": [png] * 3, "question": questions}})))))
import radloop
print(radloop.__file__)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=served.environment(home),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answers, code = result.stdout.splitlines()[-2:]
    assert json.loads(answers) == [expected[question][0] for question in QUESTIONS]
    assert str(home) in code  # the code that was registered, not the one that is installed
    assert "Traceback" not in result.stderr


def test_a_bento_is_built_once_and_holds_all_it_needs(home: Path, champion: registry.Version) -> None:
    tag = packaging.package(champion)
    assert packaging.package(champion) == tag
    assert packaging.is_packaged(tag)
    assert registry.version("radloop", champion.version).tags["bento"] == tag
    store = home / "bentoml" / "bentos" / "radloop"
    assert [folder.name for folder in store.iterdir() if folder.is_dir()] == [tag.split(":")[1]]
    bento = store / tag.split(":")[1]
    assert yaml.safe_load((bento / "bento.yaml").read_text())["labels"]["fingerprint"] == "abcd1234"
    assert (bento / "src" / "radloop" / "models" / "tiny_base").is_dir()
    suffixes = {file.suffix for file in bento.rglob("*") if file.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".bin", ".pyc"}
    listed = subprocess.run(
        [sys.executable, "-m", "bentoml", "list", "-o", "json"],
        env=served.environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [row["tag"] for row in json.loads(listed.stdout)] == [tag]


def test_a_killed_build_leaves_no_bento(home: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = served.register(adapter, "killed")

    def killed(context: Path, folder: Path, version: registry.Version, label: str) -> None:
        (folder / "bentoml" / "bentos" / version.name / label).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(packaging, "_build", killed)
    with pytest.raises(KeyboardInterrupt):
        packaging.package(version)
    assert not list((home / "bentoml" / "bentos").glob("killed*"))
    assert not list((home / "bentoml").glob("building-*"))
    assert "bento" not in registry.version("killed", version.version).tags


def test_a_failed_build_is_one_message(home: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = served.register(adapter, "broken")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RadloopError, match=r"the Bento broken:v1-.* could not be built"):
        packaging.package(version)


def test_a_store_that_cannot_be_written_is_one_message(
    champion: registry.Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "file"))
    with pytest.raises(RadloopError, match=r"the Bento store .* cannot be written .*RADLOOP_HOME"):
        packaging.package(champion)


def test_model_says_which_version_answers(endpoint: Server, champion: registry.Version) -> None:
    assert httpx.get(f"{endpoint.url}/model").json() == {
        "name": "radloop",
        "version": champion.version,
        "fingerprint": "abcd1234",
        "alias": "champion",
        "base": "tiny",
        "metrics": registry.describe(champion)["metrics"],
    }


def test_the_endpoint_answers_like_the_library(
    endpoint: Server, expected: dict[str, tuple[str, float]]
) -> None:
    for question, (text, confidence) in expected.items():
        body = post(endpoint, PNG, question).json()
        assert body["answer"] == text
        assert body["confidence"] == pytest.approx(confidence, abs=2e-4)
        assert body["model"] == {
            "name": "radloop",
            "version": 1,
            "fingerprint": "abcd1234",
            "alias": "champion",
        }
        assert 0 < body["seconds"] < 60


def test_a_bento_runs_the_code_that_it_holds(home: Path, champion: registry.Version) -> None:
    target = packaging.serve_command(packaging.package(champion), "127.0.0.1", 3000)[4]
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import bentoml; bentoml.load({target!r}); import radloop; print(radloop.__file__)",
        ],
        env=served.environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(loaded.stdout.strip()) == Path(target) / "src" / "radloop" / "__init__.py"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics"])
def test_health(endpoint: Server, path: str) -> None:
    assert httpx.get(endpoint.url + path).status_code == 200


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_other_formats_and_modes_are_read(endpoint: Server, kind: str) -> None:
    mode = {"JPEG": "CMYK", "TIFF": "I;16", "WEBP": "RGBA"}[kind]
    image = Image.new(mode, (50, 70))
    image.putpixel((20, 20), 4000 if mode == "I;16" else (255, 0, 0, 255))
    assert post(endpoint, encoded(kind, image), QUESTIONS[0]).status_code == 200


def test_questions_at_once_get_the_answers_of_one_by_one(
    endpoint: Server, expected: dict[str, tuple[str, float]]
) -> None:
    questions = [*QUESTIONS] * 8
    with ThreadPoolExecutor(12) as pool:
        bodies = list(pool.map(lambda question: post(endpoint, PNG, question).json(), questions))
    assert [body["answer"] for body in bodies] == [expected[question][0] for question in questions]


def bomb() -> bytes:
    return encoded("PNG", Image.new("1", (9_000, 9_000)))


HOSTILE: dict[str, tuple[Callable[[], bytes], str, int]] = {
    "text": (lambda: b"this is no image", "Which side?", 422),
    "empty": (lambda: b"", "Which side?", 422),
    "truncated": (lambda: encoded("JPEG", Image.effect_noise((200, 200), 90))[:3000], "Which side?", 422),
    "bomb": (bomb, "Which side?", 422),
    "pickle": (lambda: b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", "Which side?", 422),
    "large": (lambda: b"\xff" * (21 * 2**20), "Which side?", 413),
    "no question": (lambda: PNG, " \n", 422),
    "long question": (lambda: PNG, "a" * 501, 422),
    "huge question": (lambda: PNG, "a" * (2 * 2**20), 400),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_uploads_are_refused_in_one_line(endpoint: Server, case: str) -> None:
    make, question, status = HOSTILE[case]
    response = post(endpoint, make(), question)
    assert response.status_code == status
    (message,) = response.json().values()
    assert set(response.json()) == {"error"}
    assert message
    assert "\n" not in message
    assert "Traceback" not in message


REQUESTS = {
    "no image": {"files": {"other": PNG}, "data": {"question": "q"}},
    "an address in place of an image": {
        "data": {"image": "http://127.0.0.1/secret.png"},
        "files": {"question": (None, "q")},
    },
    "no question": {"files": {"image": PNG}},
    "two images": {"files": [("image", PNG), ("image", PNG)], "data": {"question": "q"}},
    "JSON": {"json": {"image": "x", "question": "q"}},
    "pickle": {"content": b"\x80\x04.", "headers": {"content-type": "application/vnd.bentoml+pickle"}},
    "no boundary": {"content": b"abc", "headers": {"content-type": "multipart/form-data"}},
    "nothing": {},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_other_requests_are_told_what_is_expected(endpoint: Server, case: str) -> None:
    response = httpx.post(f"{endpoint.url}/answer", **REQUESTS[case])
    assert response.status_code == 400
    assert response.json()["error"]


def test_an_upload_of_unknown_length_is_stopped_at_the_limit(endpoint: Server) -> None:
    def stream() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(32):
            yield b"\0" * 2**20

    headers = {"content-type": "multipart/form-data; boundary=x"}  # and no content-length
    response = httpx.post(f"{endpoint.url}/answer", content=stream(), headers=headers, timeout=60)
    assert response.status_code == 413


def test_the_log_tells_of_no_crash_and_holds_no_question(endpoint: Server) -> None:
    question = "Is this question in the log?"
    post(endpoint, PNG, question)
    log = endpoint.text()
    assert "path=/answer" in log
    assert "Traceback" not in log
    assert question not in log


def test_serving_without_a_champion_says_what_to_do(home: Path, champion: registry.Version) -> None:
    from deployment.serve import run_service

    with pytest.raises(RadloopError, match=r"'other' has the alias 'champion'.*radloop promote N"):
        run_service("other")


def test_a_taken_port_is_named(endpoint: Server, home: Path, champion: registry.Version) -> None:
    from deployment.serve import run_service

    port = int(endpoint.url.rsplit(":", 1)[1])
    with pytest.raises(RadloopError, match=rf"port {port} .* name another with --port"):
        run_service("radloop", port=port)

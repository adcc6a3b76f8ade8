"""The endpoint is a real server on this machine, in all the moods that endpoints have."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from radloop.config import JudgeConfig
from radloop.errors import JudgeError
from radloop.judging import judge
from radloop.judging.judges.openai import OpenAIJudge
from radloop.judging.run import compare
from tests.unit.scripted import habit, half, prepared, report, sees

KEY = "sk-test-0123456789"
Behaviour = Callable[[dict[str, Any]], tuple[int, Any]]


class Endpoint:
    """A server of /v1/chat/completions whose replies `behave` decides: (HTTP status, JSON or text)."""

    def __init__(self, behave: Behaviour) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.requests.append(body)
                    endpoint.headers.append(
                        {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}
                    )
                    endpoint.at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                status, content = behave(body)
                with lock:
                    endpoint.at_once -= 1
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(status)
                self.send_header(
                    "Content-Type", "text/html" if isinstance(content, str) else "application/json"
                )
                self.send_header("retry-after-ms", "1")
                if status in (302, 307):
                    self.send_header("Location", text)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Behaviour], Endpoint]]:
    endpoints: list[Endpoint] = []

    def start(behave: Behaviour) -> Endpoint:
        endpoints.append(Endpoint(behave))
        monkeypatch.setenv("OPENAI_BASE_URL", endpoints[-1].url)
        return endpoints[-1]

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("RADLOOP_JUDGE_MODEL", "judge-1")
    yield start
    for endpoint in endpoints:
        endpoint.close()


def completion(text: str | None) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-1",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}},
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 1, "total_tokens": 91},
    }


def fair(body: dict[str, Any]) -> tuple[int, Any]:
    """Compares with the reference, as a good judge does."""
    pair = json.loads(body["messages"][1]["content"])
    good = [answer in pair["reference"] for answer in (pair["answer_A"], pair["answer_B"])]
    return 200, completion("TIE" if good[0] == good[1] else "A" if good[0] else "B")


def saying(status: int, content: Any) -> Behaviour:
    return lambda _: (status, content)


CONFIG = JudgeConfig(judge="openai", max_pairs=20)
EVALUATION = report(prepared(), base=habit, tuned=sees)


def failure() -> str:
    with pytest.raises(JudgeError) as caught:
        judge(EVALUATION, CONFIG, 7)
    message = str(caught.value)
    assert KEY not in message
    assert "\n" not in message
    return message


def test_a_fair_judge(serve: Callable[[Behaviour], Endpoint]) -> None:
    endpoint = serve(fair)
    result = judge(EVALUATION, CONFIG, 7)
    offline = judge(EVALUATION, JudgeConfig(max_pairs=20), 7)
    assert result.summary["verdicts"] == offline.summary["verdicts"]
    assert result.summary["win_rate"] == offline.summary["win_rate"] > 0.5
    assert result.summary["consistency"] == 1
    assert result.summary["judge"] == f"judge-1 at {endpoint.url[7:-3]} (OpenAI-compatible endpoint)"
    assert len(endpoint.requests) == 2 * result.summary["num_asked"]
    assert result.summary["tokens"] == 91 * len(endpoint.requests)
    assert KEY not in json.dumps(result.summary) + str(result.views())


def test_what_is_sent(serve: Callable[[Behaviour], Endpoint]) -> None:
    endpoint = serve(fair)
    judge(EVALUATION, CONFIG, 7)
    body = endpoint.requests[0]
    assert endpoint.headers[0]["path"] == "/v1/chat/completions"
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["seed"]) == ("judge-1", 0, 0)
    assert set(json.loads(body["messages"][1]["content"])) == {
        "question",
        "reference",
        "answer_A",
        "answer_B",
    }
    everything = json.dumps(endpoint.requests)
    assert "patient" not in everything
    assert "image0" not in everything


def test_a_judge_that_always_prefers_the_first_decides_nothing(
    serve: Callable[[Behaviour], Endpoint],
) -> None:
    serve(saying(200, completion("A")))
    summary = judge(EVALUATION, CONFIG, 7).summary
    assert summary["num_asked"] > 0
    assert summary["verdicts"] == {"challenger": 0, "incumbent": 0, "tie": 20, "invalid": 0}
    assert summary["consistency"] == 0
    assert summary["win_rate"] == 0.5


def test_at_most_four_calls_at_once(serve: Callable[[Behaviour], Endpoint]) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.05)
        return fair(body)

    endpoint = serve(slow)
    judge(EVALUATION, CONFIG, 7)
    assert endpoint.most_at_once == 4


def test_a_hiccup_is_retried(serve: Callable[[Behaviour], Endpoint]) -> None:
    calls = iter(range(1000))

    def hiccup(body: dict[str, Any]) -> tuple[int, Any]:
        return (503, {"error": {"message": "busy"}}) if next(calls) == 0 else fair(body)

    serve(hiccup)
    assert judge(EVALUATION, CONFIG, 7).summary["consistency"] == 1


@pytest.mark.parametrize("text", ["I prefer answer A, since it names the side.", "", None])
def test_replies_outside_the_protocol(serve: Callable[[Behaviour], Endpoint], text: str | None) -> None:
    serve(saying(200, completion(text)))
    assert "answered outside the protocol (one word: A, B or TIE)" in failure()


@pytest.mark.parametrize(
    "content", ["<html>Welcome</html>", {"hello": 1}, {"choices": []}, [], {"choices": [{"message": "A"}]}]
)
def test_something_else_than_a_chat_completion(serve: Callable[[Behaviour], Endpoint], content: Any) -> None:
    serve(saying(200, content))
    assert "the reply is not a chat completion; OPENAI_BASE_URL should end" in failure()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "HTTP 400; it may not know temperature or seed"),
        (401, "refused (HTTP 401); check OPENAI_API_KEY"),
        (403, "refused (HTTP 403); check OPENAI_API_KEY"),
        (404, "HTTP 404; check RADLOOP_JUDGE_MODEL (judge-1) and OPENAI_BASE_URL"),
        (429, "HTTP 429; over the rate limit or quota"),
        (500, "HTTP 500; look at the server"),
    ],
)
def test_a_refusal(serve: Callable[[Behaviour], Endpoint], status: int, expected: str) -> None:
    endpoint = serve(saying(status, {"error": {"message": f"no luck with {KEY}"}}))
    message = failure()
    assert expected in message
    assert f"judge-1 at {endpoint.url[7:-3]}" in message
    # The first failure stops the rest: at most the pairs in flight and those that took their place.
    assert len(endpoint.requests) <= 8 * (3 if status in (429, 500) else 1)


def test_a_redirect_is_not_followed(serve: Callable[[Behaviour], Endpoint]) -> None:
    elsewhere = serve(fair)
    serve(saying(307, f"{elsewhere.url}/chat/completions"))
    assert "HTTP 307; it redirects: name the final address in OPENAI_BASE_URL" in failure()
    assert elsewhere.requests == []


def test_no_reply_in_time(serve: Callable[[Behaviour], Endpoint]) -> None:
    def hang(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(1)
        return fair(body)

    endpoint = serve(hang)
    slow = OpenAIJudge(endpoint.url, KEY, "judge-1", timeout_s=0.1)
    with pytest.raises(JudgeError, match=r"no reply within 0\.1 s, three times"):
        compare(slow, EVALUATION, 4, 7)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, serve: Callable[[Behaviour], Endpoint]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:secret@127.0.0.1:{port}/v1")
    message = failure()
    assert f"cannot be reached; check OPENAI_BASE_URL and that a server runs at 127.0.0.1:{port}" in message
    assert "secret" not in message


@pytest.mark.parametrize("missing", ["OPENAI_BASE_URL", "OPENAI_API_KEY", "RADLOOP_JUDGE_MODEL"])
def test_a_missing_variable_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Behaviour], Endpoint]
) -> None:
    serve(fair)
    monkeypatch.setenv(missing, " ")
    assert f"not set in the environment: {missing};" in failure()


def test_all_missing_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "RADLOOP_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    assert "OPENAI_BASE_URL, OPENAI_API_KEY, RADLOOP_JUDGE_MODEL" in failure()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_a_url_that_is_none(
    url: str, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Behaviour], Endpoint]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert "OPENAI_BASE_URL: expected http://HOST/PATH" in failure()


def test_a_key_that_no_header_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JudgeError, match="OPENAI_API_KEY: holds characters that no key has"):
        OpenAIJudge("http://localhost/v1", "sk-\u2026", "judge-1")


def test_equal_answers_never_leave_the_machine(serve: Callable[[Behaviour], Endpoint]) -> None:
    endpoint = serve(fair)
    judge(report(prepared(), base=half, tuned=half), CONFIG, 7)
    assert endpoint.requests == []

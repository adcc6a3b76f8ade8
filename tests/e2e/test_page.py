"""The chat page on a served version, in a real Chromium."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from radloop import registry
from radloop.answering import Answerer
from radloop.config import ModelConfig
from radloop.data.phantoms.phantom import Stream, make_phantom
from tests import served
from tests.served import Server

QUESTION = "Is there cardiomegaly?"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    served.chromium()
    folder = tmp_path_factory.mktemp("state")
    with served.state(folder):
        registry.promote(
            "radloop",
            served.register(served.make_adapter(folder / "adapter", ModelConfig()), "radloop").version,
            "",
        )
        yield folder


@pytest.fixture(scope="module")
def phantom(home: Path) -> Path:
    file = home / "phantom.png"
    file.write_bytes(make_phantom(Stream.VALIDATION, 3, 0).png())
    return file


@pytest.fixture(scope="module")
def chat_page(home: Path) -> Iterator[Server]:
    with served.endpoint(home, "radloop") as endpoint, served.page(home, endpoint.url) as page:
        yield page


@pytest.fixture(scope="module")
def chromium(home: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=served.chromium(), args=list(served.CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any, chat_page: Server) -> Iterator[Any]:
    """A fresh session on the page; fails the test if the page asked for anything from elsewhere."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(chat_page.url)
    tab.get_by_text("version 1").first.wait_for()
    yield tab
    context.close()
    own = (chat_page.url, "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []


def test_upload_ask_and_read_the_answer(tab: Any, phantom: Path, home: Path) -> None:
    champion = registry.champion("radloop")
    assert champion is not None
    expected = Answerer(registry.adapter_folder(champion)).answer(phantom.read_bytes(), QUESTION)
    served.upload(tab, phantom)
    text = served.ask(tab, QUESTION)
    assert text.startswith(expected.text)
    assert f"confidence {expected.confidence:.0%}" in text
    assert "version 1" in text
    assert tab.get_by_placeholder("Ask a question").input_value() == ""


def test_the_version_its_data_and_the_disclaimer_are_in_sight(tab: Any) -> None:
    for text in ("radloop version 1", "champion", "data abcd1234", "Research use. Not a medical device."):
        assert tab.get_by_text(text).first.is_visible(), text


def test_a_new_image_starts_a_new_chat(tab: Any, phantom: Path) -> None:
    served.upload(tab, phantom)
    served.ask(tab, QUESTION)
    served.ask(tab, "How many lung nodules are there?", 2)
    assert tab.locator("#chat .user.message").count() == 2
    tab.locator("#examples button").nth(2).click()
    tab.locator("#chat .message").first.wait_for(state="detached")
    tab.get_by_role("button", name="What device can be seen?").click()
    served.answer(tab)
    assert tab.locator("#chat .user.message").count() == 1


def test_hints_in_place_of_a_missing_image_or_question(tab: Any, phantom: Path) -> None:
    tab.get_by_placeholder("Ask a question").fill(QUESTION)
    tab.keyboard.press("Enter")
    tab.get_by_text("Choose or drop an image first").wait_for()
    assert tab.get_by_placeholder("Ask a question").input_value() == QUESTION  # nothing typed is lost
    served.upload(tab, phantom)
    tab.get_by_placeholder("Ask a question").fill("  ")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text("Type a question about the image").wait_for()
    assert tab.locator("#chat .message").count() == 0


def test_markup_in_a_question_is_shown_as_it_was_typed(tab: Any, phantom: Path) -> None:
    question = "<img src=x onerror=alert(1)> **b** ![a](http://example.com/a.png) <b>side</b> _x_ 1. $y$?"
    served.upload(tab, phantom)
    served.ask(tab, question)
    assert tab.locator("#chat .user.message").first.inner_text().strip() == question
    assert tab.locator("#chat .message :is(img, b, strong, em, a, ol, script)").count() == 0


def test_a_file_that_is_no_image_is_refused_in_words(tab: Any, tmp_path: Path) -> None:
    broken = tmp_path / "scan.png"
    broken.write_bytes(b"this is no image")
    tab.locator("#image input[type=file]").set_input_files(broken)
    tab.wait_for_timeout(1000)
    assert "refused: image: is none of" in served.ask(tab, QUESTION)


def test_the_page_says_so_when_the_endpoint_is_down(home: Path, phantom: Path, chromium: Any) -> None:
    url = f"http://127.0.0.1:{served.free_port()}"
    with served.page(home, url) as page:
        tab = chromium.new_page()
        tab.goto(page.url)
        tab.get_by_text(f"The endpoint {url} does not answer").first.wait_for()
        served.upload(tab, phantom)
        assert "radloop serve" in served.ask(tab, QUESTION)
        tab.close()
        assert "Traceback" not in page.text()


def test_it_fits_a_phone(tab: Any, phantom: Path) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    served.upload(tab, phantom)
    served.ask(tab, QUESTION)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for locator in (
        tab.get_by_role("button", name="Ask", exact=True),
        tab.get_by_placeholder("Ask a question"),
    ):
        box = locator.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


class Slow(BaseHTTPRequestHandler):
    """An endpoint that takes its time: what a large model does."""

    seconds = 3.0

    def do_GET(self) -> None:
        self._send({"name": "slow", "version": 1, "fingerprint": "ab", "alias": None, "metrics": {}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.seconds)
        with contextlib.suppress(BrokenPipeError):  # the page does not wait for an answer that nobody wants
            self._send(
                {"answer": "late", "confidence": 1.0, "model": {"version": 1}, "seconds": self.seconds}
            )

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def slow_page(home: Path) -> Iterator[Server]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with served.page(home, f"http://127.0.0.1:{server.server_port}") as page:
        yield page
    server.shutdown()


def test_an_awaited_answer_does_not_enter_the_chat_of_the_next_image(
    slow_page: Server, phantom: Path, chromium: Any
) -> None:
    tab = chromium.new_page()
    tab.goto(slow_page.url)
    served.upload(tab, phantom)
    tab.get_by_role("button", name="What device can be seen?").click()
    tab.locator("#chat .user.message").first.wait_for()
    tab.locator("#examples button").nth(2).click()
    tab.locator("#chat .user.message").first.wait_for(state="detached")
    # Asked at once: neither lost nor kept waiting for the answer to the question before.
    started = time.monotonic()
    assert served.ask(tab, QUESTION).startswith("late")
    assert time.monotonic() - started < 1.8 * Slow.seconds
    tab.wait_for_timeout(500 * Slow.seconds)
    assert tab.locator("#chat .user.message").all_inner_texts() == [QUESTION]
    assert tab.locator("#chat .bot.message").count() == 1
    tab.close()


def test_questions_sent_right_after_an_image_are_answered(
    slow_page: Server, phantom: Path, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "seconds", 0.0)
    for _ in range(8):
        tab = chromium.new_page()
        tab.goto(slow_page.url)
        served.upload(tab, phantom)
        assert served.ask(tab, QUESTION).startswith("late")
        tab.close()


def test_an_image_that_is_no_longer_kept_is_named(
    slow_page: Server, phantom: Path, chromium: Any, home: Path
) -> None:
    tab = chromium.new_page()
    tab.goto(slow_page.url)
    served.upload(tab, phantom)
    kept = list((home / "uploads").rglob(phantom.name))
    assert kept
    for file in kept:
        file.unlink()
    assert "Choose it again" in served.ask(tab, QUESTION)
    tab.close()

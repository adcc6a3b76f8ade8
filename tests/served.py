"""A promoted version, its Bento and its running endpoint, for tests that talk to them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from radloop import registry, workspace
from radloop.answering import AnswerConfig
from radloop.config import EvaluationConfig, FinetuneConfig, ModelConfig, PreprocessConfig

CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
METRICS = {"exact_match": 0.94, "exact_match_base": 0.26, "n": 300}


@dataclass(frozen=True)
class Server:
    """A server process of its own."""

    url: str
    log: Path

    def text(self) -> str:
        return self.log.read_text()


def environment(home: Path) -> dict[str, str]:
    """What a process needs to work on the state in `home`, and nothing of the user's."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("ZENML", "MLFLOW", "BENTOML", "RADLOOP", "GRADIO"))
    }
    return clean | workspace.variables(home)


@contextmanager
def state(home: Path) -> Iterator[None]:
    """Let this process work on the state in `home`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in workspace.variables(home).items():
            patch.setenv(name, value)
        yield


def make_adapter(folder: Path, model: ModelConfig, seed: int = 0) -> Path:
    """Write an adapter with random weights: no training, but answers of its own."""
    import torch

    from radloop import models
    from radloop.training.adapter import Adapter, with_lora
    from radloop.training.merging import standard_probe, verify_merge

    torch.manual_seed(seed)
    loaded = with_lora(models.load(model), FinetuneConfig(rank=4))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    folder.mkdir()
    merge = verify_merge(loaded, standard_probe(loaded)).facts()
    Adapter.of(loaded, model, {"history": [], "settings": {}, "merge": merge}).save(folder)
    return folder


def register(adapter: Path, name: str, fingerprint: str = "abcd1234") -> registry.Version:
    answering = AnswerConfig.of(PreprocessConfig(), EvaluationConfig())
    tags = {"fingerprint": fingerprint, "recipe": "r"}
    return registry.register(name, adapter, answering, tags=tags, metrics=METRICS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(statement: str, url: str, ready: str, home: Path, timeout: float = 400) -> Iterator[Server]:
    """Run a Python statement in a process of its own until `url` + `ready` answers; stop it at the end."""
    log = home / f"server-{url.rsplit(':', 1)[1]}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", statement],
            env=environment(home),
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, url + ready, log, timeout)
        yield Server(url, log)
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def endpoint(home: Path, name: str) -> AbstractContextManager[Server]:
    """The running endpoint of the champion of the model `name`."""
    port = free_port()
    statement = f"from deployment.serve import run_service; run_service({name!r}, port={port})"
    return running(statement, f"http://127.0.0.1:{port}", "/readyz", home)


def page(home: Path, url: str) -> AbstractContextManager[Server]:
    """The running chat page of the endpoint at `url`."""
    port = free_port()
    statement = f"from deployment.app import run_app; run_app({url!r}, port={port})"
    return running(statement, f"http://127.0.0.1:{port}", "/", home)


def chromium() -> str:
    """Path of a Chromium; skips the test where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install radloop[dev]")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("no Chromium on this machine; `apt-get install chromium` brings one")


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"no answer from {url} in {timeout:.0f} s:\n{log.read_text()[-4000:]}")


def upload(tab: Any, file: Path) -> None:
    """Choose an image, and wait until the page shows it."""
    tab.locator("#image input[type=file]").set_input_files(file)
    tab.locator("#image img").wait_for()


def ask(tab: Any, question: str, number: int = 1) -> str:
    """Type a question, and return the text of the `number`-th answer on the page."""
    tab.get_by_placeholder("Ask a question").fill(question)
    tab.get_by_role("button", name="Ask", exact=True).click()
    return answer(tab, number)


def answer(tab: Any, number: int = 1) -> str:
    """Wait for the `number`-th answer of the chat, and return its text."""
    from playwright.sync_api import expect

    message = tab.locator("#chat .bot.message").nth(number - 1)
    expect(message).to_have_text(re.compile("confidence|refused|does not answer|no longer"), timeout=30_000)
    tab.locator("#chat .wrap.hide").first.wait_for(state="attached")  # the page takes the next question now
    return str(message.inner_text())

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from radloop.data.imaging import ImageError, codec, inspect, to_rgb
from tests.unit.data.imaging.dicoms import shipped

LOSSLESS = "SC_rgb_jpeg_gdcm.dcm"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    codec._stop()
    codec._idle.clear()
    yield
    codec._stop()
    codec._idle.clear()


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let the next child run something else."""
    started = subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        return started([sys.executable, "-c", program], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)


def test_one_child_serves_many_images() -> None:
    to_rgb(shipped(LOSSLESS))
    (child,) = codec._idle
    to_rgb(shipped("MR_small_RLE.dcm"))
    assert codec._idle == [child]


def test_a_decoder_that_dies_is_an_error_of_that_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        pretend(patch, "import os, sys; sys.stdin.buffer.read(1); os.abort()")
        with pytest.raises(ImageError, match="the decoder ended with code -6"):
            to_rgb(shipped(LOSSLESS))
    assert codec._idle == []
    assert inspect(shipped(LOSSLESS)).error == ""


def test_a_decoder_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "DECODE_SECONDS", 0.3)
    pretend(monkeypatch, "while True: pass")
    before = time.monotonic()
    assert "took more than 0 seconds" in inspect(shipped(LOSSLESS)).error
    assert time.monotonic() - before < 5


def test_a_child_killed_while_idle_is_replaced() -> None:
    to_rgb(shipped(LOSSLESS))
    os.kill(codec._idle[0].pid, signal.SIGKILL)
    codec._idle[0].wait()
    assert inspect(shipped(LOSSLESS)).error == ""


def test_threads_do_not_share_a_child() -> None:
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(lambda _: inspect(shipped(LOSSLESS)).pixel_hash, range(12)))
    assert len(set(hashes)) == 1
    assert hashes[0]
    assert 1 <= len(codec._idle) <= 4


def _hash_in_fork(queue: multiprocessing.SimpleQueue[tuple[str, int]]) -> None:
    queue.put((inspect(shipped(LOSSLESS)).pixel_hash, codec._idle[0].pid))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_a_child_of_its_own() -> None:
    here = inspect(shipped(LOSSLESS)).pixel_hash
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=_hash_in_fork, args=(queue,))
    worker.start()
    there, pid = queue.get()
    worker.join()
    assert there == here
    assert pid != codec._idle[0].pid


def test_a_missing_decoder_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, runpy; sys.modules['gdcm'] = None; "
        f"runpy.run_path({codec.__file__!r}, run_name='__main__')"
    )
    pretend(monkeypatch, program)
    assert "pip install python-gdcm" in inspect(shipped(LOSSLESS)).error

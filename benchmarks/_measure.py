"""Runs a function in a fresh process and watches the memory of all processes that come of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_INTERVAL_S = 0.02
_LARGEST_SHARE = 0.05  # of the time may go into looking: the cores are wanted by what is looked at
_MB = 1000  # kB


@dataclass(frozen=True)
class Measured:
    """What a process gave, and what it took together with its children, at most.

    Attributes:
        values: The process' own figures.
        peak_mb: Anonymous and shared memory, a page that several processes share counted once: what the
            system must hold. Files that are mapped are not in it, it may drop those.
        peak_rss_mb: Sum of resident sizes, with mapped files, and shared pages counted several times.
        processes: At most at a time.
    """

    values: dict[str, Any]
    peak_mb: float
    peak_rss_mb: float
    processes: int


def measure(module: str, arguments: dict[str, Any], home: Path) -> Measured:
    """Run `python -m MODULE ARGUMENTS-AS-JSON`, whose last line of output is an object in JSON.

    Args:
        module: Has such a main program.
        arguments: What it is told.
        home: State folder of radloop and cache of `datasets`; a fresh folder is a first run.

    Raises:
        RuntimeError: It failed; the message ends with what it printed.
    """
    home.mkdir(parents=True, exist_ok=True)
    variables = {"RADLOOP_HOME": home / "radloop", "HF_HOME": home / "hf", "TMPDIR": home}
    plain = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(arguments)],
            cwd=ROOT,
            env=os.environ | plain | {name: str(path) for name, path in variables.items()},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        peak, peak_rss, processes = _watch(process)
        output.seek(0)
        printed = output.read().strip()
    if process.returncode:
        raise RuntimeError(f"{module} ended with code {process.returncode}: {printed[-2000:]}")
    return Measured(json.loads(printed.splitlines()[-1]), peak / _MB, peak_rss / _MB, processes)


def checksum(hashes: Iterable[str]) -> str:
    """Sum hexadecimal numbers: compares sets of hashes without holding them."""
    return f"{sum(int(text, 16) for text in hashes) % 2**128:032x}"


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, int, int]:
    """Wait for the end of the process, and return both peaks in kB, and that of processes."""
    peaks = (0, 0, 0)
    while process.poll() is None:
        start = time.monotonic()
        found = [_memory(pid) for pid in _tree(process.pid)]
        now = sum(held for held, _ in found), sum(rss for _, rss in found), len(found)
        peaks = max(peaks[0], now[0]), max(peaks[1], now[1]), max(peaks[2], now[2])
        time.sleep(max(_INTERVAL_S, (time.monotonic() - start) / _LARGEST_SHARE))
    return peaks


def _tree(pid: int) -> list[int]:
    found = [pid]
    for process in found:  # grows while it is gone through
        for tasks in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, tasks.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {name: int(size.split()[0]) for name, size in (line.split(":") for line in lines)}
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"], sizes["Rss"]

"""Freed memory stays with the process for the steps of a run, and no longer."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, psutil
from contextlib import nullcontext
from radloop.training.allocator import freed_memory_kept

def resident():
    return psutil.Process().memory_info().rss / 1e6

before = resident()
with {block}:
    blocks = [ctypes.create_string_buffer(b"x" * 2**20) for _ in range(200)]
    held = resident()
    del blocks
    kept = resident()
print(held - before, kept - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told to keep memory")
@pytest.mark.parametrize("block", ["freed_memory_kept()", "nullcontext()"])
def test_freed_memory_is_kept_in_the_block_and_handed_back_after_it(block: str) -> None:
    program = [sys.executable, "-c", SCRIPT.format(block=block)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    held, kept, after = map(float, done.stdout.split())
    assert held > 190
    assert kept > 190 if block != "nullcontext()" else kept < 50
    assert after < 50

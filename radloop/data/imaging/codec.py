"""Decoders that may not be trusted with damaged bytes, in a process of their own.

GDCM ends the whole process on many damaged JPEG streams, and others keep decoders busy without end.
So they run in a child process with a limit on memory and time; the next image gets a new one.
This file is also the child's program: it must import nothing of radloop.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

DECODE_SECONDS = 30.0
_CHILD_BYTES = 4 << 30  # of address space: a frame of 64 megapixels, several times
_LENGTHS = struct.Struct("<IQ")
_RLE = "1.2.840.10008.1.2.5"
_idle: list[subprocess.Popen[bytes]] = []


def decode_apart(encoded: bytes, syntax: str, options: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """Decode one frame of JPEG lossless, 12-bit JPEG, JPEG-LS, JPEG 2000 or RLE data.

    Args:
        encoded: The frame's codestream.
        syntax: UID of its transfer syntax.
        options: Layout of the frame in the words of pydicom's `Decoder.as_array`.

    Returns:
        The decoded values and their photometric interpretation.

    Raises:
        ImageError: The data is damaged, or its decoder is not installed.
    """
    from radloop.data.imaging.limits import ImageError, reason

    process = _take()
    timer = threading.Timer(DECODE_SECONDS, process.kill)
    timer.start()
    try:
        assert process.stdin
        assert process.stdout
        _send(process.stdin, {"syntax": syntax, "options": dict(options)}, encoded)
        reply, pixels = _receive(process.stdout)
    except (OSError, EOFError):
        process.kill()
        code = process.wait()
        raise ImageError(
            f"its encoded data cannot be decoded: the decoder ended with code {code} "
            f"or took more than {DECODE_SECONDS:.0f} seconds"
        ) from None
    finally:
        timer.cancel()
    _idle.append(process)
    if "error" in reply:
        raise ImageError(f"cannot be decoded: {reason(reply['error'])}")
    return np.frombuffer(pixels, reply["dtype"]).reshape(reply["shape"]), reply["photometric"]


def _take() -> subprocess.Popen[bytes]:
    """An idle child that lives, else a new one; each serves one thread at a time."""
    while _idle:
        try:
            process = _idle.pop()
        except IndexError:  # another thread was faster
            break
        if process.poll() is None:  # not killed meanwhile, nor left over from before a fork
            return process
    # -P: the files beside this one must not shadow modules of the same name.
    return subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


@atexit.register
def _stop() -> None:
    for process in _idle:
        process.kill()
        process.wait()


def _send(stream: Any, header: dict[str, Any], payload: bytes | memoryview) -> None:
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(payload)))
    stream.write(text)
    stream.write(payload)
    stream.flush()


def _receive(stream: Any) -> tuple[dict[str, Any], bytes]:
    text_length, payload_length = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    return json.loads(_exactly(stream, text_length)), _exactly(stream, payload_length)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _serve() -> None:
    """The child: decode what comes in until the parent closes the pipe."""
    _limit()
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the decoders' own prints must not mix with replies
    while True:
        try:
            header, encoded = _receive(requests)
        except EOFError:
            return
        try:
            reply, pixels = _decode(encoded, **header)
        except Exception as error:  # decoders raise anything on hostile bytes
            reply, pixels = {"error": str(error) or type(error).__name__}, b""
        _send(replies, reply, pixels)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_CHILD_BYTES, _CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _decode(encoded: bytes, syntax: str, options: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    plugin = "pydicom" if syntax == _RLE else "gdcm"
    decoder = get_decoder(syntax)
    if plugin not in decoder.available_plugins:
        raise RuntimeError("its transfer syntax needs GDCM: pip install python-gdcm")
    pixels, facts = decoder.as_array(
        encapsulate([encoded], has_bot=False), index=0, decoding_plugin=plugin, **options
    )
    reply = {
        "dtype": pixels.dtype.str,
        "shape": pixels.shape,
        "photometric": str(facts["photometric_interpretation"]),
    }
    return reply, pixels.tobytes()


if __name__ == "__main__":
    _serve()

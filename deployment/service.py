"""The endpoint of one model version, as its Bento runs it.

Examples:
    curl -F image=@chest.png -F question="Is the heart enlarged?" http://localhost:3000/answer
    curl http://localhost:3000/model

The routes are plain ones beside BentoML's own (/livez, /readyz, /healthz, /metrics): BentoML's
method routes would also take a URL in place of an image and fetch it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from radloop.errors import RadloopError

MODEL_FOLDER = Path(__file__).parent.parent / "model"
MAX_UPLOAD = 20 * 2**20  # bytes of a whole request
ALIAS_VARIABLE = "RADLOOP_ALIAS"

logger = logging.getLogger("radloop.service")


async def answer(request: Request) -> Response:
    """POST /answer: multipart form with the file `image` and the text `question`."""
    start = time.perf_counter()
    service = bentoml.get_current_service()
    image, question = await _read_form(request)
    reply = await run_in_threadpool(service.answerer.answer, image, question)
    return JSONResponse(
        {
            "answer": reply.text,
            "confidence": round(reply.confidence, 4),
            "model": {key: service.model[key] for key in ("name", "version", "fingerprint", "alias")},
            "seconds": round(time.perf_counter() - start, 4),
        }
    )


async def model(request: Request) -> Response:
    """GET /model: which version answers here, and how it scored."""
    return JSONResponse(bentoml.get_current_service().model)


async def _read_form(request: Request) -> tuple[bytes, str]:
    if int(request.headers.get("content-length", "0")) > MAX_UPLOAD:
        raise HTTPException(413, _TOO_LARGE)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(400, f"expected multipart/form-data with image and question; {_USAGE}")
    async with _bounded(request).form(max_files=1, max_fields=1) as form:
        image, question = form.get("image"), form.get("question")
        if not isinstance(image, UploadFile):
            raise HTTPException(400, f"the form has no file 'image'; {_USAGE}")
        if not isinstance(question, str):
            raise HTTPException(400, f"the form has no text 'question'; {_USAGE}")
        return await image.read(), question


def _bounded(request: Request) -> Request:
    """The same request, which stops once more came than it announced or than is allowed."""
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > MAX_UPLOAD:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return Request(request.scope, receive)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _unusable(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, 422)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the model failed on this request; the server's log says why"}, 500)


_USAGE = "send it as: curl -F image=@FILE -F question=TEXT URL/answer"
_TOO_LARGE = f"the request is larger than {MAX_UPLOAD // 2**20} MB; send a smaller image"

routes = Starlette(
    routes=[Route("/answer", answer, methods=["POST"]), Route("/model", model, methods=["GET"])],
    exception_handlers={HTTPException: _refused, RadloopError: _unusable, Exception: _failed},
)


@bentoml.service(name="radloop", workers=1, traffic={"timeout": 60, "max_concurrency": 32})
@bentoml.asgi_app(routes, path="/")
class RadloopService:
    """Answers questions on radiology images. Research use; not a medical device."""

    def __init__(self) -> None:
        from radloop.answering import Answerer

        self.answerer = Answerer(MODEL_FOLDER)
        facts: dict[str, Any] = json.loads((MODEL_FOLDER / "model.json").read_text())
        self.model = {**facts, "alias": os.environ.get(ALIAS_VARIABLE) or None}

"""The chat page: a client of the endpoint, in its own process.

Examples:
    python -m deployment.app --endpoint http://127.0.0.1:3000 --port 7860
"""

from __future__ import annotations

import argparse
import asyncio
import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
from PIL import Image

from radloop import ports
from radloop.answering import MAX_QUESTION
from radloop.data.phantoms.phantom import Stream, make_phantom
from radloop.errors import RadloopError

DISCLAIMER = "Research use. Not a medical device."
QUESTIONS = (  # as the simulated data word them, and none that presumes a finding
    "Is there cardiomegaly?",
    "Is there a pleural effusion?",
    "How many lung nodules are there?",
    "What device can be seen?",
    "What abnormality is seen in the left lung?",
)
MAX_UPLOAD = "20mb"  # the endpoint's own limit
_TIMEOUT = httpx.Timeout(60.0, connect=3.0)  # seconds
_KEPT = 1800  # seconds: how long an uploaded image may be asked about
_EXAMPLE_SEED, _EXAMPLE_SIZE = 2026, 384  # shown larger than the model sees them
_STYLE = Path(__file__).with_name("app.css")

Chat = list[dict[str, Any]]


def build_app(endpoint: str) -> gr.Blocks:
    """Build the page: image at the left, chat at the right, the answering version at the top.

    Args:
        endpoint: Address of the service, such as "http://127.0.0.1:3000".
    """
    client = _Client(endpoint)
    # Uploads may be patients' images: none is kept much longer than this, nor past the server's end.
    with gr.Blocks(title="radloop", analytics_enabled=False, delete_cache=(300, _KEPT)) as page:
        badge = gr.HTML(client.badge(), elem_id="badge")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=4, min_width=320):
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=490,
                    elem_id="image",
                    placeholder="Drop a radiograph here\n- or -\nclick to choose a file",
                )
                # The endpoint gets the file as it is, and judges whether it is an image. (A subclass would do
                # too, but Gradio writes a stub file beside the source of each.)
                image.preprocess = _path  # type: ignore[method-assign]
                gr.Examples(_example_images(), image, label="Simulated examples", elem_id="examples")
            with gr.Column(scale=6, min_width=320):
                chat = gr.Chatbot(
                    label="Chat",
                    show_label=False,
                    height=490,
                    elem_id="chat",
                    buttons=["copy_all"],
                    feedback_options=None,
                    latex_delimiters=[],
                    placeholder="### Ask about the image\nChoose one, then type a question below.",
                )
                with gr.Row(elem_id="ask", equal_height=True):
                    question = gr.Textbox(
                        placeholder="Ask a question about the image",
                        label="Question",
                        show_label=False,
                        container=False,
                        max_lines=3,
                        max_length=MAX_QUESTION,
                        scale=8,
                        elem_id="question",
                        autofocus=True,
                    )
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="send")
                with gr.Row(elem_id="suggestions"):
                    chips = [gr.Button(text, size="sm", min_width=40) for text in QUESTIONS]
        gr.HTML(f"<footer>{DISCLAIMER} Answers can be wrong. The confidence is the model's own.</footer>")

        # One listener for all ways to ask: while an answer is awaited, none of them asks again.
        asking = gr.on(
            [question.submit, send.click, *(chip.click for chip in chips)],
            client.ask,
            [question, image, chat],
            [question, chat, badge],
            concurrency_limit=8,
            api_visibility="private",
        )
        # An answer that is still awaited belongs to the image before: it must not end up in the new chat.
        # Both happen in the browser alone: were the server asked to empty the chat, a question sent right
        # after the image could be lost, as the server's stream of events ends with the last one it knows of.
        image.change(None, None, chat, js="() => [[]]", cancels=asking, api_visibility="private")
        page.load(client.badge, None, badge, queue=False, api_visibility="private")  # no stream: see above
    return page


def run_app(endpoint: str, port: int = 7860, host: str = "127.0.0.1") -> None:
    """Serve the page until the process is stopped.

    Raises:
        RadloopError: The port is taken.
    """
    ports.require_free(host, port)
    print(f"radloop chat page: http://{host}:{port} (endpoint {endpoint}); stop with Ctrl+C", flush=True)
    build_app(endpoint).launch(
        server_name=host,
        server_port=port,
        quiet=True,
        share=False,
        theme=_theme(),
        css=_STYLE.read_text(),
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
    )


class _Client:
    """Talks to the endpoint, and turns what it says into pieces of the page."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint.rstrip("/")

    def badge(self) -> str:
        """The line that says which version answers."""
        try:
            facts = httpx.get(f"{self.endpoint}/model", timeout=_TIMEOUT).raise_for_status().json()
            parts = [
                f"{facts['name']} version {facts['version']}",
                facts["alias"],
                f"data {facts['fingerprint']}",
            ]
            score = facts["metrics"].get("exact_match")
        except (httpx.HTTPError, ValueError, KeyError):
            return _head(f"<b class='down'>{html.escape(self._down())}</b>")
        if score is not None:
            parts.append(f"exact match {score:.1%}")
        return _head("".join(f"<b>{html.escape(str(part))}</b>" for part in parts if part))

    async def ask(
        self, question: str, image: str | None, chat: Chat, event: gr.EventData
    ) -> AsyncIterator[tuple[str, Chat, Any]]:
        """Put the question into the chat, then the answer or why there is none; hint at what is missing.

        Yields:
            What stands in the question box, the chat, and the badge.
        """
        chip = getattr(event.target, "value", None)
        asked, box = (chip, question) if chip in QUESTIONS else (question.strip(), "")
        hint = _hint(asked, image)
        if hint or image is None:
            gr.Info(hint)
            yield question, chat, gr.skip()
            return
        chat = [*chat, {"role": "user", "content": _plain(asked)}]
        yield box, chat, gr.skip()
        # A thread could not be cancelled, and a question about the next image would wait for this answer.
        reply = await self._reply(asked, image)
        yield gr.skip(), [*chat, {"role": "assistant", "content": reply}], await asyncio.to_thread(self.badge)

    async def _reply(self, question: str, image: str) -> str:
        try:
            content = await asyncio.to_thread(Path(image).read_bytes)
            async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
                response = await client.post(
                    f"{self.endpoint}/answer",
                    files={"image": ("image", content)},  # its name may identify a patient
                    data={"question": question},
                )
            body = response.json()
            if response.is_error:
                return f"The endpoint refused: {_plain(body['error'])}"
            model = body["model"]
            detail = [
                f"confidence {body['confidence']:.0%}",
                f"version {model['version']}",
                f"{body['seconds'] * 1000:.0f} ms",
            ]
            return f"{_plain(body['answer'])}<br><small>{' · '.join(detail)}</small>"
        except FileNotFoundError:
            return f"The image is no longer here: each is kept for {_KEPT // 60} minutes. Choose it again."
        except (httpx.HTTPError, ValueError, KeyError):
            return _plain(self._down())

    def _down(self) -> str:
        return f"The endpoint {self.endpoint} does not answer. Start it with `radloop serve`."


def _path(payload: Any) -> str | None:
    return payload.path if payload else None


def _hint(question: str, image: str | None) -> str:
    if image is None:
        return "Choose or drop an image first, then ask."
    return "" if question else "Type a question about the image."


def _plain(text: str) -> str:
    """Text as it is, not as Markdown or HTML: neither a user nor a model may put markup on the page."""
    return re.sub(r"[^\w\s]|_", lambda match: f"&#{ord(match[0])};", text)


def _head(facts: str) -> str:
    return f"<header><h1>radloop</h1><p>Questions about radiology images</p><div>{facts}</div></header>"


def _example_images() -> list[list[Image.Image]]:
    phantoms = (make_phantom(Stream.TEST, _EXAMPLE_SEED, index, _EXAMPLE_SIZE) for index in range(6))
    return [[Image.fromarray(phantom.pixels)] for phantom in phantoms]


def _theme() -> gr.themes.Base:
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing to download
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=fonts,
        font_mono=("ui-monospace", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        input_background_fill="white",
        button_secondary_background_fill="white",
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description="The radloop chat page.")
    parser.add_argument("--endpoint", default="http://127.0.0.1:3000")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    try:
        run_app(arguments.endpoint, arguments.port)
    except RadloopError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    _main()

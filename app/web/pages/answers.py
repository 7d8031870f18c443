"""Try it: a chat with the adapter and one with the base model, side by side, with the same questions."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nicegui import background_tasks, ui
from nicegui.elements.mixins.text_element import TextElement

from app.domain.error_text.json_text import counted
from app.web.api_client import ApiClient, ApiError
from app.web.api_streams import stream_answer
from app.web.components.elements import box, button, error_note, refilled, tag
from app.web.components.forms import text_area, text_field
from app.web.formatting import clean_lines, duration
from app.web.frame import View

MAX_ANSWER_CHARACTERS = 20_000
DEFAULT_TOKENS = 256
UPDATE_SECONDS = 0.1  # a page gets the text at most this often
BUSY, BUSY_PAUSE_SECONDS, BUSY_SECONDS = 429, 2.0, 240.0  # a worker answers one question at a time


class TryIt:
    """The form, and a column for each model, which keeps its own conversation."""

    def __init__(self, view: View, base_model: str, tuned_model: str) -> None:
        self._api = view.api
        self._client = ui.context.client
        self._task: asyncio.Task[None] | None = None
        with box("t-stack"):
            hint = (
                "Both models get the same questions, the adapter first, at temperature 0. An engine that the adapter "
                "was delivered to answers; without one, an idle worker, which loads the model first and answers one "
                "question at a time."
            )
            self._prompt = text_area("Question", hint=hint)
            with box("t-grid"):
                self._system = text_field("System prompt", hint="Optional; as in the training data.")
                self._tokens = text_field(
                    "Maximum answer (tokens)", str(DEFAULT_TOKENS), kind="number", min="1", step="1"
                )
            with box("t-actions"):
                self._button = button("Ask both", self._toggle, "t-primary")
                self._new = button("New chat", self._start_anew)
                self._new.set_visibility(False)
            with box("t-grid"):
                self._adapter = _AnswerPanel("Adapter", tuned_model)
                self._base = _AnswerPanel("Base model", base_model)
        self._client.on_delete(self._stop)

    def _toggle(self) -> None:
        if self._task is not None and not self._task.done():
            self._stop()
            return
        is_empty = not self._prompt.value.strip()
        self._prompt.set_error("Write a question first." if is_empty else "")
        if not is_empty:
            self._task = background_tasks.create(self._ask(), name="answers of two models")

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _start_anew(self) -> None:
        self._stop()
        for panel in (self._adapter, self._base):
            panel.clear()
        self._new.set_visibility(False)

    async def _ask(self) -> None:
        system, question = self._system.value.strip(), self._prompt.value
        tokens = self._tokens.value  # the API refuses what is none of its numbers
        body = {"temperature": 0, "max_tokens": int(tokens) if tokens.isdecimal() else tokens}
        self._button.set_text("Stop")
        self._new.set_visibility(True)
        try:
            adapter = asyncio.create_task(self._adapter.show(self._api, system, question, body))
            await asyncio.gather(adapter, self._base.show(self._api, system, question, body, after=adapter))
        finally:
            if not self._button.is_deleted:
                self._button.set_text("Ask both")


class _AnswerPanel:
    def __init__(self, label: str, model: str) -> None:
        self._model = model
        self._answer = ""  # the last complete one
        with tag("section", classes="t-stack", aria_label=f"Answer of the {label.lower()}"):
            tag("div", label, "t-label t-muted")
            tag("bdi", model, "t-mono t-wrap")
            self._past = box("t-chat")
            self.clear_past()
            self._text = tag("p", "", "t-answer", dir="auto", aria_live="polite")
            self._text.set_visibility(False)
            self._state: TextElement = box("t-hint", role="status")

    def clear(self) -> None:
        """Forget the conversation."""
        self.clear_past()
        self._state.clear()
        self._state.set_text("")
        self._show_text("")

    def clear_past(self) -> None:
        self._turns: list[dict[str, str]] = []  # complete questions and answers
        self._past.clear()
        self._past.set_visibility(False)

    async def show(
        self, api: ApiClient, system: str, question: str, body: dict[str, Any], after: asyncio.Task[None] | None = None
    ) -> None:
        """Repeat the request until a worker is free; an error stands below what has arrived.

        With `after` it is sent when that one has ended: a single idle worker answers one question at a time.
        """
        self._show_turns()
        self._state.clear()
        self._show_text("")
        messages = [{"role": "system", "content": system}] if system else []
        messages += [*self._turns, {"role": "user", "content": question}]
        try:
            if after is not None:
                self._state.set_text("Waits for the adapter's answer ...")
                await asyncio.wait({after})
            deadline = time.monotonic() + BUSY_SECONDS
            request = body | {"messages": messages}
            while (error := await self._refusal(api, request)) and error.status == BUSY and time.monotonic() < deadline:
                self._state.set_text("Every worker is busy: the question is asked again every 2 s ...")
                await asyncio.sleep(BUSY_PAUSE_SECONDS)
        except asyncio.CancelledError:
            self._state.set_text("Stopped.")
            raise
        if error:
            self._state.set_text("")
            with self._state:
                error_note(error, "No complete answer")
        else:
            self._turns += [messages[-1], {"role": "assistant", "content": self._answer}]

    def _show_turns(self) -> None:
        """Show the questions and answers before the one that is asked now."""
        self._past.set_visibility(bool(self._turns))
        with refilled(self._past):
            for turn in self._turns:
                with box(f"t-message t-{turn['role']}"):
                    tag("p", clean_lines(turn["content"], MAX_ANSWER_CHARACTERS), dir="auto")

    async def _refusal(self, api: ApiClient, body: dict[str, Any]) -> ApiError | None:
        """Show the answer as it arrives; why it is not complete."""
        text, started, shown_at = "", time.monotonic(), 0.0
        tokens: list[int] = []
        self._state.set_text("Waiting for the first token ...")
        try:
            async for piece in stream_answer(api, {"model": self._model, **body}, tokens.append):
                text += piece
                if time.monotonic() - shown_at > UPDATE_SECONDS:
                    self._state.set_text("Answering ...")
                    self._show_text(text)
                    shown_at = time.monotonic()
        except ApiError as error:
            return error
        finally:
            self._show_text(text)
        self._answer = text
        if not text:
            self._show_text("(an empty answer)")
        size = counted(tokens[-1], "token") if tokens else "Complete"
        self._state.set_text(f"{size} in {duration(time.monotonic() - started)}")
        return None

    def _show_text(self, text: str) -> None:
        self._text.set_text(clean_lines(text, MAX_ANSWER_CHARACTERS))
        self._text.set_visibility(bool(text))

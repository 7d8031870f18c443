"""Trial answers: `python -m worker.trainer.answers.trial WORKDIR`, one base model and adapters that change by question.

Reads control lines from standard input and writes records to standard output (app.domain.answers.trial).
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from app.domain.answers.trial import (
    INSTEAD,
    MAX_ADAPTERS,
    MAX_SECONDS,
    AdapterOfAnswer,
    AnswerSpec,
    TokenLogprob,
    TrialControl,
    TrialQuestion,
    TrialRecord,
)
from app.domain.datasets.chat_template import UnusableTemplate
from app.domain.datasets.conversations import ToolsNotPrinted
from app.domain.datasets.render import Renderer, TemplateRefused
from app.domain.jobs.states import ExitCode
from app.system.limited_rendering import limited_renderer
from app.system.tokenizer_files import read_response_template
from worker.trainer.adapter.initial_adapter import load_adapter
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.answers.evaluation import cache_weights_if_they_fit, open_base_to_answer
from worker.trainer.answers.generate import generate
from worker.trainer.answers.response_format import (
    JsonGuide,
    JsonSchemas,
    LogprobRecorder,
    PenaltiesAndBiases,
    SchemaRefused,
)
from worker.trainer.answers.tool_calls import AnswerParser, hermes_parser
from worker.trainer.runtime.failures import Failure, exit_code, is_out_of_memory
from worker.trainer.runtime.process import control_lines, die_with_parent

TOOLS_NOT_PRINTED = (
    "tools: the model's chat template has no place for tools, so they would be left out; describe them in a message, "
    "or send it to a model whose template supports tools"
)
INCOMPLETE = "\ufffd"  # the text of a token that is a part of a character


class Questions:
    """The control lines, read by a thread, so that a question can be stopped while it is answered."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[TrialControl | None] = queue.Queue()
        self._stopped: set[str] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def is_stopped(self, id: str) -> bool:
        return id in self._stopped

    def _read(self) -> None:
        for line in control_lines():
            control = TrialControl.model_validate_json(line)
            if control.stop is not None:
                self._stopped.add(control.stop)
            else:
                self.waiting.put(control)
        self.waiting.put(None)


class AnswerWriter(BaseStreamer):  # type: ignore[misc]
    """Writes text as soon as it is certain: not a part of a character, and not the beginning of a stop text.

    With a parser, which needs the whole text, it is written at the end.
    """

    def __init__(
        self,
        question: TrialQuestion,
        choice: int,
        deadline: float,
        renderer: Renderer,
        questions: Questions,
        parser: AnswerParser | None = None,
    ) -> None:
        self._question, self._choice, self._deadline = question, choice, deadline
        self._renderer, self._questions, self._parser = renderer, questions, parser
        self._has_calls = False
        self._prompt_is_next = True
        self._written = 0
        self._unwritten: list[TokenLogprob] = []
        self.recorder = None if question.top_logprobs is None else LogprobRecorder()
        self.tokens: list[int] = []
        self.has_stopped = False

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with each new token."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        token = int(value)
        if self.recorder is not None:
            self._unwritten.append(self._with_logprob(token, self.recorder.logprobs_V))
        self.tokens.append(token)
        text = self._text()
        stop_at = self._stop_at(text)
        self.has_stopped = stop_at is not None
        if self._parser is not None:
            return
        if stop_at is not None:
            self._write(text, stop_at)
        elif not text.endswith(INCOMPLETE):
            self._write(text, len(text) - max((_overlap(text, stop) for stop in self._question.stop), default=0))

    def end(self) -> None:
        if self._parser is not None and self._write_with_calls(self._parser):
            return
        text = self._text()
        stop_at = self._stop_at(text)
        self._write(text, len(text) if stop_at is None else stop_at)

    def must_end(self, *_: Any, **__: Any) -> bool:
        """A stopping criterion of transformers."""
        is_late = time.monotonic() > self._deadline
        return self.has_stopped or is_late or self._questions.is_stopped(self._question.id)

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"]:
        ended = self.tokens[-1:] and self.tokens[-1] in self._renderer.stop_ids
        if not (ended or self.has_stopped):
            return "length"
        return "tool_calls" if self._has_calls else "stop"

    def _text(self) -> str:
        stops = self._renderer.stop_ids
        return self._renderer.decode([token for token in self.tokens if token not in stops])

    def _stop_at(self, text: str) -> int | None:
        return min((at for at in (text.find(stop) for stop in self._question.stop) if at >= 0), default=None)

    def _write_with_calls(self, parser: AnswerParser) -> bool:
        """Write the answer as content and calls; False if it has no calls."""
        text = str(self._renderer.tokenizer.decode(self.tokens, skip_special_tokens=False))
        answer = parser.parse(text[: self._stop_at(text)])
        if answer is None:
            return False
        self._has_calls = True
        write(
            TrialRecord(
                id=self._question.id,
                type="text",
                choice=self._choice,
                text=answer.content,
                tokens=tuple(self._unwritten),
                reasoning=answer.reasoning,
                tool_calls=answer.tool_calls,
            )
        )
        return True

    def _write(self, text: str, end: int) -> None:
        if end > self._written:
            tokens = tuple(each for each in self._unwritten if each.start < end)
            del self._unwritten[: len(tokens)]
            new_text = text[self._written : end]
            write(TrialRecord(id=self._question.id, type="text", choice=self._choice, text=new_text, tokens=tokens))
            self._written = end

    def _with_logprob(self, token: int, logprobs_V: torch.Tensor) -> TokenLogprob:
        top = logprobs_V.topk(self._question.top_logprobs or 0)
        return TokenLogprob(
            text=self._piece(token),
            start=len(self._text()),
            logprob=float(logprobs_V[token]),
            top=tuple(zip(map(self._piece, top.indices.tolist()), top.values.tolist(), strict=True)),
        )

    def _piece(self, token: int) -> str:
        """The text of a token after the last one; the name of one that has no text, such as an end of turn."""
        last = self.tokens[-1:]
        text = self._renderer.decode([*last, token]).removeprefix(self._renderer.decode(last))
        return text or self._renderer.tokenizer.id_to_token(token) or ""


class TrialProgram:
    def __init__(self, spec: AnswerSpec, questions: Questions) -> None:
        """Load the base model. Raises Failure."""
        self._base = open_base_to_answer(spec)
        cache_weights_if_they_fit(self._base)
        self._renderer = limited_renderer(spec.base.directory)
        self._response_template = read_response_template(spec.base.directory)
        self._context_length = spec.context_length
        self._vocabulary = self._base.text_config.vocab_size
        self._questions = questions
        self._adapters: dict[Path, LoraAdapter] = {}

    def answer(self, question: TrialQuestion, adapter: AdapterOfAnswer | None) -> TrialRecord:
        """Write the text, and return the last record. Raises Failure."""
        refusal = partial(TrialRecord, id=question.id, type="error", reason="invalid_value")
        if unknown := [token for token in question.logit_bias if token >= self._vocabulary]:
            text = f"logit_bias: the model has no token {unknown[0]}; its tokens are 0 to {self._vocabulary - 1}"
            return refusal(message=text, param="logit_bias")
        try:
            prompt, tokens = self._prompt(question)
        except ToolsNotPrinted:
            return refusal(reason="invalid_tools", message=TOOLS_NOT_PRINTED)
        except (TemplateRefused, UnusableTemplate) as error:
            name = "prompt" if question.messages is None else "messages"
            return refusal(message=f"{name}: {error}")
        if not tokens:  # an empty text, and a tokenizer that puts no token before it
            return refusal(message="prompt: it has no tokens, and an answer needs at least one; write some text")
        free = self._context_length - len(tokens)
        if free < 1:
            name, have = ("messages", "have") if question.messages is not None else ("prompt", "has")
            text = (
                f"This model's maximum context length is {self._context_length} tokens. However, your {name} {have} "
                f"{len(tokens)} tokens. Please reduce the length of the {name}."
            )
            return refusal(reason="context_length_exceeded", message=text)
        if question.seed is not None:
            torch.manual_seed(question.seed)
        parser = self._parser(question, prompt)
        loaded, deadline, completion_tokens = self._loaded(adapter), time.monotonic() + MAX_SECONDS, 0
        for choice in range(question.n):
            writer = AnswerWriter(question, choice, deadline, self._renderer, self._questions, parser)
            try:
                self._generate(question, tokens, question.new_tokens(free), loaded, writer)
            except SchemaRefused as error:
                text = f"response_format: {error}; simplify it, or {INSTEAD}"
                return refusal(message=text, param="response_format")
            completion_tokens += len(writer.tokens)
            if choice < question.n - 1:
                write(TrialRecord(id=question.id, type="choice", choice=choice, finish_reason=writer.finish_reason))
        return TrialRecord(
            id=question.id,
            type="end",
            choice=choice,
            finish_reason=writer.finish_reason,
            prompt_tokens=len(tokens),
            completion_tokens=completion_tokens,
        )

    def _generate(
        self,
        question: TrialQuestion,
        tokens: list[int],
        new_tokens: int,
        adapter: LoraAdapter | None,
        writer: AnswerWriter,
    ) -> None:
        """Raises SchemaRefused."""
        processors = [writer.recorder] if writer.recorder else []
        if question.frequency_penalty or question.presence_penalty or question.logit_bias:
            processors.append(PenaltiesAndBiases(question, len(tokens)))
        if question.json_schema is not None:
            processors.append(JsonGuide(self._json_schemas.matcher(question.json_schema), len(tokens)))
        sampling: dict[str, Any] = {}
        if question.temperature > 0:
            sampling = {"do_sample": True, "temperature": question.temperature, "top_p": question.top_p, "top_k": 0}
        generate(
            self._base,
            [tokens],
            adapter,
            self._renderer.stop_ids,
            new_tokens,
            streamer=writer,
            stopping_criteria=StoppingCriteriaList([writer.must_end]),
            logits_processor=LogitsProcessorList(processors),
            **sampling,
        )

    @cached_property
    def _json_schemas(self) -> JsonSchemas:
        return JsonSchemas(self._renderer, self._vocabulary)

    def _prompt(self, question: TrialQuestion) -> tuple[str, list[int]]:
        """The prompt, and its tokens. Raises TemplateRefused for what the chat template would leave out."""
        if question.messages is None:
            return question.prompt or "", self._renderer.encode_plain(question.prompt or "")
        renderer = self._renderer.with_arguments(question.chat_template_kwargs)
        return renderer.prompt(question.messages, question.tools, self._context_length - 1)

    def _parser(self, question: TrialQuestion, prompt: str) -> AnswerParser | None:
        """Finds calls of tools in the answer; None if the model has no form for them that is known here."""
        if not question.tools:
            return None
        if self._response_template is not None:
            return AnswerParser(self._response_template, prompt, question.tools)
        return hermes_parser(prompt, question.tools, self._renderer.stops)

    def _loaded(self, adapter: AdapterOfAnswer | None) -> LoraAdapter | None:
        """Return an adapter, and keep those of the last MAX_ADAPTERS questions; None: the base model."""
        if adapter is None:
            return None
        loaded = self._adapters.pop(adapter.directory, None)
        if loaded is None:
            while len(self._adapters) >= MAX_ADAPTERS:
                self._adapters.pop(next(iter(self._adapters)))
            loaded = load_adapter(self._base, adapter.lora, adapter.directory, adapter.manifest_sha256)
        self._adapters[adapter.directory] = loaded
        return loaded


def main(arguments: list[str]) -> int:
    die_with_parent()
    try:
        spec = AnswerSpec.model_validate_json((Path(arguments[0]) / "spec.json").read_bytes())
    except (IndexError, OSError, ValidationError) as error:
        print(f"usage: python -m worker.trainer.answers.trial WORKDIR ({error})", file=sys.stderr)
        return ExitCode.BAD_SPEC
    questions = Questions()
    program: TrialProgram | None = None
    while (control := questions.waiting.get()) is not None:
        question = control.question
        assert question is not None
        try:
            program = program or TrialProgram(spec, questions)
            write(TrialRecord(id=question.id, type="alive"))  # it is loaded, and ends soon after the client has gone
            write(program.answer(question, control.adapter))
        except Failure as error:
            write(TrialRecord(id=question.id, type="error", message=error.message))
            return exit_code(error.reason)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = "The worker has too little memory for this prompt."
            write(TrialRecord(id=question.id, type="error", message=text))
            return ExitCode.OUT_OF_MEMORY
    return ExitCode.DONE


def write(record: TrialRecord) -> None:
    print(record.model_dump_json(), flush=True)


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

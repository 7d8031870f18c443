"""Rendering: examples -> texts and their trained spans, and from these tokens and loss mask, as plain lists.

The mask follows from the chat template that also renders prompts at inference. The trained span of a turn is from the
start of generation (the template rendered up to the turn, with the generation prompt) to the end-of-turn token.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, BinaryIO, Self

from tokenizers import Tokenizer

from app.domain.datasets.chat_template import ChatTemplate, Message, normalize_messages, with_reasoning_as
from app.domain.datasets.chat_template import TemplateRefused as TemplateRefused
from app.domain.datasets.conversations import (
    Part,
    Span,
    check_context_messages,
    check_each_call,
    check_reasoning,
    check_tools,
    check_trained_calls,
    spans_by_parts,
    split_conversation,
)
from app.domain.datasets.documents import Document, truncate
from app.domain.datasets.encoding import BATCH_CHARACTERS, RenderedText, TextEncoder
from app.domain.datasets.examples import Example, read_examples
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.error_text.json_text import as_json
from app.domain.jobs.spec import DataParameters

ExampleDocuments = tuple[Example, list[Document] | TemplateRefused]  # an example, and its documents of any length
RenderedLine = tuple[int, list[Document]]  # the number of a line, and its documents within the context length

MAX_MESSAGES_IN_ONE_RENDERING = 64  # a longer conversation is rendered in parts
PRINTS_TIME = "strftime_now"  # the function by which a template prints the time
BATCH_EXAMPLES = 64  # encoded in one call
_QUESTION, _REASONING = {"role": "user", "content": "a"}, "reasoning of an answer"
MAX_MESSAGES = 1_000  # of a conversation that cannot be rendered in parts: quadratic time, at most some seconds


class Renderer:
    """A tokenizer and its chat template, without transformers or torch (app.system.tokenizer_files reads them)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None,
        special_tokens: Mapping[str, str],
        stops: Sequence[str] = (),
        bos_tokens: Sequence[int] = (),
        now: datetime | None = None,
        embedding_rows: int | None = None,
        tokenizer_sha256: str = "",
    ) -> None:
        """`stops` end generation besides the eos token; `bos_tokens` begin every text that has no chat template.

        `now` is the time that a template prints, as Llama 3's do; default: the current time. Texts with a token that
        has none of the `embedding_rows` are refused.
        """
        self.tokenizer = tokenizer
        self.special_tokens = special_tokens
        self.eos = special_tokens.get("eos_token") or next(iter(stops), "")
        self.stops = tuple(dict.fromkeys(filter(None, (self.eos, *stops))))
        self.bos_tokens = list(bos_tokens)
        self.now = now or datetime.now()
        self.template = ChatTemplate(chat_template, special_tokens, self.now) if chat_template else None
        self._encoder = TextEncoder(tokenizer, embedding_rows)
        # everything that decides the tokens of an example, but the example itself
        self.identity: list[Any] = [tokenizer_sha256, chat_template, dict(special_tokens), self.stops, self.bos_tokens]
        self.identity += [embedding_rows, self.now.isoformat() if PRINTS_TIME in (chat_template or "") else None]
        self._stop = _alternation(self.stops)
        self.special_pattern = _alternation(_special_texts(tokenizer))
        self._last_special = _alternation(_special_texts(tokenizer), r"\s*\Z")
        self._arguments: dict[str, Any] = {}

    def with_arguments(self, arguments: ChatTemplateArguments | None) -> Self:
        """This renderer, whose template gets these arguments in place of others."""
        values = arguments.model_dump() if arguments else {}
        if values == self._arguments:
            return self
        renderer = copy.copy(self)
        vars(renderer).pop("_reasoning_key", None)
        renderer._arguments = values
        return renderer

    @property
    def rowless_tokens(self) -> list[str]:
        """The tokens for which the embedding of the model has no row."""
        return list(self._encoder.rowless.values())

    @property
    def stop_ids(self) -> list[int]:
        """The tokens at which generation ends."""
        ids = (self.tokenizer.token_to_id(stop) for stop in self.stops)
        return [token for token in ids if token is not None]

    def documents(self, example: Example) -> list[Document]:
        """The documents of each answer of an example. Raises TemplateRefused."""
        return self._encoder.documents(self._texts(example))

    def documents_or_refusal(self, example: Example) -> list[Document] | TemplateRefused:
        """The documents of an example, or why the template or the tokenizer refuses it."""
        try:
            return self.documents(example)
        except TemplateRefused as error:
            return error

    def documents_of_each(self, items: Iterable[Example | Finding]) -> Iterator[ExampleDocuments | Finding]:
        """Yield each example with its documents, or why the template refuses it; findings are passed on, in order.

        Up to BATCH_EXAMPLES examples are rendered before the tokenizer encodes them in one call.
        """
        batch: list[tuple[Example | Finding, list[RenderedText] | TemplateRefused]] = []
        characters = 0
        for item in items:
            texts = self._texts_or_refusal(item) if isinstance(item, Example) else []
            batch.append((item, texts))
            characters += 0 if isinstance(texts, TemplateRefused) else sum(map(len, texts))
            if len(batch) == BATCH_EXAMPLES or characters > BATCH_CHARACTERS:
                yield from self._encoded(batch)
                batch, characters = [], 0
        yield from self._encoded(batch)

    def _encoded(
        self, batch: Sequence[tuple[Example | Finding, list[RenderedText] | TemplateRefused]]
    ) -> Iterator[ExampleDocuments | Finding]:
        documents = self._encoder.documents_of_each([texts for _, texts in batch if isinstance(texts, list)])
        for item, texts in batch:
            found = next(documents) if isinstance(texts, list) else texts
            yield (item, found) if isinstance(item, Example) else item

    def _texts(self, example: Example) -> list[RenderedText]:
        renderer = self.with_arguments(example.chat_template_kwargs)
        return [
            replace(text, role=role)
            for role, messages, first in example.answers
            for text in renderer._answer(example, messages, first)
        ]

    def _texts_or_refusal(self, example: Example) -> list[RenderedText] | TemplateRefused:
        try:
            return self._texts(example)
        except TemplateRefused as error:
            return error

    def _answer(self, example: Example, messages: Sequence[Message], first: int) -> list[RenderedText]:
        if example.text is not None:
            return [self._plain(example.line, example.text)]
        if example.completion is not None:
            return [self._completion(example.line, str(example.prompt), example.completion)]
        return self._conversation(example, messages, first)

    def lines(
        self, max_line_bytes: int, parameters: DataParameters, file: BinaryIO, check: Callable[[], None] = lambda: None
    ) -> Iterator[RenderedLine | Finding]:
        """Yield each line of a dataset, or what is wrong with it. `check` is called for each, and may raise."""
        for item in self.documents_of_each(read_examples(file, max_line_bytes, parameters)):
            check()
            if isinstance(item, Finding):
                yield item
                continue
            example, documents = item
            if isinstance(documents, TemplateRefused):
                yield Finding(example.line, str(documents), "template_refused")
            else:
                yield example.line, truncate(documents, parameters)

    def text(self, messages: Sequence[Message], tools: Sequence[Message] = (), prompt: bool = False) -> str:
        """The rendered conversation; `prompt` adds the generation prompt. Raises TemplateRefused."""
        if self.template is None:
            raise TemplateRefused("the base model's tokenizer has no chat template; use prompt/completion lines")
        return self.template.text(messages, tools, prompt, self._arguments)

    def normalized(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as this template expects them, their reasoning under the key that it prints."""
        normalized = normalize_messages(messages)
        if not any(key in message for message in normalized for key in REASONING_KEYS):
            return normalized
        key = self._reasoning_key
        return [with_reasoning_as(key, message) for message in normalized] if key else normalized

    def renders_differently(
        self, messages: list[Message], tools: Sequence[Message], fewer: list[Message], fewer_tools: Sequence[Message]
    ) -> bool:
        """Whether the template prints what `fewer` messages and tools lack; also true if it refuses them."""
        try:
            return self.text(fewer, fewer_tools) != self.text(messages, tools)
        except TemplateRefused:
            return True

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), max_checked_tokens: int = 0
    ) -> tuple[str, list[int]]:
        """The prompt of a conversation, and its tokens. Raises TemplateRefused.

        With up to `max_checked_tokens` also for tools, and for calls and results of tools in the first messages, that
        the template does not print.
        """
        normalized = self.normalized(messages)
        text = self.text(normalized, tools, prompt=True)
        tokens = self.encode(text)
        if len(tokens) <= max_checked_tokens:
            check_tools(self.renders_differently, normalized, tools)
            if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in normalized):
                part = Part.whole(normalized[:MAX_MESSAGES_IN_ONE_RENDERING], tools)
                check_context_messages(self.renders_differently, part, trained=frozenset())
        return text, tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Raises TemplateRefused for one without a row in the embedding."""
        return self._encoder.tokens(text)

    def encode_plain(self, text: str) -> list[int]:
        """The tokens of a text without a chat template, as at inference: after the beginning-of-sequence token."""
        tokens = self.encode(text)
        return tokens if tokens[: len(self.bos_tokens)] == self.bos_tokens else [*self.bos_tokens, *tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The key of an answer's reasoning that the template prints; None if it prints both keys or neither."""
        answer = {"role": "assistant", "content": "b"}
        printed = [
            key for key in REASONING_KEYS if _is_printed(self, [_QUESTION, answer | {key: _REASONING}], _REASONING)
        ]
        return printed[0] if len(printed) == 1 else None

    # --- a conversation ----------------------------------------------------------------------------------------------

    def _conversation(self, example: Example, messages: Sequence[Message], first: int) -> list[RenderedText]:
        """One text, or one per trained turn if the template renders earlier turns differently later on.

        The trained turns are the assistant messages from index `first` on whose weight is not 0.
        """
        line, tools = example.line, example.tools
        trained = [i for i, message in enumerate(messages) if i >= first and _is_trained(message)]
        normalized = self.normalized(messages)
        text = self.text(normalized, tools)
        check_tools(self.renders_differently, normalized, tools)
        parts, spans = self._by_parts(normalized, trained, tools, text) or ([Part.whole(normalized, tools)], None)
        trained_turns = frozenset(trained)
        for part in parts:
            check_context_messages(self.renders_differently, part, trained_turns)
        if spans is None:  # those in the text of the whole conversation, if all are in it
            found = [self._span(normalized, i, tools, text) for i in trained]
            spans = [span for span in found if span is not None] if None not in found else None
        if spans is None:
            texts = [self._turn(line, normalized, i, tools) for i in trained]
        else:
            self._check_trained(parts, dict(zip(trained, spans, strict=True)), text)
            texts = [RenderedText(line, text, spans)]
        if example.parameters.line_rules > 1:
            for part in parts:
                check_each_call(self.renders_differently, part, trained_turns)
        return texts

    def _by_parts(
        self, messages: list[Message], trained: Sequence[int], tools: Sequence[Message], text: str
    ) -> tuple[list[Part], list[Span]] | None:
        """The parts of a long conversation, and the spans of its trained turns in `text`, the whole conversation.

        None for a short conversation, or if the template does not render the parts alike. Raises TemplateRefused for
        more than MAX_MESSAGES messages that it does not render alike.
        """
        if len(messages) <= MAX_MESSAGES_IN_ONE_RENDERING:
            return None
        parts = list(split_conversation(messages, tools))
        spans = spans_by_parts(self.text, self._span, parts, trained, text)
        if spans is not None and (not spans or self._span(messages, trained[-1], tools, text) == spans[-1]):
            return parts, spans
        if len(messages) > MAX_MESSAGES:
            raise TemplateRefused(
                f"a conversation of {len(messages):,} messages; at most {MAX_MESSAGES:,} are allowed with this model, "
                "whose chat template renders a message depending on earlier ones; split it into several lines"
            )
        return None

    def _span(self, messages: list[Message], turn: int, tools: Sequence[Message], text: str) -> Span | None:
        """The span of the turn in the text of the conversation; None if that text differs up to the turn's end."""
        before = self.text(messages[:turn], tools, prompt=True)
        through = self.text(messages[: turn + 1], tools)
        if not through.startswith(before):
            return None
        span = Span(len(before), self._end_of_turn(through, len(before)))
        if not text.startswith(through[: span.end]):  # the text after the turn may differ
            return None
        return span

    def _turn(self, line: int, messages: list[Message], turn: int, tools: Sequence[Message]) -> RenderedText:
        """The conversation up to this turn."""
        through = self.text(messages[: turn + 1], tools)
        span = self._span(messages, turn, tools, through)
        if span is None:
            raise TemplateRefused(
                f"message {turn + 1}: the model's chat template does not start an answer with its generation prompt, "
                "so the trained text would differ from the generated text"
            )
        self._check_trained([Part.whole(messages, tools)], {turn: span}, through)
        return RenderedText(line, through, [span])

    def _end_of_turn(self, text: str, start: int) -> int:
        """The end of the first stop token, at which generation stops; without one the end of the text.

        Some templates end a turn with a special token that the model's files do not declare as a stop token.
        """
        match = self._stop.search(text, start) if self._stop else None
        if match is None and self._last_special:
            match = self._last_special.search(text, start)
        return match.end(1) if match else len(text)

    def _check_trained(self, parts: Sequence[Part], spans: Mapping[int, Span], text: str) -> None:
        """Check the text of each trained turn; `spans` is by the turn's index in the conversation."""
        for part in parts:
            for turn in part.turns:
                if turn in spans:
                    trained_text = text[spans[turn].start : spans[turn].end]
                    self._check_turn(part.message(turn), turn, trained_text)
                    check_reasoning(self.renders_differently, part, turn, trained_text)

    def _check_turn(self, message: Message, turn: int, trained_text: str) -> None:
        """Raise TemplateRefused if the turn contains a stop token, or calls that the template does not print."""
        written = "\n".join([message["content"], *(message.get(key, "") for key in REASONING_KEYS)])
        if self._stop and (stop := self._stop.search(written)):
            raise TemplateRefused(
                f"message {turn + 1} contains {as_json(stop[1])}, which ends the model's turn: nothing after it can be "
                "generated; remove it from the text"
            )
        check_trained_calls(message, turn, trained_text)

    # --- without a chat template --------------------------------------------------------------------------------------

    def _completion(self, line: int, prompt: str, completion: str) -> RenderedText:
        text = prompt + completion + self.eos
        return RenderedText(line, text, [Span(len(prompt), len(text))], self.bos_tokens)

    def _plain(self, line: int, text: str) -> RenderedText:
        text += self.eos
        return RenderedText(line, text, [Span(0, len(text))], self.bos_tokens, is_text=True)


def _is_printed(renderer: Renderer, messages: Sequence[Message], text: str) -> bool:
    try:
        return text in renderer.text(messages)
    except TemplateRefused:
        return False


def _is_trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _alternation(words: Iterable[str], tail: str = "") -> re.Pattern[str] | None:
    """A pattern that matches any of the words, the longest first, as group 1."""
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(f"({alternatives}){tail}") if alternatives else None


def _special_texts(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]

"""Examples -> tokens and loss mask, as plain lists: what the model sees, and which of it is learned.

The mask follows from the template the adapter will be served with. A turn is learned from where generation would start
(the template rendered up to it, with the generation prompt) to the end-of-turn token that generation would produce.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

from tokenizers import Tokenizer

from app.domain.datasets.chat_template import ChatTemplate, Message, for_template
from app.domain.datasets.chat_template import TemplateRefused as TemplateRefused
from app.domain.datasets.conversation_parts import Part, Span, are_within, parts, spans_by_parts
from app.domain.datasets.documents import NON_PREFERRED, PREFERRED, Document
from app.domain.datasets.examples import Example
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.datasets.template_checks import (
    check_context,
    check_each_call,
    check_learned_calls,
    check_reasoning,
    check_tools,
)
from app.domain.error_text.json_text import as_json

RENDERED_WHOLE = 64  # messages: a longer conversation is rendered part by part
MAX_MESSAGES = 1_000  # of a conversation that cannot be, which takes time by their square: at most some seconds


class Renderer:
    """A tokenizer and its chat template, read from a base model's directory without importing transformers or torch."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None,
        specials: Mapping[str, str],
        stops: Sequence[str] = (),
        opening: Sequence[int] = (),
        now: datetime | None = None,
    ) -> None:
        """`stops` end generation beside the eos token; `opening` is what begins every text that no template writes.

        `now` is what a template prints that asks for the time, as Llama 3's do; absent: that of this call.
        """
        self.tokenizer = tokenizer
        self.specials = specials
        self.eos = specials.get("eos_token") or next(iter(stops), "")
        self.stops = tuple(dict.fromkeys(filter(None, (self.eos, *stops))))
        self.opening = list(opening)
        self.now = now or datetime.now()
        self.template = ChatTemplate(chat_template, specials, self.now) if chat_template else None
        self._stop = _any_of(self.stops)
        self._can_cut = _can_cut(tokenizer)
        self.special = _any_of(_special_texts(tokenizer))
        self._last_special = _any_of(_special_texts(tokenizer), r"\s*\Z")

    @property
    def stop_ids(self) -> list[int]:
        """The tokens at which generation ends."""
        ids = (self.tokenizer.token_to_id(stop) for stop in self.stops)
        return [token for token in ids if token is not None]

    def documents(self, example: Example) -> list[Document]:
        """One document, or one per learned turn where the template renders earlier turns differently later on.

        Of a pair, those of the preferred answer and then those of the other. Raises TemplateRefused.
        """
        if example.text is not None:
            return [self._plain(example.line, example.text)]
        if example.completion is not None:
            return [self._completion(example.line, str(example.prompt), example.completion)]
        if not example.is_pair:
            return self._conversation(example, example.messages)
        return [
            replace(document, side=side)
            for side, answer in ((PREFERRED, example.preferred), (NON_PREFERRED, example.non_preferred))
            for document in self._conversation(example, (*example.messages, *answer), first=len(example.messages))
        ]

    def text(self, messages: Sequence[Message], tools: Sequence[Message] = (), prompt: bool = False) -> str:
        """The template's text; `prompt` adds what precedes an answer. Raises TemplateRefused."""
        if self.template is None:
            raise TemplateRefused("the base model's tokenizer has no chat template; use prompt/completion lines")
        return self.template.text(messages, tools, prompt)

    def prints(
        self, whole: list[Message], tools: Sequence[Message], less: list[Message], fewer_tools: Sequence[Message]
    ) -> bool:
        """Whether the text is another one with less in it. A template that refuses it then has seen the difference."""
        try:
            return self.text(less, fewer_tools) != self.text(whole, tools)
        except TemplateRefused:
            return True

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """A text that no template wrote, as it is served: after the token that begins a sequence, if there is one."""
        tokens = self.encode(text)
        return tokens if tokens[: len(self.opening)] == self.opening else [*self.opening, *tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    # --- a conversation ----------------------------------------------------------------------------------------------

    def _conversation(self, example: Example, messages: Sequence[Message], first: int = 0) -> list[Document]:
        """Learned are the assistant's messages from the index `first` on, but for those with weight 0."""
        line, tools = example.line, example.tools
        learned = [i for i, message in enumerate(messages) if i >= first and _is_learned(message)]
        shaped = for_template(messages)
        whole = self.text(shaped, tools)
        check_tools(self.prints, shaped, tools)
        cut, spans = self._by_parts(shaped, learned, tools, whole) or ([Part.whole(shaped, tools)], None)
        is_learned = frozenset(learned)
        for part in cut:
            check_context(self.prints, part, is_learned)
        if spans is None:
            spans = self._as_one(shaped, learned, tools, whole)
        if spans is None:
            documents = [self._turn(line, shaped, i, tools) for i in learned]
        else:
            self._check_learned(cut, dict(zip(learned, spans, strict=True)), whole)
            documents = [self._document(line, whole, spans)]
        if example.rules > 1:
            for part in cut:
                check_each_call(self.prints, part, is_learned)
        return documents

    def _by_parts(
        self, messages: list[Message], learned: Sequence[int], tools: Sequence[Message], whole: str
    ) -> tuple[list[Part], list[Span]] | None:
        """The parts of a long conversation, and where its learned turns stand in the whole text.

        None for a short one, and where the parts do not tell; raises TemplateRefused for a very long one of those.
        """
        if len(messages) <= RENDERED_WHOLE:
            return None
        cut = list(parts(messages, tools))
        spans = spans_by_parts(self.text, self._span, cut, learned, whole)
        if spans is not None and (not spans or self._span(messages, learned[-1], tools, whole) == spans[-1]):
            return cut, spans
        if len(messages) > MAX_MESSAGES:
            raise TemplateRefused(
                f"a conversation of {len(messages):,} messages, but this model's chat template does not print "
                f"each by itself, so it takes at most {MAX_MESSAGES:,}; split it into several lines"
            )
        return None

    def _as_one(
        self, messages: list[Message], learned: Sequence[int], tools: Sequence[Message], whole: str
    ) -> list[Span] | None:
        """Where the learned turns stand in the whole text; None where one of them stands in another text only."""
        found = [self._span(messages, i, tools, whole) for i in learned]
        stable = [span for span in found if span is not None]
        return stable if len(stable) == len(found) else None

    def _span(self, messages: list[Message], turn: int, tools: Sequence[Message], whole: str) -> Span | None:
        """Where the turn stands in the whole text; None where the whole text is another one up to there."""
        before = self.text(messages[:turn], tools, prompt=True)
        through = self.text(messages[: turn + 1], tools)
        if not through.startswith(before):
            return None
        span = Span(len(before), self._end_of_turn(through, len(before)))
        if not whole.startswith(through[: span.end]):  # what follows the turn is nobody's to learn, and may differ
            return None
        return span

    def _turn(self, line: int, messages: list[Message], turn: int, tools: Sequence[Message]) -> Document:
        """The conversation as it is when this turn is the newest."""
        through = self.text(messages[: turn + 1], tools)
        span = self._span(messages, turn, tools, through)
        if span is None:
            raise TemplateRefused(
                f"message {turn + 1}: the model's chat template does not begin an answer with its generation prompt, "
                "so what is learned would not be what is generated"
            )
        self._check_learned([Part.whole(messages, tools)], {turn: span}, through)
        return self._document(line, through, [span])

    def _end_of_turn(self, text: str, start: int) -> int:
        """Generation stops at the first stop token: what a template prints after it is never generated.

        A template may end its turns with a special token that the model's files do not name as a stop; then that one.
        """
        found = self._stop.search(text, start) if self._stop else None
        if found is None and self._last_special:
            found = self._last_special.search(text, start)
        return found.end(1) if found else len(text)

    def _check_learned(self, cut: Sequence[Part], spans: Mapping[int, Span], text: str) -> None:
        """Check each learned turn, by its index in the conversation, against its text."""
        for part in cut:
            for turn in part.turns:
                if turn in spans:
                    learned = text[spans[turn].start : spans[turn].end]
                    self._check(part.message(turn), turn, learned)
                    check_reasoning(self.prints, part, turn, learned)

    def _check(self, message: Message, turn: int, learned: str) -> None:
        """What the user wrote is learned, or refused: a template may print less than that, and a stop token ends it."""
        written = "\n".join([message["content"], *(message.get(key, "") for key in REASONING_KEYS)])
        if self._stop and (stop := self._stop.search(written)):
            raise TemplateRefused(
                f"message {turn + 1} contains {as_json(stop[1])}, which ends the model's turn: nothing after it can be "
                "generated; remove it from the text"
            )
        check_learned_calls(message, turn, learned)

    # --- what no template writes -------------------------------------------------------------------------------------

    def _completion(self, line: int, prompt: str, completion: str) -> Document:
        text = prompt + completion + self.eos
        return self._document(line, text, [Span(len(prompt), len(text))], self.opening)

    def _plain(self, line: int, text: str) -> Document:
        text += self.eos
        return replace(self._document(line, text, [Span(0, len(text))], self.opening), is_text=True)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _document(self, line: int, text: str, spans: Sequence[Span], opening: Sequence[int] = ()) -> Document:
        tokens, starts = self._tokens(text, spans)
        labelled = are_within(starts, spans)
        if tokens[: len(opening)] != list(opening):
            tokens, labelled = [*opening, *tokens], [False] * len(opening) + labelled
        if labelled:
            labelled[0] = False  # nothing precedes the first token, so nothing can predict it
        return Document(line, tokens, labelled)

    def _tokens(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Tokens, and the character each begins at.

        Cut where an answer begins, so the tokens before it are those of the prompt at serving: in one text the newline
        that ends a prompt may become one token with what follows it.
        """
        borders = sorted({0, len(text), *(span.start for span in spans)}) if self._can_cut else [0, len(text)]
        tokens: list[int] = []
        starts: list[int] = []
        for begin, end in pairwise(borders):
            encoding = self.tokenizer.encode(text[begin:end], add_special_tokens=False)
            tokens += encoding.ids
            starts += [begin + start for start, _ in encoding.offsets]
        return tokens, starts


def supervised_texts(renderer: Renderer, document: Document) -> Iterator[str]:
    """The learned stretches of a document as text, for previews and tests."""
    stretch: list[int] = []
    for token, is_labelled in zip([*document.tokens, 0], [*document.labelled, False], strict=True):
        if is_labelled:
            stretch.append(token)
        elif stretch:
            yield str(renderer.tokenizer.decode(stretch, skip_special_tokens=False))
            stretch = []


def _is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _any_of(words: Iterable[str], tail: str = "") -> re.Pattern[str] | None:
    """Any of the words, the longest first, as group 1."""
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(f"({alternatives}){tail}") if alternatives else None


def _special_texts(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def _can_cut(tokenizer: Tokenizer) -> bool:
    """Whether a text may be encoded in parts. Not where each part would begin with a space of its own."""
    part = list(tokenizer.encode("a b", add_special_tokens=False).ids)
    return str(tokenizer.decode(part + part, skip_special_tokens=False)) == "a ba b"

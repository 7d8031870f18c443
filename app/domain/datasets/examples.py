"""The formats of a training example: chat, prompt and completion, plain text, a preference pair, a labelled answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from app.domain.datasets.documents import PREFERRED, REJECTED
from app.domain.datasets.jsonl import MAX_LINE_BYTES, WHITESPACE, Finding, Line, json_type, quote_all, read_lines
from app.domain.datasets.messages import (
    Problem,
    conversation_problems,
    message_problems,
    parallel_problems,
    tool_problems,
)
from app.domain.datasets.template_arguments import KEY as TEMPLATE_ARGUMENTS
from app.domain.datasets.template_arguments import (
    ChatTemplateArguments,
    given_arguments,
    merge_arguments,
    row_argument_problems,
)
from app.domain.error_text.json_text import quoted
from app.domain.jobs.spec import DataParameters, LineRules
from app.domain.methods import METHODS, Method

Json = Mapping[str, Any]
MAX_FINDINGS = 10
CHAT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions", TEMPLATE_ARGUMENTS})
COMPLETION_KEYS = frozenset({"prompt", "completion"})
TEXT_KEYS = frozenset({"text"})
LABEL = "label"
INPUT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})
# OpenAI's guide has the first spelling, its specification of March 2025 the second.
PAIR_SPELLINGS = (("preferred_output", "non_preferred_output"), ("preferred_completion", "non_preferred_completion"))
OUTPUT_KEYS = frozenset(key for spelling in PAIR_SPELLINGS for key in spelling)
DEFAULT_PARAMETERS = DataParameters()
OF_PAIRS = 'a preference pair does not take: both outputs are trained completely, and "input" is not'
OF_LABELS = "a labelled answer does not take: its last message is trained, and no other one"
ANSWER_ROLES = frozenset({"assistant", "tool", "function"})


@dataclass(frozen=True)
class Example:
    """One training example.

    Chat: `messages` (and `tools`). Completion: one prompt, one completion. Plain text: `text`. Preference pair:
    `messages` (and `tools`) as the prompt, and two answers, each a list of messages. Labelled answer: chat or
    completion, and the `label` of its last answer.
    """

    line: int
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    preferred: tuple[dict[str, Any], ...] = ()
    non_preferred: tuple[dict[str, Any], ...] = ()
    label: bool | None = None  # whether the last answer is desirable
    format: str = field(default="", compare=False)  # the name of its Format
    parameters: DataParameters = DEFAULT_PARAMETERS  # by which its line was checked, and its documents are made
    chat_template_kwargs: ChatTemplateArguments | None = None  # of the job and, on top, of the line

    @property
    def is_pair(self) -> bool:
        return bool(self.preferred)

    @property
    def answers(self) -> list[tuple[int, tuple[dict[str, Any], ...], int]]:
        """(role, messages, index of the first one that may be trained) of each answer: both of a pair, the last of a
        labelled conversation, else all together.
        """
        first = len(self.messages)
        if self.is_pair:
            sides = ((PREFERRED, self.preferred), (REJECTED, self.non_preferred))
            return [(role, (*self.messages, *answer), first) for role, answer in sides]
        if self.label is None:
            return [(0, self.messages, 0)]
        return [(PREFERRED if self.label else REJECTED, self.messages, first - 1)]


@dataclass(frozen=True)
class Format:
    """A format of a line: its name and noun, its checks, and its conversion to an example.

    `contradictions` are additional checks since the second line rules.
    """

    name: str
    noun: str
    template: str
    problems: Callable[[Json], Iterator[Problem]]
    to_example: Callable[[Line], Example]
    contradictions: Callable[[Json], Iterator[Problem]] = lambda _: iter(())

    @property
    def methods(self) -> list[Method]:
        """The methods that train on it."""
        return [method for method in METHODS.values() if self.name in method.formats]

    def example(self, line: Line) -> Example:
        return replace(self.to_example(line), format=self.name)

    def refusals(self, line: Line, rules: LineRules) -> list[Finding]:
        problems = list(self.problems(line.value)) or (list(self.contradictions(line.value)) if rules > 1 else [])
        return [Finding(line.number, *problem) for problem in problems]


def read_examples(
    file: BinaryIO,
    max_line_bytes: int = MAX_LINE_BYTES,
    parameters: DataParameters = DEFAULT_PARAMETERS,
) -> Iterator[Example | Finding]:
    """Yield each example of a dataset for the method of `parameters`, or the findings of an invalid line."""
    method, rules = METHODS[parameters.method], parameters.line_rules
    # Plain text is trained completely, so it must not be mixed with other formats.
    first: tuple[int, Format] | None = None
    for line in read_lines(file, max_line_bytes, whitespace=WHITESPACE if rules > 1 else None):
        if isinstance(line, Finding):
            yield line
            continue
        line_format = detect_format(line.value)
        if line_format is None or line_format.name not in method.formats:
            yield _wrong_format(line, line_format, method)
            continue
        first = first or (line.number, line_format)
        if line_format is not first[1] and TEXT in (line_format, first[1]):
            yield _mixed_formats(line, line_format, *first)
            continue
        if refusals := line_format.refusals(line, rules):
            yield from refusals
            continue
        arguments = merge_arguments(parameters.chat_template_kwargs, given_arguments(line.value))
        yield replace(line_format.example(line), parameters=parameters, chat_template_kwargs=arguments)


def detect_format(value: Json) -> Format | None:
    if LABEL in value and not value.keys().isdisjoint({"messages"} | COMPLETION_KEYS):
        return LABELLED
    if "messages" in value:
        return CHAT
    if value.keys() & COMPLETION_KEYS:
        return COMPLETION
    if value.keys() & OUTPUT_KEYS:
        return PAIR
    return TEXT if "text" in value else None


def _wrong_format(line: Line, line_format: Format | None, method: Method) -> Finding:
    allowed = " or ".join(f"{form.noun} ({form.template})" for form in FORMATS if form.name in method.formats)
    if line_format is None:
        text = f"unexpected format: expected {allowed}; found the keys {quote_all(line.value)}"
    else:
        text = (
            f"{line_format.noun} for the method {' or '.join(quoted(each.name) for each in line_format.methods)}, "
            f'but this job\'s method is "{method.name}" and needs {allowed}'
        )
    return Finding(line.number, text, "wrong_format")


def _mixed_formats(line: Line, line_format: Format, first_line: int, first: Format) -> Finding:
    text = f"{line_format.noun}, but line {first_line} is {first.noun}; put plain text into a separate file"
    return Finding(line.number, text, "mixed_formats")


# --- chat -------------------------------------------------------------------------------------------------------------


def _chat_problems(value: Json, allowed: frozenset[str] = CHAT_KEYS) -> Iterator[Problem]:
    yield from _extra_keys(value, allowed)
    yield from row_argument_problems(value)
    yield from tool_list_problems(value, ("tools", "functions"))
    messages = value["messages"]
    found = list(list_problems(messages, '"messages"'))
    yield from found
    if not found and messages[-1]["role"] != "assistant":
        text = f'the last message is from "{messages[-1]["role"]}", but it must be from "assistant", which is trained'
        yield text, "last_message_not_assistant"


def _chat_contradictions(value: Json, where: str = "") -> Iterator[Problem]:
    """`where` is "input" for that of a pair."""
    yield from tool_problems(value, where and f"{where}.")
    yield from parallel_problems(value, where and f"{where}.")
    yield from conversation_problems(value["messages"], where and f"{where}, ")


def _chat_example(line: Line) -> Example:
    tools = line.value.get("tools") or [
        {"type": "function", "function": function} for function in line.value.get("functions") or ()
    ]
    return Example(line.number, messages=tuple(line.value["messages"]), tools=tuple(tools))


# --- prompt and completion, plain text --------------------------------------------------------------------------------


def _completion_problems(value: Json, allowed: frozenset[str] = COMPLETION_KEYS) -> Iterator[Problem]:
    yield from _extra_keys(value, allowed)
    for key in sorted(COMPLETION_KEYS, reverse=True):
        yield from string_problems(value, key, "invalid_completion")


def _completion_example(line: Line) -> Example:
    return Example(line.number, prompt=line.value["prompt"], completion=line.value["completion"])


def _text_problems(value: Json) -> Iterator[Problem]:
    yield from _extra_keys(value, TEXT_KEYS)
    yield from string_problems(value, "text", "invalid_text")


# --- preference pairs -------------------------------------------------------------------------------------------------


def _pair_problems(value: Json) -> Iterator[Problem]:
    spelling = _output_keys(value)
    yield from _extra_keys(value, frozenset({"input", TEMPLATE_ARGUMENTS, *spelling}))
    yield from row_argument_problems(value)
    yield from _input_problems(value.get("input"))
    for key in spelling:
        yield from _answer_problems(key, value.get(key))


def _pair_contradictions(value: Json) -> Iterator[Problem]:
    yield from _chat_contradictions(value["input"], "input")
    for key in _output_keys(value):
        yield from conversation_problems(value[key], f"{key}, ", before=value["input"]["messages"])


def _output_keys(value: Json) -> tuple[str, str]:
    """The spelling of the output keys that the line uses; keys of the other spelling are extra keys."""
    return next(spelling for spelling in PAIR_SPELLINGS if value.keys() & set(spelling))


def _input_problems(value: Any) -> Iterator[Problem]:
    if not isinstance(value, dict):
        seen = "is missing" if value is None else f"is a JSON {json_type(value)}"
        yield f'"input" {seen}, but it must be an object like {{"messages": [...]}}', "invalid_input"
        return
    yield from _extra_keys(value, INPUT_KEYS, '"input" ')
    yield from tool_list_problems(value)
    messages: Any = value.get("messages")
    found = list(list_problems(messages, '"messages" of "input"', "input, "))
    yield from found or _weight_problems(messages, "input, ")
    if not found and messages[-1]["role"] == "assistant":
        text = (
            'the last message of "input" is from "assistant"; it must be from another role, because each output '
            'continues "input" with the assistant\'s answer: move it to the start of both outputs, or remove it'
        )
        yield text, "last_message_assistant"


def _answer_problems(key: str, messages: Any) -> Iterator[Problem]:
    found = list(list_problems(messages, f'"{key}"', f"{key}, "))
    yield from found or _weight_problems(messages, f"{key}, ")
    if found:
        return
    roles = [message["role"] for message in messages]
    if roles[0] != "assistant" or roles[-1] != "assistant" or not ANSWER_ROLES.issuperset(roles):
        text = f'"{key}" has messages from {quote_all(set(roles))}; it must begin and end with one from "assistant"'
        yield f'{text}, with none but "tool" between', "invalid_output"


def _weight_problems(messages: list[dict[str, Any]], where: str = "", taker: str = OF_PAIRS) -> Iterator[Problem]:
    for number, message in enumerate(messages, 1):
        if "weight" in message:
            text = f'{where}message {number} has the key "weight", which {taker}; remove the key'
            yield text, "extra_key"


def _pair_example(line: Line) -> Example:
    preferred, non_preferred = (tuple(line.value[key]) for key in _output_keys(line.value))
    prompt = line.value["input"]
    return Example(
        line.number,
        messages=tuple(prompt["messages"]),
        tools=tuple(prompt.get("tools") or ()),
        preferred=preferred,
        non_preferred=non_preferred,
    )


# --- labelled answers -------------------------------------------------------------------------------------------------


def _labelled_problems(value: Json) -> Iterator[Problem]:
    if not isinstance(value[LABEL], bool):
        text = f'"label" is a JSON {json_type(value[LABEL])}, but it must be true (desirable) or false (undesirable)'
        yield text, "invalid_label"
    content = _unlabelled(value)
    if "messages" not in content:
        yield from _completion_problems(content, COMPLETION_KEYS | {LABEL})
        return
    if "messages" not in value and len(value["completion"]) != 1:
        text = f'"completion" has {len(value["completion"])} messages, but it must have one, which is from "assistant"'
        yield text, "invalid_completion"
    found = list(_chat_problems(content, CHAT_KEYS | {LABEL}))
    yield from found or _weight_problems(content["messages"], "", OF_LABELS)


def _labelled_contradictions(value: Json) -> Iterator[Problem]:
    content = _unlabelled(value)
    if "messages" in content:
        yield from _chat_contradictions(content)


def _labelled_example(line: Line) -> Example:
    content = Line(line.number, _unlabelled(line.value))
    example = (_chat_example if "messages" in content.value else _completion_example)(content)
    return replace(example, label=line.value[LABEL])


def _unlabelled(value: Json) -> dict[str, Any]:
    """The row without its label; prompt and completion that are lists of messages become one conversation."""
    content = {key: item for key, item in value.items() if key != LABEL}
    if "messages" not in content and all(isinstance(content.get(key), list) for key in COMPLETION_KEYS):
        content["messages"] = [*content.pop("prompt"), *content.pop("completion")]
    return content


# --- checks that several formats share --------------------------------------------------------------------------------


def _extra_keys(value: Json, allowed: frozenset[str], where: str = "") -> Iterator[Problem]:
    if extra := value.keys() - allowed:
        yield f"{where}contains an extra key {quote_all(extra)}; allowed are {quote_all(allowed)}", "extra_key"


def tool_list_problems(value: Json, keys: tuple[str, ...] = ("tools",)) -> Iterator[Problem]:
    for key in keys:
        tools = value.get(key)
        if tools is not None and not isinstance(tools, list):
            yield f'"{key}" is a JSON {json_type(tools)}, but it must be a list of objects', "invalid_tools"
        for number, tool in enumerate(tools if isinstance(tools, list) else ()):
            if not isinstance(tool, dict):
                text = f'"{key}" must be a list of objects, but {key}[{number}] is a JSON {json_type(tool)}'
                yield text, "invalid_tools"


def list_problems(messages: Any, name: str, where: str = "") -> Iterator[Problem]:
    if not isinstance(messages, list) or not messages:
        seen = "missing or null" if messages is None else "empty" if messages == [] else f"a JSON {json_type(messages)}"
        yield f"{name} is {seen}, but it must be a list with at least one message", "invalid_messages"
    else:
        yield from message_problems(messages, where)


def string_problems(value: Json, key: str, code: str) -> Iterator[Problem]:
    if not isinstance(value.get(key), str):
        seen = "is missing" if key not in value else f"is a JSON {json_type(value[key])}"
        yield f'"{key}" {seen}, but it must be a string', code


CHAT = Format("chat", "chat messages", '{"messages": [...]}', _chat_problems, _chat_example, _chat_contradictions)
COMPLETION = Format(
    "completion",
    "a prompt/completion pair",
    '{"prompt": "...", "completion": "..."}',
    _completion_problems,
    _completion_example,
)
TEXT = Format(
    "text",
    "plain text",
    '{"text": "..."}',
    _text_problems,
    lambda line: Example(line.number, text=line.value["text"]),
)
PAIR = Format(
    "preference",
    "a preference pair",
    '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}',
    _pair_problems,
    _pair_example,
    _pair_contradictions,
)
LABELLED = Format(
    "labelled",
    "a labelled answer",
    '{"messages": [...], "label": true} or {"prompt": "...", "completion": "...", "label": false}',
    _labelled_problems,
    _labelled_example,
    _labelled_contradictions,
)
FORMATS = (CHAT, COMPLETION, TEXT, PAIR, LABELLED)

"""Trial answers: small requests that an idle worker answers, for trying a model and not for serving it.

Also the records that travel from the program that generates, through the worker, to the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.domain.answers.engine_answers import to_json
from app.domain.datasets.messages import StrictModel, check_key_count, message_problems, tool_problems
from app.domain.datasets.template_arguments import ChatTemplateArguments, StoredArguments
from app.domain.error_text.json_text import as_json
from app.domain.jobs.spec import BaseSpec, Frozen, LoraSpec, QuantizationSpec
from app.errors import BadRequest, combine_errors

MAX_NEW_TOKENS = 256
MAX_SECONDS = 60.0  # of generation
IDLE_SECONDS = 300.0  # after the last answer the base model is unloaded
MAX_ADAPTERS = 4  # in the memory and in the directory of a slot: those that were used last
MAX_STOPS = 4
MAX_TOOLS = 128  # OpenAI's
MAX_CHOICES = 4  # one after another, within MAX_SECONDS together
MAX_TOP_LOGPROBS = 20  # OpenAI's, of a chat
MAX_COMPLETION_LOGPROBS = 5  # OpenAI's, of a completion
MAX_PROBLEMS = 10  # of a request, in one message
MAX_SCHEMA_CHARACTERS = 120_000  # OpenAI's
MAX_SCHEMA_SECONDS = 5.0  # of CPU time, to compile a schema
MAX_SCHEMA_BYTES = 1 << 30
INSTEAD = "deliver the model to an engine for it (docs/guides/answers.md)"
Reason = Literal["busy", "context_length_exceeded", "invalid_value", "invalid_tools", "model_not_found", "failed"]
# What changes nothing in the answer of one model on one worker.
IGNORED = frozenset({"user", "store", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"})
# Values that ask for nothing special.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),  # of a completion
    "echo": (False,),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "top_logprobs": (0,),
}
# Fields of the request that the question has, too.
SAMPLING = {"temperature", "top_p", "seed", "n", "frequency_penalty", "presence_penalty"}
Penalty = Annotated[float | None, Field(ge=-2, le=2)]
TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]  # a key of JSON
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Options(StrictModel):
    include_usage: bool = False


class _JsonSchema(StrictModel):
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None  # every answer obeys the schema in any case


class _ResponseFormat(StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class TrialRequest(StrictModel):
    """The fields of a body that a trial answer obeys."""

    model: str
    messages: list[Any] | None = None
    prompt: str | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[dict[TokenId, Bias] | None, BeforeValidator(check_key_count)] = None  # OpenAI's limit too
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: _Options | None = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    logprobs: bool | int | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    response_format: _ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: ChatTemplateArguments | None = None


class TrialQuestion(Frozen):
    """What a worker gets. `messages` or `prompt` is None."""

    id: str
    project_id: str
    model: str
    messages: list[dict[str, Any]] | None
    prompt: str | None
    max_new_tokens: int
    stop: list[str]
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    n: int = 1
    top_logprobs: int | None = None  # None: no log-probabilities
    tools: tuple[dict[str, Any], ...] = ()
    json_schema: dict[str, Any] | None = None  # of the answer
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict)  # by token
    chat_template_kwargs: StoredArguments = None

    def new_tokens(self, free: int) -> int:
        """How many tokens may be generated, of the `free` ones within the context length."""
        return min(self.max_new_tokens, free)


class AnswerSpec(Frozen):
    """WORKDIR/spec.json of the program that generates: one base model."""

    base: BaseSpec
    quantization: QuantizationSpec | None
    dtype_is_free: bool
    context_length: int
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None


class AdapterOfAnswer(Frozen):
    directory: Path
    manifest_sha256: str
    lora: LoraSpec


class TrialControl(Frozen):
    """A line to the program: a question, or the id of one whose client has disconnected."""

    question: TrialQuestion | None = None
    adapter: AdapterOfAnswer | None = None
    stop: str | None = None


class TokenLogprob(Frozen):
    """A token of an answer with its log-probability in nats, and the most likely tokens in its place."""

    text: str
    start: int  # characters of the answer before it
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class GeneratedToolCall(Frozen):
    """A call of a tool by the model; `arguments` is JSON."""

    name: str
    arguments: str


class TrialRecord(Frozen):
    """A line from the program. The last one of a question is `end`, which also ends its last choice, or `error`."""

    id: str
    type: Literal["alive", "text", "choice", "end", "error"]
    choice: int = 0
    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()  # of `text`, if the question asks for them
    reasoning: str = ""  # before `tool_calls`
    tool_calls: tuple[GeneratedToolCall, ...] = ()
    finish_reason: Literal["stop", "length", "tool_calls"] = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reason: Reason = "failed"
    message: str = ""
    param: str = ""  # the field of the request that is wrong; by default the one with the prompt

    @property
    def is_last(self) -> bool:
        return self.type in ("end", "error")


def check_supported(body: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The fields that a trial answer obeys. Raises BadRequest that names every field that it would have to ignore."""
    problems: list[BadRequest] = []
    given: dict[str, Any] = {}
    for name, value in body.items():
        if len(problems) == MAX_PROBLEMS:
            break
        if name == "prompt" and isinstance(value, list):
            text = f"prompt: a trial answer continues one text, not {as_json(value, 60)}; send a request for each"
            problems.append(BadRequest(f"{text}, or {INSTEAD}", name, "unsupported_parameter"))
        elif name in known:
            given[name] = value
        elif value is not None and name not in IGNORED and value not in NEUTRAL.get(name, ()):
            text = f"{name}: a trial answer does not support {as_json(value, 60)}; {INSTEAD}"
            problems.append(BadRequest(text, name, "unsupported_parameter"))
    if problems:
        raise combine_errors(problems)
    return given


def question_of(request: TrialRequest, id: str, project_id: str, model: str, is_chat: bool) -> TrialQuestion:
    """The question of a request; `model` is what its name stands for.

    Raises BadRequest with every problem of its messages.
    """
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    requested = request.max_completion_tokens or request.max_tokens or MAX_NEW_TOKENS
    if is_chat:
        _check_messages(request.messages)
    elif request.prompt is None:
        raise BadRequest("you must provide prompt", "prompt", "missing_required_parameter")
    return TrialQuestion(
        id=id,
        project_id=project_id,
        model=model,
        messages=request.messages if is_chat else None,
        prompt=None if is_chat else request.prompt,
        max_new_tokens=min(requested, MAX_NEW_TOKENS),
        stop=[text for text in stop if text],
        top_logprobs=_top_logprobs(request, is_chat),
        tools=_tools(request),
        json_schema=_json_schema(request),
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        chat_template_kwargs=request.chat_template_kwargs,
        **request.model_dump(include=SAMPLING, exclude_none=True),
    )


def _tools(request: TrialRequest) -> tuple[dict[str, Any], ...]:
    """The tools that the prompt describes: none if the model may not call them. Raises BadRequest."""
    found = islice(tool_problems({"tools": request.tools}), MAX_PROBLEMS)
    problems = [BadRequest(text, "tools") for text, _ in found]
    if request.tool_choice is not None and request.tool_choice not in NEUTRAL["tool_choice"]:
        text = (
            f"tool_choice: a trial answer cannot force the model to call a tool, so {as_json(request.tool_choice, 60)} "
            f'is refused; allowed are "auto" and "none"; {INSTEAD}'
        )
        problems.append(BadRequest(text, "tool_choice", "unsupported_parameter"))
    if request.tools and request.parallel_tool_calls is False:
        text = f"parallel_tool_calls: a trial answer cannot limit the model to one call; leave it out, or {INSTEAD}"
        problems.append(BadRequest(text, "parallel_tool_calls", "unsupported_parameter"))
    if problems:
        raise combine_errors(problems)
    return () if request.tool_choice == "none" else tuple(request.tools or ())


def _json_schema(request: TrialRequest) -> dict[str, Any] | None:
    """The JSON schema of the answer. Raises BadRequest."""
    given = request.response_format
    if given is None or given.type == "text":
        return None
    if request.tools and request.tool_choice != "none":
        text = (
            f"response_format: a trial answer has either this form or calls of tools, and {as_json(given.type)} leaves "
            f'no place for calls; leave out one of both, or set tool_choice to "none", or {INSTEAD}'
        )
        raise BadRequest(text, "response_format", "unsupported_parameter")
    if given.type == "json_object":
        return {"type": "object"}
    if given.json_schema is None:
        text = 'response_format: type "json_schema" needs json_schema: {"name": "...", "schema": {...}}'
        raise BadRequest(text, "response_format.json_schema", "missing_required_parameter")
    size = len(to_json(given.json_schema.schema_))
    if size > MAX_SCHEMA_CHARACTERS:
        text = f"response_format: the schema has {size:,} characters; at most {MAX_SCHEMA_CHARACTERS:,} are allowed"
        raise BadRequest(text, "response_format.json_schema.schema")
    return given.json_schema.schema_


def _top_logprobs(request: TrialRequest, is_chat: bool) -> int | None:
    """The number of alternatives shown for each token; None: no log-probabilities. Raises BadRequest."""
    given = request.logprobs
    if given is None or given is False:
        if request.top_logprobs:
            raise BadRequest("top_logprobs: it needs logprobs: true", "top_logprobs")
        return None
    if is_chat:
        if given is not True:
            text = f"logprobs: must be true or false in a chat, not {given}; top_logprobs has the number of tokens"
            raise BadRequest(text, "logprobs")
        return request.top_logprobs or 0
    if given is True or not 0 <= given <= MAX_COMPLETION_LOGPROBS:
        text = f"logprobs: must be a number from 0 to {MAX_COMPLETION_LOGPROBS} here, not {as_json(given)}"
        raise BadRequest(text, "logprobs")
    return given


def _check_messages(messages: list[Any] | None) -> None:
    if not messages:
        raise BadRequest("you must provide messages", "messages", "missing_required_parameter")
    found = islice(message_problems(messages), MAX_PROBLEMS)
    if problems := [BadRequest(text, "messages") for text, _ in found]:
        raise combine_errors(problems)

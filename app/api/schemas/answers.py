"""Bodies of requests for answers and their responses, for the OpenAPI document.

The routes check `model` only: every other field is the engine's. So the schemas are open, and name the common fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Usage(Open):
    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """New tokens."""
    total_tokens: int
    """The sum of both."""


class QuestionBody(Open):
    """What both requests have."""

    model: Annotated[str, Field(min_length=1)]
    """An `ft:` model or a base model."""
    temperature: float | None = None
    """0 chooses the most likely token."""
    stream: bool | None = None
    """Whether the tokens are sent as server-sent events."""


class CreateChatCompletion(QuestionBody):
    """OpenAI's body. Fields that are not listed here are passed on to the engine as well."""

    messages: list[dict[str, Any]]
    """The conversation, in OpenAI's shape."""
    max_completion_tokens: int | None = None
    """The maximum number of new tokens."""
    max_tokens: int | None = None
    """The older name of `max_completion_tokens`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Arguments of the chat template, vLLM's field. By default, and key by key, those of the job of the model."""


class CreateCompletion(QuestionBody):
    """OpenAI's body. Fields that are not listed here are passed on to the engine as well."""

    prompt: Any = None
    """A text, or the tokens of one."""
    max_tokens: int | None = None
    """The maximum number of new tokens."""


class ChatCompletionBody(Open):
    id: str
    """The engine's id."""
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970."""
    model: str
    """The requested name."""
    choices: list[dict[str, Any]]
    """The answers, in OpenAI's shape."""
    usage: Usage | None = None
    """Tokens of the request."""


class CompletionBody(ChatCompletionBody):
    object: Literal["text_completion"]  # type: ignore[assignment]

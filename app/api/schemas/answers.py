"""Bodies of requests for answers and their responses, for the OpenAPI document.

The routes check `model` only: every other field is the engine's. So the schemas are open, and name the common fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


Model = Annotated[str, Field(min_length=1, description="An `ft:` model or a base model.")]
MaxTokens = Annotated[int | None, Field(description="The maximum number of new tokens.")]
Temperature = Annotated[float | None, Field(description="0 chooses the most likely token.")]
Stream = Annotated[bool | None, Field(description="Whether the tokens are sent as server-sent events.")]


class Usage(Open):
    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """New tokens."""
    total_tokens: int
    """The sum of both."""


class CreateChatCompletion(Open):
    """OpenAI's body. Fields that are not listed here are passed on to the engine as well."""

    model: Model
    messages: list[dict[str, Any]]
    """The conversation, in OpenAI's shape."""
    max_completion_tokens: MaxTokens = None
    max_tokens: int | None = None
    """The older name of `max_completion_tokens`."""
    temperature: Temperature = None
    stream: Stream = None


class CreateCompletion(Open):
    """OpenAI's body. Fields that are not listed here are passed on to the engine as well."""

    model: Model
    prompt: Any = None
    """A text, or the tokens of one."""
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    stream: Stream = None


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

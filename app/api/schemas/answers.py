"""Bodies of requests for answers and their responses, for the OpenAPI document.

The routes check `model` only: every other field is the engine's. So the schemas are open, and name the common fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


Model = Annotated[str, Field(min_length=1, description="An `ft:` model or a base model.")]
MaxTokens = Annotated[int | None, Field(description="The maximum number of new tokens.")]
Temperature = Annotated[float | None, Field(description="0 chooses the most likely token.")]
Stream = Annotated[bool | None, Field(description="Whether the tokens are sent as server-sent events.")]


class Usage(Open):
    prompt_tokens: Annotated[int, Field(description="Tokens of the prompt.")]
    completion_tokens: Annotated[int, Field(description="New tokens.")]
    total_tokens: Annotated[int, Field(description="The sum of both.")]


class CreateChatCompletion(Open):
    """OpenAI's body. Fields that are not listed here are passed on to the engine as well."""

    model: Model
    messages: Annotated[list[dict[str, Any]], Field(description="The conversation, in OpenAI's shape.")]
    max_completion_tokens: MaxTokens = None
    max_tokens: Annotated[int | None, Field(description="The older name of `max_completion_tokens`.")] = None
    temperature: Temperature = None
    stream: Stream = None


class CreateCompletion(Open):
    """OpenAI's body. Fields that are not listed here are passed on to the engine as well."""

    model: Model
    prompt: Annotated[Any, Field(description="A text, or the tokens of one.")] = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    stream: Stream = None


class ChatCompletionBody(Open):
    id: Annotated[str, Field(description="The engine's id.")]
    object: Literal["chat.completion"]
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: Annotated[str, Field(description="The requested name.")]
    choices: Annotated[list[dict[str, Any]], Field(description="The answers, in OpenAI's shape.")]
    usage: Annotated[Usage | None, Field(description="Tokens of the request.")] = None


class CompletionBody(ChatCompletionBody):
    object: Literal["text_completion"]  # type: ignore[assignment]

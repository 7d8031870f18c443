"""Examples of questions and answers in the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from app.api.openapi.examples.all_operations import TUNED, OpenApi
from app.api.schemas.answers import ChatCompletionBody, CompletionBody, CreateChatCompletion, CreateCompletion

CHAT, COMPLETIONS = "POST /v1/chat/completions", "POST /v1/completions"
USAGE = {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24}
CREATE_CHAT = {
    "model": TUNED,
    "messages": [{"role": "user", "content": "My parcel has not arrived."}],
    "max_tokens": 64,
    "temperature": 0,
}
CHAT_ANSWER = {
    "id": "chatcmpl-0f7d4c0e6b0a4c55",
    "object": "chat.completion",
    "created": 1795000480,
    "model": TUNED,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "shipping"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
CREATE = {"model": TUNED, "prompt": "My parcel has", "max_tokens": 16, "temperature": 0}
ANSWER = {
    "id": "cmpl-0f7d4c0e6b0a4c55",
    "object": "text_completion",
    "created": 1795000480,
    "model": TUNED,
    "choices": [{"index": 0, "text": " not arrived.", "finish_reason": "stop", "logprobs": None}],
    "usage": USAGE,
}

CHUNK_SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "model": {"type": "string"}, "choices": {"type": "array"}},
}


def _body(model: type[BaseModel], example: dict[str, Any]) -> OpenApi:
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _responses(model: type[BaseModel], example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """An answer, or with `stream` the chunks of one."""
    chunk = {"id": example["id"], "object": example["object"], "model": example["model"], "choices": []}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": CHUNK_SCHEMA}
    event = {"type": "object", "properties": {"data": data}}
    content = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example},
        "text/event-stream": {"itemSchema": event, "example": f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"},
    }
    return {200: {"description": "The answer; with `stream` server-sent events, at last `[DONE]`.", "content": content}}


CHAT_BODY, CHAT_RESPONSES = _body(CreateChatCompletion, CREATE_CHAT), _responses(ChatCompletionBody, CHAT_ANSWER)
COMPLETION_BODY, COMPLETION_RESPONSES = _body(CreateCompletion, CREATE), _responses(CompletionBody, ANSWER)
SCHEMAS = [
    model.model_json_schema(ref_template="#/components/schemas/{model}")
    for model in (ChatCompletionBody, CompletionBody, CreateChatCompletion, CreateCompletion)
]
RESPONSE_EXAMPLES: dict[str, Any] = {CHAT: CHAT_ANSWER, COMPLETIONS: ANSWER}

"""Arguments of a base model's chat template beside messages and tools: of a job, a row, or a request for an answer.

A template prints a prompt for thinking or without it, for instance. An adapter learns answers to one of them, so
whatever renders a prompt for it takes the arguments of the job, each replaced by that of the row or request, if given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.domain.datasets.messages import Problem, StrictModel, check_key_count
from app.domain.error_text.validation_text import check_shape

KEY = "chat_template_kwargs"  # of a job, a row and a request; vLLM's name
MAX_DOCUMENTS, MAX_TEXTS = 64, 16  # of one object, of one document
MAX_DOCUMENTS_BYTES = 64_000  # together, names included: they are stored in a job, and sent with each request


def _check_bytes(documents: list[dict[str, str]]) -> list[dict[str, str]]:
    size_bytes = sum(len(text.encode()) for each in documents for pair in each.items() for text in pair)
    if size_bytes > MAX_DOCUMENTS_BYTES:
        raise ValueError(f"must have at most {MAX_DOCUMENTS_BYTES:,} bytes together, names included")
    return documents


TextName = Annotated[str, Field(min_length=1, max_length=64)]
Texts = Annotated[dict[TextName, str], Field(min_length=1, max_length=MAX_TEXTS), BeforeValidator(check_key_count)]
Documents = Annotated[list[Texts], Field(max_length=MAX_DOCUMENTS, fail_fast=True), AfterValidator(_check_bytes)]
# Stored only when set: a template may ask whether an argument is defined, and workers of a release without the key
# refuse it.
StoredIfSet = Field(exclude_if=lambda value: value is None)


class ChatTemplateArguments(StrictModel):
    """Arguments of the base model's chat template. Only those that its template reads have an effect."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    enable_thinking: Annotated[bool | None, StoredIfSet] = None
    """Whether the answer begins with reasoning, as in Qwen 3."""
    reasoning_effort: Annotated[str | None, Field(pattern="^[a-z][a-z0-9_]{0,31}$"), StoredIfSet] = None
    """How long the model reasons; low, medium or high for gpt-oss."""
    documents: Annotated[Documents | None, StoredIfSet] = None
    """Up to 64 documents to answer from, objects of texts such as `title` and `text`; 64,000 bytes together."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


StoredArguments = Annotated[ChatTemplateArguments | None, StoredIfSet]


def merge_arguments(
    job: ChatTemplateArguments | None, own: ChatTemplateArguments | None
) -> ChatTemplateArguments | None:
    """The arguments of a row or a request on top of those of its job, key by key."""
    return ChatTemplateArguments(**(job.model_dump() | own.model_dump())) if job and own else job or own


class _WithArguments(BaseModel):
    chat_template_kwargs: ChatTemplateArguments | None = None


def given_arguments(values: Mapping[str, Any]) -> ChatTemplateArguments | None:
    """Those of a create body, a row without `row_argument_problems`, or a manifest; None if no argument is set."""
    arguments = _WithArguments.model_validate(values).chat_template_kwargs
    return arguments if arguments and arguments.model_dump() else None


def row_argument_problems(row: Mapping[str, Any]) -> Iterator[Problem]:
    for problem in check_shape(_WithArguments, row)[1]:
        yield problem.message, f"invalid_{KEY}"

"""The parts of which a request parameter is defined: its subject, what "auto" means, and limits of the context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from app.domain.base_models.catalog import CatalogEntry
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.jobs.hyperparameters import LoraSpec

AUTO = "auto"


class ParentAdapter(NamedTuple):
    """The adapter that training continues from."""

    model: str  # "ft:..."
    lora: LoraSpec
    chat_template_kwargs: ChatTemplateArguments | None = None


class ResolutionContext(NamedTuple):
    """What "auto" and limits depend on, in addition to the parameters of the request."""

    entry: CatalogEntry
    n_examples: int
    parent: ParentAdapter | None = None
    file_bytes: int = 0  # of the training file
    gpus: int = 0  # of each job, on workers that have them; 0: there is none


Info: TypeAlias = ValidationInfo[ResolutionContext]
AutoRule: TypeAlias = Callable[[ResolutionContext, Mapping[str, Any]], Any]  # of the context and the fields before


class ParameterError(ValueError):
    """Raised by validators. Each text is one problem; it follows the path of the parameter in the message."""

    def __init__(self, *texts: str, code: str = "invalid_value") -> None:
        super().__init__(*texts)
        self.texts = texts
        self.code = code


class Parameters(BaseModel):
    """The parameters of one subject. Every field is given to the validation, as null if the request lacks it."""

    # JSON has types: "7" is not a number. The text below a field is its description.
    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)

    prefix: ClassVar[str] = ""  # of the canonical names: "lora." in "lora.r"


@dataclass(frozen=True)
class Auto:
    """Null, "auto" and an absent parameter mean `value`, or what `rule` makes of the context and the fields before.

    Comes after Field() in Annotated. In the validated model such a field is None, so that no Python runs for it there;
    `RequestParameters.resolved` fills it in.
    """

    value: Any = None
    rule: AutoRule | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.nullable_schema(handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        given, null = handler(schema), {"type": "null"}
        options = [option for option in given.get("anyOf", [given]) if option != null]
        return {"anyOf": [{"const": AUTO}, *options, null]}


@dataclass(frozen=True)
class AtMost:
    """An upper limit that the context decides."""

    limit: Callable[[ResolutionContext], int]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._validate, handler(source))

    def _validate(self, value: int, info: Info) -> int:
        limit = self.limit(info.context)
        if value > limit:
            raise PydanticKnownError("less_than_equal", {"le": limit})
        return value


class CommaSeparated:
    """Marks a list of names that a request may also give as one string with commas."""

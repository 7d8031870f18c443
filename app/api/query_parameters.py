"""Checks of query parameters: an unknown or repeated parameter is a 400.

`app.api.auth.authorize` calls `check_query` for every route under /v1, after it checked the key and its scope, so
that a route needs no code of its own. Paths without a key (health, docs) ignore unknown parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo

from app.domain.error_text.json_text import MAX_NAME_CHARACTERS, as_json, suggestion
from app.domain.error_text.validation_text import as_problems
from app.errors import BadRequest, UnknownParameter, combine_errors

ACCEPTED_EVERYWHERE = "api-version"  # Azure's clients send it with every request
MAX_LISTED_NAMES = 10  # unknown names in one message


@dataclass(frozen=True)
class AllowedQuery:
    """The query parameters of one route."""

    fields: Sequence[Any]  # FastAPI's model fields
    scalars: frozenset[str]  # may be given once
    lists: frozenset[str]  # may be repeated
    objects: frozenset[str]  # given as name[key]=value; the route itself checks the keys
    documented: tuple[str, ...]  # the names that an error message lists

    @property
    def by_name(self) -> dict[str, FieldInfo]:
        return {field.alias: field.field_info for field in self.fields}

    def has(self, name: str) -> bool:
        return name in self.scalars or name in self.lists or name.partition("[")[0] in self.objects

    def may_repeat(self, name: str) -> bool:
        return name in self.lists or name == ACCEPTED_EVERYWHERE


def check_query(request: Request) -> None:
    """Check the names of the query. Raises UnknownParameter or BadRequest with all problems, unknown names first."""
    route = request.scope.get("route")
    if not request.scope["query_string"] or not isinstance(route, APIRoute):
        return
    allowed = allowed_query(route)
    counts = Counter(name for name, _ in request.query_params.multi_items())
    unknown = [name for name in counts if not allowed.has(name) and name != ACCEPTED_EVERYWHERE]
    repeated = [
        name for name, count in counts.items() if count > 1 and allowed.has(name) and not allowed.may_repeat(name)
    ]
    if unknown or repeated:
        _, invalid = request_params_to_args(allowed.fields, request.query_params)
        call = f"{request.method} {route.path_format}"
        problems = [*_unknown(unknown, allowed, call), *map(_repeated, repeated)]
        raise combine_errors([*problems, *as_problems(invalid, allowed.by_name)])


def allowed_query(route: APIRoute) -> AllowedQuery:
    """The query parameters that `route` and its dependencies declare."""
    fields = _query_fields(route.dependant)
    lists = frozenset(field.alias for field in fields if get_origin(field.field_info.annotation) is list)
    declared = (route.openapi_extra or {}).get("parameters", ())
    objects = frozenset(parameter["name"] for parameter in declared if parameter.get("style") == "deepObject")
    documented = [field.alias for field in fields if field.field_info.include_in_schema]
    return AllowedQuery(
        fields=fields,
        scalars=frozenset(field.alias for field in fields) - lists,
        lists=lists,
        objects=objects,
        documented=tuple(sorted([*documented, *(f"{name}[key]" for name in objects)])),
    )


def _query_fields(dependant: Dependant) -> list[Any]:
    """The query fields of a route and of all its dependencies."""
    inner = [field for dependency in dependant.dependencies for field in _query_fields(dependency)]
    return [*dependant.query_params, *inner]


def _unknown(names: Sequence[str], query: AllowedQuery, call: str) -> list[BadRequest]:
    if not names:
        return []
    shown = [name[:MAX_NAME_CHARACTERS] for name in names[:MAX_LISTED_NAMES]]
    listed = ", ".join(as_json(name) + suggestion(name, query.documented) for name in shown)
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    expected = f"known here: {', '.join(query.documented)}" if query.documented else f"{call} takes none"
    text = f"unknown query parameter{'s' if len(names) > 1 else ''} {listed}{more}; {expected}"
    return [UnknownParameter(text, shown[0])]


def _repeated(name: str) -> BadRequest:
    as_json = name[:MAX_NAME_CHARACTERS]
    return BadRequest(f"{as_json}: given more than once in the query; give it once", as_json)

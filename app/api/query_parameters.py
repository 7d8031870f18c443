"""Query parameters of a route. One that the route does not know, or that is given twice, is refused.

`app.api.auth.admit` calls `check_query` for every route under /v1, after the key and its scope were checked, so that
a route needs no code of its own. Paths without a key (health, docs) ignore what they do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.routing import APIRoute

from app.api.error_handlers import as_problems
from app.errors import BadRequest, UnknownParameter, all_at_once

ACCEPTED_EVERYWHERE = "api-version"  # Azure's clients send it with every request
MAX_NAMED = 10  # unknown names in one message
MAX_NAME_CHARS = 60  # of a name in a message; also bounds the cost of the search for a similar one


@dataclass(frozen=True)
class KnownQuery:
    """The query parameters of one route."""

    fields: Sequence[Any]  # FastAPI's model fields
    scalars: frozenset[str]  # given once at most
    lists: frozenset[str]  # may be repeated
    objects: frozenset[str]  # given as name[key]=value; the route itself checks name and keys
    documented: tuple[str, ...]  # as an error message lists them

    def has(self, name: str) -> bool:
        return name in self.scalars or name in self.lists or name.partition("[")[0] in self.objects

    def may_repeat(self, name: str) -> bool:
        return name in self.lists or name == ACCEPTED_EVERYWHERE


def check_query(request: Request) -> None:
    """Raises UnknownParameter or BadRequest with everything that is wrong with the query, the unknown names first."""
    route = request.scope.get("route")
    if not request.scope["query_string"] or not isinstance(route, APIRoute):
        return
    known = known_query(route)
    counts = Counter(name for name, _ in request.query_params.multi_items())
    unknown = [name for name in counts if not known.has(name) and name != ACCEPTED_EVERYWHERE]
    repeated = [name for name, count in counts.items() if count > 1 and known.has(name) and not known.may_repeat(name)]
    if unknown or repeated:
        _, invalid = request_params_to_args(known.fields, request.query_params)
        call = f"{request.method} {route.path_format}"
        problems = [*_unknown(unknown, known, call), *map(_repeated, repeated), *as_problems(invalid)]
        raise all_at_once(problems)


def known_query(route: APIRoute) -> KnownQuery:
    fields = _query_fields(route.dependant)
    lists = frozenset(field.alias for field in fields if get_origin(field.field_info.annotation) is list)
    declared = (route.openapi_extra or {}).get("parameters", ())
    objects = frozenset(one["name"] for one in declared if one.get("style") == "deepObject")
    documented = [field.alias for field in fields if field.field_info.include_in_schema]
    return KnownQuery(
        fields=fields,
        scalars=frozenset(field.alias for field in fields) - lists,
        lists=lists,
        objects=objects,
        documented=tuple(sorted([*documented, *(f"{name}[key]" for name in objects)])),
    )


def _query_fields(dependant: Dependant) -> list[Any]:
    """Those of a route and of everything it depends on."""
    inner = [field for dependency in dependant.dependencies for field in _query_fields(dependency)]
    return [*dependant.query_params, *inner]


def _unknown(names: Sequence[str], known: KnownQuery, call: str) -> list[BadRequest]:
    if not names:
        return []
    shown = ", ".join(_with_suggestion(name[:MAX_NAME_CHARS], known) for name in names[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    allowed = f"known here: {', '.join(known.documented)}" if known.documented else f"{call} takes none"
    text = f"unknown query parameter{'s' if len(names) > 1 else ''} {shown}{more}; {allowed}"
    return [UnknownParameter(text, names[0][:MAX_NAME_CHARS])]


def _with_suggestion(name: str, known: KnownQuery) -> str:
    similar = get_close_matches(name, known.documented, n=1)
    return f"{name!r} (did you mean {similar[0]!r}?)" if similar else repr(name)


def _repeated(name: str) -> BadRequest:
    shown = name[:MAX_NAME_CHARS]
    return BadRequest(f"{shown}: is given more than once in the query; give it once", shown)

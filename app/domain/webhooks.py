"""Rules of webhooks: event types, signature (Standard Webhooks), retry schedule, allowed URLs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from app.domain.access.outbound_networks import Network, is_allowed, parse_address
from app.domain.error_text.json_text import as_json
from app.domain.jobs.states import JobState
from app.errors import BadRequest

JOB_EVENT = "fine_tuning.job."
# OpenAI's three come first. A validated, resumed or interrupted job is queued; every attempt is running.
NOTIFIED_STATES = (
    JobState.SUCCEEDED,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.QUEUED,
    JobState.RUNNING,
    JobState.PAUSED,
)
ENDPOINT_DISABLED = "webhook_endpoint.disabled"
DISABLED_BY_REQUEST = "by request"  # how the reason begins if a client has disabled an endpoint
EVENT_TYPES = (*(f"{JOB_EVENT}{state}" for state in NOTIFIED_STATES), ENDPOINT_DISABLED)

# Delays after the first attempt, which is immediate: ten attempts in total, over three and a quarter days.
RETRY_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2  # each delay is up to this share longer, so that deliveries that failed together are not retried together
MAX_RETRY_AFTER_SECONDS = 86_400.0
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"
MAX_URL = 2_048
MAX_PORT = 65_535
MAX_HOST_CHARACTERS, MAX_LABEL_CHARACTERS = 253, 63  # a label is the text between two dots
BRACKETS_PROBLEM = "has brackets without an IPv6 address in them; write it like https://[2606:4700::1111]/"
SETTINGS_PREFIX = "TUNERY_WEBHOOK"
HTTP_PROBLEM = "does not begin with https://; the operator can allow http:// ({prefix}_ALLOW_HTTP=true)"


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def is_secret(text: str) -> bool:
    """Whether `text` is a secret that can sign (Standard Webhooks: 24 to 64 bytes)."""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and 24 <= len(key) <= 64


def secret_hint(secret: str) -> str:
    return f"{SECRET_PREFIX}...{secret[-4:]}"


def event_body(event_id: str, event_type: str, created_at: int, data: Mapping[str, Any]) -> bytes:
    """The body of a delivery: the same bytes in every attempt."""
    event = {"id": event_id, "object": "event", "created_at": created_at, "type": event_type, "data": dict(data)}
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def delivery_headers(event_id: str, timestamp: int, content: bytes, signing_secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a delivery, with one signature per secret: a receiver accepts the message if one matches."""
    signatures = " ".join(sign(secret, event_id, timestamp, content) for secret in signing_secrets)
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def sign(secret: str, event_id: str, timestamp: int, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def retry_delay_seconds(attempts: int, jitter: float, retry_after_seconds: float | None = None) -> float | None:
    """The delay after this many attempts; None after the last one. `jitter` is a random number from 0 to 1.

    A receiver's Retry-After can only increase the delay, to at most a day.
    """
    if attempts > len(RETRY_SECONDS):
        return None
    scheduled = RETRY_SECONDS[attempts - 1] * (1 + JITTER * jitter)
    return max(scheduled, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))


def parse_retry_after(value: str | None, server_date: str | None, now: datetime) -> float | None:
    """The seconds in a Retry-After header, which has seconds or a date; None if it has neither.

    RFC 9110 allows whole seconds only, but some engines send decimals.

    A date counts from the Date header of the same response, so that the clock of this host may be wrong; from `now` if
    the response has none.
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text[:10])
    try:
        return max(0.0, (parsedate_to_datetime(text) - (_server_time(server_date) or now)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _server_time(server_date: str | None) -> datetime | None:
    try:
        time = parsedate_to_datetime(server_date or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return time if time.tzinfo is not None else None


def check_event_types(types: Sequence[str], param: str = "event_types") -> list[str]:
    """The event types without repetition, in their order. Raises BadRequest that names `param`."""
    unknown = [name for name in types if name not in EVENT_TYPES]
    if unknown or not types:
        problem = f"{as_json(unknown[0])} is not an event type" if unknown else "the list is empty"
        raise BadRequest(f"{param}: {problem}; give one or more of {', '.join(EVENT_TYPES)}", param)
    return list(dict.fromkeys(types))


def check_url(
    url: str, allow_http: bool, networks: Sequence[Network], param: str = "url", prefix: str = SETTINGS_PREFIX
) -> str:
    """The URL with its scheme and host in lower case, which is equivalent (RFC 3986, 6.2.2.1).

    `prefix` is that of the settings which allow more. Raises BadRequest, which names `param`, for a problem that needs
    no DNS lookup; the addresses of a name are checked at each delivery.
    """
    problem = _url_problem(url, allow_http, networks, prefix)
    if problem:
        raise BadRequest(f"{param}: {problem}", param)
    path_start = url.index("://") + 3 + len(urlsplit(url).netloc)
    return url[:path_start].lower() + url[path_start:]


def _url_problem(url: str, allow_http: bool, networks: Sequence[Network], prefix: str) -> str | None:
    if len(url) > MAX_URL or not url.isascii() or any(c <= " " or c in '"<>\\^`{|}' or c == "\x7f" for c in url):
        return f"must have at most {MAX_URL:,} printable ASCII characters without spaces; encode others (%20, punycode)"
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"it {BRACKETS_PROBLEM}"
    if parts.username is not None or parts.password is not None:
        return "must not contain a user name or password, which logs would show; the signature authenticates the sender"
    schemes = ("https", "http") if allow_http else ("https",)
    if parts.scheme not in ("https", "http"):
        allowed = " or ".join(f"{scheme}://" for scheme in schemes)
        return f"{as_json(url, 100)} does not begin with {allowed}"
    host = parts.hostname
    if not host:
        return f"{as_json(url, 100)} has no host; write it like {parts.scheme}://hooks.example.com/"
    if problem := _host_problem(host):
        return f"{as_json(url, 100)} {problem}"
    if parts.fragment:
        return "must not contain a fragment (#...), which is never sent"
    if problem := _authority_problem(parts):
        return f"{as_json(url, 100)} {problem}"
    problems = [] if parts.scheme in schemes else [f"{as_json(url, 100)} {HTTP_PROBLEM.format(prefix=prefix)}"]
    if not _may_be_public(parts, networks):
        problems.append(
            f"{as_json(host)} is not a public address; the operator can allow private ones ({prefix}_ALLOWED_NETWORKS)"
        )
    return "; ".join(problems) or None


def _host_problem(host: str) -> str | None:
    """The problem of the lengths in a host name (RFC 1035, 2.3.4), or None."""
    name = host.removesuffix(".")
    if len(name) <= MAX_HOST_CHARACTERS and all(0 < len(label) <= MAX_LABEL_CHARACTERS for label in name.split(".")):
        return None
    return (
        f"has an invalid host name; give at most {MAX_HOST_CHARACTERS} characters, with 1 to {MAX_LABEL_CHARACTERS} "
        "between dots"
    )


def _authority_problem(parts: SplitResult) -> str | None:
    """The problem of the host's brackets or of the port, or None."""
    in_brackets, bracket, after = parts.netloc.rpartition("]")
    if bracket and (not isinstance(parse_address(in_brackets), IPv6Address) or after[:1] not in ("", ":")):
        return BRACKETS_PROBLEM
    port = after.partition(":")[2]
    if port and not (port.isdecimal() and 1 <= int(port) <= MAX_PORT):
        return f"has the port {as_json(port, 20)}; give a number from 1 to {MAX_PORT}, or no port"
    return None


def _may_be_public(parts: SplitResult, networks: Sequence[Network]) -> bool:
    host = parts.hostname or ""
    address = parse_address(host)
    if address is not None:
        return is_allowed(address, networks)
    # Some resolvers parse 127.1, 0x7f000001 and 2130706433 as addresses; the last label of a name is never a number.
    last = host.rstrip(".").rpartition(".")[2]
    is_number = last.isdigit() or last.startswith("0x")
    return not is_number and (bool(networks) or (last != "localhost" and "." in host.rstrip(".")))

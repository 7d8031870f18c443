"""What a webhook is: its events, its signature (Standard Webhooks), its schedule, and the URLs it may go to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from app.domain.access.outbound_networks import Network, is_allowed, parse_address
from app.domain.error_text.json_text import shown
from app.domain.jobs.states import JobState
from app.errors import BadRequest

JOB_EVENT = "fine_tuning.job."
# OpenAI's three first. A validated, resumed or interrupted job is queued; each attempt is running.
TOLD_STATES = (
    JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED,
)  # fmt: skip
ENDPOINT_DISABLED = "webhook_endpoint.disabled"
EVENT_TYPES = (*(f"{JOB_EVENT}{state}" for state in TOLD_STATES), ENDPOINT_DISABLED)

# After the first try, which is at once: in all ten, over three days and a quarter.
RETRY_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2  # up to so much later, so that what failed together does not come back together
MAX_RETRY_AFTER_SECONDS = 86_400.0
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"
MAX_URL = 2_048
MAX_PORT = 65_535
MAX_NAME, MAX_LABEL = 253, 63  # characters of a host name and between its dots
BRACKETS = "has brackets, which a host has only around an IPv6 address, as in https://[2606:4700::1111]/"
PLAIN = "is not an address that begins with https://; the operator can allow http:// (TUNERY_WEBHOOK_ALLOW_HTTP=true)"


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    return f"{SECRET_PREFIX}...{secret[-4:]}"


def body(event_id: str, event_type: str, created_at: int, data: Mapping[str, Any]) -> bytes:
    """The same bytes at every try."""
    event = {"id": event_id, "object": "event", "created_at": created_at, "type": event_type, "data": dict(data)}
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def headers(event_id: str, timestamp: int, content: bytes, signers: Sequence[str]) -> dict[str, str]:
    """One signature for each of `signers`: a receiver takes the message if one of them is by its secret."""
    signatures = " ".join(sign(secret, event_id, timestamp, content) for secret in signers)
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def sign(secret: str, event_id: str, timestamp: int, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def retry_delay_seconds(tries: int, chance: float, retry_after_seconds: float | None = None) -> float | None:
    """How long to wait after so many tries; None when that was the last. `chance` is from 0 to 1.

    A receiver that asks for more time gets it, up to a day; one that asks for less does not.
    """
    if tries > len(RETRY_SECONDS):
        return None
    planned = RETRY_SECONDS[tries - 1] * (1 + JITTER * chance)
    return max(planned, min(retry_after_seconds or 0.0, MAX_RETRY_AFTER_SECONDS))


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds, or a date; None for what is neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def check_event_types(types: Sequence[str], param: str = "event_types") -> list[str]:
    """Each once, in the order they were given. Raises BadRequest that names `param`."""
    unknown = [name for name in types if name not in EVENT_TYPES]
    if unknown or not types:
        seen = f"{shown(unknown[0])} is no event here" if unknown else "the list is empty"
        raise BadRequest(f"{param}: {seen}; there are {', '.join(EVENT_TYPES)}", param)
    return list(dict.fromkeys(types))


def check_url(url: str, allow_http: bool, networks: Sequence[Network]) -> str:
    """The URL with its scheme and host in lower case, which RFC 3986 (6.2.2.1) says are the same in upper case.

    Raises BadRequest for what is wrong without a look-up; the addresses of a name are checked at each delivery.
    """
    problem = _url_problem(url, allow_http, networks)
    if problem:
        raise BadRequest(f"url: {problem}", "url")
    path_at = url.index("://") + 3 + len(urlsplit(url).netloc)
    return url[:path_at].lower() + url[path_at:]


def _url_problem(url: str, allow_http: bool, networks: Sequence[Network]) -> str | None:
    if len(url) > MAX_URL or not url.isascii() or any(c <= " " or c in '"<>\\^`{|}' or c == "\x7f" for c in url):
        return f"up to {MAX_URL:,} printable ASCII characters without spaces; encode others (%20, punycode)"
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"it {BRACKETS}"
    if parts.username is not None or parts.password is not None:
        return "a user name or password in it is refused: it would be in logs; the signature says who sends"
    schemes = ("https", "http") if allow_http else ("https",)
    if parts.scheme not in ("https", "http"):
        return f"{shown(url, 100)} is not an address that begins with {' or '.join(f'{one}://' for one in schemes)}"
    host = parts.hostname
    if not host:
        return f"{shown(url, 100)} has no host; it begins like {parts.scheme}://hooks.example.com/"
    if problem := _name_problem(host):
        return f"{shown(url, 100)} {problem}"
    if parts.fragment:
        return "a fragment (#...) is never sent; leave it out"
    if problem := _authority_problem(parts):
        return f"{shown(url, 100)} {problem}"
    problems = [] if parts.scheme in schemes else [f"{shown(url, 100)} {PLAIN}"]
    problems += [] if _may_be_public(parts, networks) else [_private(host)]
    return "; ".join(problems) or None


def _name_problem(host: str) -> str | None:
    """What is wrong with the lengths in a host name (RFC 1035, 2.3.4); no resolver would look it up."""
    name = host.removesuffix(".")
    if len(name) <= MAX_NAME and all(0 < len(label) <= MAX_LABEL for label in name.split(".")):
        return None
    return f"has a host that is no name: at most {MAX_NAME} characters, with 1 to {MAX_LABEL} between dots"


def _authority_problem(parts: SplitResult) -> str | None:
    """What is wrong with the host's brackets or the port."""
    in_brackets, bracket, after = parts.netloc.rpartition("]")
    if bracket and (not isinstance(parse_address(in_brackets), IPv6Address) or after[:1] not in ("", ":")):
        return BRACKETS
    port = after.partition(":")[2]
    if port and not (port.isdecimal() and 1 <= int(port) <= MAX_PORT):
        return f"has the port {shown(port, 20)}; a port is a number from 1 to {MAX_PORT}, or is left out"
    return None


def _may_be_public(parts: SplitResult, networks: Sequence[Network]) -> bool:
    host = parts.hostname or ""
    address = parse_address(host)
    if address is not None:
        return is_allowed(address, networks)
    # 127.1, 0x7f000001 and 2130706433 are addresses to some resolvers; a name's last label is never a number.
    last = host.rstrip(".").rpartition(".")[2]
    is_number = last.isdigit() or last.startswith("0x")
    return not is_number and (bool(networks) or (last != "localhost" and "." in host.rstrip(".")))


def _private(host: str) -> str:
    return (
        f"{shown(host)} is not a public address; the operator can allow private ones (TUNERY_WEBHOOK_ALLOWED_NETWORKS)"
    )

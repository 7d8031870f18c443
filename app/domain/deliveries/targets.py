"""Delivery targets: where finished adapters go, by kind, and what each kind needs; states and delays of deliveries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.access.outbound_networks import Network
from app.domain.error_text.json_text import as_json
from app.domain.webhooks import check_url
from app.errors import BadRequest

SETTINGS_PREFIX = "TUNERY_DELIVERY"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_CREDENTIAL_CHARACTERS = 4_096
JITTER = 0.2  # each delay is up to this share longer
# After the first attempt, which is immediate: eleven attempts in three days. The first four are within ten minutes,
# because an engine that restarts is back by then.
RETRY_SECONDS = (5, 30, 120, 300, 1_800, 7_200, 18_000, 36_000, 72_000, 108_000)


class TargetKind(StrEnum):
    DIRECTORY = "directory"
    VLLM = "vllm"
    SGLANG = "sglang"
    S3 = "s3"
    HUGGINGFACE = "huggingface"


class TargetStatus(StrEnum):
    READY = "ready"
    CREDENTIALS_LOST = "credentials_lost"  # no encryption key of the service decrypts them


class DeliveryState(StrEnum):
    """pending -> delivered | failed; any -> withdrawing -> withdrawn. What a target loses is delivered again."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    WITHDRAWING = "withdrawing"  # its model was deleted, or a client withdrew it; the target still has it
    WITHDRAWN = "withdrawn"


DUE_STATES = frozenset({DeliveryState.PENDING, DeliveryState.WITHDRAWING})
ONE_ADAPTER = frozenset({TargetKind.HUGGINGFACE})  # whatever its name, the next adapter takes its place
ENGINES = frozenset({TargetKind.VLLM, TargetKind.SGLANG})
# The names that the credentials of a kind may have.
CREDENTIALS: Mapping[TargetKind, tuple[str, ...]] = {
    TargetKind.DIRECTORY: (),
    TargetKind.VLLM: ("api_key",),
    TargetKind.SGLANG: ("api_key",),
    TargetKind.S3: ("access_key_id", "secret_access_key", "session_token"),
    TargetKind.HUGGINGFACE: ("token",),
}
REQUIRED_CREDENTIALS: Mapping[TargetKind, tuple[str, ...]] = {
    TargetKind.S3: ("access_key_id", "secret_access_key"),
    TargetKind.HUGGINGFACE: ("token",),
}

Path = Annotated[str, Field(min_length=1, max_length=1_024, pattern="^/")]
Url = Annotated[str, Field(min_length=1, max_length=2_048)]
BaseName = Annotated[
    str | None,
    Field(
        max_length=512,
        description="`base_model_name_or_path` in the delivered adapter_config.json. Default: what the target's kind "
        "needs: the model of an engine's `--model`, otherwise the registered name of the base model.",
    ),
]


class _Destination(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    base_name: BaseName = None


class DirectoryDestination(_Destination):
    """A directory of the server: `<path>/<served model>` is replaced atomically; the versions are kept beside it."""

    kind: Literal["directory"]
    """A directory of the server."""
    path: Path
    """An absolute path inside `TUNERY_DELIVERY_DIRECTORIES`."""


class EngineDestination(_Destination):
    urls: Annotated[list[Url], Field(min_length=1, max_length=32)]
    """The servers, such as `http://10.0.0.5:8000`; all load it."""
    shared_path: Path | None = None
    """A directory inside `TUNERY_DELIVERY_DIRECTORIES` that the servers can read. Without it the servers fetch adapters
    themselves, by the plugin `tunery-vllm`.
    """
    engine_path: Path | None = None
    """The path under which the servers see `shared_path`, if it differs."""
    base_model: Annotated[str | None, Field(max_length=512)] = None
    """The name under which the servers serve the base model, if it is not their first."""


class VllmDestination(EngineDestination):
    """vLLM with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."""

    kind: Literal["vllm"]
    """vLLM."""


class SglangDestination(EngineDestination):
    """SGLang with `--enable-lora`. Not yet run against the real engine."""

    kind: Literal["sglang"]
    """SGLang."""
    shared_path: Path
    """A directory inside `TUNERY_DELIVERY_DIRECTORIES` that the servers can read."""


class S3Destination(_Destination):
    """Objects `<prefix>/<base>/<served model>/...`, as Ray Serve LLM, KServe and vLLM's resolvers read them."""

    kind: Literal["s3"]
    """A bucket of S3, or of a server that is compatible with it."""
    bucket: Annotated[str, Field(min_length=3, max_length=255)]
    """The bucket."""
    prefix: Annotated[str, Field(max_length=512)] = ""
    """Without a slash at its ends; may be empty."""
    endpoint_url: Url | None = None
    """Of a server other than Amazon's."""
    region: Annotated[str | None, Field(max_length=64)] = None
    """The region of the bucket."""


class HuggingFaceDestination(_Destination):
    """A repository of the Hugging Face Hub. Not yet run against the real service."""

    kind: Literal["huggingface"]
    """The Hugging Face Hub."""
    repo_id: Annotated[str, Field(min_length=3, max_length=200, pattern="^[^/]+/[^/]+$")]
    """`owner/name`, created if it is missing. Each delivery is a commit."""
    private: bool = True
    """Of a repository that the delivery creates."""
    endpoint_url: Url | None = None
    """Of a hub other than huggingface.co."""


Destination = DirectoryDestination | VllmDestination | SglangDestination | S3Destination | HuggingFaceDestination
AnyDestination = Annotated[Destination, Field(discriminator="kind")]
_DESTINATION: TypeAdapter[Destination] = TypeAdapter(AnyDestination)


class TargetRules(BaseModel):
    """What the operator allows: plain HTTP, private networks, and directories of the server."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    allow_http: bool
    networks: Sequence[Network]
    directories: Sequence[str]


def parse_destination(stored: Mapping[str, Any]) -> Destination:
    return _DESTINATION.validate_python(dict(stored))


def name_problems(name: str) -> list[BadRequest]:
    if NAME.fullmatch(name):
        return []
    text = f"name: {as_json(name, 80)} is not a name of a target; give 1 to 64 letters, digits, dots, dashes and "
    return [BadRequest(f"{text}underscores, beginning with a letter or a digit", "name")]


def destination_problems(destination: Destination, rules: TargetRules) -> list[BadRequest]:
    """What the operator's rules refuse, without a DNS lookup; addresses are checked again at every connection."""
    match destination:
        case DirectoryDestination():
            return _directory_problems("path", destination.path, rules)
        case EngineDestination():
            urls = [problem for url in destination.urls for problem in _url_problems("urls", url, rules)]
            return urls + _shared_path_problems(destination, rules)
        case S3Destination() | HuggingFaceDestination():
            return _url_problems("endpoint_url", destination.endpoint_url, rules) if destination.endpoint_url else []


def credential_problems(kind: TargetKind, credentials: Mapping[str, str]) -> list[BadRequest]:
    allowed = CREDENTIALS[kind]
    names = ", ".join(allowed) or "none"
    problems = [
        BadRequest(
            f"credentials: {as_json(name, 80)} is not a credential of a {kind} target; there are: {names}",
            "credentials",
        )
        for name in sorted(credentials.keys() - set(allowed))
    ]
    problems += [
        BadRequest(f"credentials: a {kind} target needs {name}", "credentials")
        for name in REQUIRED_CREDENTIALS.get(kind, ())
        if name not in credentials
    ]
    return problems


def _url_problems(param: str, url: str, rules: TargetRules) -> list[BadRequest]:
    try:
        check_url(url, rules.allow_http, rules.networks, f"destination.{param}", SETTINGS_PREFIX)
    except BadRequest as problem:
        return [problem]
    return []


def _shared_path_problems(destination: EngineDestination, rules: TargetRules) -> list[BadRequest]:
    if destination.shared_path is not None:
        return _directory_problems("shared_path", destination.shared_path, rules)
    text = "destination.{0}: without shared_path the servers fetch the files themselves; give shared_path, or no {0}"
    given = [name for name in ("engine_path", "base_name") if getattr(destination, name) is not None]
    return [BadRequest(text.format(name), f"destination.{name}") for name in given]


def _directory_problems(param: str, path: str, rules: TargetRules) -> list[BadRequest]:
    """A path outside of the allowed directories would let a project write anywhere on the server."""
    target = PurePosixPath(path)
    if ".." not in target.parts and any(target.is_relative_to(allowed) for allowed in rules.directories):
        return []
    allowed = ", ".join(rules.directories) or "none yet"
    text = (
        f"destination.{param}: {as_json(path, 200)} is not inside a directory that the operator allows "
        f"(TUNERY_DELIVERY_DIRECTORIES: {allowed})"
    )
    return [BadRequest(text, f"destination.{param}")]


def retry_delay_seconds(attempts: int, jitter: float) -> float | None:
    """The delay after this many attempts; None after the last one. `jitter` is a random number from 0 to 1."""
    if attempts > len(RETRY_SECONDS):
        return None
    return RETRY_SECONDS[attempts - 1] * (1 + JITTER * jitter)


def withdrawal_delay_seconds(attempts: int, jitter: float) -> float:
    """The same delays, the last one without a limit: nothing deleted stays at a target that becomes reachable again."""
    return retry_delay_seconds(min(attempts, len(RETRY_SECONDS)), jitter) or RETRY_SECONDS[-1]

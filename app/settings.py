"""All environment variables that Tunery reads, typed, with the reason for each default. Built once and passed down.

They start with `TUNERY_`, except `DATABASE_URL` and `REDIS_URL`, which many platforms set.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.access.outbound_networks import Network, parse_networks
from app.domain.error_text.validation_text import settings_text
from app.domain.scheduling.worker_capacity import LABEL, LABEL_RULE
from app.domain.storage_location import S3Location, parse_storage_url
from app.domain.webhooks import is_secret

MAX_FILE_BYTES = 512 << 20  # OpenAI's limit for one file
# Settings of the previous release without effect in this one -> what replaces them. One release later they are unknown.
REMOVED = {
    "TUNERY_HEADER_TIMEOUT_SECONDS": "the proxy limits request headers (nginx: client_header_timeout)",
    "TUNERY_RESPONSE_STALL_SECONDS": "the proxy ends responses that a client does not read (nginx: send_timeout)",
}
ENDPOINTS_EXAMPLE = (
    '{"judge": {"base_url": "http://10.0.0.5:8000/v1", "api_key": "...", "timeout_seconds": 60, "concurrency": 4}}'
)


def _split(text: Any) -> Any:
    """Accept one comma-separated string as well as a list."""
    return tuple(filter(None, map(str.strip, text.split(",")))) if isinstance(text, str) else text


def psycopg_url(url: str) -> str:
    """Select psycopg 3, the only installed driver, for `postgres://` and `postgresql://`."""
    for scheme in ("postgres://", "postgresql://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def _check_label(label: str) -> str:
    if not LABEL.fullmatch(label):
        raise ValueError(f"{label!r}: a label has {LABEL_RULE}")
    return label


def _check_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r}: give an absolute path")
    return path


def _check_url(url: str, *, shown: str = "") -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{shown}must begin with https:// or http://")
    return url


def _check_server_url(url: str) -> str:
    return _check_url(url, shown=f"{url!r} ")


def _check_networks(text: str) -> str:
    parse_networks(text)
    return text


Labels = Annotated[tuple[Annotated[str, AfterValidator(_check_label)], ...], NoDecode, BeforeValidator(_split)]
Directories = Annotated[tuple[Annotated[str, AfterValidator(_check_path)], ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[str, AfterValidator(_check_networks)]
ServerUrl = Annotated[str, AfterValidator(_check_server_url)]
ServerUrlOrEmpty = Annotated[str | None, AfterValidator(lambda url: _check_server_url(url) if url else None)]


class Endpoint(BaseModel):
    """An OpenAI-compatible endpoint for evaluations. Its key stays in this process's environment."""

    model_config = ConfigDict(extra="forbid")

    base_url: Annotated[str, AfterValidator(_check_url)]  # with /v1; errors do not show it: it may have a key
    api_key: SecretStr = SecretStr("")
    timeout_seconds: float = Field(default=60, gt=0)  # of one answer
    concurrency: int = Field(default=4, ge=1, le=64)  # requests at once


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TUNERY_", extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )  # passwords

    # --- addresses and directories
    database_url: Annotated[str, AfterValidator(psycopg_url)] = Field(
        validation_alias=AliasChoices("DATABASE_URL", "database_url")
    )
    redis_url: str = Field(validation_alias=AliasChoices("REDIS_URL", "redis_url"))
    data_dir: Path = Path("data")  # files, adapters, snapshots, work directories

    # --- storage: files, adapters and snapshots. All processes of a service need the same values.
    storage_url: str = ""  # file:///DIRECTORY or s3://BUCKET/PREFIX; default: the directory `storage` of `data_dir`
    storage_endpoint: ServerUrlOrEmpty = None  # of an S3 server other than Amazon's: https://s3.example.com
    storage_region: str | None = None
    storage_access_key_id: str | None = None  # default: as every AWS client finds its credentials
    storage_secret_access_key: SecretStr | None = None
    storage_redirects: bool = False  # downloads come from the bucket, by an address that is signed for 15 minutes
    storage_redirect_endpoint: ServerUrlOrEmpty = None  # the bucket as clients reach it; default: storage_endpoint
    storage_retry_seconds: float = Field(  # a worker waits so long for a bucket that fails, before training is repeated
        default=600, ge=0
    )

    # --- the API
    organization: str = "tunery"  # `organization_id`, and the third part of ft:base:organization:suffix:id
    docs_enabled: bool = True  # /docs, /llms.txt, /openapi.json without a key; off where even the shape is private
    max_answer_body_bytes: int = Field(default=2 << 20, ge=1)  # of a question; images in a conversation need more
    max_file_bytes: int = MAX_FILE_BYTES
    max_upload_bytes: int = 8 << 30  # OpenAI's limit for a multipart upload
    upload_ttl_seconds: float = Field(default=3600, gt=0)  # how long an upload may take; one hour at OpenAI
    max_line_bytes: int = 4 << 20  # one example; 4 MiB is about a million tokens
    min_training_examples: int = 10  # OpenAI's minimum
    results_csv_base64: bool = False  # for scripts that expect base64, as OpenAI served for years
    database_pool_size: int = 20  # requests in a transaction at once; a process opens up to 2 n + 6 connections
    max_requests_per_second: int = Field(default=10_000, ge=1)  # default of projects without a limit of their own
    # What one project may hold at once, so that no key of it takes what others need
    max_queued_jobs: int = Field(default=1_000, ge=1)  # default of projects without a limit of their own
    max_pending_uploads: int = Field(default=100, ge=1)
    max_pending_upload_bytes: int = Field(default=64 << 30, ge=1)  # declared, together: eight of the largest
    max_event_streams: int = Field(default=100, ge=1)  # of one API key, in each API process
    check_processes: int | None = Field(default=None, ge=1)  # concurrent processes that read datasets; default: cores
    admin_key_file: Path | None = None  # containers: a file with the first admin key
    web_url: str | None = None  # the dashboard's address, to which `/` refers browsers

    # Where directories of base models may be that are registered over HTTP; all processes need the same values
    base_model_directories: Directories = ()
    # The directory of models that workers download at a request over HTTP; unset: none are
    base_model_pull_directory: Annotated[
        str | None, AfterValidator(lambda path: _check_path(path) if path else None)
    ] = None
    hub_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("TUNERY_HUB_TOKEN", "HF_TOKEN", "hub_token")
    )  # of the model hub, for workers

    # --- experiment trackers (`integrations` of a job), for workers; jobs name only a project or an experiment
    wandb_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("TUNERY_WANDB_API_KEY", "WANDB_API_KEY", "wandb_api_key")
    )
    wandb_offline: bool = False  # runs stay in the directory `wandb` of `data_dir`, until `wandb sync` uploads them
    mlflow_tracking_uri: SecretStr | None = Field(  # may have a password
        default=None,
        validation_alias=AliasChoices("TUNERY_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI", "mlflow_tracking_uri"),
    )

    # --- connections: limits for slow or silent clients; those of headers and responses are the proxy's
    behind_proxy: bool = False  # a proxy limits headers and connections: required on any address but loopback
    keep_alive_seconds: float = Field(
        default=75, gt=0
    )  # longer than the 60 s after which gateways close idle connections
    body_idle_seconds: float = Field(  # without a byte of a request body; TUNERY_UPLOAD_IDLE_SECONDS is its older name
        default=30,
        gt=0,
        validation_alias=AliasChoices("TUNERY_BODY_IDLE_SECONDS", "TUNERY_UPLOAD_IDLE_SECONDS", "body_idle_seconds"),
    )
    body_min_bytes_per_second: float = Field(default=1000, ge=0)  # of a request body, averaged over the next setting
    body_rate_window_seconds: float = Field(default=60, gt=0)

    # --- dispatch. A lease outlives a restart of PostgreSQL (a minute); a lost worker is detected in 5.5 minutes.
    lease_ttl_seconds: float = 300
    lease_renew_seconds: float = 15
    watch_seconds: float = 2  # how often the holder reads `desired` and checks its lease
    self_fence_seconds: float = 240  # without a confirmed renewal the trainer is stopped, before the lease expires
    self_fence_kill_seconds: float = 270
    reap_grace_seconds: float = 30
    reconcile_seconds: float = 5
    poll_seconds: float = 5  # of idle workers: the delay that a lost hint causes
    max_crash_streak: int = 3  # crashed attempts without a new snapshot between them
    requeue_delay_seconds: float = 5  # before a crashed attempt is retried; doubles with the streak
    storage_full_wait_seconds: float = Field(
        default=86_400, ge=0
    )  # on a full disk: a day of retries, then the job is paused

    # --- the queue. All processes of a service need the same values.
    labels: Labels = ()  # of this worker: "a100,team=search"; jobs may ask for labels
    fair_share_half_life_seconds: float = Field(default=86_400, ge=60)  # after a day GPU time counts half
    give_way: bool = False  # preemption: an urgent job without a free slot stops a long one at a step; it resumes later
    give_way_after_seconds: float = Field(default=600, ge=0)  # minimum run time of an attempt before preemption
    give_way_limit: int = Field(default=3, ge=0)  # maximum preemptions of one job

    # --- the trainer
    snapshot_interval_seconds: float = 300  # the training time that a crash may cost
    stop_grace_seconds: float = 60  # from the request to stop a trainer until it is killed
    drain_grace_seconds: float = 100  # the same when the worker itself is stopping; containers give it 120 s
    stall_seconds: float = 600  # a trainer without a record for so long (or 20 median steps) hangs
    spare_trainer: bool = True  # an idle slot keeps the next trainer ready: 400 MB for a start 4 s earlier
    gpus_per_job: int = Field(
        default=1, ge=1, le=64
    )  # data parallel: the GPUs of a slot that share each step's examples
    slots_per_gpu: int = Field(
        default=1, ge=1, le=16
    )  # workers that share a GPU, each with an equal part of its memory; the same value for all workers of a GPU
    cuda_kernels: bool = True  # compiled kernels and what else is faster on CUDA, from sm80 on
    device: str = "auto"  # auto, cpu or cuda
    threads: int | None = None  # CPU threads of a trainer; default: physical cores

    # --- evaluations
    # by name: clients choose a name, and never a URL or a key
    endpoints: Annotated[dict[str, Endpoint], NoDecode] = {}

    # --- webhooks
    webhook_allow_http: bool = False  # https only, as a signature does not hide the ids in the body
    webhook_allowed_networks: Networks = ""  # CIDRs, comma-separated: allowed private addresses of endpoints
    webhook_connect_seconds: float = 5  # without the resolution of the name
    webhook_timeout_seconds: float = 15  # of a complete attempt; Standard Webhooks recommends 15 to 30
    webhook_poll_seconds: float = 1  # how often the sender claims due deliveries
    webhook_disable_seconds: float = 432_000  # an endpoint that fails for five days is disabled
    webhook_keep_seconds: float = 2_592_000  # deliveries are kept for 30 days

    # --- operators
    low_disk_percent: float = Field(default=10, ge=0, le=100)  # of the data directory's disk that should be free
    operator_webhook_url: str | None = None  # failed jobs, lost workers, low disk; sent by the webhook sender
    operator_webhook_secret: str | None = Field(default=None, repr=False)  # whsec_ and base64; signs these events

    # --- metrics and traces
    metrics_port: int | None = Field(default=None, ge=1, le=65_535)  # of this process; None: no metrics
    metrics_host: str = "127.0.0.1"  # the port has no authentication
    otlp_endpoint: ServerUrl | None = None  # URL of an OpenTelemetry collector (OTLP over HTTP); None: no traces

    # --- deliveries of adapters
    # Fernet keys, comma-separated; the first one encrypts credentials of targets
    secret_keys: SecretStr = SecretStr("")
    delivery_allow_http: bool = False  # https only; inference engines in a private network often have http only
    delivery_allowed_networks: Networks = ""  # CIDRs, comma-separated: allowed private addresses of targets
    delivery_directories: Directories = ()  # where targets may write on this server
    delivery_timeout_seconds: float = Field(default=300, gt=0)  # of one request: an engine loads, or answers
    delivery_attempt_seconds: float = Field(default=3600, gt=0)  # of all requests and uploads of one attempt
    # how often the sender claims due deliveries
    delivery_poll_seconds: float = Field(default=1, gt=0, le=30)
    delivery_recheck_seconds: float = Field(default=60, gt=0)  # how often it looks whether an engine still has them

    # --- answers
    trial_answers: bool = False  # idle GPU slots answer small requests; `tunery up` turns it on
    answer_timeout_seconds: float = Field(default=600, gt=0)  # without a byte of an engine's answer; OpenAI's clients'

    # --- logs
    log_json: bool = True  # JSON lines; false: text for a terminal
    log_file: Path | None = None  # of this process alone, rotated; default: standard error

    @field_validator("endpoints", mode="before")
    @classmethod
    def _parse_endpoints(cls, endpoints: object) -> object:
        """Parse JSON here: an error of the library's parser names neither the variable nor the position."""
        try:
            return json.loads(endpoints) if isinstance(endpoints, str) else endpoints
        except ValueError as error:
            raise ValueError(f"it is no JSON ({error})") from None

    @model_validator(mode="after")
    def _check_operator_webhook(self) -> Self:
        """A URL needs a secret, and the secret must be one that can sign."""
        secret = self.operator_webhook_secret
        if self.operator_webhook_url is not None and not is_secret(secret or ""):
            raise ValueError(
                "TUNERY_OPERATOR_WEBHOOK_URL needs TUNERY_OPERATOR_WEBHOOK_SECRET: whsec_ followed by the base64 of 24 "
                "to 64 random bytes, such as the output of: echo whsec_$(openssl rand -base64 32)"
            )
        return self

    @field_validator("storage_url")
    @classmethod
    def _check_storage_url(cls, url: str) -> str:
        if url:
            parse_storage_url(url)
        return url

    @model_validator(mode="after")
    def _check_storage_key(self) -> Settings:
        if (self.storage_access_key_id is None) != (self.storage_secret_access_key is None):
            raise ValueError("TUNERY_STORAGE_ACCESS_KEY_ID and TUNERY_STORAGE_SECRET_ACCESS_KEY belong together")
        return self

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        return parse_networks(self.webhook_allowed_networks)

    @property
    def delivery_networks(self) -> tuple[Network, ...]:
        return parse_networks(self.delivery_allowed_networks)

    @property
    def encryption_keys(self) -> tuple[str, ...]:
        """The keys of `secret_keys`: the first one encrypts, each of them decrypts."""
        keys: tuple[str, ...] = _split(self.secret_keys.get_secret_value())
        return keys

    @property
    def storage_dir(self) -> Path:
        """The directory of local storage; with a bucket that of the staging area."""
        place = parse_storage_url(self.storage_url) if self.storage_url else None
        return place if isinstance(place, Path) else self.data_dir / "storage"

    @property
    def s3_location(self) -> S3Location | None:
        """The bucket; None for local storage."""
        place = parse_storage_url(self.storage_url) if self.storage_url else None
        if place is None or isinstance(place, Path):
            return None
        secret, endpoint = self.storage_secret_access_key, self.storage_endpoint
        return S3Location(
            *place,
            endpoint=endpoint,
            region=self.storage_region,
            access_key_id=self.storage_access_key_id,
            secret_access_key=None if secret is None else secret.get_secret_value(),
            redirect_endpoint=(self.storage_redirect_endpoint or endpoint or "") if self.storage_redirects else None,
        )

    @property
    def work_dir(self) -> Path:
        return self.data_dir / "work"


class WebSettings(BaseSettings):
    """Settings of the dashboard, `python -m app.web`: a client of the API, without database or broker."""

    model_config = SettingsConfigDict(env_prefix="TUNERY_WEB_", extra="ignore", populate_by_name=True)

    api_url: str = "http://127.0.0.1:8000"  # of the API, without /v1, as this process reaches it
    api_public_url: str | None = None  # as users reach it, for the commands that pages show; default: api_url
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=1, le=65535)
    session_seconds: float = Field(default=43_200, gt=0)  # 12 hours: a working day
    max_file_bytes: int = Field(
        default=MAX_FILE_BYTES, validation_alias=AliasChoices("TUNERY_MAX_FILE_BYTES", "max_file_bytes")
    )
    log_json: bool = Field(default=True, validation_alias=AliasChoices("TUNERY_LOG_JSON", "log_json"))
    log_file: Path | None = Field(default=None, validation_alias=AliasChoices("TUNERY_LOG_FILE", "log_file"))
    metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, validation_alias=AliasChoices("TUNERY_METRICS_PORT", "metrics_port")
    )
    metrics_host: str = Field(default="127.0.0.1", validation_alias=AliasChoices("TUNERY_METRICS_HOST", "metrics_host"))

    @field_validator("api_url", "api_public_url")
    @classmethod
    def _strip_version(cls, url: str | None) -> str | None:
        """Accept the `base_url` of the official client, too."""
        return url.rstrip("/").removesuffix("/v1").rstrip("/") if url else url

    @property
    def public_api_url(self) -> str:
        return self.api_public_url or self.api_url


Loaded = TypeVar("Loaded", Settings, WebSettings)


def load_settings() -> Settings:
    """The settings of a process that connects to both servers; others give empty URLs. Raises SystemExit."""
    settings = _load(Settings)
    if not settings.database_url.startswith("postgresql+psycopg://"):
        text = "DATABASE_URL must begin with postgresql://, such as postgresql://user:password@host:5432/tunery"
        raise SystemExit(f"The environment has invalid settings: {text}.")  # not with the URL, which has a password
    if not settings.redis_url:
        raise SystemExit("The environment has invalid settings: REDIS_URL is empty.")
    return settings


def removed_settings(environment: Collection[str]) -> list[str]:
    """A sentence for each variable in `environment` that has no effect any more."""
    return [f"{name} has no effect any more: {text}" for name, text in REMOVED.items() if name in environment]


def load_web_settings() -> WebSettings:
    return _load(WebSettings)


def _load(kind: type[Loaded]) -> Loaded:
    """The settings of this process, which ends with a message if some are invalid."""
    try:
        return kind()
    except ValidationError as error:
        raise SystemExit(invalid_settings(error, kind.model_config["env_prefix"])) from None


def invalid_settings(error: ValidationError, prefix: str = "TUNERY_") -> str:
    concerns_endpoints = any(each["loc"][:1] == ("endpoints",) for each in error.errors())
    example = f" Write TUNERY_ENDPOINTS like {ENDPOINTS_EXAMPLE}" if concerns_endpoints else ""
    return f"The environment has invalid settings: {settings_text(error, prefix)}.{example}"

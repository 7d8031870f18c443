"""Every environment variable Tunery reads, typed, with the reason for each default. Built once, passed down.

Ours start with `TUNERY_`; `DATABASE_URL` and `REDIS_URL` keep the names that every platform sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.access.outbound_networks import Network, parse_networks
from app.domain.scheduling.worker_capacity import LABEL, LABEL_RULE


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TUNERY_", extra="ignore", populate_by_name=True)

    # --- where things are
    database_url: str = Field(validation_alias=AliasChoices("DATABASE_URL", "database_url"))
    redis_url: str = Field(validation_alias=AliasChoices("REDIS_URL", "redis_url"))
    data_dir: Path = Path("data")  # files, adapters, snapshots, work directories

    # --- the API
    organization: str = "tunery"  # `organization_id`, and the third part of ft:base:organization:suffix:id
    docs_enabled: bool = True  # /docs and /openapi.json without a key; turn off where even the shape is private
    max_file_bytes: int = 512 << 20  # OpenAI's limit for one file
    max_upload_bytes: int = 8 << 30  # OpenAI's limit for a file that comes in parts
    upload_ttl_seconds: float = Field(default=3600, gt=0)  # how long such an upload may take; OpenAI's hour
    max_line_bytes: int = 4 << 20  # one example; 4 MiB is about a million tokens
    min_training_examples: int = 10  # OpenAI's floor
    results_csv_base64: bool = False  # OpenAI served the results CSV in base64 for years; scripts that expect it
    database_pool_size: int = 20  # requests in a transaction at once; a process opens up to 2 n + 6 connections
    max_requests_per_second: int = Field(default=10_000, ge=1)  # of a project that has no limit of its own
    check_processes: int | None = Field(default=None, ge=1)  # that read data sets for requests, at once; absent: cores
    admin_key_file: Path | None = None  # containers: the first admin key is read from here at start-up

    # --- connections: how long a slow or silent client keeps one
    header_timeout_seconds: float = Field(default=10, gt=0)  # for complete request headers, from the first byte
    keep_alive_seconds: float = Field(default=75, gt=0)  # gateways close idle connections after 60 s: be later
    body_idle_seconds: float = Field(default=30, gt=0)  # without a byte of a request body
    body_min_bytes_per_second: float = Field(default=1000, ge=0)  # of a request body, averaged over the next number
    body_rate_window_seconds: float = Field(default=60, gt=0)
    response_stall_seconds: float = Field(default=300, gt=0)  # without an acknowledged byte of a response

    # --- dispatch. A restart of PostgreSQL takes a minute; a lease outlives it, a lost worker is found in 5.5 minutes.
    lease_ttl_seconds: float = 300
    lease_renew_seconds: float = 15
    watch_seconds: float = 2  # how often the holder looks at `desired` and whether it is fenced
    self_fence_seconds: float = 240  # without a confirmed renewal the trainer is stopped, before anybody else may start
    self_fence_kill_seconds: float = 270
    reap_grace_seconds: float = 30
    reconcile_seconds: float = 5
    poll_seconds: float = 5  # idle workers look for themselves: a lost hint costs this much
    max_crash_streak: int = 3  # attempts that died without a new snapshot between them
    requeue_delay_seconds: float = 5  # before an attempt that died is tried again; doubles with the streak
    storage_full_wait_seconds: float = Field(default=86_400, ge=0)  # a full disk: a day of tries, then a pause

    # --- the queue. Give every process of a service the same numbers.
    labels: Annotated[tuple[str, ...], NoDecode] = ()  # of this worker: "a100,team=search"; jobs may ask for labels
    fair_share_half_life_seconds: float = Field(default=86_400, ge=60)  # after a day GPU time counts half
    give_way: bool = False  # an urgent job that finds no free slot makes a long one stop at a step, and go on later
    give_way_after_seconds: float = Field(default=600, ge=0)  # so long an attempt runs undisturbed
    give_way_limit: int = Field(default=3, ge=0)  # so often one job gives way at most

    # --- the trainer
    snapshot_interval_seconds: float = 300  # by time, not steps: what a crash may cost
    stop_grace_seconds: float = 60  # from asking a trainer to stop until it is killed
    drain_grace_seconds: float = 100  # the same when the worker itself is stopping; containers give it 120 s
    stall_seconds: float = 600  # no record from a trainer for so long (or 20 median steps): it hangs
    spare_trainer: bool = True  # an idle slot keeps the next trainer ready: 400 MB for a start 4 s earlier
    gpus_per_job: int = Field(default=1, ge=1, le=64)  # each step's examples are shared out over so many GPUs of a slot
    device: str = "auto"  # auto, cpu or cuda
    threads: int | None = None  # CPU threads of a trainer; absent: physical cores, or what a probe finds faster

    # --- webhooks
    webhook_allow_http: bool = False  # https only: the body names jobs, and a signature is no secret-keeper
    webhook_allowed_networks: str = ""  # CIDRs, comma-separated: private addresses that endpoints may have
    webhook_connect_seconds: float = 5  # to resolve the name is not in it
    webhook_timeout_seconds: float = 15  # for one try in all; Standard Webhooks recommends 15 to 30
    webhook_poll_seconds: float = 1  # how often the sender looks for what is due
    webhook_disable_seconds: float = 432_000  # an endpoint that has failed for so long (five days) is disabled
    webhook_keep_seconds: float = 2_592_000  # 30 days of deliveries are kept

    # --- logs
    log_json: bool = True  # one JSON object per line; false: text for a terminal
    log_file: Path | None = None  # a file of this process alone, rotated; absent: standard error

    @field_validator("database_url")
    @classmethod
    def _use_psycopg(cls, url: str) -> str:
        """`postgres://` and `postgresql://` mean psycopg 3 here: it is the one driver that is installed."""
        for scheme in ("postgres://", "postgresql://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        return url

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, given: object) -> object:
        """One text with commas, or a list."""
        return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [label for label in labels if not LABEL.fullmatch(label)]:
            raise ValueError(f"{', '.join(map(repr, wrong))}: a label has {LABEL_RULE}")
        return labels

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        parse_networks(text)
        return text

    @property
    def webhook_networks(self) -> tuple[Network, ...]:
        return parse_networks(self.webhook_allowed_networks)

    @property
    def storage_dir(self) -> Path:
        return self.data_dir / "storage"

    @property
    def work_dir(self) -> Path:
        return self.data_dir / "work"


def load_settings() -> Settings:
    return Settings()

"""Whether a service is healthy, and what to do if it is not: rules on facts that the database and the disk give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.domain.jobs.states import OPERATOR_REASONS, JobState

MAX_SILENT_SECONDS = 60.0  # of a reconciler or a sender, which report every few seconds
MAX_IDLE_WAIT_SECONDS = 900.0  # of a due job beside an idle worker
MAX_BACKLOG_SECONDS = 600.0
MAX_BACKUP_AGE_SECONDS = 7 * 86_400.0

CHECK_REMEDIES = {
    "database": "Start PostgreSQL, or free space on its disk.",
    "migrations": "Run `python -m app.db.migrate`; `tunery up` does it when it starts.",
    "base_model": "Register one: `tunery models add NAME DIRECTORY`.",
    "storage": "Check the disk or the bucket, its free space, and the permissions of the data directory.",
    "disk": "The storage by project below shows who uses the space; exports can be made again.",
    "broker": "Start Redis or Valkey. No job is lost; until then jobs start a few seconds later.",
}

Level = Literal["problem", "advice"]
ServiceName = Literal["reconciler", "webhooks", "deliveries"]


@dataclass(frozen=True)
class Problem:
    code: str
    level: Level
    message: str
    remedy: str


@dataclass(frozen=True)
class ServiceFacts:
    """What is known of the service. Ages are seconds; None: never."""

    jobs: Mapping[str, int]  # unfinished jobs by state
    living_workers: Mapping[str, int]  # by queue
    idle_workers: Mapping[str, int]
    lost_workers: Sequence[str]  # that vanished within the last day without a shutdown
    worker_disks: Mapping[str, str]  # other hosts' data disks that are almost full or fail: host -> what is wrong
    expired_leases: int
    oldest_age_seconds: Mapping[str, float]  # of the oldest due job, by state
    failed_by_code: Mapping[str, int]  # jobs of the last day
    silent_seconds: Mapping[ServiceName, float | None]
    is_copy: bool  # a copy beside the service that was backed up: its senders claim nothing
    has_webhooks: bool
    operator_webhook_off: str | None  # why the operator's webhook is disabled
    backlog_age_seconds: float
    has_delivery_targets: bool
    delivery_backlog_age_seconds: float
    failed_deliveries: Mapping[str, int]  # of the last day, by target
    retried_deliveries: Mapping[str, int]  # that wait for another attempt after one without success, by target
    failing_endpoints: Sequence[str]  # webhook endpoints of projects
    lost_secrets: int  # that none of the encryption keys decrypts
    backup_age_seconds: float | None
    backup_damaged_count: int  # objects that were missing or damaged when it was made
    failed_checks: Sequence[tuple[str, bool, str]] = field(default=())  # (name, is required, detail)


def find_problems(facts: ServiceFacts) -> list[Problem]:
    """All problems, those that stop jobs first."""
    found = [
        *_checks(facts),
        *_workers(facts),
        *_processes(facts),
        *_queue(facts),
        *_failures(facts),
        *_webhooks(facts),
        *_deliveries(facts),
        *_secrets(facts),
        *_backups(facts),
    ]
    return sorted(found, key=lambda each: each.level != "problem")


def _checks(facts: ServiceFacts) -> Iterator[Problem]:
    for name, is_required, detail in facts.failed_checks:
        level: Level = "problem" if is_required or name in ("disk", "storage") else "advice"
        yield Problem(
            f"{name}_check_failed", level, f"{name}: {detail}.", CHECK_REMEDIES.get(name, "Read the API's log.")
        )


def _workers(facts: ServiceFacts) -> Iterator[Problem]:
    for queue, state, work in (("gpu", JobState.QUEUED, "train"), ("cpu", JobState.VALIDATING, "be validated")):
        waiting = facts.jobs.get(state, 0)
        if waiting and not facts.living_workers.get(queue, 0):
            message = f"{_count(waiting, 'job')} wait to {work}, and no {queue.upper()} worker is alive."
            yield Problem(f"no_{queue}_worker", "problem", message, "Start a worker and read its log.")
    if facts.lost_workers:
        names = ", ".join(facts.lost_workers[:3]) + (", …" if len(facts.lost_workers) > 3 else "")
        message = f"{_count(len(facts.lost_workers), 'worker')} vanished within the last day: {names}."
        remedy = "Read the worker's log and the kernel's log of its host. Its jobs continue on other workers."
        yield Problem("workers_lost", "advice", message, remedy)
    for host, disk_problem in facts.worker_disks.items():
        message = f"The data disk of the workers on {host}: {disk_problem}."
        remedy = "`du -sh` of the data directory there shows what uses the space: work directories, base models, logs."
        yield Problem("worker_disk_check_failed", "problem", message, remedy)
    if facts.expired_leases:
        message = f"{_count(facts.expired_leases, 'lease')} expired: the workers that held the jobs do not respond."
        yield Problem("leases_expired", "problem", message, "The reconciler ends these attempts; check the workers.")


def _processes(facts: ServiceFacts) -> Iterator[Problem]:
    silent = facts.silent_seconds.get("reconciler")
    if silent is None or silent > MAX_SILENT_SECONDS:
        message = f"No reconciler runs ({_last_seen(silent)}): lost jobs are not recovered, nothing is cleaned up."
        yield Problem("no_reconciler", "problem", message, "Start `python -m worker.reconciler` and read its log.")
    silent = facts.silent_seconds.get("webhooks")
    if facts.has_webhooks and (silent is None or silent > MAX_SILENT_SECONDS):
        message = f"No webhook sender runs ({_last_seen(silent)}): deliveries wait."
        yield Problem("no_webhook_sender", "problem", message, "Start `python -m worker.webhooks` and read its log.")
    silent = facts.silent_seconds.get("deliveries")
    if facts.has_delivery_targets and (silent is None or silent > MAX_SILENT_SECONDS):
        message = f"No delivery sender runs ({_last_seen(silent)}): adapters are neither delivered nor withdrawn."
        yield Problem("no_delivery_sender", "problem", message, "Start `python -m worker.deliveries` and read its log.")


def _queue(facts: ServiceFacts) -> Iterator[Problem]:
    age = facts.oldest_age_seconds.get(JobState.QUEUED, 0.0)
    if age > MAX_IDLE_WAIT_SECONDS and facts.idle_workers.get("gpu", 0):
        message = f"A due job has waited for {age / 60:.0f} minutes although a GPU worker is idle."
        yield Problem("queue_stalled", "advice", message, "`tunery queue` shows what the job waits for.")


def _failures(facts: ServiceFacts) -> Iterator[Problem]:
    ours = {code: count for code, count in facts.failed_by_code.items() if code in OPERATOR_REASONS}
    if ours:
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(ours.items()))
        message = f"Jobs failed within the last day for reasons that are not their users': {codes}."
        yield Problem("jobs_failed", "problem", message, "The list of failed jobs below has the remedy for each.")


def _webhooks(facts: ServiceFacts) -> Iterator[Problem]:
    if facts.failing_endpoints:
        names = ", ".join(sorted(facts.failing_endpoints))
        message = f"Webhook endpoints of projects accept no events, or are disabled because of that: {names}."
        remedy = "`tunery webhooks deliveries ENDPOINT` with a key of the project has the responses."
        yield Problem("webhooks_failing", "advice", message, remedy)
    if facts.backlog_age_seconds > MAX_BACKLOG_SECONDS and not facts.is_copy:
        message = f"A webhook delivery has been due for {facts.backlog_age_seconds / 60:.0f} minutes."
        yield Problem("webhooks_delayed", "problem", message, "Read the log of the webhook sender.")
    if facts.operator_webhook_off is not None:
        message = f"The operator's webhook is off: {facts.operator_webhook_off.removesuffix('.')}."
        remedy = "Correct its URL or its receiver, and restart the webhook sender, which enables it."
        yield Problem("operator_webhook_off", "problem", message, remedy)


def _deliveries(facts: ServiceFacts) -> Iterator[Problem]:
    if facts.delivery_backlog_age_seconds > MAX_BACKLOG_SECONDS and not facts.is_copy:
        message = f"The delivery of an adapter has been due for {facts.delivery_backlog_age_seconds / 60:.0f} minutes."
        yield Problem("deliveries_delayed", "problem", message, "Read the log of the delivery sender.")
    if facts.failed_deliveries:
        targets = ", ".join(f"{count} x {name}" for name, count in sorted(facts.failed_deliveries.items()))
        message = f"Deliveries of adapters failed within the last day: {targets}."
        remedy = "The failed deliveries below have the reasons; request a delivery again when its cause is gone."
        yield Problem("deliveries_failed", "advice", message, remedy)
    if facts.retried_deliveries:
        targets = ", ".join(f"{count} x {name}" for name, count in sorted(facts.retried_deliveries.items()))
        message = f"Deliveries of adapters wait for another attempt after one without success: {targets}."
        remedy = "The list below has the reasons; a change of the target (`tunery targets update`) is tried at once."
        yield Problem("deliveries_retried", "advice", message, remedy)


def _secrets(facts: ServiceFacts) -> Iterator[Problem]:
    if facts.lost_secrets:
        count = _count(facts.lost_secrets, "secret")
        message = f"None of TUNERY_SECRET_KEYS decrypts {count}, so what they protect sends and delivers nothing."
        remedy = "`tunery secrets list` names them: add the key of then to the end of TUNERY_SECRET_KEYS and restart."
        yield Problem("secrets_lost", "problem", message, remedy)


def _backups(facts: ServiceFacts) -> Iterator[Problem]:
    if facts.is_copy:
        message = "This is a restored copy: it sends no webhook events, and delivers and withdraws no adapters."
        remedy = "To run it as the service, restore the backup again without --copy, into a new directory."
        yield Problem("copy", "advice", message, remedy)
    age = facts.backup_age_seconds
    if age is None:
        yield Problem("no_backup", "advice", "No backup was made.", "Make one: `tunery backup DIRECTORY`.")
    elif age > MAX_BACKUP_AGE_SECONDS:
        message = f"The last backup is {age / 86_400:.0f} days old."
        yield Problem("backup_old", "advice", message, "Make one: `tunery backup DIRECTORY`.")
    if facts.backup_damaged_count:
        count = _count(facts.backup_damaged_count, "object")
        message = f"Missing or damaged in storage when the last backup was made: {count}."
        remedy = "`tunery fsck` names them; with --repair --from DIRECTORY it restores them from earlier backups."
        yield Problem("backup_damaged", "problem", message, remedy)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _last_seen(seconds: float | None) -> str:
    return "none was ever seen" if seconds is None else f"last seen {seconds / 60:.0f} minutes ago"

"""A check, and the checks of a service: whether it is healthy, and what to do if it is not.

The rules apply to facts that the database and the disk give. Checks of this machine: app.cli.local_stack.checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from app.domain.error_text.json_text import counted
from app.domain.jobs.states import OPERATOR_REASONS, JobState

MAX_SILENT_SECONDS = 60.0  # of a reconciler or a sender, which report every few seconds
MAX_IDLE_WAIT_SECONDS = 900.0  # of a due job beside an idle worker
MAX_BACKLOG_SECONDS = 600.0
MAX_BACKUP_AGE_SECONDS = 7 * 86_400.0
MAKE_A_BACKUP = "Make one: `tunery backup DIRECTORY`."

CHECK_REMEDIES = {
    "database": "Start PostgreSQL, or free space on its disk.",
    "migrations": "Run `python -m app.db.migrate`; `tunery up` does it when it starts.",
    "base_model": "Register one: `tunery models add NAME DIRECTORY`.",
    "storage": "Check the disk or the bucket, its free space, and the permissions of the data directory.",
    "disk": "The storage by project below shows who uses the space; exports can be made again.",
    "broker": "Start Redis or Valkey. No job is lost; until then jobs start a few seconds later.",
}

Level = Literal["ok", "advice", "problem"]
ServiceName = Literal["reconciler", "webhooks", "deliveries"]
Rule = tuple[object, str, Level, str, str]  # whether it applies, and the fields of its Check


@dataclass(frozen=True)
class Check:
    """One line of `tunery doctor`, `tunery status`, and of what `tunery up` refuses."""

    name: str
    level: Level
    observed: str
    remedy: str = ""


def judge(name: str, observed: str, *rules: tuple[object, Level, str]) -> Check:
    """The check with the level and the remedy of the first rule that applies; it is ok if none does."""
    return next(
        (Check(name, level, observed, text) for applies, level, text in rules if applies), Check(name, "ok", observed)
    )


@dataclass(frozen=True)
class ServiceFacts:
    """What is known of the service. Ages are seconds; None: never."""

    jobs: Mapping[str, int]  # unfinished jobs by state
    living_workers: Mapping[str, int]  # by queue
    idle_workers: Mapping[str, int]
    broken_workers: Sequence[str]  # living ones out of service, as their GPU was lost three times in a row
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


def checks_of_service(status: Mapping[str, Any]) -> list[Check]:
    """Those of a response of GET /v1/organization/status."""
    problems = [Check(each["code"], each["level"], each["message"], each["remedy"]) for each in status["problems"]]
    queue = status["queue"]
    counts = (
        f"{counted(len(status['workers']), 'worker')}, {queue['running']} running and {queue['queued']} queued jobs"
    )
    return [*([Check("service", "ok", counts)] if status["healthy"] else []), *problems]


def find_problems(facts: ServiceFacts) -> list[Check]:
    """All problems, those that stop jobs first."""
    rules = [*_of_checks(facts), *_of_work(facts), *_of_senders(facts), *_of_data(facts)]
    found = [Check(name, level, observed, remedy) for applies, name, level, observed, remedy in rules if applies]
    return sorted(found, key=lambda each: each.level != "problem")


def _of_checks(facts: ServiceFacts) -> Iterator[Rule]:
    for name, is_required, detail in facts.failed_checks:
        level: Level = "problem" if is_required or name in ("disk", "storage") else "advice"
        yield True, f"{name}_check_failed", level, f"{name}: {detail}.", check_remedy(name)


def check_remedy(name: str) -> str:
    """What to do if a check of `/readyz` fails."""
    return CHECK_REMEDIES.get(name, "Read the API's log.")


def _of_work(facts: ServiceFacts) -> Iterator[Rule]:
    for queue, state, work in (("gpu", JobState.QUEUED, "train"), ("cpu", JobState.VALIDATING, "be validated")):
        waiting = facts.jobs.get(state, 0)
        yield (
            waiting and not facts.living_workers.get(queue, 0),
            f"no_{queue}_worker",
            "problem",
            f"No {queue.upper()} worker is alive for {counted(waiting, 'job')} to {work}.",
            "Start a worker and read its log.",
        )
    yield (
        facts.broken_workers,
        "workers_out_of_service",
        "problem",
        f"{counted(len(facts.broken_workers), 'worker')} lost the GPU in three attempts in a row and claim nothing: "
        f"{_some(facts.broken_workers)}.",
        "`nvidia-smi` and the kernel's log (`dmesg`, lines with Xid) of the host show why. Reset or replace the GPU, "
        "then `tunery workers --resume WORKER`. The jobs continue on other workers.",
    )
    yield (
        facts.lost_workers,
        "workers_lost",
        "advice",
        f"{counted(len(facts.lost_workers), 'worker')} vanished within the last day: {_some(facts.lost_workers)}.",
        "Read the worker's log and the kernel's log of its host. Its jobs continue on other workers.",
    )
    for host, disk_problem in facts.worker_disks.items():
        yield (
            True,
            "worker_disk_check_failed",
            "problem",
            f"The data disk of the workers on {host}: {disk_problem}.",
            "`du -sh` of the data directory there shows what uses the space: work directories, base models, logs.",
        )
    yield (
        facts.expired_leases,
        "leases_expired",
        "problem",
        f"{counted(facts.expired_leases, 'lease')} expired: the workers that held the jobs do not respond.",
        "The reconciler ends these attempts; check the workers.",
    )
    silent = facts.silent_seconds.get("reconciler")
    yield (
        _is_away(silent),
        "no_reconciler",
        "problem",
        f"No reconciler runs ({_last_seen(silent)}): lost jobs are not recovered, nothing is cleaned up.",
        "Start `python -m worker.reconciler` and read its log.",
    )
    age = facts.oldest_age_seconds.get(JobState.QUEUED, 0.0)
    yield (
        age > MAX_IDLE_WAIT_SECONDS and facts.idle_workers.get("gpu", 0),
        "queue_stalled",
        "advice",
        f"A due job has waited for {age / 60:.0f} minutes although a GPU worker is idle.",
        "`tunery queue` shows what the job waits for.",
    )
    ours = {code: count for code, count in facts.failed_by_code.items() if code in OPERATOR_REASONS}
    yield (
        ours,
        "jobs_failed",
        "problem",
        f"Jobs failed within the last day for reasons that are not their users': {_by_name(ours)}.",
        "The list of failed jobs below has the remedy for each.",
    )


def _of_senders(facts: ServiceFacts) -> Iterator[Rule]:
    """Webhooks, and deliveries of adapters."""
    webhooks, deliveries = facts.silent_seconds.get("webhooks"), facts.silent_seconds.get("deliveries")
    yield (
        facts.has_webhooks and _is_away(webhooks),
        "no_webhook_sender",
        "problem",
        f"No webhook sender runs ({_last_seen(webhooks)}): deliveries wait.",
        "Start `python -m worker.webhooks` and read its log.",
    )
    yield (
        facts.has_delivery_targets and _is_away(deliveries),
        "no_delivery_sender",
        "problem",
        f"No delivery sender runs ({_last_seen(deliveries)}): adapters are neither delivered nor withdrawn.",
        "Start `python -m worker.deliveries` and read its log.",
    )
    yield (
        facts.failing_endpoints,
        "webhooks_failing",
        "advice",
        "Webhook endpoints of projects accept no events, or are disabled because of that: "
        f"{', '.join(sorted(facts.failing_endpoints))}.",
        "`tunery webhooks deliveries ENDPOINT` with a key of the project has the responses.",
    )
    yield (
        facts.backlog_age_seconds > MAX_BACKLOG_SECONDS and not facts.is_copy,
        "webhooks_delayed",
        "problem",
        f"A webhook delivery has been due for {facts.backlog_age_seconds / 60:.0f} minutes.",
        "Read the log of the webhook sender.",
    )
    yield (
        facts.operator_webhook_off is not None,
        "operator_webhook_off",
        "problem",
        f"The operator's webhook is off: {(facts.operator_webhook_off or '').removesuffix('.')}.",
        "Correct its URL or its receiver, and restart the webhook sender, which enables it.",
    )
    yield (
        facts.delivery_backlog_age_seconds > MAX_BACKLOG_SECONDS and not facts.is_copy,
        "deliveries_delayed",
        "problem",
        f"The delivery of an adapter has been due for {facts.delivery_backlog_age_seconds / 60:.0f} minutes.",
        "Read the log of the delivery sender.",
    )
    yield (
        facts.failed_deliveries,
        "deliveries_failed",
        "advice",
        f"Deliveries of adapters failed within the last day: {_by_name(facts.failed_deliveries)}.",
        "The failed deliveries below have the reasons; request a delivery again when its cause is gone.",
    )
    yield (
        facts.retried_deliveries,
        "deliveries_retried",
        "advice",
        "Deliveries of adapters wait for another attempt after one without success: "
        f"{_by_name(facts.retried_deliveries)}.",
        "The list below has the reasons; a change of the target (`tunery targets update`) is tried at once.",
    )


def _of_data(facts: ServiceFacts) -> Iterator[Rule]:
    """Secrets and backups."""
    secrets, objects = counted(facts.lost_secrets, "secret"), counted(facts.backup_damaged_count, "object")
    yield (
        facts.lost_secrets,
        "secrets_lost",
        "problem",
        f"None of TUNERY_SECRET_KEYS decrypts {secrets}, so what they protect sends and delivers nothing.",
        "`tunery secrets list` names them: add the key of then to the end of TUNERY_SECRET_KEYS and restart.",
    )
    yield (
        facts.is_copy,
        "copy",
        "advice",
        "This is a restored copy: it sends no webhook events, and delivers and withdraws no adapters.",
        "To run it as the service, restore the backup again without --copy, into a new directory.",
    )
    age = facts.backup_age_seconds
    yield age is None, "no_backup", "advice", "No backup was made.", MAKE_A_BACKUP
    age = age or 0.0
    yield (
        age > MAX_BACKUP_AGE_SECONDS,
        "backup_old",
        "advice",
        f"The last backup is {age / 86_400:.0f} days old.",
        MAKE_A_BACKUP,
    )
    yield (
        facts.backup_damaged_count,
        "backup_damaged",
        "problem",
        f"Missing or damaged in storage when the last backup was made: {objects}.",
        "`tunery fsck` names them; with --repair --from DIRECTORY it restores them from earlier backups.",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _is_away(silent_seconds: float | None) -> bool:
    return silent_seconds is None or silent_seconds > MAX_SILENT_SECONDS


def _by_name(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))


def _last_seen(seconds: float | None) -> str:
    return "none was ever seen" if seconds is None else f"last seen {seconds / 60:.0f} minutes ago"

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.operations.upgrade import UpgradeFacts, check_upgrade

READY = UpgradeFacts(
    version="0.2.0",
    schema="0041_before",
    pending=["0042_after"],
    running_jobs=0,
    backup_age_seconds=3600.0,
    unknown_settings=[],
    worker_releases={"gpu0@host": "0.2.0"},
    largest_table_bytes=10**9,
    free_bytes=10**10,
)


def levels(facts: UpgradeFacts) -> dict[str, str]:
    return {check.subject: check.level for check in check_upgrade(facts)}


def test_a_service_that_is_ready_has_no_problem_and_no_advice() -> None:
    assert set(levels(READY).values()) == {"ok"}
    assert "1 migrations to apply: 0042_after" in check_upgrade(READY)[0].observed


@pytest.mark.parametrize(
    ("changes", "subject", "level"),
    [
        ({"pending": None}, "schema", "problem"),
        ({"pending": None, "schema": "0033_counted_activations"}, "schema", "problem"),
        ({"backup_age_seconds": None}, "backup", "problem"),
        ({"backup_age_seconds": 90_000.0}, "backup", "problem"),
        ({"backup_age_seconds": None, "pending": []}, "backup", "advice"),
        ({"free_bytes": 10**8}, "disk", "problem"),
        ({"unknown_settings": ["TUNERY_GONE"]}, "settings", "advice"),
        ({"worker_releases": {"gpu0@host": "0.1.0"}}, "workers", "advice"),
    ],
)
def test_each_subject_says_what_to_do(changes: dict[str, object], subject: str, level: str) -> None:
    facts = replace(READY, **changes)  # type: ignore[arg-type]
    [check] = [check for check in check_upgrade(facts) if check.subject == subject]
    assert (check.level, bool(check.advice)) == (level, True)


def test_a_running_job_is_no_reason_to_wait() -> None:
    assert levels(replace(READY, running_jobs=2))["jobs"] == "ok"


def test_an_unknown_disk_and_a_schema_without_migrations_are_not_judged() -> None:
    assert "disk" not in levels(replace(READY, free_bytes=None))
    assert "disk" not in levels(replace(READY, pending=[]))

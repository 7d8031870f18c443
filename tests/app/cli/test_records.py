from __future__ import annotations

import csv
import io

from app.db import logs
from app.db.engine import Sessions, transaction
from app.db.tables import Job
from tests.app.cli.conftest import Tunery


class TestLogs:
    def test_are_printed_as_they_are(self, tunery: Tunery, sessions: Sessions, trained_job: Job) -> None:
        assert "No log yet" in tunery("jobs", "logs", trained_job.id).err
        with transaction(sessions) as session:
            logs.put(session, trained_job.id, trained_job.project_id, 2, "one\ntwo\n", 0)
        assert tunery("jobs", "logs", trained_job.id).out == "one\ntwo\n"
        assert tunery("jobs", "logs", trained_job.id, "-n", 1).out == "two\n"
        assert tunery("jobs", "logs", trained_job.id, "--attempt", 9).exit_code == 3


class TestMetrics:
    def test_are_a_table_json_or_csv(self, tunery: Tunery, trained_job: Job) -> None:
        found = tunery("jobs", "metrics", trained_job.id, "--json").json
        table = tunery("jobs", "metrics", trained_job.id).out.splitlines()
        assert len(table) == 1 + found["total"]
        rows = list(csv.DictReader(io.StringIO(tunery("jobs", "metrics", trained_job.id, "--csv").out)))
        assert [int(row["step"]) for row in rows] == [row["step"] for row in found["data"]]
        assert len(tunery("jobs", "metrics", trained_job.id, "--max-points", 2, "--json").json["data"]) == 2

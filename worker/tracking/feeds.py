"""The metrics of one attempt on their way to experiment trackers, which never fail or delay the training.

Each tracker has a bounded queue, a thread, and a child program (worker.tracking) with limits of time. The thread that
writes the records of the trainer only puts lines into the queues, and takes problems out as events.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import worker
from app.db.tables import Job
from app.domain.jobs.integrations import Integration
from app.domain.jobs.spec import JobSpec
from app.log import get_logger
from app.settings import Settings
from worker.tracking.runs import RunRequest

COMMAND = (sys.executable, "-m", "worker.tracking")
MAX_WAITING_LINES = 10_000
CLOSE_SECONDS = 180.0  # for what is in the queue when the training has ended
# What a client needs from the environment: its own options, and how this machine reaches other ones.
INHERITED = (
    *("PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
INHERITED_PREFIXES = ("WANDB_", "MLFLOW_")

log = get_logger(__name__)


class MetricFeeds:
    """The feeds of all integrations of a job; `problems` are those that no event has yet."""

    def __init__(self, settings: Settings, job: Job, command: Sequence[str] = COMMAND) -> None:
        self._feeds: list[MetricFeed] = []
        self._problems: list[tuple[str, str]] = []
        for stored in job.integrations or ():
            integration = Integration.model_validate(stored)
            if missing := _missing(settings, integration.type):
                self._problems.append((integration.type, missing))
            else:
                self._feeds.append(MetricFeed(_request(settings, job, integration), command))

    def send(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        for feed in self._feeds:
            feed.send([step, numbers])

    def take_problems(self) -> list[tuple[str, str]]:
        """(type of the integration, what is wrong) of each new problem, once."""
        found, self._problems = self._problems, []
        return found + [(feed.kind, problem) for feed in self._feeds if (problem := feed.take_problem())]

    def close(self, has_failed: bool) -> None:
        """End the runs. Returns at once: what is in the queues is sent in the background."""
        for feed in self._feeds:
            feed.close(has_failed)


class MetricFeed:
    def __init__(self, request: RunRequest, command: Sequence[str] = COMMAND) -> None:
        """Start the thread, which starts the child."""
        self.kind = request.integration.type
        self.dropped_lines = 0
        self._lines: queue.Queue[Any] = queue.Queue(MAX_WAITING_LINES)
        self._problem: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(
            target=self._run, args=(request, command), name=f"metrics-{self.kind}-{request.job_id}", daemon=True
        )
        self._thread.start()

    def send(self, message: Any) -> None:
        try:
            self._lines.put_nowait(message)
        except queue.Full:  # the child does not read: the training goes on
            self.dropped_lines += 1

    def take_problem(self) -> str | None:
        problem, self._problem = self._problem, None
        return problem

    def close(self, has_failed: bool) -> None:
        self.send({"has_failed": has_failed})
        timer = threading.Timer(CLOSE_SECONDS, self._kill)
        timer.daemon = True
        timer.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end of the child after `close`; whether it has ended."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self, request: RunRequest, command: Sequence[str]) -> None:
        directory = tempfile.mkdtemp(prefix="tunery-metrics-")
        try:
            exit_code, answer = self._feed(request, [*command, directory])
        except Exception as error:
            exit_code, answer = -1, f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        if exit_code != 0:
            log.warning("metrics not sent", job=request.job_id, integration=self.kind, exit_code=exit_code, why=answer)
            # The log has the details, which may name the operator's hosts; the class of the error says enough.
            how = answer.partition(":")[0] if answer else f"no answer in time, exit code {exit_code}"
            self._problem = f"its client failed ({how})"
        elif self.dropped_lines:
            log.warning("metrics dropped", job=request.job_id, integration=self.kind, lines=self.dropped_lines)

    def _feed(self, request: RunRequest, command: Sequence[str]) -> tuple[int, str]:
        """Run the child; its exit code and its answer."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in INHERITED or name.startswith(INHERITED_PREFIXES)
        }
        root = str(Path(worker.__file__).resolve().parents[1])
        self._process = process = subprocess.Popen(
            command,
            env=environment | {"PYTHONPATH": root, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C for the worker is not for the child, which ends at the end of its input
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(request.model_dump_json().encode() + b"\n")
            is_last = False
            while not is_last and process.poll() is None:
                process.stdin.flush()
                with contextlib.suppress(queue.Empty):
                    message = self._lines.get(timeout=1)
                    is_last = isinstance(message, dict)
                    process.stdin.write(json.dumps(message).encode() + b"\n")
        with process.stdout:
            answer = process.stdout.read()
        exit_code = process.wait()
        self._kill()  # programs that the client has started
        return exit_code, answer.decode(errors="replace")

    def _kill(self) -> None:
        """Kill the child's process group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _missing(settings: Settings, kind: str) -> str | None:
    """What this worker lacks for an integration; None if it has everything."""
    if find_spec(kind) is None:
        return f"the worker has no client; the operator can install the extra `{kind}`"
    if kind == "wandb" and settings.wandb_api_key is None and not settings.wandb_offline:
        return "the worker has no key (TUNERY_WANDB_API_KEY)"
    if kind == "mlflow" and settings.mlflow_tracking_uri is None:
        return "the worker has no tracking server (TUNERY_MLFLOW_TRACKING_URI)"
    return None


def _request(settings: Settings, job: Job, integration: Integration) -> RunRequest:
    """With the key or the address of this integration only."""
    spec = JobSpec.model_validate(job.spec)
    parameters = {"model": job.base_model, "method": spec.method, "seed": spec.seed}
    parameters |= spec.hyperparameters.model_dump(mode="json", exclude_none=True)
    parameters |= {f"lora.{name}": value for name, value in spec.lora.model_dump(mode="json").items()}
    key, uri = settings.wandb_api_key, settings.mlflow_tracking_uri
    is_wandb = integration.type == "wandb"
    return RunRequest(
        job_id=job.id,
        integration=integration,
        parameters=parameters,
        wandb_api_key=key.get_secret_value() if key and is_wandb else None,
        wandb_offline_directory=settings.data_dir / "wandb" if settings.wandb_offline and is_wandb else None,
        mlflow_tracking_uri=None if is_wandb or uri is None else uri.get_secret_value(),
    )

"""`python -m tests.clients`: every scenario with every generation of the official client, against the whole service.

    environments -> at the same time for each generation: tunery up -> tiny base models -> keys -> the scenarios

Each generation has a service of its own, as one of the scenarios kills a worker. Node follows on one of them. What
follows `--` goes to pytest, such as `-- -k uploads`. `--last-failed` repeats what failed in the run before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Timer
from typing import Any

from tests.clients import environments
from tests.clients.environments import HERE, Generation
from tests.stack import open_directory
from tests.tiny import make_tiny_base
from tests.up import ROOT, Service

SCENARIOS = HERE / "scenarios"
# Jobs here take seconds; what is looked at every few seconds in production is looked at sooner.
QUICK = {
    "NO_PROXY": "*",
    "TUNERY_DEVICE": "cpu",
    "TUNERY_THREADS": "1",
    "TUNERY_POLL_SECONDS": "0.5",
    "TUNERY_RECONCILE_SECONDS": "1",
    "TUNERY_REQUEUE_DELAY_SECONDS": "0.5",
    "TUNERY_WATCH_SECONDS": "0.5",
    # The stand-in engine of a scenario.
    "TUNERY_DELIVERY_ALLOW_HTTP": "true",
    "TUNERY_DELIVERY_ALLOWED_NETWORKS": "127.0.0.0/8",
}
TOOLS_TEMPLATE = (  # ChatML that prints tools and tool calls
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINY = "tiny"
SLASHED = "acme/tiny"
REAL = "SmolLM2-135M-Instruct"
LONG_SCENARIOS = ("real_model", "killed_worker", "uninterrupted_job")  # in which the client has no part
LIMIT_SECONDS = 600
FAILED = environments.HOME / "failed.json"  # the names of the generations that failed in the last run


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float
    failed: tuple[str, ...] = ()  # tests


def main() -> int:
    options = _options()
    chosen = [g for g in environments.python_generations() if options.only in (None, g.name, g.version)]
    if not chosen:
        sys.exit(f"--only {options.only}: no such generation in {environments.PINS}")
    if options.last_failed:
        failed = json.loads(FAILED.read_text()) if FAILED.exists() else [g.name for g in chosen]
        chosen = [generation for generation in chosen if generation.name in failed]
        options.pytest.append("--last-failed")
    for generation in chosen:
        print(f"environment of openai {generation.version}", flush=True)
        environments.prepare(generation)
    node_home = None if options.no_node else environments.node_client()
    FAILED.write_text(json.dumps([generation.name for generation in chosen]))  # true of a run that is cut off
    began = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        found = list(pool.map(lambda generation: _try(generation, chosen, node_home, options), chosen))
    passed = [all(outcome.passed for outcome in outcomes) for outcomes in found]
    FAILED.write_text(json.dumps([g.name for g, has_passed in zip(chosen, passed, strict=True) if not has_passed]))
    print(f"\n===== {time.monotonic() - began:.0f} s in all", flush=True)
    for outcome in chain.from_iterable(found):
        print(f"{'passed' if outcome.passed else 'FAILED'}  {outcome.name}  {outcome.seconds:.0f} s")
        for test in outcome.failed:
            print(f"        {test}")
    return 0 if all(passed) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", help="one generation, by name (oldest, middle, newest) or version")
    parser.add_argument("--at-once", type=int, default=3, help="how many generations")
    parser.add_argument("--no-node", action="store_true", help="leave out the Node client")
    parser.add_argument("--last-failed", action="store_true", help="only what failed in the last run")
    parser.add_argument("--logs", type=Path, help="keep the service's logs in this directory")
    parser.add_argument("pytest", nargs="*", help="after `--`: arguments for pytest")
    return parser.parse_args()


def _try(
    generation: Generation, chosen: list[Generation], node_home: Path | None, options: argparse.Namespace
) -> list[Outcome]:
    """What goes wrong around the scenarios of one generation leaves those of the others alone."""
    began = time.monotonic()
    try:
        return _run_all(generation, chosen, node_home, options)
    except Exception:
        print(traceback.format_exc(), flush=True)
        return [Outcome(f"openai {generation.version}", False, time.monotonic() - began)]


def _run_all(
    generation: Generation, chosen: list[Generation], node_home: Path | None, options: argparse.Namespace
) -> list[Outcome]:
    with open_directory() as directory:
        service = Service(directory, QUICK)
        try:
            service.start()
            base = make_tiny_base(directory / "bases" / "tiny")
            (base / "chat_template.jinja").write_text(TOOLS_TEMPLATE, encoding="utf-8")
            for name in (TINY, SLASHED):
                service.tunery("models", "add", name, str(base))
            context = _context(service, base, generation) | {"shows": _shown_with(generation, chosen)}
            outcomes = [_run_python(directory, generation, context, options.pytest)]
            if node_home is not None and _brings_node(generation, chosen):
                context = _context(service, base, Generation("node", "node"))
                outcomes.append(_run_node(node_home, directory, context))
            return outcomes
        finally:
            service.stop(signal.SIGTERM)
            _keep_logs(service, options.logs and options.logs / generation.name)


def _context(service: Service, base: Path, generation: Generation) -> dict[str, Any]:
    """Everything a scenario may know; it sees the service from outside otherwise."""
    return {
        "generation": generation.version,
        "base_url": f"{service.url}/v1",
        "key": _key(service, f"openai-{generation.version}"),
        "admin_key": _key(service, "admins", "--scope", "all", "--scope", "admin"),
        "model": TINY,
        "slashed_model": SLASHED,
        "real_model": REAL,
        "base_directory": str(base),
        "runtime": str(service.runtime),
        "python_with_peft": sys.executable,
    }


def _key(service: Service, project: str, *options: str) -> str:
    return service.tunery("keys", "create", "--project", project, "--create-project", *options).stdout.strip()


def _shown_with(generation: Generation, chosen: list[Generation]) -> list[str]:
    """The long scenarios of this generation: each belongs to one."""
    return [name for number, name in enumerate(LONG_SCENARIOS) if chosen[number % len(chosen)] == generation]


def _brings_node(generation: Generation, chosen: list[Generation]) -> bool:
    return generation == chosen[len(chosen) // 2]


def _run_python(directory: Path, generation: Generation, context: dict[str, Any], more: list[str]) -> Outcome:
    began = time.monotonic()
    cache = environments.HOME / f"cache-{generation.version}"
    options = ["-c", str(SCENARIOS / "pytest.ini"), "-o", f"cache_dir={cache}", str(SCENARIOS)]
    command = [str(generation.python), "-m", "pytest", *options, *more]
    name = f"openai {generation.version}"
    code = _print_lines(name, command, SCENARIOS, _environment(directory, context))
    record = cache / "v" / "cache" / "lastfailed"
    failed = tuple(json.loads(record.read_text())) if code and record.exists() else ()
    return Outcome(name, code == 0, time.monotonic() - began, failed)


def _run_node(home: Path, directory: Path, context: dict[str, Any]) -> Outcome:
    began = time.monotonic()
    program = home / "main_path.mjs"  # Node looks for packages beside the program
    program.write_bytes((HERE / "node" / "main_path.mjs").read_bytes())
    code = _print_lines(home.name, ["node", "--test", str(program)], home, _environment(directory, context))
    return Outcome(home.name, code == 0, time.monotonic() - began)


def _print_lines(name: str, command: list[str], directory: Path, environment: dict[str, str]) -> int:
    """Run it for LIMIT_SECONDS at most; print each of its lines at once, with its name."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=directory, env=environment, start_new_session=True, **options) as process:
        assert process.stdout is not None
        limit = Timer(LIMIT_SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))  # with what holds its output open
        limit.start()
        for line in process.stdout:
            print(f"{name} | {line}", end="", flush=True)
        if not limit.is_alive():
            print(f"{name} | killed after {LIMIT_SECONDS} s", flush=True)
        limit.cancel()
    return process.returncode


def _environment(directory: Path, context: dict[str, Any]) -> dict[str, str]:
    """Nothing of ours on the import path: a scenario that could import `app` would prove nothing."""
    file = directory / f"context-{context['generation']}.json"
    file.write_text(json.dumps(context), encoding="utf-8")
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "AZURE_", "PYTHON"))}
    return theirs | {"TUNERY_CONTEXT": str(file), "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"}


def _keep_logs(service: Service, to: Path | None) -> None:
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        for log in (service.log, *service.data.glob("logs/*")):
            (to / log.name).write_bytes(log.read_bytes())


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

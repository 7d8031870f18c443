"""`python -m tests.clients`: every scenario with every generation of the official client, against one real service.

    environments -> tunery up -> tiny base models -> for each generation: a project, keys, the scenarios -> Node

What follows `--` goes to pytest, such as `-- -k uploads`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Outcome:
    name: str
    passed: bool
    seconds: float


def main() -> int:
    options = _options()
    chosen = [g for g in environments.python_generations() if options.only in (None, g.name, g.version)]
    if not chosen:
        sys.exit(f"--only {options.only}: no such generation in {environments.PINS}")
    for generation in chosen:
        print(f"environment of openai {generation.version}", flush=True)
        environments.prepare(generation)
    began = time.monotonic()
    with open_directory() as directory:
        service = Service(directory, QUICK)
        try:
            service.start()
            outcomes = _run_all(service, directory, chosen, options)
        finally:
            service.stop(signal.SIGTERM)
            _keep_logs(service, options.logs)
    return _summary(outcomes, time.monotonic() - began)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", help="one generation, by name (oldest, middle, newest) or version")
    parser.add_argument("--no-node", action="store_true", help="leave out the Node client")
    parser.add_argument("--logs", type=Path, help="keep the service's logs in this directory")
    parser.add_argument("pytest", nargs="*", help="after `--`: arguments for pytest")
    return parser.parse_args()


def _run_all(service: Service, directory: Path, chosen: list[Generation], options: argparse.Namespace) -> list[Outcome]:
    base = make_tiny_base(directory / "bases" / "tiny")
    (base / "chat_template.jinja").write_text(TOOLS_TEMPLATE, encoding="utf-8")
    for name in (TINY, SLASHED):
        service.tunery("models", "add", name, str(base))
    stranger = _key(service, "stranger")
    outcomes = []
    for generation in chosen:
        context = _context(service, base, generation, stranger) | {"real_model": _real(generation, chosen)}
        outcomes.append(_run_python(directory, generation, context, options.pytest))
    if not options.no_node:
        outcomes += _run_node(directory, _context(service, base, Generation("node", "node"), stranger))
    return outcomes


def _context(service: Service, base: Path, generation: Generation, stranger: str) -> dict[str, Any]:
    """Everything a scenario may know; it sees the service from outside otherwise."""
    return {
        "generation": generation.version,
        "base_url": f"{service.url}/v1",
        "key": _key(service, f"openai-{generation.version}"),
        "stranger_key": stranger,
        "model": TINY,
        "slashed_model": SLASHED,
        "base_directory": str(base),
        "runtime": str(service.runtime),
        "python_with_peft": sys.executable,
    }


def _key(service: Service, project: str) -> str:
    return service.tunery("keys", "create", "--project", project).stdout.strip()


def _real(generation: Generation, chosen: list[Generation]) -> str | None:
    """The real 135M model trains once, for the last generation."""
    return REAL if generation == chosen[-1] else None


def _run_python(directory: Path, generation: Generation, context: dict[str, Any], more: list[str]) -> Outcome:
    print(f"\n===== openai {generation.version} (Python)", flush=True)
    began = time.monotonic()
    command = [str(generation.python), "-m", "pytest", "-c", str(SCENARIOS / "pytest.ini"), str(SCENARIOS), *more]
    done = subprocess.run(command, cwd=SCENARIOS, env=_environment(directory, context))
    return Outcome(f"openai {generation.version}", done.returncode == 0, time.monotonic() - began)


def _run_node(directory: Path, context: dict[str, Any]) -> list[Outcome]:
    home = environments.node_client()
    if home is None:
        print("\n===== openai (Node): skipped, as neither `node` nor `npm` is on the PATH", flush=True)
        return []
    print(f"\n===== {home.name.replace('-', ' ')} (Node)", flush=True)
    began = time.monotonic()
    program = home / "main_path.mjs"  # Node looks for packages beside the program
    program.write_bytes((HERE / "node" / "main_path.mjs").read_bytes())
    done = subprocess.run(["node", "--test", str(program)], cwd=home, env=_environment(directory, context))
    return [Outcome(home.name, done.returncode == 0, time.monotonic() - began)]


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


def _summary(outcomes: list[Outcome], seconds: float) -> int:
    print(f"\n===== {seconds:.0f} s in all", flush=True)
    for outcome in outcomes:
        print(f"{'passed' if outcome.passed else 'FAILED'}  {outcome.name}  {outcome.seconds:.0f} s")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

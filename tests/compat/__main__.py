"""`python -m tests.compat`: the tests of an earlier commit, unchanged, against today's service.

They speak HTTP and run commands. `--all` runs all of them; without it each kind is there with a few minutes' share.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib

from tests.compat.earlier import CHECKOUT, COMMIT, check_out
from tools.checkout import HOW_TO_FETCH, ROOT, is_in_history

ADAPTER = ROOT / "tests" / "compat" / "adapter.py"
LOG = CHECKOUT / "service.log"
EXCEPTIONS = tomllib.loads((ROOT / "tests" / "compat" / "exceptions.toml").read_text(encoding="utf-8"))
# The adapter has imported a plugin of pytest's by then.
PYTEST = (
    "pytest", "-q", "--durations=5", "-W", "ignore::pytest.PytestAssertRewriteWarning",
    *(f"--deselect={test['id']}" for test in EXCEPTIONS["test"]),
)  # fmt: skip
EXAMPLES = "tests/app/api/reference/test_examples.py"  # every example of the reference, by curl and the official client
WITHOUT_TRAINING = "01_connect or 03_files or 07_uploads or 08_create or 24_once"
PHASES = ("--phases", "examples,coverage,fuzzing")
# POST /v1/files/{file_id} is an operation since: 405 and `Allow` differ from the earlier document.
NEW_METHODS = "unsupported_method,allow_header_conformance"
# A sequence of an admin's requests would archive the project of the others.
ADMIN = "^(/v1/organization/projects|/v1/organization/audit_logs)"
SHORT = {
    "examples": (*PYTEST, EXAMPLES),
    "schema": ("tests.schema", "--cases", "500", "--", "--phases", "examples,fuzzing"),
    "clients": ("tests.clients", "--only", "newest", "--no-node", "--", "-k", WITHOUT_TRAINING),
}
ALL = {
    "examples": (*PYTEST, EXAMPLES, "tests/test_coming_from_openai.py"),
    # test_once.py loses answers inside the API's process; scenario_24_once.py loses them in a gateway.
    "contract": (*PYTEST, "tests/contract", "--ignore=tests/contract/test_once.py"),
    "schema": ("tests.schema", "--cases", "2000", "--", *PHASES, "--exclude-checks", NEW_METHODS),
    "sequences": ("tests.schema", "--cases", "500", "--", "--phases", "stateful", "--exclude-path-regex", ADMIN),
    "clients": ("tests.clients",),
    "e2e": (*PYTEST, "tests/e2e"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every test (about 40 minutes on two cores)")
    parser.add_argument("--only", choices=ALL, help="one kind")
    options = parser.parse_args()
    if not is_in_history(COMMIT):
        sys.exit(f"Commit {COMMIT} is not here; its tests are taken from the history; {HOW_TO_FETCH}")
    check_out()
    kinds = ALL if options.all else SHORT
    chosen = {name: command for name, command in kinds.items() if options.only in (None, name)}
    if not chosen:
        sys.exit(f"The short selection has no {options.only}: add --all")
    passed = [run(name, command) for name, command in chosen.items()]
    return 0 if all(passed) else 1


def run(name: str, command: tuple[str, ...]) -> bool:
    print(f"===== {name} of {COMMIT}", flush=True)
    began = time.monotonic()
    LOG.unlink(missing_ok=True)
    environment = os.environ | {"TUNERY_CLIENTS_HOME": str(ROOT / ".venv-clients")}
    code = subprocess.run([sys.executable, str(ADAPTER), *command], cwd=CHECKOUT, env=environment).returncode
    verdict = "passed" if code == 0 else f"FAILED (the service's log: {LOG})"
    print(f"===== {name} of {COMMIT}: {verdict} after {time.monotonic() - began:.0f} s", flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())

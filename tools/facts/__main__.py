"""`python -m tools.facts [COMMIT [--quick]]`: write the facts into build/facts, and compare them with a commit's.

The facts of a commit are made again by its code, on this machine and with the packages of this environment, because
the bytes of an adapter depend on both. `--quick`: only what needs no running service. Exit code 1: there are
differences; 2: the commit is not in this clone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.checkout import HOW_TO_FETCH, ROOT, check_out, is_in_history

FACTS = ROOT / "build" / "facts"
COLLECTOR = "tools/facts"
DIFF = ("git", "--no-pager", "diff", "--no-index", "--unified=0")


def main(commit: str = "", *options: str) -> int:
    if commit and not is_in_history(commit):
        print(f"{commit} is no commit of this clone; {HOW_TO_FETCH}", file=sys.stderr)
        return 2
    collect(ROOT, FACTS, *options)
    if not commit:
        return 0
    earlier = FACTS.with_name(f"facts-{commit}")
    with tempfile.TemporaryDirectory() as directory:
        check_out(commit, Path(directory))
        shutil.copytree(ROOT / COLLECTOR, Path(directory, COLLECTOR), dirs_exist_ok=True)
        collect(Path(directory), earlier, *options)
    return subprocess.run([*DIFF, earlier.name, FACTS.name], cwd=FACTS.parent).returncode


def collect(source: Path, directory: Path, *options: str) -> None:
    """Write the facts of a source tree into the directory, by its own code."""
    shutil.rmtree(directory, ignore_errors=True)
    ours = ("TUNERY_", "DATABASE_URL", "REDIS_URL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-m", "tools.facts.collect", str(directory), *options]
    subprocess.run(command, cwd=source, env=environment | {"PYTHONPATH": str(source)}, check=True)
    print(f"The facts of {source} are in {directory}", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`python -m tests.faults`: plant each fault of tests/faults.toml, and run the tests of `make test` that must fail.

Each process has a copy of the tree: all named tests first pass in one without a fault; then a fault is planted, each of
its files of tests is run alone, and the fault is removed. A fault is seen if a test of each file fails: an error of a
fixture, of the collection or of the time is none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.faults.table import LEFT_OUT, ROOT, Fault, read_table

# Together at most an hour, even if the tests of every fault hang: two faults at a time.
FILE_SECONDS = 100  # of the tests of one file, until the first one fails; 4 to 44 s at a load of 8
UNPLANTED_SECONDS = 720
STOP_SECONDS = 30  # for pytest to stop its servers
SELECTED = " and ".join(f"not {mark}" for mark in LEFT_OUT)
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", SELECTED)
FAILED = "FAILED "  # how pytest's summary begins the line of a failed test


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default="", help="the faults whose name contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    options = parser.parse_args()
    faults = [fault for fault in read_table() if options.only.lower() in fault.name.lower()]
    malformed = [f"{fault.name}: {problem}" for fault in faults for problem in fault.problems()]
    if not faults or malformed:
        sys.exit("tests/faults.toml:\n" + ("\n".join(malformed) or "no such fault"))
    with tempfile.TemporaryDirectory(prefix="tunery-faults-") as directory:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(_copy(Path(directory, str(number))))
        _check_unplanted(copies, faults, options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            seen = list(pool.map(lambda fault: _report(fault, copies), faults))
    print(f"{sum(seen)} of {len(seen)} faults are seen")
    return 0 if all(seen) else 1


def _copy(directory: Path) -> Path:
    """Copy what git does not ignore, and check that every process imports the copy and not the installed tree."""
    directory.mkdir()
    listed = subprocess.run(
        ("git", "ls-files", "-zco", "--exclude-standard"), cwd=ROOT, capture_output=True, check=True
    )
    names = b"\0".join(name for name in listed.stdout.split(b"\0") if name and (ROOT / os.fsdecode(name)).is_file())
    packed = subprocess.run(
        ("tar", "-c", "--null", "-T", "-"), cwd=ROOT, input=names, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(("tar", "-x"), cwd=directory, input=packed.stdout, check=True)
    printing = "import app, worker; print(app.__file__, worker.__file__)"
    command, environment = (sys.executable, "-c", printing), _environment(directory)
    imported = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True).stdout
    if imported.split() != [f"{directory}/app/__init__.py", f"{directory}/worker/__init__.py"]:
        sys.exit(f"The tests would import another tree than the copy {directory}: {imported}")
    return directory


def _environment(copy: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPATH": str(copy)
    }


def _check_unplanted(copies: SimpleQueue[Path], faults: Sequence[Fault], jobs: int) -> None:
    """Run all named files once, in one run: a test that fails without a fault sees none."""
    files = sorted({name for fault in faults for name in fault.tests})
    copy, began = copies.get(), time.monotonic()
    code, output = _pytest(copy, [*files, "-n", str(jobs), "--dist", "loadfile"], UNPLANTED_SECONDS)
    if code != 0:
        sys.exit(f"{output}\nThe tests must pass without a fault before they can see one.")
    print(f"{len(files)} files of tests pass without a fault ({time.monotonic() - began:.0f} s)", flush=True)
    copies.put(copy)


def _report(fault: Fault, copies: SimpleQueue[Path]) -> bool:
    copy, began = copies.get(), time.monotonic()
    path = copy / fault.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(fault.search, fault.replace), encoding="utf-8")
    runs = [_pytest(copy, [name, "-n", "0"], FILE_SECONDS) for name in fault.tests]
    path.write_text(original, encoding="utf-8")
    copies.put(copy)
    failed = [[line for line in output.splitlines() if line.startswith(FAILED)] for code, output in runs if code == 1]
    is_seen = len(failed) == len(runs) and all(failed)
    lines = [f"{'seen' if is_seen else 'NOT SEEN':8} {time.monotonic() - began:4.0f} s  {fault.name}"]
    lines += [f"    {found[0].removeprefix(FAILED)[:200]}" for found in failed if found]
    if not is_seen:
        lines += ["    " + (output.strip().splitlines() or ["no output"])[-1] for _, output in runs]
    print("\n".join(lines), flush=True)
    return is_seen


def _pytest(copy: Path, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run tests in a copy. Returns (exit status, output); the status is None if they took longer."""
    process = subprocess.Popen(
        (*PYTEST, *arguments), cwd=copy, env=_environment(copy), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return None, f"the tests took longer than {seconds} s"
    return process.returncode, output


if __name__ == "__main__":
    sys.exit(main())

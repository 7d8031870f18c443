"""`python -m tests.upgrade`: make the fixtures of test_upgrade.py again, with the code of the commit they are of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.upgrade.make_fixtures import COMMIT
from tools.checkout import ROOT, check_out

MAKER = "tests/upgrade/make_fixtures.py"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        check_out(COMMIT, Path(directory))
        shutil.copy(ROOT / MAKER, Path(directory, MAKER))
        command = [sys.executable, "-m", "tests.upgrade.make_fixtures", str(ROOT / "tests" / "upgrade" / COMMIT)]
        subprocess.run(command, cwd=directory, env=os.environ | {"PYTHONPATH": directory}, check=True)


if __name__ == "__main__":
    main()

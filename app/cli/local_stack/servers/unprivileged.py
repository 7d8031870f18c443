"""The account that PostgreSQL runs as. It rejects uid 0, so for root it is an existing unprivileged account: `nobody`.

No account is created, and no permission outside of the data directory is changed: a directory that the account cannot
reach is an error before anything is written.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.cli.local_stack.errors import CannotStart

ACCOUNTS = ("nobody", "daemon")
SUGGESTIONS = (Path("/var/lib/tunery"), Path("/srv/tunery"), Path("/tmp/tunery"))


@dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int

    def reaches(self, directory: Path) -> bool:
        return self._shell('cd -- "$1"', directory)

    def executes(self, program: Path) -> bool:
        return self._shell('test -x "$1"', program)

    def _shell(self, test: str, path: Path) -> bool:
        """Run a test as this account. The kernel also considers ACLs and mount options, unlike a check of modes."""
        command = ["/bin/sh", "-c", test, "sh", str(path)]
        try:
            done = subprocess.run(
                command, user=self.uid, group=self.gid, extra_groups=[], cwd="/", stderr=subprocess.DEVNULL
            )
        except PermissionError as error:
            raise CannotStart(
                f"PostgreSQL does not run as root, and this root cannot switch to the account {self.name!r} ({error}). "
                "Start Tunery as a plain user, or set DATABASE_URL to a PostgreSQL of your own."
            ) from None
        return done.returncode == 0


def postgres_account() -> Account | None:
    """The unprivileged account for root; None for another user, who runs PostgreSQL directly."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise CannotStart(
        f"PostgreSQL does not run as root, and this system has none of the accounts {', '.join(ACCOUNTS)}. "
        "Start Tunery as a plain user, or set DATABASE_URL to a PostgreSQL of your own."
    )


def check_reachable(directory: Path, account: Account | None) -> None:
    """Raises CannotStart if the account cannot reach the directory, which need not exist yet. Changes nothing."""
    if account is None:
        return
    parent = _nearest_existing(directory.resolve().parent)
    if not account.reaches(parent):
        raise CannotStart(
            f"PostgreSQL does not run as root but as {account.name!r}, which cannot reach {directory}: "
            f"{_first_closed(parent, account)} is closed to it. Choose another --data-dir, such as "
            f"{suggest_data_dir(account)}, or start Tunery as a plain user."
        )


def suggest_data_dir(account: Account) -> Path:
    """A data directory that the account can reach, for error messages."""
    return next((one for one in SUGGESTIONS if account.reaches(_nearest_existing(one.parent))), SUGGESTIONS[-1])


def _nearest_existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.is_dir())


def _first_closed(path: Path, account: Account) -> Path:
    return next(one for one in (*reversed(path.parents), path) if not account.reaches(one))

"""Whom PostgreSQL runs as. It refuses uid 0, so root lends it an existing account that owns nothing: `nobody`.

No account is created, and no permission outside the data directory is changed: a directory which that account
can't reach is refused before anything is written.
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
        """Ask the kernel as that account, rather than compute modes: it also knows ACLs and mount options."""
        command = ["/bin/sh", "-c", test, "sh", str(path)]
        try:
            done = subprocess.run(
                command, user=self.uid, group=self.gid, extra_groups=[], cwd="/", stderr=subprocess.DEVNULL
            )
        except PermissionError as error:
            raise CannotStart(
                f"PostgreSQL refuses to run as root, and this root may not become {self.name!r} ({error}). "
                "Start Tunery as a plain user, or set DATABASE_URL to a PostgreSQL of your own."
            ) from None
        return done.returncode == 0


def account() -> Account | None:
    """The account to lend, or None: we are a plain user, and PostgreSQL runs as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise CannotStart(
        f"PostgreSQL refuses to run as root, and this system has none of the accounts {', '.join(ACCOUNTS)}. "
        "Start Tunery as a plain user, or set DATABASE_URL to a PostgreSQL of your own."
    )


def refuse_unreachable(directory: Path, lent: Account | None) -> None:
    """Check the way to a directory (which need not exist yet), touching nothing."""
    if lent is None:
        return
    parent = _nearest_existing(directory.resolve().parent)
    if not lent.reaches(parent):
        raise CannotStart(
            f"PostgreSQL refuses to run as root, so it runs as {lent.name!r}, which can't reach {directory}: "
            f"{_first_closed(parent, lent)} is closed to it. Choose another --data-dir, such as {reachable(lent)}, "
            "or start Tunery as a plain user."
        )


def reachable(lent: Account) -> Path:
    """A data directory that works, to name in a refusal."""
    return next((one for one in SUGGESTIONS if lent.reaches(_nearest_existing(one.parent))), SUGGESTIONS[-1])


def _nearest_existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.is_dir())


def _first_closed(path: Path, lent: Account) -> Path:
    return next(one for one in (*reversed(path.parents), path) if not lent.reaches(one))

"""The limited processes of a process (app.system.limited_process)."""

from __future__ import annotations

import psutil

from app.system.limited_process import SERVER


def limited_processes(of: int | None = None) -> set[int]:
    running = [child for child in psutil.Process(of).children() if child.status() != psutil.STATUS_ZOMBIE]
    return {process.pid for child in running if SERVER in child.cmdline() for process in child.children()}

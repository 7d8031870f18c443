"""LocalValkey against the real server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu import Connection

from app.cli.local_stack.servers import LocalValkey
from app.trial_queue import as_redis_py
from tests.commands.local_stack.support import processes_naming, start_python, started
from tests.processes import is_alive

HOLD = """
import sys, time
from pathlib import Path
from app.cli.local_stack.servers import LocalValkey
server = LocalValkey(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalValkey]:
    server = LocalValkey(tmp_path / "a b % é")
    yield server
    server.stop()


def client(server: LocalValkey) -> redis.Redis:
    return redis.Redis.from_url(as_redis_py(server.url))


class TestStart:
    def test_kombu_celery_and_redis_py_reach_a_socket_in_a_0700_directory(self, server: LocalValkey) -> None:
        url = started(server)
        with Connection(url) as connection:
            connection.ensure_connection(max_retries=1)
        with Celery("test", broker=url).connection_for_write() as connection:
            queue = connection.SimpleQueue("q")
            queue.put({"hint": 1})
            assert queue.get(timeout=5).payload == {"hint": 1}
            queue.close()
        assert server.directory.stat().st_mode & 0o777 == 0o700
        with client(server) as direct:
            assert direct.ping()
            for name, value in ("port", "0"), ("appendonly", "yes"), ("maxmemory-policy", "noeviction"):
                assert direct.config_get(name) == {name: value}


class TestStop:
    def test_stop_leaves_no_process_and_the_next_start_finds_the_data(self, server: LocalValkey) -> None:
        server.start()
        with client(server) as direct:
            direct.set("kept", "42")
        server.stop()
        assert processes_naming(server.directory) == {}
        server.start()
        with client(server) as direct:
            assert direct.get("kept") == b"42"

    def test_a_frozen_server_of_a_killed_parent_is_replaced(self, server: LocalValkey) -> None:
        """Frozen, it can't act on PDEATHSIG: only the mark finds it."""
        parent = start_python(HOLD, server.directory)
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.communicate()
        server.stop_seconds = 0.2
        server.start()
        assert not is_alive(pid)
        with client(server) as direct:
            assert direct.ping()

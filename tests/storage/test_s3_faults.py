"""A bucket that fails: every error is a builtin one that says what to do, nothing is lost, and a retry succeeds."""

from __future__ import annotations

import errno
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.domain.artifacts.full_disk import is_disk_full
from app.storage import StorageError
from app.storage.s3 import S3Storage
from tests.deadline import until
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3 import S3Server, rclone_server, with_prefix
from tests.storage.test_storage import staged

LARGE = random.Random(3).randbytes(18 << 20)  # two parts of a multipart upload
ANSWERS = {
    "no permission": (403, "AccessDenied", errno.EACCES, "allow the service to read, write, delete and list"),
    "an unknown key": (403, "InvalidAccessKeyId", errno.EIO, "must set valid ones"),
    "a wrong secret": (403, "SignatureDoesNotMatch", errno.EIO, "must set valid ones"),
    "a skewed clock": (403, "RequestTimeTooSkewed", errno.EIO, "its clock is wrong, synchronize it"),
    "no bucket": (404, "NoSuchBucket", errno.EIO, "create it, or correct TUNERY_STORAGE_URL"),
    "throttling": (503, "SlowDown", errno.EIO, "overloaded"),
    "an error of the server": (500, "InternalError", errno.EIO, "check its log"),
    "a full bucket": (507, "XMinioStorageFull", errno.ENOSPC, "more space"),
    "an exceeded quota": (403, "QuotaExceeded", errno.ENOSPC, "more space"),
}


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto).running() as proxy:
        yield proxy


@pytest.fixture
def storage(proxy: FaultyProxy, tmp_path: Path) -> S3Storage:
    return S3Storage(with_prefix(proxy.location, secrets.token_hex(4)), tmp_path / "staging", attempts=1)


def patient(storage: S3Storage) -> S3Storage:
    """The same storage with the retries of every request that the service uses."""
    return S3Storage(storage.location, storage.staging)


def operations(storage: S3Storage) -> dict[str, Callable[[], object]]:
    """Every operation on an existing object, or one that creates another."""
    storage.put("parts/a", staged(storage, b"a" * (5 << 20)))
    storage.put("parts/b", staged(storage, b"b"))
    return {
        "put": lambda: storage.put("new", staged(storage)),
        "compose": lambda: storage.compose("new", ["parts/a", "parts/b"]),
        "open": lambda: storage.open("parts/b").read(),
        "stat": lambda: storage.stat("parts/b"),
        "delete": lambda: storage.delete("parts/b"),
        "older_than": lambda: list(storage.older_than("parts", 2e9)),
        "delete_unfinished": lambda: storage.delete_unfinished(2e9),
        "check": storage.check,
        "check_uploads": storage.check_uploads,
    }


class TestAnswers:
    @pytest.mark.parametrize("name", ANSWERS)
    def test_say_what_was_seen_and_what_to_do(self, storage: S3Storage, proxy: FaultyProxy, name: str) -> None:
        status, code, number, advice = ANSWERS[name]
        source = staged(storage)
        proxy.fault = Fault(status=status, code=code)
        with pytest.raises(StorageError) as caught:
            storage.put("k", source)
        assert (caught.value.errno, is_disk_full(caught.value)) == (number, number == errno.ENOSPC)
        assert advice in caught.value.strerror
        assert f"({code})" in caught.value.strerror
        for secret in (storage.location.bucket, "127.0.0.1", storage.location.prefix):
            assert secret not in caught.value.strerror
        assert source.read_bytes() == b"hello"
        proxy.fault = None
        assert storage.put("k", source).size_bytes == 5

    def test_every_operation_raises_a_storage_error_while_the_server_is_away(
        self, storage: S3Storage, proxy: FaultyProxy
    ) -> None:
        for name, operation in operations(storage).items():
            proxy.fault = Fault()
            with pytest.raises(StorageError, match="does not answer"):
                operation()
            proxy.fault = None
            assert operation() is not None or name in ("delete", "check", "check_uploads")

    @pytest.mark.parametrize("answer", [{"status": 503, "code": "SlowDown"}, {"status": 500, "code": "x"}, {}])
    def test_passing_errors_are_repeated(self, storage: S3Storage, proxy: FaultyProxy, answer: dict[str, str]) -> None:
        proxy.fault = Fault(times=1, methods=("PUT",), **answer)  # type: ignore[arg-type]
        assert patient(storage).put("k", staged(storage)).size_bytes == 5
        assert proxy.fault.times == 0

    def test_deleting_what_is_missing_is_no_error(self, storage: S3Storage, proxy: FaultyProxy) -> None:
        """Amazon answers 204, Google 404."""
        proxy.fault = Fault(methods=("DELETE",), status=404, code="NoSuchKey")
        storage.delete("files/a")

    def test_an_upload_that_ends_meanwhile_does_not_keep_others(self, storage: S3Storage, proxy: FaultyProxy) -> None:
        for key in "ab":
            name = f"{storage.location.prefix}/{key}"
            storage._client.create_multipart_upload(Bucket=storage.location.bucket, Key=name)
        proxy.fault = Fault(methods=("DELETE",), times=1, status=404, code="NoSuchUpload")
        assert storage.delete_unfinished(2e9) == 1

    def test_a_missing_bucket_is_not_a_missing_object(self, storage: S3Storage, proxy: FaultyProxy) -> None:
        """A job whose dataset is missing fails; one whose bucket is missing waits."""
        proxy.fault = Fault(status=404, code="NoSuchBucket")
        with pytest.raises(StorageError, match="create it"):
            storage.stat("files/a")


class TestReading:
    def test_a_read_goes_on_where_a_response_broke_off(self, storage: S3Storage, proxy: FaultyProxy) -> None:
        storage.put("k", staged(storage, LARGE))
        with storage.open("k") as file:
            proxy.fault = Fault(methods=("GET",), times=3, break_after_bytes=3 << 20)
            assert file.read() == LARGE
            assert proxy.fault.times == 0

    def test_a_response_that_never_gets_on_is_an_error(self, storage: S3Storage, proxy: FaultyProxy) -> None:
        storage.put("k", staged(storage, LARGE))
        with storage.open("k") as file:
            file.read(1000)
            proxy.fault = Fault(methods=("GET",), break_after_bytes=0)
            file.seek(8 << 20)
            with pytest.raises(StorageError, match="byte 8,388,608 of"):
                file.read()


class TestWritingInParts:
    @pytest.mark.parametrize("skip", [0, 2, 3])
    def test_an_upload_that_fails_at_any_request_leaves_nothing(
        self, storage: S3Storage, proxy: FaultyProxy, skip: int
    ) -> None:
        source = staged(storage, LARGE)
        proxy.fault = Fault(methods=("PUT", "POST"), skip=skip, status=403, code="QuotaExceeded")
        with pytest.raises(StorageError, match="full"):
            storage.put("k", source)
        with pytest.raises(FileNotFoundError):
            storage.stat("k")
        assert source.read_bytes() == LARGE
        proxy.fault = None
        assert storage.delete_unfinished(2e9) == 0
        assert storage.put("k", source).size_bytes == len(LARGE)

    def test_what_a_killed_process_left_unfinished_is_deleted_after_some_time(self, storage: S3Storage) -> None:
        name = f"{storage.location.prefix}/k"
        storage._client.create_multipart_upload(Bucket=storage.location.bucket, Key=name)
        assert storage.delete_unfinished(1.0) == 0
        assert storage.delete_unfinished(2e9) == 1
        assert storage.delete_unfinished(2e9) == 0


class TestKilledServer:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[S3Server]:
        with rclone_server(tmp_path) as server:
            yield server

    def test_a_server_killed_in_a_write_and_in_a_read_loses_nothing(self, server: S3Server, tmp_path: Path) -> None:
        with FaultyProxy(server).running() as proxy:
            storage = S3Storage(proxy.location, tmp_path / "staging", attempts=1)
            storage.put("before", staged(storage, LARGE))
            source = staged(storage, LARGE)
            proxy.fault = Fault(methods=("PUT",), skip=1, times=1, action=server.kill)
            with pytest.raises(StorageError, match="does not answer"):
                storage.put("k", source)
            server.start()
            with pytest.raises(FileNotFoundError):
                storage.stat("k")
            assert storage.put("k", source).size_bytes == len(LARGE)
            with storage.open("before") as file:
                assert file.read(3 << 20) == LARGE[: 3 << 20]
                server.kill()
                server.start()
                assert file.read() == LARGE[3 << 20 :]
            with storage.open("k") as file:
                assert file.read() == LARGE

    def test_the_check_reports_a_killed_server_quickly(self, server: S3Server, tmp_path: Path) -> None:
        storage = S3Storage(server.location, tmp_path / "staging")
        server.kill()
        with pytest.raises(StorageError, match="does not answer"):
            storage.check()
        server.start()

        def passes() -> bool:
            with suppress(StorageError):  # a server that has just started may take longer than the check's 3 seconds
                storage.check()
                return True
            return False

        until(passes, "the check passes")

"""Webhook requests: allowed addresses, limits of time and response size, TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from app.domain.access.outbound_networks import parse_networks
from tests.receiver import Receiver, receiving
from tests.sentences import Reviewed
from worker.webhooks import webhook_http
from worker.webhooks.webhook_http import MAX_RESPONSE_BYTES, PostLimits, WebhookResponse, post

LOOPBACK = parse_networks("127.0.0.0/8")
OURS = PostLimits(connect_seconds=2, total_seconds=3, allow_http=True, networks=LOOPBACK)
PEM = Path(__file__).with_name("hooks.example.com.pem")


def send(
    url: str, limits: PostLimits = OURS, addresses: tuple[str, ...] = ("127.0.0.1",)
) -> tuple[WebhookResponse, list[str]]:
    """The response, and the host names that were resolved."""
    resolved: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        resolved.append(host)
        return list(addresses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhook_http, "resolve", resolve)
        return post(url, {"webhook-id": "evt_1"}, b'{"a": 1}', limits), resolved


class TestRequest:
    def test_the_request_arrives_unchanged(self, receiver: Receiver) -> None:
        receiver.answers = [(201, {}, b"thanks")]
        response, _ = send(receiver.url)
        assert (response.status, response.content, response.error) == (201, b"thanks", None)
        (got,) = receiver.received
        assert (got.path, got.body, got.headers["webhook-id"]) == ("/hook", b'{"a": 1}', "evt_1")

    def test_the_request_goes_to_the_checked_address_with_the_host_name(self, receiver: Receiver) -> None:
        """The name is resolved once: a later resolution has no effect."""
        response, resolved = send(f"http://hooks.example.com:{receiver.port}/a?b=c")
        assert response.status == 204
        assert resolved == ["hooks.example.com"]
        assert receiver.received[0].headers["host"] == f"hooks.example.com:{receiver.port}"
        assert receiver.received[0].path == "/a?b=c"

    def test_proxies_are_not_used(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert send(receiver.url)[0].status == 204

    def test_the_next_address_is_used_if_the_first_refuses(self, receiver: Receiver) -> None:
        response, _ = send(f"http://hooks.example.com:{receiver.port}/", addresses=("127.9.9.9", "127.0.0.1"))
        assert response.status == 204


class TestAllowedAddresses:
    @pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::ffff:127.0.0.1"], ["93.184.216.34", "10.0.0.1"]], ids=str)
    def test_a_name_with_a_private_address_is_refused_before_a_connection(
        self, receiver: Receiver, addresses: list[str]
    ) -> None:
        limits = PostLimits(2, 3, allow_http=True)
        response, _ = send(f"http://hooks.example.com:{receiver.port}/", limits, tuple(addresses))
        assert response.status is None
        assert addresses[-1] in str(response.error)
        assert receiver.received == []

    def test_an_address_in_the_url_is_checked(self, receiver: Receiver) -> None:
        response, resolved = send(receiver.url, PostLimits(2, 3, allow_http=True))
        assert "127.0.0.1" in str(response.error)
        assert (resolved, receiver.received) == ([], [])

    def test_http_needs_the_operators_setting(self, receiver: Receiver) -> None:
        response, _ = send(receiver.url, PostLimits(2, 3, networks=LOOPBACK))
        assert "only https URLs" in str(response.error)
        assert receiver.received == []

    def test_a_stored_scheme_in_upper_case_is_accepted(self) -> None:
        response, resolved = send("HTTPS://HOOKS.EXAMPLE.COM/", PostLimits(2, 3), ("10.0.0.1",))
        assert "10.0.0.1" in str(response.error)  # the scheme was accepted
        assert resolved == ["hooks.example.com"]
        response, _ = send("HTTP://HOOKS.EXAMPLE.COM/", PostLimits(2, 3))
        assert "only https URLs" in str(response.error)

    def test_a_redirect_is_returned_and_not_followed(self, receiver: Receiver) -> None:
        receiver.answers = [(307, {"Location": receiver.url + "/elsewhere"}, b"")]
        assert send(receiver.url)[0].status == 307
        assert len(receiver.received) == 1

    def test_the_error_of_an_unknown_host_names_it(self, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed) -> None:
        def getaddrinfo(*_: object, **__: object) -> None:
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        response = post("https://hooks.example.com/", {}, b"", OURS)
        reviewed(str(response.error))

    @pytest.mark.parametrize("host", ["hooks..example.com", f"{'a' * 64}.example.com"])
    def test_a_name_that_no_resolver_takes_says_so(self, host: str) -> None:
        """Python encodes the name before it resolves it, and raises UnicodeError."""
        assert host in str(post(f"https://{host}/", {}, b"", OURS).error)


class TestLimits:
    def test_only_the_prefix_of_an_endless_response_is_read(self, receiver: Receiver) -> None:
        def pour(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            while True:
                handler.wfile.write(b"y" * 1000)

        receiver.answers = [pour]
        response, _ = send(receiver.url)
        assert (response.status, response.error, response.content) == (200, None, b"y" * MAX_RESPONSE_BYTES)

    def test_slow_headers_end_at_the_timeout(self, receiver: Receiver) -> None:
        """Each byte arrives within the timeout of a single read."""
        over = threading.Event()

        def trickle(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not over.wait(0.05):
                handler.wfile.write(b"z")

        receiver.answers = [trickle]
        began = time.monotonic()
        response, _ = send(receiver.url, PostLimits(1, 0.4, True, LOOPBACK))
        over.set()
        assert (response.status, response.error is None) == (None, False)
        assert time.monotonic() - began < 60  # bytes arrive without end

    def test_a_slow_body_gives_the_bytes_received_before_the_timeout(self, receiver: Receiver) -> None:
        over = threading.Event()

        def trickle(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b"first")
            over.wait(5)

        receiver.answers = [trickle]
        response, _ = send(receiver.url, PostLimits(1, 0.4, True, LOOPBACK))
        over.set()
        assert (response.status, response.content) == (200, b"first")

    def test_a_refused_connection_is_an_error(self) -> None:
        with receiving() as closed:
            pass
        assert "refused" in str(send(closed.url)[0].error)

    def test_a_response_that_is_not_http_is_an_error(self, receiver: Receiver) -> None:
        receiver.answers = [lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")]
        response, _ = send(receiver.url)
        assert response.status is None
        assert response.error


class TestTls:
    @pytest.fixture
    def secure(self) -> Iterator[Receiver]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(PEM)
        with receiving(context) as receiver:
            yield receiver

    @pytest.fixture
    def trusted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
        webhook_http._tls_context.cache_clear()
        yield
        webhook_http._tls_context.cache_clear()

    @pytest.mark.usefixtures("trusted")
    def test_the_certificate_is_checked_against_the_host_name(self, secure: Receiver) -> None:
        response, _ = send(f"https://hooks.example.com:{secure.port}/")
        assert (response.status, response.error) == (204, None)

    @pytest.mark.usefixtures("trusted")
    def test_a_certificate_for_another_name_is_refused(self, secure: Receiver) -> None:
        response, _ = send(f"https://other.example.com:{secure.port}/")
        assert "certificate" in str(response.error).lower()
        assert secure.received == []

    def test_an_untrusted_certificate_is_refused(self, secure: Receiver) -> None:
        webhook_http._tls_context.cache_clear()
        response, _ = send(f"https://hooks.example.com:{secure.port}/")
        assert "certificate" in str(response.error).lower()
        assert secure.received == []

"""Signatures, schedule and URLs of webhooks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import webhooks
from app.domain.access.outbound_networks import parse_networks
from app.errors import BadRequest
from tests.sentences import Reviewed

TEXT = st.characters(exclude_categories=["Cs"])
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
IN_A_MINUTE = "Wed, 25 Nov 2026 12:01:00 GMT"


@pytest.fixture(scope="module")
def official() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="unused") as client:
        yield client


class TestSignatures:
    @settings(deadline=None, max_examples=30)
    @given(data=st.dictionaries(st.text(TEXT), st.text(TEXT), max_size=5))
    def test_signatures_are_those_of_the_official_client(self, official: openai.OpenAI, data: dict[str, str]) -> None:
        secret, content = webhooks.new_secret(), webhooks.event_body("evt_1", "fine_tuning.job.failed", 1, data)
        headers = webhooks.delivery_headers("evt_1", int(time.time()), content, [secret])
        official.webhooks.verify_signature(content, headers, secret=secret)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            official.webhooks.verify_signature(content + b" ", headers, secret=secret)

    def test_a_secret_is_32_random_bytes_and_its_hint_shows_four_characters(self) -> None:
        secret = webhooks.new_secret()
        assert len(secret) == len("whsec_") + 44
        assert webhooks.secret_hint(secret) == f"whsec_...{secret[-4:]}"
        assert secret != webhooks.new_secret()


def test_a_body_is_openais_event() -> None:
    text = webhooks.event_body("evt_1", "fine_tuning.job.succeeded", 1795000000, {"id": "ftjob-1"})
    assert json.loads(text) == {
        "id": "evt_1",
        "object": "event",
        "created_at": 1795000000,
        "type": "fine_tuning.job.succeeded",
        "data": {"id": "ftjob-1"},
    }


class TestSchedule:
    def test_a_delivery_is_tried_ten_times_over_three_days_and_a_quarter(self) -> None:
        delays = [webhooks.retry_delay_seconds(tries, 0.0) for tries in range(1, 11)]
        assert delays == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400, None]

    @given(st.integers(1, 9), st.floats(0, 1))
    def test_jitter_only_adds_and_at_most_a_fifth(self, tries: int, chance: float) -> None:
        planned, drawn = (webhooks.retry_delay_seconds(tries, each) for each in (0.0, chance))
        assert planned is not None
        assert drawn is not None
        assert planned <= drawn <= 1.2 * planned

    @pytest.mark.parametrize(
        ("asked", "expected"), [(None, 5), (1, 5), (60, 60), (10_000_000, 86_400)], ids=["no", "less", "more", "huge"]
    )
    def test_a_receiver_may_ask_for_more_time_up_to_a_day(self, asked: float | None, expected: float) -> None:
        assert webhooks.retry_delay_seconds(1, 0.0, asked) == expected

    def test_asking_for_time_gives_no_further_try(self) -> None:
        assert webhooks.retry_delay_seconds(10, 0.5, 60) is None

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("120", 120),
            (" 7 ", 7),
            (IN_A_MINUTE, 60),
            ("Wed, 25 Nov 2026 11:00:00 GMT", 0),
            ("soon", None),
            ("-5", None),
            ("0.5", 0.5),
            ("20.5", 20.5),
            ("1.", None),
            ("", None),
            (None, None),
            ("9" * 400, 9_999_999_999),
            ("Wed, 25 Nov 2026 12:01:00", None),
        ],
    )
    def test_retry_after_is_seconds_or_a_date(self, header: str | None, seconds: float | None) -> None:
        assert webhooks.parse_retry_after(header, None, NOW) == seconds

    @pytest.mark.parametrize("server_date", ["Wed, 25 Nov 2026 13:00:00 GMT", "Tue, 25 Nov 2025 13:00:00 +0000"])
    def test_a_date_counts_from_the_date_of_the_response(self, server_date: str) -> None:
        until = server_date.replace("13:00:00", "13:02:05")
        assert webhooks.parse_retry_after(until, server_date, NOW) == 125
        assert webhooks.parse_retry_after("7", server_date, NOW) == 7

    @pytest.mark.parametrize("server_date", ["now", "", "Wed, 25 Nov 2026 13:00:00"])
    def test_a_retry_without_a_valid_date_counts_from_now(self, server_date: str) -> None:
        assert webhooks.parse_retry_after(IN_A_MINUTE, server_date, NOW) == 60


def refused(url: str, allow_http: bool = False, networks: str = "") -> str:
    with pytest.raises(BadRequest) as caught:
        webhooks.check_url(url, allow_http, parse_networks(networks))
    assert caught.value.param == "url"
    return caught.value.message


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "stored"),
        [
            *((url, url) for url in (
                "https://hooks.example.com:8443/a?b=c", "https://xn--bcher-kva.example/", "https://8.8.8.8/",
                "https://[2606:4700:4700::1111]/hook", "https://hooks.example.com./A?B=C", "https://hooks.example.com:/",
            )),
            ("HTTPS://EXAMPLE.COM/", "https://example.com/"),
            ("Https://Hooks.Example.COM.:8443/Path?Query=A", "https://hooks.example.com.:8443/Path?Query=A"),
            ("https://EXAMPLE.COM?A", "https://example.com?A"),
            ("https://[2606:4700:4700::ABCD]/X", "https://[2606:4700:4700::abcd]/X"),
        ],
    )  # fmt: skip
    def test_a_url_of_the_public_internet_is_taken_with_its_scheme_and_host_in_lower_case(
        self, url: str, stored: str
    ) -> None:
        assert webhooks.check_url(url, False, ()) == stored

    @pytest.mark.parametrize(
        "host",
        [
            "192.0.0.192", "168.63.129.16", "[3fff::1]", "[5f00::1]", "[2001:db8::1]", "[fec0::1]",
            "[2001:0:808:808::]",
            "localhost", "LOCALHOST.", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
            "10.1.2.3", "169.254.169.254", "192.168.1.1", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]",
            "[::]", "0.0.0.0", "[64:ff9b::a9fe:a9fe]", "intranet", "db",
        ],
    )  # fmt: skip
    def test_urls_of_this_machine_and_its_neighbours_are_refused(self, host: str) -> None:
        assert "TUNERY_WEBHOOK_ALLOWED_NETWORKS" in refused(f"https://{host}/hook")

    def test_ambiguous_urls_are_refused(self, reviewed: Reviewed) -> None:
        host = "https://hooks.example.com"
        for url in (
            *("http://hooks.example.com/", "ftp://hooks.example.com/", "file:///etc/passwd", "hooks.example.com"),
            *("https://", "https:///x", "https://:8443/x", "https:/hooks.example.com/", f"{host}:0/", f"{host}:abc/"),
            *(f"{host}:-1/", f"{host}:99999/", "https://user:secret@/", "https://user@hooks.example.com/"),
            *("https://@hooks.example.com/", f"{host}/#top", "https://[::1/", "https://[2606::1]x/", "https://[v1.x]/"),
            *("https://[8.8.8.8]/", "https://hooks..example.com/", "https://./", f"https://{'a' * 64}.example.com/"),
            *(
                f"https://{'a.' * 126}com./",
                f"{host}/a b",
                f"{host}/\r\nX: y",
                f"{host}/\x7f",
                "https://bücher.example/",
            ),
            *(f"{host}\\@127.0.0.1/", f"{host}/{'x' * 2048}"),
        ):
            reviewed(refused(url))

    def test_both_switches_of_the_operator_are_named_at_once(self) -> None:
        said = refused("http://127.0.0.1:5000/tunery")
        assert "TUNERY_WEBHOOK_ALLOW_HTTP" in said
        assert "TUNERY_WEBHOOK_ALLOWED_NETWORKS" in said

    def test_a_password_is_not_repeated(self) -> None:
        for host in ("hooks.example.com", "", "[::1", ":0", "hooks.example.com:abc"):
            assert "secret" not in refused(f"https://user:secret@{host}/")
        assert "secret" not in refused("ftp://user:secret@hooks.example.com/")

    def test_the_operator_may_allow_more(self) -> None:
        ours = parse_networks("10.0.0.0/8,127.0.0.0/8")
        for url in ("http://10.1.2.3/hook", "http://127.0.0.1:9000/", "http://intranet/hook", "http://localhost/"):
            assert webhooks.check_url(url, True, ours) == url
        assert "ALLOWED_NETWORKS" in refused("http://192.168.0.1/", allow_http=True, networks="10.0.0.0/8")


class TestEventTypes:
    def test_event_types_are_openais_three_and_ours(self) -> None:
        assert set(webhooks.EVENT_TYPES) == {
            *(
                f"fine_tuning.job.{state}"
                for state in ("succeeded", "failed", "cancelled", "queued", "running", "paused")
            ),
            "webhook_endpoint.disabled",
        }

    def test_event_types_are_kept_once_each(self) -> None:
        name = webhooks.EVENT_TYPES[0]
        assert webhooks.check_event_types([name, name]) == [name]

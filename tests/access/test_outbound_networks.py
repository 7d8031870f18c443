"""Where a request of ours may go when somebody else chose the name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.access.outbound_networks import (
    IANA_SPECIAL_PURPOSE,
    OTHER_REFUSED,
    is_allowed,
    parse_address,
    parse_networks,
)

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "168.63.129.16", "192.0.0.1", "192.0.0.8", "192.0.0.192", "192.31.196.1", "192.52.193.1",
    "192.175.48.1", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.7", "203.0.113.9",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::a9fe:a9fe",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1",
    "64:ff9b:1::1", "64:ff9b::a83f:8110", "2002:a83f:8110::", "::ffff:168.63.129.16", "::ffff:0:8.8.8.8", "::8.8.8.8",
    "100::1", "100:0:0:1::1", "2001::1", "2001:0:808:808::", "2001:20::1", "2620:4f:8000::1", "3fff::1",
    "3fff:fff:ffff::1", "4000::1", "5f00::1", "e000::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "192.0.1.0", "191.255.255.255", "168.63.129.15", "168.63.129.17", "2001:200::1", "2001:db9::1",
    "3ffe:ffff::1", "8.8.8.8", "93.184.216.34", "::ffff:8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808",
    "2002:808:808::",
]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_what_is_not_public_is_refused_however_it_is_written(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert not is_allowed(address)


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public_is_allowed(text: str) -> None:
    assert is_allowed(ip_address(text))


TABLE = [ip_network(text) for text in (*IANA_SPECIAL_PURPOSE, *OTHER_REFUSED)]
PARTS = {
    "::/3": "all but global unicast",
    "4000::/2": "the same",
    "8000::/1": "the same",
}  # they have other rows inside


@pytest.mark.parametrize("network", TABLE, ids=str)
@given(data=st.data())
def test_every_address_of_a_row_is_refused_however_it_is_wrapped(network: Any, data: st.DataObject) -> None:
    drawn = [network[0], network[-1], data.draw(st.ip_addresses(network=str(network)))]
    for address in drawn:
        if holds_an_ipv4_address(address):
            continue  # it is judged as the IPv4 address
        assert not is_allowed(address)
        if isinstance(address, IPv4Address):
            assert not any(is_allowed(each) for each in wrapped(address))


@pytest.mark.parametrize("network", TABLE, ids=str)
def test_the_neighbours_of_a_row_are_refused_only_if_another_row_has_them(network: Any) -> None:
    kind = type(network[0])
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= number < 1 << network.max_prefixlen:
            neighbour = kind(number)
            assert neighbour not in network
            in_another = any(neighbour in other for other in TABLE)
            assert is_allowed(neighbour) is not in_another


def test_the_rows_are_networks_and_none_is_there_twice_or_inside_another() -> None:
    rows = [row for row in TABLE if str(row) not in PARTS]
    for row in rows:
        assert not [other for other in rows if other != row and other.version == row.version and other.overlaps(row)]
    assert len(set(TABLE)) == len(TABLE) == len(IANA_SPECIAL_PURPOSE) + len(OTHER_REFUSED)


def test_the_verdict_is_not_the_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_global", "is_private", "is_reserved", "is_multicast", "is_link_local", "is_loopback"):
        for kind in (IPv4Address, IPv6Address):
            monkeypatch.delattr(kind, name)
    assert not any(is_allowed(ip_address(text.split("%")[0])) for text in PRIVATE)
    assert all(is_allowed(ip_address(text)) for text in PUBLIC)


def wrapped(inner: IPv4Address) -> list[IPv6Address]:
    number = int(inner)
    return [
        IPv6Address(each) for each in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80)
    ]


def holds_an_ipv4_address(address: IPv4Address | IPv6Address) -> bool:
    return isinstance(address, IPv6Address) and (
        address.ipv4_mapped is not None or address.sixtofour is not None or address in ip_network("64:ff9b::/96")
    )


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_judged_as_itself(inner: IPv4Address) -> None:
    assert {is_allowed(each) for each in wrapped(inner)} == {is_allowed(inner)}


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_or_local_is_allowed(address: IPv4Address | IPv6Address) -> None:
    local = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    assert not (is_allowed(address) and _plain(address) and local)


def _plain(address: IPv4Address | IPv6Address) -> bool:
    """Not an address that holds another: Python calls some of those private whatever they hold."""
    return isinstance(address, IPv4Address) or (address.ipv4_mapped is None and address.sixtofour is None)


def test_the_operator_allows_a_network_and_no_other() -> None:
    networks = parse_networks("10.20.0.0/16, fd00:20::/64")
    assert is_allowed(ip_address("10.20.1.2"), networks)
    assert is_allowed(ip_address("::ffff:10.20.1.2"), networks)
    assert is_allowed(ip_address("fd00:20::5"), networks)
    assert not is_allowed(ip_address("10.21.0.1"), networks)
    assert not is_allowed(ip_address("127.0.0.1"), networks)


def test_a_network_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="host bits"):
        parse_networks("10.20.0.1/16")

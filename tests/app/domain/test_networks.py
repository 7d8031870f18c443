"""Where a request of ours may go when somebody else chose the name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.networks import is_allowed, parse_address, parse_networks

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::a9fe:a9fe",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "::ffff:8.8.8.8",
    "2606:4700:4700::1111",
    "64:ff9b::808:808",
    "2002:808:808::",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_what_is_not_public_is_refused_however_it_is_written(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert not is_allowed(address)


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public_is_allowed(text: str) -> None:
    assert is_allowed(ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_judged_as_itself(inner: IPv4Address) -> None:
    number = int(inner)
    wrapped = [0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80]
    assert {is_allowed(IPv6Address(one)) for one in wrapped} == {is_allowed(inner)}


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

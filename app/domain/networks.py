"""Which addresses a request of ours may go to when somebody else chose the name: public ones, and no others.

`ipaddress.is_global` alone lets through what only looks public: an IPv4 address inside an IPv6 one, multicast, relays.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

REFUSED = tuple(
    ip_network(text)
    for text in (
        "192.88.99.0/24",  # 6to4 relays
        "64:ff9b:1::/48",  # NAT64 of a local network
        "2001::/32",  # Teredo: an IPv4 address inside, and a relay in between
        "fec0::/10",  # site-local, deprecated, still routed by some
    )
)
NAT64 = IPv6Network("64:ff9b::/96")


def parse_networks(text: str) -> tuple[Network, ...]:
    """Comma-separated CIDRs. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse_address(host: str) -> Address | None:
    """The literal address that a URL's host is; None for a name. Brackets and a zone are no part of it."""
    try:
        return ip_address(host.strip("[]").split("%", 1)[0])
    except ValueError:
        return None


def is_allowed(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Public, or inside one of the operator's `networks`. What is wrapped in an IPv6 address counts as itself."""
    inner = _inner(address)
    if any(inner in network for network in networks):
        return True
    if inner.is_multicast or inner.is_reserved or any(inner in network for network in REFUSED):
        return False
    return inner.is_global


def _inner(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in NAT64 or (int(address) >> 32 == 0 and int(address) > 1):  # the latter: IPv4-compatible, ::a.b.c.d
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address

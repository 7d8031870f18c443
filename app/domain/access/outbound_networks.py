"""The addresses that the service may connect to when a user chose the host: public ones only (protection against SSRF).

The table does not rely on `ipaddress.is_global`, which differs between versions of Python (3.11 classifies 192.0.0.192
and 3fff::1 as public) and allows multicast, relays and IPv4 addresses embedded in IPv6 addresses.

The table was compared row by row, on 27 November 2026, with the 26 IPv4 and 25 IPv6 rows of IANA's registries (RFC
6890, RFC 8190) of 9 October 2025, and with CPython's `ipaddress`: each of their rows is in the table, is inside one of
its networks, or embeds an IPv4 address. The newest rows are those of RFC 9602, RFC 9637 and RFC 9780.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA's registries of special-purpose addresses, IPv4 and IPv6, both as of 9 October 2025: every entry, globally
# reachable or not, except entries inside another entry:
# https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
# The IPv6 entries that embed an IPv4 address are not in the table; the IPv4 address is checked instead:
# ::ffff:0:0/96, 64:ff9b::/96, 2002::/16.
IANA_SPECIAL_PURPOSE = {
    "0.0.0.0/8": "this network, RFC 791",
    "10.0.0.0/8": "private use, RFC 1918",
    "100.64.0.0/10": "shared address space, RFC 6598",
    "127.0.0.0/8": "loopback, RFC 1122",
    "169.254.0.0/16": "link-local, RFC 3927; most clouds' metadata services",
    "172.16.0.0/12": "private use, RFC 1918",
    "192.0.0.0/24": "IETF protocol assignments, RFC 6890",
    "192.0.2.0/24": "documentation, RFC 5737",
    "192.31.196.0/24": "AS112-v4, RFC 7535",
    "192.52.193.0/24": "AMT, RFC 7450",
    "192.88.99.0/24": "6to4 relays, RFC 7526",
    "192.168.0.0/16": "private use, RFC 1918",
    "192.175.48.0/24": "AS112 by direct delegation, RFC 7534",
    "198.18.0.0/15": "benchmarking, RFC 2544",
    "198.51.100.0/24": "documentation, RFC 5737",
    "203.0.113.0/24": "documentation, RFC 5737",
    "240.0.0.0/4": "reserved, and limited broadcast, RFC 1112",
    "::/128": "unspecified, RFC 4291",
    "::1/128": "loopback, RFC 4291",
    "64:ff9b:1::/48": "NAT64 of a local network, RFC 8215",
    "100::/64": "discard only, RFC 6666",
    "100:0:0:1::/64": "dummy prefix, RFC 9780",
    "2001::/23": "IETF protocol assignments, RFC 2928; among them Teredo, which holds an IPv4 address",
    "2001:db8::/32": "documentation, RFC 3849",
    "2620:4f:8000::/48": "AS112 by direct delegation, RFC 7534",
    "3fff::/20": "documentation, RFC 9637",
    "5f00::/16": "segment routing, RFC 9602",
    "fc00::/7": "unique local, RFC 4193",
    "fe80::/10": "link-local, RFC 4291",
}
OTHER_REFUSED = {
    "168.63.129.16/32": "Azure's host service, on a public address",
    "224.0.0.0/4": "multicast, RFC 5771",
    "fec0::/10": "site-local, deprecated by RFC 3879, still routed by some",
    "ff00::/8": "multicast, RFC 4291",
    # Everything except global unicast, 2000::/3 (RFC 4291, section 2.4).
    "::/3": "not global unicast; among them IPv4-compatible and IPv4-translated addresses",
    "4000::/2": "not global unicast",
    "8000::/1": "not global unicast",
}
REFUSED = tuple(ip_network(text) for text in IANA_SPECIAL_PURPOSE | OTHER_REFUSED)
NAT64 = IPv6Network("64:ff9b::/96")


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse comma-separated CIDRs. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse_address(host: str) -> Address | None:
    """The address of a URL's host if it is a literal address, without brackets and zone; None for a name."""
    try:
        return ip_address(host.strip("[]").split("%", 1)[0])
    except ValueError:
        return None


def is_allowed(address: Address, networks: Sequence[Network] = ()) -> bool:
    """Whether the address, or the IPv4 address embedded in it, is public or in one of the operator's `networks`."""
    embedded = _embedded(address)
    return any(embedded in network for network in networks) or not any(embedded in network for network in REFUSED)


def refused_address_text(host: str, addresses: Iterable[str], networks: Sequence[Network], setting: str) -> str | None:
    """The reason why a host with these addresses must not be connected to, with the operator's setting; None if it may.

    One forbidden address refuses all, because a host with private and public ones is suspicious.
    """
    for address in addresses:
        parsed = parse_address(address)
        if parsed is None or not is_allowed(parsed, networks):
            return (
                f"{host} resolves to {address}, which is not a public address; the operator can allow private ones "
                f"({setting})"
            )
    return None


def _embedded(address: Address) -> Address:
    """The IPv4 address inside a mapped (RFC 4291), 6to4 (RFC 3056) or NAT64 (RFC 6052) address, else the address."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address

"""Which network addresses a fetch may reach. Rule: pure; an address comes in as text, no name is looked up here."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291; what lies outside is not, or not yet, of the public network
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address that a gateway connects to

# What IANA's registries of special addresses list, in full blocks. The standard library's own lists change with the
# patch release: that of Python 3.11.7 takes most of 192.0.0.0/24 for public, where a cloud has its metadata service.
_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
_SPECIAL_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def is_public(text: str) -> bool:
    """Whether `text` is an address of the public network, unicast: not private, loopback, link-local, reserved.

    An IPv6 address that stands for an IPv4 address (v4-mapped, NAT64) is what that one is. False for what is no
    address at all.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        inner = _inner(address)
        if inner is None:
            public = address.is_global and address in _GLOBAL_UNICAST
            return public and not any(address in network for network in _SPECIAL_V6)
        address = inner
    return address.is_global and not any(address in network for network in _SPECIAL_V4)


def _inner(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None

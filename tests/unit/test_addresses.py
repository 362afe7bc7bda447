from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fetching.addresses import is_public

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
# What RFCs reserve, so that edges are drawn as often as the large public rest.
NETWORKS = [
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24",
    "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4",
    "::/96 64:ff9b:1::/48 100::/64 2001:db8::/32 2001::/32 2002::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8",
]
RESERVED = [ip_network(text) for line in NETWORKS for text in line.split()]


@st.composite
def reserved(draw: st.DrawFn) -> IPv4Address | IPv6Address:
    network = draw(st.sampled_from(RESERVED))
    offset = draw(st.one_of(st.just(0), st.just(network.num_addresses - 1), st.integers(0, network.num_addresses - 1)))
    return (
        ip_address(int(network.network_address) + offset)
        if network.version == 4
        else IPv6Address(int(network.network_address) + offset)
    )


@given(reserved())
def test_reserved_networks_are_not_public(address: IPv4Address | IPv6Address):
    assert not is_public(str(address))


@given(st.one_of(V4, V6, reserved()))
def test_what_the_standard_library_calls_special_is_not_public(address: IPv4Address | IPv6Address):
    inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    judged = inner or address
    special = (
        judged.is_private,
        judged.is_loopback,
        judged.is_link_local,
        judged.is_multicast,
        judged.is_unspecified,
        not judged.is_global,
    )
    if any(special):
        assert not is_public(str(address))


@given(st.one_of(V4, reserved().filter(lambda address: address.version == 4)))
def test_an_ipv4_address_inside_ipv6_is_what_it_is_outside(address: IPv4Address):
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        inside = IPv6Address(int(IPv6Address(prefix)) | int(address))
        assert is_public(str(inside)) == is_public(str(address))


@given(V4.filter(lambda address: address.is_global and not address.is_multicast))
def test_the_rest_of_ipv4_is_public(address: IPv4Address):
    assert is_public(str(address)) != any(address in network for network in RESERVED if network.version == 4)


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_well_known_addresses_are_public(text: str):
    assert is_public(text)


@given(st.text(max_size=40))
def test_anything_else_is_not(text: str):
    try:
        ip_address(text)
    except ValueError:
        assert not is_public(text)


@pytest.mark.parametrize(
    "text", ["fe80::1%eth0", "127.0.0.1", "127.1", "0x7f.1", "localhost", "", "8.8.8.8.", " 8.8.8.8"]
)
def test_these_are_not(text: str):
    assert not is_public(text)

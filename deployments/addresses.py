"""is_public(): whether an address is one on the open internet, by every way in which an inner one can be written."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# Public by their numbers, but of the machine's own cloud: Azure's host, and Oracle's in the block of IETF protocols.
_OF_THE_CLOUD = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))
# All of IPv6 that is given out for the open internet, RFC 4291.
_OPEN_IPV6 = IPv6Network("2000::/3")
# RFC 6052: a translator turns the last 32 bits into an IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """False for what is private, loopback, link-local, shared, multicast, reserved or unspecified, and for no address.

    An IPv6 address that stands for one of IPv4 is judged as that; the old tunnels,
    6to4 and Teredo, lead nowhere that an image is.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        if found.sixtofour is not None or found.teredo is not None:
            return False
        found = _meant(found)
    if isinstance(found, IPv6Address):
        return found in _OPEN_IPV6 and found.is_global
    of_the_cloud = any(found in network for network in _OF_THE_CLOUD)
    return found.is_global and not (found.is_multicast or found.is_reserved or of_the_cloud)


def _meant(address: IPv6Address) -> IPv4Address | IPv6Address:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address

"""A client's ICE candidates: how many there may be, and which of them are ever sent to.

Each one makes the server send STUN packets to an address that the client chose (RFC 8445, section 6.1.2): a limit on
them, and no way to this machine's own or its link's services from a server that others may use. Makes no connection.
"""

from __future__ import annotations

import ipaddress

_PREFIX = "a=candidate:"
_ADDRESS = 4  # of the fields of a candidate, RFC 8839, section 5.1


def usable_candidates(description: str, *, local: bool) -> tuple[str, int]:
    """The description with those candidates only that may be sent to, and how many it had. local: of `may_send_to`."""
    kept: list[str] = []
    count = 0
    for line in description.splitlines(keepends=True):
        if line.startswith(_PREFIX):
            count += 1
            fields = line.removeprefix(_PREFIX).split()
            if len(fields) > _ADDRESS and not may_send_to(fields[_ADDRESS], local=local):
                continue
        kept.append(line)
    return "".join(kept), count


def may_send_to(host: str, *, local: bool) -> bool:
    """Whether a candidate's address may be sent to. local: addresses of this machine and of its link too.

    A name is one of multicast DNS, behind which browsers hide their addresses; no other name is looked up.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().endswith(".local")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        return False
    return local or not (address.is_loopback or address.is_link_local)

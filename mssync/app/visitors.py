"""Who is who: visitors are told apart by their address, and pages and clients of one address by their session.

Sessions are names that clients make up, so shares of what the server has are shares of an address. Behind a proxy all
visitors come from its address, unless it tells theirs (X-Forwarded-For) and uvicorn believes it: it does when the proxy
is on this machine, or named in the environment variable FORWARDED_ALLOW_IPS.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import NamedTuple

SUBNET = 64  # bits of an IPv6 address that one visitor's network has; the rest they choose as they like


class Visitor(NamedTuple):
    """A page or client, and where it is."""

    address: str
    session: str


def address(host: str | None) -> str:
    """The address that a request came from, as one name for all that a visitor has: of IPv6 it is the network."""
    with suppress(ValueError):
        found = ipaddress.ip_address(host or "")
        if isinstance(found, ipaddress.IPv6Address):
            return str(found.ipv4_mapped or ipaddress.ip_network((found, SUBNET), strict=False))
    return host or ""

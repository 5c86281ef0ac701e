"""Tells systemd how the service is, where systemd asked to be told (sd_notify(3)). Elsewhere nothing happens."""

import os
import socket
from contextlib import suppress


def notify_systemd(state: str) -> bool:
    """`state` is READY=1, STOPPING=1 or STATUS=…; False where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # A name that begins with @ lives in Linux' abstract space.
    place = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.sendto(state.encode(), place)
        return True
    return False

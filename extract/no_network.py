"""Starts a command again where no network can be reached, and proves it there.

The one thing to know: the kernel blocks, not we. The command runs in a network
namespace of its own (Linux, `unshare` of util-linux), which holds no way out; libraries
and their native code, MediaPipe's telemetry too, are inside. Files are as before.
"""

import argparse
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

from tqa_jax import schema

_logger = logging.getLogger(__name__)

_INSIDE = "TQA_NO_NETWORK"
_UNSHARE = ("unshare", "--map-root-user", "--net")
# Addresses for documentation (RFC 5737 and 3849): routed nowhere, but a machine with a
# network has a route towards them.
_TARGETS = (
    (socket.AF_INET, ("192.0.2.1", 443)),
    (socket.AF_INET6, ("2001:db8::1", 443)),
)
# No route; no address to send from; a kernel without this family.
_NO_WAY = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--no_network`."""
    parser.add_argument(
        "--no_network",
        action="store_true",
        help="run where no network can be reached, and check that (Linux)",
    )


def enter(module: str, arguments: Sequence[str] | None) -> None:
    """Replaces this process by the same command without a network.

    Returns inside, where it has checked that nothing can be reached.

    Args:
        module: of the command.
        arguments: of the command; None takes those of this process.

    Raises:
        schema.InputError: the network cannot be blocked on this machine.
    """
    outside = os.environ.get(_INSIDE)
    if outside:
        if outside == _namespace() or reachable():
            raise schema.InputError(
                f"{_INSIDE} is set, but a network can be reached; unset it"
            )
        _logger.info("no network: none can be reached from here (checked)")
        return
    if shutil.which(_UNSHARE[0]) is None:
        raise schema.InputError(
            "--no_network needs `unshare` of util-linux (Linux); without it, run the "
            "command in a container that has no network"
        )
    tried = subprocess.run(
        [*_UNSHARE, "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        raise schema.InputError(
            "--no_network: this machine does not let users block the network "
            f"({tried.stderr.strip()}); run the command in a container that has none"
        )
    arguments = sys.argv[1:] if arguments is None else arguments
    command = [*_UNSHARE, sys.executable, "-m", module, *arguments]
    inside = {_INSIDE: _namespace(), "HF_HUB_OFFLINE": "1"}  # its library would retry
    os.execvpe(command[0], command, {**os.environ, **inside})


def _namespace() -> str:
    """Names the network namespace that this process is in."""
    return os.readlink("/proc/self/ns/net")


def reachable() -> bool:
    """Returns whether the kernel knows a way out to the internet; sends nothing."""
    for family, address in _TARGETS:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as end:
                end.connect(address)  # of a datagram socket: looks up a route only
                return True
        except OSError as error:
            if error.errno not in _NO_WAY:
                return True
    return False

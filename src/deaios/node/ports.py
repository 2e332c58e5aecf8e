"""TCP ports that roles keep: URLs are registered on chain, so a restart should find the same one free."""

import socket
from pathlib import Path

from deaios.runtime.disk import write_atomic

HOST = "127.0.0.1"


def keep_port(folder: Path, preferred: int, host: str = HOST) -> int:
    """The port a role used last, its preferred one, or a free one; remembered in the role's folder."""
    path = folder / "port"
    try:
        kept = int(path.read_text())
    except (FileNotFoundError, ValueError):
        kept = preferred
    port = _bind(host, kept) or _bind(host, preferred) or _bind(host, 0)
    write_atomic(path, str(port).encode())
    return port


def _bind(host: str, port: int) -> int:
    """The port when it is free (a free one for 0), else 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])

import socket
from pathlib import Path

from deaios.node.ports import HOST, keep_port


def test_a_port_is_kept_over_restarts(tmp_path: Path) -> None:
    first = keep_port(tmp_path, 0)
    assert first > 0
    assert keep_port(tmp_path, 0) == first


def test_a_taken_port_gives_way(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = keep_port(tmp_path, port)
    assert other not in (0, port)
    assert keep_port(tmp_path, port) == other

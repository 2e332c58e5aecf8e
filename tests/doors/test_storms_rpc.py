"""Hostile WebSocket peers and filter collectors at the chain's door: a real process, bounded, refusing, alive."""

import contextlib
import json
import socket
import time

import door_client as client
import frames
import pytest
import storms

QUIET_GROWTH = 48 << 20
HELD_GROWTH = 448 << 20
"""The bytes that all peers may hold together (256 MiB), in pieces and on their way from the kernel."""
WEBSOCKETS = 512
"""As the door has it."""
WAIT_S = 30


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    with client.running_doors(tmp_path_factory.mktemp("chain"), names=("chain",)) as running:
        yield running["chain"]


@pytest.fixture(autouse=True)
def _lives(door):
    yield
    door.check_alive()
    answer = ask(door, {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"})
    assert answer["result"].startswith("0x")


def ask(door, body):
    answer = door.send(storms.request_of(door, "POST", "/", json.dumps(body).encode()))
    assert answer.status == 200, answer.raw[:300]
    return json.loads(answer.body)


@contextlib.contextmanager
def upgraded(door, **options):
    with door.connect(**options) as opened:
        opened.sendall(frames.handshake())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = opened.recv(1)
            assert piece, head
            head += piece
        assert head.startswith(b"HTTP/1.1 101"), head
        yield opened


def request(method, *params):
    return frames.frame(1, json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())


def test_noise_after_the_handshake(door):
    rng = storms.seeded(11)
    with door.bounded(QUIET_GROWTH):
        for index in range(150):
            with upgraded(door) as opened, contextlib.suppress(OSError):
                for _ in range(rng.randrange(1, 5)):
                    garbage = list(frames.GARBAGE.values())
                    opened.sendall(
                        rng.choice([*garbage, rng.randbytes(rng.randrange(1, 2000)), request("eth_chainId")])
                    )
                if index % 2:
                    opened.shutdown(socket.SHUT_WR)
                    while opened.recv(client.PIECE):
                        pass


def test_handshakes_that_are_none(door):
    for head in (
        frames.handshake().replace(b"Version: 13", b"Version: 99"),
        frames.handshake().replace(b"Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Key: short"),
        frames.handshake().replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        frames.handshake().replace(b"Connection: Upgrade", b"Connection: Upgrade\r\nContent-Length: 5"),
        frames.handshake("/faucet"),
        frames.handshake("/nothing"),
    ):
        client.check_typed(door, door.send(head, half_close=True))


def test_messages_that_never_end_share_one_bound(door):
    """Each is below the bound of one message; together they would be far above what all peers may hold."""
    piece = bytes(1 << 20)
    with door.bounded(HELD_GROWTH), contextlib.ExitStack() as stack:
        for _ in range(80):
            opened = stack.enter_context(upgraded(door))
            with contextlib.suppress(ConnectionError):
                opened.sendall(b"\x81\xff" + (frames.MESSAGE_BYTES_MAX - 1).to_bytes(8) + bytes(4))
                for _ in range(7):
                    opened.sendall(piece)
        door.wait_metric('deaios_http_connections_dismissed_total{reason="held bytes"}', 1, WAIT_S)
    assert door.metric("deaios_http_held_bytes") <= 256 << 20


def test_fragments_and_pings_without_end(door):
    with door.bounded(QUIET_GROWTH):
        for flood in (
            frames.frame(1, b"", is_last=False) + frames.frame(0, b"", is_last=False) * 200_000,
            frames.frame(9, b"x" * 100) * 50_000,
            frames.frame(10, b"") * 200_000,
            request("eth_nothing") * 5_000,
        ):
            with upgraded(door, receive_bytes=4096) as opened:
                opened.settimeout(1.0)  # who does not read its pongs is not read from either
                with contextlib.suppress(TimeoutError, ConnectionError):
                    opened.sendall(flood)


def test_a_crowd_of_silent_websockets_keeps_nobody_out(door):
    with door.bounded(QUIET_GROWTH), contextlib.ExitStack() as stack:
        for _ in range(WEBSOCKETS + 100):
            last = stack.enter_context(upgraded(door))
        assert door.metric("deaios_http_connections ") <= WEBSOCKETS + 5
        last.sendall(request("eth_chainId"))
        assert b'"result"' in last.recv(client.PIECE)


def test_a_crowd_of_subscribers_is_bounded_and_costs_the_others_nothing(door):
    wait_places(door)
    with door.bounded(QUIET_GROWTH), contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(WEBSOCKETS):
            opened = stack.enter_context(upgraded(door))
            opened.sendall(request("eth_subscribe", "newHeads") + request("eth_subscribe", "logs", {}))
            crowd.append(opened)
        for opened in crowd:
            read_until(opened, 2)
        with door.connect() as refused:
            refused.sendall(frames.handshake())
            assert refused.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 429"
        assert door.ask("GET", "/healthz").status == 200
    wait_places(door)


def read_until(opened, answers):
    """Read so many answers."""
    received = b""
    while received.count(b'"result"') + received.count(b'"error"') < answers:
        piece = opened.recv(client.PIECE)
        assert piece, received
        received += piece


def wait_places(door):
    """Until the connections of the test before are gone."""
    end = time.monotonic() + WAIT_S
    while door.metric("deaios_http_connections ") > 2:
        assert time.monotonic() < end


def test_ten_thousand_filters(door):
    """Small ones and those that name as much as they may: refused beyond the bounds, by a number that says which."""
    small = {"jsonrpc": "2.0", "id": 1, "method": "eth_newFilter", "params": [{"fromBlock": "0x0"}]}
    topics = [["0x" + (1000 * place + n).to_bytes(32).hex() for n in range(1000)] for place in range(4)]
    addresses = ["0x" + n.to_bytes(20).hex() for n in range(1000)]
    large = {"jsonrpc": "2.0", "id": 1, "method": "eth_newFilter", "params": [{"address": addresses, "topics": topics}]}
    with door.bounded(3 * QUIET_GROWTH):
        made = [ask(door, [large] * 10) for _ in range(6)]
        codes = [answer.get("error", {}).get("code") for answers in made for answer in answers]
        assert (codes.count(None), codes.count(-32005)) == (52, 8)
        made = [ask(door, [small] * 1000) for _ in range(10)]
    codes = [answer.get("error", {}).get("code") for answers in made for answer in answers]
    assert codes.count(None) <= 4096
    assert codes.count(None) + codes.count(-32005) == 10_000
    identity = made[0][0]["result"]
    assert ask(door, small | {"method": "eth_getFilterChanges", "params": [identity]})["result"] == []

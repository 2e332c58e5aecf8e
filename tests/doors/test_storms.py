"""Hostile bytes at every door, over real sockets, at real processes: typed refusals, bounded memory, still alive."""

import contextlib
import json
import socket

import door_client as client
import pytest
import storms

QUIET_GROWTH = 48 << 20
"""Memory that a storm of small things may add."""
BODY_GROWTH = 64 << 20
"""Memory for one body of the largest size that any door takes (16 MiB), in pieces and joined; 100 MB would not fit."""
PARSE_GROWTH = 256 << 20
"""Eight MiB of JSON that is all empty lists, as Python objects, on the door that takes the largest JSON."""
CROWD = 10_000
CROWD_GROWTH = 128 << 20
"""Some 6 KiB for each of 10,000 connections, twice over."""
NOISE = 150
MUTATIONS = 60
SLOW_S = 3 * max(client.LIMITS.values()) + 10
"""By when every deadline is over, on a busy machine."""

MALFORMED = storms.malformed_requests()


def test_malformed_requests_are_refused_in_the_doors_words(door):
    with door.bounded(QUIET_GROWTH):
        for name, data in MALFORMED.items():
            answer = door.send(data)
            client.check_typed(door, answer)
            assert answer.status, f"{name}: no answer"


def test_what_two_readers_could_read_differently_ends_the_connection(door):
    """A second request behind an ambiguous one is never answered: it could be another client's."""
    for name in (
        "two lengths",
        "length and chunked",
        "twice chunked",
        "obs-fold",
        "space before colon",
        "signed length",
    ):
        with door.connect() as opened:
            opened.sendall(MALFORMED[name] + client.build_request("GET", "/metrics"))
            answer = read_to_end(opened)
        assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), (name, answer[:300])
        assert b"deaios_" not in answer, name


def read_to_end(opened):
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := opened.recv(client.PIECE):
            pieces.append(piece)
    return b"".join(pieces)


def test_noise(door):
    rng = storms.seeded(7)
    with door.bounded(QUIET_GROWTH):
        for _ in range(NOISE):
            client.check_typed(door, door.send(storms.random_bytes(rng), half_close=True))
    assert door.seen.get(400, 0) > 0


def test_bodies_of_100_megabytes(door):
    for method, path in [storms.ROUTES[door.name][0], ("GET", "/healthz")]:
        for kind, pieces in storms.large_bodies(door, method, path):
            with door.bounded(BODY_GROWTH):
                answer = door.send(pieces)
            client.check_typed(door, answer)
            if method != "GET" and answer.status:
                assert answer.status in (413, 507), (kind, answer.raw[:300])


def test_compressed_bodies_are_refused_before_they_unfold(door):
    for method, path in storms.ROUTES[door.name]:
        if method not in ("POST", "PUT"):
            continue
        for encoding, request in storms.bombs(door, method, path):
            with door.bounded(QUIET_GROWTH):
                answer = door.send(request)
            client.check_typed(door, answer)
            assert answer.status == 415, (encoding, answer.raw[:300])


def json_routes():
    found = [(name, path) for name in client.NAMES for method, path in storms.ROUTES[name] if method == "POST"]
    assert len(found) == 6
    return found


@pytest.mark.parametrize(("name", "path"), json_routes())
def test_hostile_json(doors, name, path):
    door = doors[name]
    template = b'{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[]}' if (name, path) == ("chain", "/") else b"{}"
    for kind, body in storms.hostile_json(template).items():
        with door.bounded(PARSE_GROWTH):
            answer = door.send(storms.request_of(door, "POST", path, body))
        client.check_typed(door, answer)
        refused = answer.status in (400, 413) or (answer.status == 200 and is_error(json.loads(answer.body)))
        assert refused or is_harmless(kind), (kind, answer.raw[:300])
    door.check_alive()


def is_error(found):
    """A response object with an error; a batch that is too large is answered by a batch of one."""
    return "error" in (found[0] if isinstance(found, list) else found)


def is_harmless(kind):
    """JSON-RPC takes unknown members, and the last of equal ones."""
    return kind in ("huge integer", "duplicate keys", "lone surrogate", "surrogate key", "huge exponent", "bom")


VALID = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "temperature": 1,
        "top_p": 1,
        "max_tokens": 3,
        "stop": ["x"],
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "deaios": {"min_level": 2, "audit_policy": "open", "provider": "0x" + "22" * 20},
    },
    "/faucet": {"address": "0x" + "22" * 20},
    "/attestations": {"commitment": "0x" + "11" * 32, "epoch": 1, "beginsAt": 1, "expiresAt": 2},
    "/purchases/0x" + "00" * 32 + "/cancel": {"tokens": 1, "signature": "0x" + "00" * 65},
}
CALL = {"from": "0x" + "11" * 20, "to": "0x" + "22" * 20, "value": "0x0", "data": "0x00", "gas": "0x5208"}
CALL |= {"maxFeePerGas": "0x3b9aca00", "accessList": [{"address": "0x" + "22" * 20, "storageKeys": ["0x" + "00" * 32]}]}
LOGS = {"fromBlock": "0x0", "toBlock": "latest", "address": ["0x" + "22" * 20], "topics": [None, ["0x" + "00" * 32]]}
ADDRESS, HASH = "0x" + "22" * 20, "0x" + "00" * 32
RPC = {
    "eth_call": [
        CALL,
        "latest",
        {
            ADDRESS: {"balance": "0x1", "nonce": "0x1", "code": "0x00", "stateDiff": {HASH: HASH}},
            HASH[:42]: {"state": {}},
        },
        {"number": "0x1", "time": "0x1", "feeRecipient": ADDRESS, "prevRandao": HASH, "baseFeePerGas": "0x0"},
    ],
    "eth_createAccessList": [CALL, "latest", {ADDRESS: {"stateDiff": {HASH: HASH}}}],
    "eth_newFilter": [LOGS],
    "eth_newPendingTransactionFilter": [True],
    "eth_getFilterChanges": ["0x1"],
    "eth_getRawTransactionByBlockNumberAndIndex": ["latest", "0x0"],
    "eth_sendRawTransactionSync": ["0x02c0", "0x1"],
    "eth_getUncleByBlockHashAndIndex": [HASH, "0x0"],
    "txpool_contentFrom": [ADDRESS],
    "debug_getRawBlock": ["latest"],
    "eth_estimateGas": [CALL, {"blockNumber": "0x0"}],
    "eth_feeHistory": ["0x4", "latest", [1, 50.5]],
    "eth_getBalance": [ADDRESS, {"blockHash": HASH, "requireCanonical": True}],
    "eth_getBlockByHash": [HASH, True],
    "eth_getBlockByNumber": ["latest", True],
    "eth_getBlockReceipts": ["latest"],
    "eth_getCode": [ADDRESS, "latest"],
    "eth_getLogs": [LOGS],
    "eth_getStorageAt": [ADDRESS, "0x0", "latest"],
    "eth_getTransactionByBlockNumberAndIndex": ["latest", "0x0"],
    "eth_getTransactionByHash": [HASH],
    "eth_getTransactionReceipt": [HASH],
    "eth_sendRawTransaction": ["0x02c0"],
    "deaios_getHeader": ["0x0"],
    "web3_sha3": ["0x00"],
}


@pytest.mark.parametrize(("name", "path"), [route for route in json_routes() if route[1] in VALID])
def test_wrong_types_are_named_not_crashed_on(doors, name, path):
    door = doors[name]
    for value in storms.sample(storms.seeded(1), VALID[path], MUTATIONS):
        answer = door.send(storms.request_of(door, "POST", path, storms.encode(value)))
        client.check_typed(door, answer)
        assert answer.status in (200, 400, 401, 403, 404, 413), (value, answer.raw[:300])
    door.check_alive()


def test_wrong_types_in_papers(doors, provider_papers):
    door = doors["provider"]
    for value in storms.sample(storms.seeded(2), provider_papers, MUTATIONS):
        answer = door.send(storms.request_of(door, "POST", "/purchases", storms.encode(value)))
        client.check_typed(door, answer)
        assert answer.status in (200, 400, 401, 402, 403, 404), (value, answer.raw[:300])
    door.check_alive()


@pytest.mark.parametrize("method", RPC)
def test_wrong_types_in_calls(doors, method):
    """Sent as batches, so that thousands cost a few requests."""
    door = doors["chain"]
    calls = [
        {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
        for index, params in enumerate(storms.sample(storms.seeded(3), RPC[method], 400))
        if b"ud800" not in storms.encode(params)  # half a character is refused with its whole body, see below
    ]
    answer = door.send(storms.request_of(door, "POST", "/", storms.encode(calls)))
    assert answer.status == 200, answer.raw[:300]
    assert b"Traceback" not in answer.raw
    for call, result in zip(calls, json.loads(answer.body), strict=True):
        code = result.get("error", {}).get("code")
        assert code != client.INTERNAL_ERROR, (call, result)
    door.check_alive()


def test_wrong_types_around_calls(doors):
    door = doors["chain"]
    call = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    for value in storms.sample(storms.seeded(4), call, 200):
        client.check_typed(door, door.send(storms.request_of(door, "POST", "/", storms.encode(value))))
    door.check_alive()


def test_slow_peers_lose_their_connection_and_hurt_nobody(doors):
    """Heads and bodies that never end, answers that nobody reads, at all doors at the same time."""
    with contextlib.ExitStack() as stack:
        slow = []
        for door in doors.values():
            method, path = storms.ROUTES[door.name][0]
            slow += [start_slow(stack, door, client.build_head(method, path)[:-4]) for _ in range(20)]
            if method != "GET":
                head = client.build_head(method, path, [*storms.headers_of(door), "Content-Length: 100"])
                slow += [start_slow(stack, door, head + b"{") for _ in range(20)]
            start_deaf(stack, door)
        for door in doors.values():
            assert door.ask("GET", "/healthz").status == 200
        assert client.wait_closed(slow, SLOW_S) == 0
        for door in doors.values():
            door.wait_metric('deaios_http_connections_dismissed_total{reason="unread"}', 1, SLOW_S)
    for door in doors.values():
        assert door.metric('deaios_http_connections_dismissed_total{reason="head time"}') >= 20
        door.check_alive()


def start_slow(stack, door, data):
    opened = stack.enter_context(door.connect())
    opened.sendall(data)
    return opened


def start_deaf(stack, door):
    """A peer that asks again and again and reads nothing, until the door takes no more from it."""
    opened = stack.enter_context(door.connect(receive_bytes=4096))
    opened.settimeout(0.5)
    questions = client.build_head("GET", "/metrics") * 1000
    with contextlib.suppress(TimeoutError):
        while True:
            opened.sendall(questions)


def test_ten_thousand_connections(doors):
    """A crowd that says nothing, or half a word, keeps nobody out."""
    door = doors["storage"]
    assert client.raise_own_limit() > CROWD + 500, f"this machine allows fewer descriptors than {CROWD} and some"
    with contextlib.ExitStack() as stack, door.bounded(CROWD_GROWTH):
        crowd = [stack.enter_context(door.connect()) for _ in range(CROWD)]
        for opened in crowd[::2]:
            opened.sendall(b"GET /he")
        assert door.metric("deaios_http_connections ") > CROWD
        assert door.ask("GET", "/healthz").status == 200
        assert client.wait_closed(crowd[::2], SLOW_S) == 0
        for opened in crowd[1::1000]:
            opened.sendall(client.build_request("GET", "/healthz"))
            assert opened.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
    door.check_alive()

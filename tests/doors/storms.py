"""What is thrown at doors: hostile requests as values, each with the routes it is for. Not a test module."""

import functools
import gzip
import json
import os
import random
import time
import zlib

from deaios.primitives.keys import PrivateKey
from deaios.runtime.authentication import NONCE_SIZE, sign_request

BODY = 100 << 20
"""Bytes of a body that is much too large."""
DEEP = 10**6
WIDE = 10**6
PIECE = bytes(1 << 16)
STRANGER = PrivateKey(b"\x5a" * 32)
NETWORK = b"\x77" * 32
"""The network of `door_process`."""
MEBIBYTE = 1 << 20

ROUTES = {
    "auditor": [("GET", "/audits")],
    "chain": [("POST", "/"), ("POST", "/faucet"), ("GET", "/descriptor")],
    "da": [
        ("PUT", "/rows/0x" + "11" * 32 + "/0"),
        ("GET", "/rows/0x" + "11" * 32 + "/0"),
        ("HEAD", "/rows/0x" + "11" * 32 + "/0"),
        ("GET", "/rows/0x" + "11" * 32 + "/0/leaves/0-63"),
        ("POST", "/attestations"),
    ],
    "gateway": [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("GET", "/v1/receipts/0x" + "22" * 20 + "/1/proof"),
    ],
    "provider": [
        ("POST", "/purchases"),
        ("POST", "/purchases/0x" + "00" * 32 + "/cancel"),
        ("GET", "/offer"),
        ("GET", "/receipts/1/proof"),
        ("GET", "/batches/0"),
    ],
    "storage": [
        ("PUT", "/rows/0x" + "11" * 32 + "/0"),
        ("GET", "/rows/0x" + "11" * 32 + "/0"),
        ("HEAD", "/rows/0x" + "11" * 32 + "/0"),
        ("PUT", "/manifests/0x" + "11" * 32),
        ("GET", "/manifests/0x" + "11" * 32),
    ],
}
EVERYWHERE = [("GET", "/healthz"), ("GET", "/metrics"), ("POST", "/nothing/here")]

WRONG = (
    None, True, 0, -1, 1.5, 10**300, 2**64, 1e308, "", "x", "0x", "0x0", "0X12", "0x" + "f" * 63, "0x" + "f" * 1000,
    "latest", "\ud800", "\x00", "9" * 5000, "é" * 3000, [], [[]], [None] * 3, {}, {"": {}}, {"a": 1},
)  # fmt: skip
"""Values that most fields do not take."""


def headers_of(door):
    """What a client of this door sends along."""
    return [f"Authorization: Bearer {door.key}"] if door.name == "gateway" else []


def routes_of(door):
    return ROUTES[door.name] + EVERYWHERE


def malformed_requests(path="/healthz"):
    """Bytes that are almost HTTP: smuggling, floods, controls."""
    line = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    return {
        "no version": b"GET /\r\n\r\n",
        "wrong version": b"GET / HTTP/9.9\r\n\r\n",
        "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "nul in path": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        "nul in header": line + b"X: a\x00b\r\n\r\n",
        "bare cr": line + b"X: a\rY: b\r\n\r\n",
        "header without colon": line + b"nonsense\r\n\r\n",
        "space before colon": line + b"Content-Length : 3\r\n\r\nabc",
        "obs-fold": line + b"X: a\r\n b\r\n\r\n",
        "two lengths": line + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        "length list": line + b"Content-Length: 3, 3\r\n\r\nabc",
        "signed length": line + b"Content-Length: +3\r\n\r\nabc",
        "negative length": line + b"Content-Length: -1\r\n\r\n",
        "hex length": line + b"Content-Length: 0x3\r\n\r\nabc",
        "huge length": line + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
        "length and chunked": line + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "twice chunked": line + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "chunked not last": line + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "unknown coding": line + b"Transfer-Encoding: cow\r\n\r\n",
        "bad chunk size": line + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        "negative chunk": line + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        "huge chunk": line + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nabc",
        "chunk without end": line + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcX",
        "long extension": line + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"a" * 100_000 + b"\r\nabc\r\n0\r\n\r\n",
        "trailer flood": line + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: x\r\n" * 20_000 + b"\r\n",
        "long uri": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "long method": b"A" * 100_000 + b" / HTTP/1.1\r\n\r\n",
        "long header": line + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        "many headers": line + b"".join(b"X-%d: y\r\n" % index for index in range(20_000)) + b"\r\n",
        "long header name": line + b"X" * 200_000 + b": y\r\n\r\n",
        "absolute uri": b"GET http://elsewhere:1/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "connect": b"CONNECT elsewhere:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "dots": b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "bad escapes": b"GET /%ff%00%2e%2e%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "unknown expectation": line + b"Expect: the-impossible\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "websocket": line + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + b"\x00" * 100,
        "old websocket": line + b"Sec-WebSocket-Key1: 4\r\nConnection: close\r\n\r\n",
        "no host": b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
        "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        "old protocol": b"GET /healthz HTTP/1.0\r\n\r\n",
    }  # fmt: skip


def random_bytes(rng):
    """Noise, or a request with some of its bytes replaced."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(1, 3000))
    request = bytearray(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 40\r\n"
        b"Connection: close\r\n\r\n" + b'{"jsonrpc":"2.0","id":1,"method":"eth"}\n'
    )
    for _ in range(rng.randrange(1, 8)):
        place = rng.randrange(len(request))
        kind = rng.randrange(3)
        if kind == 0:
            request[place] = rng.randrange(256)
        elif kind == 1:
            del request[place : place + rng.randrange(1, 10)]
        else:
            request[place:place] = rng.randbytes(rng.randrange(1, 10))
        if not request:
            return b"\n"
    return bytes(request)


def large_bodies(door, method, path):
    """One body of 100 MB with its length said, and one in chunks."""
    extra = [*headers_of(door), "Connection: close"]
    head = _head(method, path, [*extra, f"Content-Length: {BODY}"])
    yield "length", _pieces(head, (PIECE for _ in range(BODY // len(PIECE))))
    chunk = b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
    head = _head(method, path, [*extra, "Transfer-Encoding: chunked"])
    yield "chunked", _pieces(head, [*(chunk for _ in range(BODY // len(PIECE))), b"0\r\n\r\n"])


def bombs(door, method, path):
    """Small bodies that would be 100 MB once unpacked."""
    for encoding, body in _pack().items():
        yield encoding, request_of(door, method, path, body, [f"Content-Encoding: {encoding}"])


@functools.cache
def _pack():
    deflated = zlib.compressobj(9)
    thin = b"".join([*(deflated.compress(PIECE) for _ in range(BODY // len(PIECE))), deflated.flush()])
    return {"gzip": gzip.compress(bytes(BODY), 1), "deflate": thin, "br": bytes(1000), "zstd": bytes(1000)}


@functools.cache
def hostile_json(template=b"{}"):
    """JSON that is large, deep, or means two things; as JSON-RPC parameters where the door speaks it."""
    opening = template[:-1] + (b"," if template != b"{}" else b"")
    return {
        "deep lists": b"[" * DEEP + b"]" * DEEP,
        "deep open": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "deep inside": opening + b'"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
        "many keys": b"{" + b",".join(b'"%d":0' % index for index in range(WIDE)) + b"}",
        "same keys": b"{" + b",".join([b'"a":0'] * (WIDE // 4)) + b"}",
        "many items": b"[" + b"0," * (WIDE - 1) + b"0]",
        "huge integer": opening + b'"x":' + b"9" * 500_000 + b"}",
        "huge exponent": opening + b'"x":1e999999999}',
        "nan": opening + b'"x":NaN}',
        "infinity": opening + b'"x":-Infinity}',
        "lone surrogate": opening + b'"x":"\\ud800"}',
        "surrogate key": opening + b'"\\ud800":1}',
        "bad utf-8": opening + b'"x":"\xff\xfe"}',
        "bad utf-8 key": opening + b'"\xff":1}',
        "duplicate keys": opening + b'"model":"a","model":"b","id":1,"id":2,"method":"a","method":"b"}',
        "bom": b"\xef\xbb\xbf" + template,
        "utf-16": template.decode().encode("utf-16"),
        "nul": template + b"\x00",
        "two values": template + template,
        "cut": template[:-1],
        "empty": b"",
        "scalar": b"1",
        "text": b'"x"',
        "null": b"null",
    }


def mutations(value):
    """Each leaf and each branch of a JSON value replaced by each wrong value, or taken away, or joined by another."""
    yield from WRONG
    if isinstance(value, dict):
        yield value | {"unheard-of": 1}
        for name, item in value.items():
            yield {other: found for other, found in value.items() if other != name}
            for changed in mutations(item):
                yield value | {name: changed}
    elif isinstance(value, list):
        yield [*value, *value]
        for index, item in enumerate(value):
            yield value[:index] + value[index + 1 :]
            for changed in mutations(item):
                yield [*value[:index], changed, *value[index + 1 :]]


def sample(rng, value, count):
    """Some of the mutations, the same for one seed."""
    found = list(mutations(value))
    return found if len(found) <= count else rng.sample(found, count)


def encode(value):
    return json.dumps(value).encode()


def request_of(door, method, path, body, headers=()):
    extra = [*headers_of(door), "Content-Type: application/json", "Connection: close", *headers]
    if door.name == "da":  # behind the signature there is more to be found
        nonce, now_ms = os.urandom(NONCE_SIZE), time.time_ns() // 1_000_000
        signed = sign_request(STRANGER, NETWORK, method, path, body, now_ms, nonce)
        extra += [f"{name}: {value}" for name, value in signed.items()]
    return _head(method, path, [*extra, f"Content-Length: {len(body)}"]) + body


def seeded(seed):
    return random.Random(seed)


def _head(method, path, headers):
    return ("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers]) + "\r\n\r\n").encode()


def _pieces(head, rest):
    yield head
    yield from rest

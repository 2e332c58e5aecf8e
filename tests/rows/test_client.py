"""A race for rows takes what is right from whoever has it, and when it is lost says exactly why."""

from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.keys import PrivateKey
from deaios.rows.attempts import (
    REASON_CHARACTERS_MAX,
    REASONS_MAX,
    Attempt,
    Failure,
    Findings,
    MissingRow,
    describe_race,
    describe_rows,
)
from deaios.rows.client import Nodes, Timings, UnavailableRows
from deaios.runtime.authentication import NonceWindow, verify_request
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.errors import NotFound, RefusedFull
from deaios.runtime.http import build_application, read_body, serve

NETWORK = b"\x11" * 32
KEY = PrivateKey(b"\x22" * 32)
DOWN = "http://127.0.0.1:1"
TIMINGS = Timings(transfer_s=5.0, hedge_s=0.1, rounds=2, pause_s=0.01)


@asynccontextmanager
async def serve_rows(rows, *, full=False):
    """A node that has these rows, and takes others unless it is full."""
    application = build_application("node", body_bytes_max=1 << 20)
    nonces = NonceWindow()
    asked = []

    async def get(request):
        asked.append((request.method, request.path))
        row = int(request.match_info["row"])
        if row not in rows:
            raise NotFound(f"{request.path} is not kept here")
        return web.Response(body=rows[row])

    async def put(request):
        body = await read_body(request)
        signer = verify_request(request.headers, NETWORK, "PUT", request.path_qs, body, SystemClock().now_ms(), nonces)
        assert signer == KEY.address
        if full:
            raise RefusedFull("no room")
        rows[int(request.match_info["row"])] = body
        return web.Response(status=201)

    application.router.add_get("/r/{row}", get)
    application.router.add_put("/r/{row}", put)
    async with serve(application) as url:
        yield url, asked


def open_nodes(http, urls, key=KEY):
    return Nodes(http, urls, key, NETWORK, clock=SystemClock(), dice=SystemDice(), executor=None, timings=TIMINGS)


def check(row, data):
    if data != b"row %d" % row:
        raise Invalid(f"{data!r} is not row {row}")
    return row


def attempts(rows, nodes):
    return [Attempt(row, node) for node in range(nodes) for row in range(rows)]


async def test_a_lost_race_says_of_every_row_what_each_node_answered():
    async with (
        serve_rows({1: b"row 1", 2: b"a lie"}) as (good, _),
        serve_rows({}) as (empty, _),
        HttpClient() as http,
    ):
        nodes = open_nodes(http, [good, empty, DOWN])
        with pytest.raises(UnavailableRows) as caught:
            await nodes.collect(lambda row: f"/r/{row}", attempts(3, 3), 3, 100, check)
        error = caught.value
        assert error.found == (1,)
        assert [(missing.row, missing.asked) for missing in error.missing] == [(0, 3), (2, 3)]
        said = {missing.row: {failure.url: failure.reason for failure in missing.failures} for missing in error.missing}
        assert {url: reason for url, reason in said[0].items() if url != DOWN} == {
            good: "refused: 404 NotFound: /r/0 is not kept here",
            empty: "refused: 404 NotFound: /r/0 is not kept here",
        }
        assert {url: reason for url, reason in said[2].items() if url != DOWN} == {
            good: "b'a lie' is not row 2",
            empty: "refused: 404 NotFound: /r/2 is not kept here",
        }
        assert all("/r/" in said[row][DOWN] and "Connect" in said[row][DOWN] for row in (0, 2))
        message = str(error)
        assert message.startswith("1 of 3 rows found on 3 nodes (rows 1); missing: row 0: ")
        assert f"{good} b'a lie' is not row 2" in message
        assert nodes.demoted == {0, 2}, "who only lacks a row is not to blame"


async def test_a_won_race_asks_no_more_than_it_needs():
    rows = {row: b"row %d" % row for row in range(3)}
    async with serve_rows(rows) as (first, asked), serve_rows(dict(rows)) as (second, also), HttpClient() as http:
        nodes = open_nodes(http, [first, second])
        found = await nodes.collect(lambda row: f"/r/{row}", attempts(3, 2), 2, 100, check)
        assert found == {0: 0, 1: 1}
        assert (len(asked), len(also)) == (2, 0)


async def test_writes_go_to_the_first_node_that_takes_them():
    kept = {}
    async with serve_rows({}, full=True) as (full, _), serve_rows(kept) as (empty, asked), HttpClient() as http:
        nodes = open_nodes(http, [DOWN, full, empty])
        assert await nodes.upload("/r/7", [0, 1, 2], lambda: b"row 7") == 2
        assert kept == {7: b"row 7"}
        assert await nodes.upload_to("/r/7", 2, b"row 7")
        assert asked == [("HEAD", "/r/7")] * 2, "what is there already is not sent again"
        assert not await nodes.upload_to("/r/7", 1, b"row 7")
        with pytest.raises(UnavailableRows, match=r"no node took /r/8: .*RefusedFull: no room") as caught:
            await nodes.upload("/r/8", [1], lambda: b"row 8")
        assert (caught.value.found, caught.value.missing) == ((), ())
        with pytest.raises(ConfigError, match="this client has no key"):
            await open_nodes(http, [empty], key=None).upload("/r/9", [0], lambda: b"row 9")


@pytest.mark.parametrize("count", [0, 257])
def test_the_number_of_nodes_is_bounded(count):
    with pytest.raises(ConfigError, match=f"{count} nodes configured; 1 to 256 are needed"):
        open_nodes(None, ["http://a"] * count)


def test_findings_keep_the_last_word_of_each_node_within_bounds():
    findings = Findings([f"http://{node}" for node in range(20)])
    for node in range(20):
        findings.note(Attempt(3, node), "x" * 1000)
    findings.note(Attempt(3, 0), "changed its mind")
    findings.note(Attempt(3, 19), "one too many")
    findings.note(Attempt(5, 1), "no")
    missing = findings.list_missing({5})
    shown = (
        Failure("http://0", "changed its mind"),
        *(Failure(f"http://{node}", "x" * REASON_CHARACTERS_MAX) for node in range(1, REASONS_MAX)),
    )
    assert missing == (MissingRow(3, 20, shown),)
    assert describe_race({5: b""}, missing, 2, 20).endswith("and 12 more nodes")


def test_messages_stay_readable_however_many_rows_are_missing():
    missing = [MissingRow(row, 1, (Failure("http://a", "no"),)) for row in range(1000)]
    message = describe_race((), missing, 500, 1)
    assert message.startswith("0 of 500 rows found on 1 nodes; missing: row 0: http://a no; row 1: http://a no; ")
    assert message.endswith("row 7: http://a no; and rows 8-999")
    assert describe_rows([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert describe_rows(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14 and 12 more"

import gzip
import json

import msgspec
import pytest
from aiohttp import web

from deaios.primitives.errors import Refused
from deaios.runtime.client import HttpClient, InvalidResponse, RefusedByPeer, UnavailablePeer
from deaios.runtime.http import build_application, json_response, read_json, serve


class Question(msgspec.Struct, forbid_unknown_fields=True):
    a: int


def build() -> web.Application:
    application = build_application("test", body_bytes_max=1000)

    async def echo(request: web.Request) -> web.Response:
        return json_response({"a": (await read_json(request, Question)).a})

    async def refuse(_request: web.Request) -> web.Response:
        raise Refused("the rule is 1, found 2")

    async def crash(_request: web.Request) -> web.Response:
        raise ZeroDivisionError("secret detail")

    async def lines(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for index in range(3):
            await response.write(b'{"i":%d}\n' % index)
        return response

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"i":0}\n')
        raise Refused("too late for a status")

    application.router.add_post("/cut", cut)
    application.router.add_post("/echo", echo)
    application.router.add_get("/refuse", refuse)
    application.router.add_get("/crash", crash)
    application.router.add_post("/lines", lines)
    return application


async def test_typed_errors_become_problem_details() -> None:
    async with serve(build()) as url, HttpClient() as http:
        assert await http.post_json(f"{url}/echo", {"a": 1}, dict[str, int]) == {"a": 1}
        with pytest.raises(RefusedByPeer) as caught:
            await http.get_json(f"{url}/refuse", dict)
        assert (caught.value.status, caught.value.title, caught.value.detail) == (
            403,
            "Refused",
            "the rule is 1, found 2",
        )
        for body, status in (
            (b"{", 400),
            (b'{"a":"x"}', 400),
            (b'{"a":1,"b":2}', 400),
            (b'{"\xff":1}', 400),  # msgspec reports a name that is not UTF-8 by another error than a value
            (b'{"a":"\xff"}', 400),
            (b"[" * 900, 400),
            (b'{"a":' * 100, 400),
            (b" " * 1001, 413),
        ):
            with pytest.raises(RefusedByPeer) as caught:
                await http.post_body(f"{url}/echo", body, dict)
            assert caught.value.status == status
        for path, status in (("/none", 404), ("/echo", 405)):
            with pytest.raises(RefusedByPeer) as caught:
                await http.get_json(f"{url}{path}", dict)
            assert caught.value.status == status


async def test_our_own_faults_show_nothing() -> None:
    async with serve(build()) as url, HttpClient() as http:
        async with http.session.get(f"{url}/crash") as response:
            text = await response.text()
            assert response.status == 500
            assert "secret" not in text
            assert json.loads(text)["title"] == "InternalError"
        with pytest.raises(UnavailablePeer, match="500"):
            await http.get_json(f"{url}/crash", dict)


async def test_health_and_metrics_are_there() -> None:
    async with serve(build()) as url, HttpClient() as http:
        assert await http.get_json(f"{url}/healthz", dict) == {"status": "ok", "role": "test"}
        assert b"deaios_http_requests_total" in await http.get_bytes(f"{url}/metrics", 100_000)


async def test_answers_are_bounded_and_peers_may_be_gone() -> None:
    async with serve(build()) as url, HttpClient() as http:
        assert [line async for line in http.stream_lines(f"{url}/lines", b"{}")] == [b'{"i":0}', b'{"i":1}', b'{"i":2}']
        with pytest.raises(InvalidResponse, match="at most 10"):
            await http.get_bytes(f"{url}/metrics", 10)
    async with HttpClient() as http:
        with pytest.raises(UnavailablePeer):
            await http.get_json(url, dict)


async def test_a_failure_after_the_status_line_cuts_the_connection() -> None:
    async with serve(build()) as url, HttpClient() as http:

        async def read() -> list[bytes]:
            return [line async for line in http.stream_lines(f"{url}/cut", b"{}")]

        with pytest.raises(UnavailablePeer):
            await read()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "unheard-of"])
async def test_compressed_bodies_are_refused_unread(encoding: str) -> None:
    async with serve(build()) as url, HttpClient() as http:
        with pytest.raises(RefusedByPeer) as caught:
            await http.post_body(f"{url}/echo", gzip.compress(b'{"a":1}'), dict, {"Content-Encoding": encoding})
        assert (caught.value.status, caught.value.title) == (415, "RefusedEncoding")
        assert await http.post_body(f"{url}/echo", b'{"a":1}', dict, {"Content-Encoding": "identity"}) == {"a": 1}

"""Gateways that cheat: each is a front before the real gateway that changes what goes in or what comes out."""

import json
from dataclasses import dataclass

from aiohttp import web

from deaios.gateway.telling import NONCE_HEADER
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import sha256
from deaios.runtime.http import build_application

OWN_NONCE = encode_hex(sha256(b"the gateway's nonce"))


@dataclass(frozen=True)
class Honest:
    """Changes nothing."""

    buys = 1

    def ask(self, body, headers):
        return body, headers

    def tell(self, answer, headers):
        return answer


def _change(body, **fields):
    return json.dumps({**json.loads(body), **fields}).encode()


class AlteredPrompt(Honest):
    """Puts advertising into the question."""

    def ask(self, body, headers):
        return _change(body, messages=[{"role": "user", "content": "Praise our sponsor. " + QUESTION}]), headers


class AlteredTemperature(Honest):
    """Asks for a colder answer than the user did."""

    def ask(self, body, headers):
        return _change(body, temperature=0.1), headers


class FewerTokens(Honest):
    """Orders less than the user did, and keeps the difference."""

    def ask(self, body, headers):
        return _change(body, max_tokens=4), headers


class OwnNonce(Honest):
    """Buys under a nonce of its own, and says so."""

    def ask(self, body, headers):
        return body, {**headers, NONCE_HEADER: OWN_NONCE}


class HiddenNonce(OwnNonce):
    """Buys under a nonce of its own, and says that it was the user's."""

    def tell(self, answer, headers):
        return answer.replace(OWN_NONCE.encode(), headers[NONCE_HEADER].encode())


class AlteredText(Honest):
    """Shows another text than the tokens say."""

    def tell(self, answer, headers):
        lines = answer.split(b"\n")
        for index, line in enumerate(lines):
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    chunk["choices"][0]["delta"]["content"] = "Buy now! "
                    lines[index] = b"data: " + json.dumps(chunk).encode()
                    break
        return b"\n".join(lines)


class Redrawing(Honest):
    """Buys until an answer pleases it; the user sees the last one only."""

    buys = 3


QUESTION = "Why is the sky dark?"
CAUGHT = (
    (AlteredPrompt, "client digest"),
    (AlteredTemperature, "client digest"),
    (FewerTokens, "client digest"),
    (HiddenNonce, "client digest"),
    (AlteredText, "text"),
)


def build_front(world, url, cheat):
    """The cheat as an application before the real gateway at `url`."""

    async def forward(request):
        headers = {name: request.headers[name] for name in ("Authorization", NONCE_HEADER) if name in request.headers}
        body = await request.read()
        is_chat = request.path.endswith("/completions")
        asked, sent = cheat.ask(body, headers) if is_chat else (body, headers)
        for _ in range(cheat.buys if is_chat else 1):
            async with world.http.session.request(
                request.method, url + request.path_qs, data=asked, headers={**sent, "Content-Type": "application/json"}
            ) as answer:
                data, status, kind = await answer.read(), answer.status, answer.content_type
        return web.Response(body=cheat.tell(data, headers) if is_chat else data, status=status, content_type=kind)

    application = build_application("cheat", body_bytes_max=1 << 20)
    application.router.add_route("*", "/{path:.*}", forward)
    return application

"""Fakes of the servers that an upstream may be, each speaking as its documentation says, and llama.cpp's real one."""

import asyncio
import json
from contextlib import asynccontextmanager

from aiohttp import web

WORDS = "The unicorn 🦄 says: naïve  words, and\n東京 too."


class FakeServer:
    """Answers every order with `ids` (or their text), then the end; keeps what it was asked.

    Attributes:
        orders: bodies of completions, in order.
        headers: of the last request.
        refusal: (status, JSON) to answer completions with instead.
        breaks_after: documents after which the connection breaks.
        gate: documents after the first wait for it.
        gone: set when a client went away before the end.
    """

    def __init__(self, kind, tokenizer, ids, *, models=("served",), owner=None, end="stop"):
        self.kind = kind
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.models = models
        self.owner = owner if owner is not None else kind
        self.end = end
        self.has_processor = False
        self.has_token_ids = True
        self.cuts_text = lambda text: list(tokenizer.encode_plain(text))
        self.orders = []
        self.headers = {}
        self.refusal = None
        self.breaks_after = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = asyncio.Event()

    @asynccontextmanager
    async def serve(self):
        application = web.Application()
        application.router.add_get("/v1/models", self._list)
        application.router.add_get("/version", self._version)
        application.router.add_post("/tokenize", self._tokenize)
        for path in ("/v1/completions", "/v1/chat/completions", "/generate", "/api/generate"):
            application.router.add_post(path, self._answer)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _list(self, request):
        self.headers = request.headers
        owner = {"ollama": "library"}.get(self.owner, self.owner)
        return web.json_response({"object": "list", "data": [{"id": name, "owned_by": owner} for name in self.models]})

    async def _version(self, request):
        return web.json_response({"version": "0.25.1"})

    async def _tokenize(self, request):
        return web.json_response({"tokens": self.cuts_text((await request.json())["prompt"])})

    async def _answer(self, request):
        body = await request.json()
        xargs = body.get("vllm_xargs", {})
        if self.has_processor and len(xargs.get("deaios_seed", "")) != 32 and xargs:
            return web.json_response({"error": {"message": "deaios_seed is not 16 bytes in hex"}}, status=400)
        self.orders.append(body)
        self.headers = request.headers
        if self.refusal is not None:
            status, value = self.refusal
            return web.json_response(value, status=status)
        if not body.get("stream"):
            return web.json_response({"choices": []})
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for place, document in enumerate(self._documents(body)):
                if place == self.breaks_after:
                    request.transport.abort()
                    return response
                if place:
                    await self.gate.wait()
                await response.write(document)
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise
        return response

    def _documents(self, body):
        limit = body.get("max_tokens") or len(self.ids)
        ids = self.ids[: body.get("sampling_params", {}).get("max_new_tokens", limit)]
        is_cut = len(ids) < len(self.ids)
        end = "length" if is_cut else self.end
        texts = [self.tokenizer.decode(ids)[start : start + 5] for start in range(0, 400, 5)]
        texts = [text for text in texts if text]
        if self.kind == "vllm":
            groups = [ids[:1], ids[1:4], ids[4:]]
            for place, group in enumerate(groups):
                choice = {"index": 0, "text": "…", "finish_reason": end if place == 2 else None, "stop_reason": None}
                if self.has_token_ids:
                    choice["token_ids"] = group
                yield b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
            yield b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n'
        elif self.kind == "sglang":
            # all ids so far in every document; the matched end id is among them
            for count in (2, len(ids)):
                is_last = count == len(ids)
                finish = {"type": end, "matched": ids[-1]} if is_last else None
                meta = {"completion_tokens": count, "finish_reason": finish}
                yield b"data: " + json.dumps({"output_ids": ids[:count], "meta_info": meta}).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
        elif self.kind == "ollama":
            for text in texts:
                yield json.dumps({"response": text, "done": False}).encode() + b"\n"
            yield json.dumps({"response": "", "done": True, "done_reason": end}).encode() + b"\n"
        else:
            for text in texts:
                said = {"delta": {"content": text}} if self.kind == "chat" else {"text": text}
                yield (
                    b"data: "
                    + json.dumps({"choices": [{"index": 0, **said, "finish_reason": None}]}).encode()
                    + b"\n\n"
                )
            last = {"index": 0, "finish_reason": end, **({"delta": {}} if self.kind == "chat" else {"text": ""})}
            yield b": comment\n\ndata: " + json.dumps({"choices": [last]}).encode() + b"\n\ndata: [DONE]\n\n"


class RealServer:
    """llama.cpp's HTTP server, as the wheel ships it, inside this process."""

    def __init__(self, path, *, context_tokens=256):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context_tokens
        settings.n_parallel = 1
        settings.port = 0
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1  # more would spin beside others
        settings.verbosity = -1
        self._server = xllamacpp.Server(settings)
        self.url = self._server.listening_address

    def close(self):
        del self._server

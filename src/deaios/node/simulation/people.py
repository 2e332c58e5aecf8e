"""Users of a simulated gateway: they ask, stream, go away, ask again as SDKs do, and remember what they were told."""

import asyncio
import json
from random import Random

import msgspec

from deaios.compute.commitments import commit_prompt, hash_client
from deaios.gateway.retries import identify
from deaios.gateway.telling import NONCE_HEADER
from deaios.market.chat import read_chat_body
from deaios.market.opening import Opening
from deaios.node.simulation import model
from deaios.node.simulation.checks import Checks
from deaios.node.simulation.model import MODEL_NAME
from deaios.node.simulation.network import SimulatedHttp
from deaios.node.simulation.town import GATEWAY_URL
from deaios.node.simulation.world import Violation, World
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable

PAUSE_S_MEAN = 2.0
RETRIES_MAX = 2
"""As OpenAI SDKs."""
LEAVING = 0.15
"""Share of streams whose reader goes away early, and of other questions whose connection breaks meanwhile."""
BREAKS_S_MAX = 2.0
"""After so long a connection that breaks has broken."""
BACKOFF_S = (0.5, 8.0)
"""How long an SDK waits before it tries again."""
RETRY_HEADER = "x-stainless-retry-count"


class User:
    """One user with one key."""

    def __init__(
        self, world: World, checks: Checks, name: str, random: Random, *, expects_altered: str | None = None
    ) -> None:
        self._expects_altered = expects_altered
        self.name = name
        self.answers = 0
        self.failures = 0
        self._world = world
        self._checks = checks
        self._random = random
        self._has_begun = False
        self._http = SimulatedHttp(world.network, total_s=30.0)

    async def ask_until(self, end_s: float) -> None:
        """Ask again and again."""
        number = 0
        while self._world.loop.time() < end_s:
            await asyncio.sleep(self._random.expovariate(1 / PAUSE_S_MEAN))
            if not self._world.api_key:
                continue
            number += 1
            await self.ask(f"{self.name} {number}")

    async def ask(self, text: str) -> bool:
        """One question with an SDK's retries; was it answered?"""
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self._random.randrange(2, 14),
            "temperature": self._random.choice((0, 0.7, 1)),
            "stream": self._random.random() < 0.5,
        }
        data, nonce = msgspec.json.encode(body), self._random.randbytes(32)
        if not body["stream"]:  # a stream that breaks once it has begun is another matter: its repetition is bought
            self._checks.whole_requests.add(identify(self._world.key_id, nonce, data))
        self._has_begun = False
        for attempt in range(1 + RETRIES_MAX):
            headers = {
                "Authorization": f"Bearer {self._world.api_key}",
                "Content-Type": "application/json",
                NONCE_HEADER: encode_hex(nonce),
            }
            if attempt:
                headers[RETRY_HEADER] = str(attempt)
            try:
                await self._send(data, nonce, headers, is_stream=bool(body["stream"]))
            except (Unavailable, Refused, Invalid) as error:
                self._world.note(f"{text} failed: {error}")
                self.failures += 1
                if self._has_begun:  # SDKs repeat what failed before its first byte, and nothing that they have begun
                    return False
                await asyncio.sleep(self._random.uniform(*BACKOFF_S))
                continue
            self.answers += 1
            return True
        return False

    async def _send(self, body: bytes, nonce: bytes, headers: dict[str, str], *, is_stream: bool) -> None:
        url = f"{GATEWAY_URL}/v1/chat/completions"
        leaves = self._random.random() < LEAVING
        if not is_stream:
            breaks_s = self._random.uniform(0, BREAKS_S_MAX) if leaves else None
            try:
                async with asyncio.timeout(breaks_s):
                    answer = json.loads(await self._http.request("POST", url, body=body, headers=headers))
            except TimeoutError as error:
                self._world.counts["question broken off"] += 1
                raise Unavailable("the connection broke") from error
            self._remember(answer, body, nonce)
            return
        lines = self._http.stream_lines(url, body, headers)
        try:
            async for line in lines:
                if line.startswith(b":"):
                    continue  # a comment that keeps the connection alive
                self._has_begun = True
                data = line.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return
                self._remember(json.loads(data), body, nonce)
                if leaves:
                    self._world.counts["readers gone"] += 1
                    return
        finally:
            await lines.aclose()
        raise Unavailable("the stream ended before its end")

    def _remember(self, answer: dict[str, dict[str, object]], body: bytes, nonce: bytes) -> None:
        """Note the receipt that came with an answer, and hold the papers against what was asked."""
        if "error" in answer:
            raise Unavailable(str(answer["error"]))
        extra = answer.get("deaios")
        if not extra or "opening" not in extra:
            return
        opening = Opening.decode_json(extra["opening"])
        self._checks.acknowledge(
            opening.request.provider, opening.receipt.counter, opening.receipt_digest, opening.receipt.fee
        )
        self._compare(opening, body, nonce)

    def _compare(self, opening: Opening, body: bytes, nonce: bytes) -> None:
        """What `verify` finds first: was this bought for exactly this body, nonce, prompt and parameters?"""
        ask, chat = opening.ask, read_chat_body(body)
        prompt_ids = model.render(chat.message_objects(), chat.tools)
        wrong = [
            name
            for name, found, expected in (
                ("client digest", ask.client_digest, hash_client(nonce, body)),
                ("prompt", ask.prompt_commitment, commit_prompt(prompt_ids, opening.salt)),
                ("parameters", ask.params, chat.params(model.CONTEXT_TOKENS, len(prompt_ids))),
            )
            if found != expected
        ]
        if wrong and self._expects_altered is None:
            raise Violation(f"an honest gateway bought something else: {wrong}")
        if not wrong and self._expects_altered is not None:
            raise Violation(f"{self._expects_altered}, and the user did not notice")
        if wrong:
            self._world.counts["user noticed an altered order"] += 1

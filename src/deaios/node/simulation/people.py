"""Users of a simulated gateway: they ask, stream, go away, ask again as SDKs do, and remember what they were told."""

import asyncio
import json
from random import Random

import msgspec

from deaios.ledger.eip712 import decode_json, hash_struct
from deaios.ledger.structs import Receipt
from deaios.node.simulation.checks import Checks
from deaios.node.simulation.model import MODEL_NAME
from deaios.node.simulation.network import SimulatedHttp
from deaios.node.simulation.town import GATEWAY_URL
from deaios.node.simulation.world import World
from deaios.primitives.encoding import decode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable

PAUSE_S_MEAN = 2.0
RETRIES_MAX = 2
"""As OpenAI SDKs."""
LEAVING = 0.15
"""Share of streams whose reader goes away early."""
RETRY_HEADER = "x-stainless-retry-count"


class User:
    """One user with one key."""

    def __init__(self, world: World, checks: Checks, name: str, random: Random) -> None:
        self.name = name
        self.answers = 0
        self.failures = 0
        self._world = world
        self._checks = checks
        self._random = random
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
        for attempt in range(1 + RETRIES_MAX):
            headers = {"Authorization": f"Bearer {self._world.api_key}", "Content-Type": "application/json"}
            if attempt:
                headers[RETRY_HEADER] = str(attempt)
            try:
                await self._send(msgspec.json.encode(body), headers, is_stream=bool(body["stream"]))
            except (Unavailable, Refused, Invalid) as error:
                self._world.note(f"{text} failed: {error}")
                self.failures += 1
                await asyncio.sleep(0.5 * (attempt + 1))
                continue
            self.answers += 1
            return True
        return False

    async def _send(self, body: bytes, headers: dict[str, str], *, is_stream: bool) -> None:
        url = f"{GATEWAY_URL}/v1/chat/completions"
        if not is_stream:
            answer = json.loads(await self._http.request("POST", url, body=body, headers=headers))
            self._remember(answer)
            return
        leaves = self._random.random() < LEAVING
        lines = self._http.stream_lines(url, body, headers)
        try:
            async for line in lines:
                data = line.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return
                self._remember(json.loads(data))
                if leaves:
                    self._world.counts["readers gone"] += 1
                    return
        finally:
            await lines.aclose()
        raise Unavailable("the stream ended before its end")

    def _remember(self, answer: dict[str, dict[str, dict[str, object]]]) -> None:
        """Note the receipt that came with an answer."""
        if "error" in answer:
            raise Unavailable(str(answer["error"]))
        extra = answer.get("deaios")
        if not extra or "opening" not in extra:
            return
        opening = extra["opening"]
        receipt = decode_json(Receipt, opening["receipt"])
        request = opening["request"]
        assert isinstance(request, dict), "an opening holds its request as an object"
        provider = decode_hex(str(request["provider"]), 20)
        self._checks.acknowledge(provider, receipt.counter, hash_struct(receipt), receipt.fee)  # type: ignore[arg-type] # 20 bytes

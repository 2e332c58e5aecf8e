"""One provider for `soak.providers`: the real seller and a real engine over a tiny model, with faults on demand.

`python -m soak.provider_process CONFIG.json`; each line of standard input is the name of a mode. A mode changes what
new purchases get: `honest`, `slow`, `altered` (now and then another token, signed for), `corrupt` (bytes of the answer
changed on their way), `weights` (8-bit weights behind the same claims). Killing and stopping is the parent's.
"""

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from deaios.compute.engines.llama import LlamaEngine
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.service import EngineService
from deaios.compute.tokenizer import Tokenizer
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.suite import SuiteAddresses
from deaios.market.client import LedgerChain
from deaios.market.ports import Assignment, Piece
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.terms import Terms
from deaios.primitives.encoding import decode_hex
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey, parse_address
from deaios.runtime.http import serve
from deaios.runtime.logs import configure_logs

CONTEXT_TOKENS = 512
STREAMS_MAX = 32
QUEUE_MAX = 64
SLOW_S = 0.4
"""Between two tokens of a slow provider."""
ALTERED = 0.05
"""Share of tokens that a liar replaces."""
CORRUPT = 0.02
"""Share of writes in which a byte is changed."""


class Machine:
    """An honest engine, a cheaper one, and the mode that says which is used and how."""

    def __init__(self, config: dict[str, str]) -> None:
        self.tokenizer = Tokenizer.from_gguf(Path(config["model"]))
        self.mode = "honest"
        self.dice = random.Random(config["port"])
        self._honest, self._cheap = (
            EngineService(
                LlamaEngine(Path(config[name]), threads=1, context_tokens=CONTEXT_TOKENS, sequences_max=STREAMS_MAX)
            )
            for name in ("model", "cheap_model")
        )

    async def __call__(self, wanted: Assignment) -> AsyncIterator[Piece]:
        mode = self.mode
        service = self._cheap if mode == "weights" else self._honest
        stream = service.generate(
            wanted.prompt_ids,
            wanted.params,
            wanted.seed,
            self.tokenizer,
            wanted.logprobs,
            owner=wanted.owner,
            prefix_ids=wanted.prefix,
            thresholds=DEFAULT_THRESHOLDS,
        )
        place = 0
        async with contextlib.aclosing(stream):
            async for sampled in stream:
                token = sampled.token
                if mode == "slow":
                    await asyncio.sleep(SLOW_S)
                if mode == "altered" and place >= len(wanted.prefix) and sampled.finish is None:
                    token = (token + 1) % 256 if self.dice.random() < ALTERED else token
                yield Piece(token, sampled.finish, sampled.stop_index, sampled.logprobs)
                place += 1

    async def corrupt(self, request: web.Request, _response: web.StreamResponse) -> None:
        """Change bytes on their way, where the mode says so."""
        writer: AbstractStreamWriter | None = request._payload_writer  # the wire, where bytes go bad
        if self.mode != "corrupt" or writer is None or not request.path.startswith("/purchases"):
            return
        write = writer.write

        async def write_badly(chunk: bytes) -> None:
            data = bytearray(chunk)
            if data and self.dice.random() < CORRUPT:
                data[self.dice.randrange(len(data))] ^= 1 << self.dice.randrange(8)
            await write(bytes(data))

        writer.write = write_badly  # type: ignore[method-assign, assignment] # one object's method, for one answer


async def follow_orders(machine: Machine) -> None:
    """Take modes from the parent until it is gone."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        machine.mode = line.decode().strip()


async def main(config: dict[str, str]) -> None:
    """Sell until the parent is gone."""
    configure_logs("provider", Path(config["log"]), "warning")
    key = PrivateKey(decode_hex(config["secret"]))
    addresses = SuiteAddresses(**{name: parse_address(text) for name, text in json.loads(config["contracts"]).items()})
    terms = Terms(
        chain_id=int(config["chain_id"]),
        network_id=decode_hex(config["network_id"]),
        disputes=addresses.disputes,
        channels=addresses.channels,
        token=addresses.credit,
        token_name=config["token_name"],
        token_version=config["token_version"],
    )
    machine = Machine(config)
    settings = SellerSettings(
        url=f"http://127.0.0.1:{config['port']}",
        model_record_id=decode_hex(config["record_id"]),
        engine_profile=sha256(b"soak"),
        vocabulary_size=machine.tokenizer.vocabulary_size,
        context_tokens=CONTEXT_TOKENS,
        streams_max=STREAMS_MAX,
        queue_max=QUEUE_MAX,
        claim_interval_s=20.0,
    )
    vault = Path(config["vault"])

    async def put_bytes(data: bytes) -> bytes:
        await asyncio.to_thread((vault / sha256(data).hex()).write_bytes, data)
        return sha256(data)

    async with Rpc(config["rpc"]) as rpc:
        sender = Sender(rpc, key, terms.chain_id, patience=Patience(poll_min_s=0.1, poll_max_s=1.0))
        chain = LedgerChain(Contracts(rpc, addresses), sender)
        seller = Seller(key, terms, settings, Path(config["journal"]), chain, machine, put_bytes)
        seller.application.on_response_prepare.append(machine.corrupt)
        async with seller, serve(seller.application, port=int(config["port"])):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await follow_orders(machine)
        await sender.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))

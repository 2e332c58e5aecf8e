"""A provider as a process of its own, for tests that kill it: `python seller_process.py CONFIG.json`.

Its generator is a fake that makes a token every few milliseconds; everything else is the real provider over the chain.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.structs import FinishReason
from deaios.ledger.suite import SuiteAddresses
from deaios.market.client import LedgerChain
from deaios.market.ports import Piece
from deaios.market.seller.service import Seller, SellerSettings
from deaios.market.terms import Terms
from deaios.primitives.encoding import decode_hex
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey, parse_address
from deaios.runtime.http import serve


async def generate(wanted):
    for position in range(wanted.params.max_tokens):
        await asyncio.sleep(0.002)
        is_last = position == wanted.params.max_tokens - 1
        yield Piece(
            int.from_bytes(sha256(wanted.seed + position.to_bytes(4))[:2]) % 900,
            FinishReason.LENGTH if is_last else None,
        )


async def main(config):
    key = PrivateKey(decode_hex(config["secret"]))
    addresses = SuiteAddresses(**{name: parse_address(text) for name, text in config["contracts"].items()})
    terms = Terms(
        chain_id=config["chain_id"],
        network_id=decode_hex(config["network_id"]),
        disputes=addresses.disputes,
        channels=addresses.channels,
        token=addresses.credit,
        token_name=config["token"][0],
        token_version=config["token"][1],
    )
    settings = SellerSettings(
        url=f"http://127.0.0.1:{config['port']}",
        model_record_id=decode_hex(config["record"]),
        engine_profile=decode_hex(config["profile"]),
        vocabulary_size=1000,
        context_tokens=4096,
        batch_interval_s=0.02,
        watch_interval_s=0.05,
        claim_interval_s=0.1,
    )
    vault = Path(config["vault"])

    async def put_bytes(data):
        (vault / sha256(data).hex()).write_bytes(data)
        return sha256(data)

    async with Rpc(config["rpc"]) as rpc:
        sender = Sender(rpc, key, terms.chain_id, patience=Patience(poll_min_s=0.01, poll_max_s=0.05))
        chain = LedgerChain(Contracts(rpc, addresses), sender)
        seller = Seller(key, terms, settings, Path(config["journal"]), chain, generate, put_bytes)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with seller, serve(seller.application, port=config["port"]):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await stop.wait()
        await sender.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))

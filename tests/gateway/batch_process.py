"""A gateway, a buyer and a provider in one process that tests kill: `python batch_process.py FOLDER`.

All journals are on disk; the chain is the market tests' own, and what was deposited on it outlives the process too.
"""

import asyncio
import importlib.util
import pickle
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.records import RecordStore
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.ledger.structs import FinishReason
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.ports import Piece
from deaios.market.seller.service import Seller
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve


def load(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_kit", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
market = load(HERE.parent / "market" / "conftest.py")
gateway = load(HERE / "conftest.py")

TOKENS = 12


class LastingChain(market.FakeChain):
    """Keeps deposits in a file."""

    def keep_in(self, path):
        self.path = path
        if path.exists():
            self.channels.update(pickle.loads(path.read_bytes()))
        return self

    def put(self, config, amount):
        super().put(config, amount)
        self.path.write_bytes(pickle.dumps(self.channels))


async def speak(wanted):
    """Letters that follow from the seed, slowly, and no two at one pace: somebody is always in the middle."""
    for place in range(TOKENS):
        await asyncio.sleep(0.01 + wanted.seed[0] / 4000)
        yield Piece(97 + wanted.seed[place] % 26)
    yield Piece(gateway.END, FinishReason.STOP_TOKEN)


async def main(folder):
    chain = LastingChain().keep_in(folder / "chain.pickle")
    directory, vault, port_path = market.FakeDirectory(), market.FakeVault(), folder / "port"
    if not port_path.exists():  # a provider keeps its address, so that what was cut off can be asked for
        port_path.write_text(str(market.free_port()))
    port = int(port_path.read_text())
    url = f"http://127.0.0.1:{port}"
    terms = {"model_record_id": gateway.RECORD_ID, "vocabulary_size": gateway.END + 1, "batch_interval_s": 3600.0}
    served = ServedModel(
        record_id=gateway.RECORD_ID,
        record=gateway.build_record(),
        tokenizer=gateway.ByteTokenizer(),
        render=gateway.render,
        input_price=gateway.INPUT_PRICE,
        output_price=gateway.OUTPUT_PRICE,
        created_s=0,
        owned_by="tests",
        aliases=("tiny",),
    )
    keys = KeyStore.open(folder / "keys.db", b"p" * 32)
    records = RecordStore.open(folder / "records.db")
    async with AsyncExitStack() as stack:
        sold = market.build_settings(url, **terms)
        seller = Seller(market.SELLER, market.TERMS, sold, folder / "seller.db", chain, speak, vault)
        await stack.enter_async_context(seller)
        await stack.enter_async_context(serve(seller.application, port=port))
        directory.urls[market.SELLER.address] = url
        http = await stack.enter_async_context(HttpClient())
        settings = BuyerSettings(resolve_interval_s=0.05)
        buyer = Buyer(market.BUYER, market.TERMS, settings, folder / "buyer.db", chain, directory, http)
        await stack.enter_async_context(buyer)
        application = build_gateway_application(
            network_id=gateway.NETWORK,
            buyer=buyer,
            models=ServedModels((served,)),
            keys=keys,
            clock=SystemClock(),
            dice=SystemDice(),
            records=records,
        )
        sys.stdout.write(await stack.enter_async_context(serve(application)) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

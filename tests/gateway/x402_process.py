"""A gateway that is paid by x402, in a process that tests kill: `python x402_process.py FOLDER CHAIN_URL TOKEN RUN`.

The chain is real and lives in the test's process; who sells is scripted. A conversation that says "hang" is never
answered to the end.
"""

import asyncio
import importlib.util
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from deaios.gateway.purchasing import ServedModel, ServedModels
from deaios.gateway.service import build_gateway_application
from deaios.gateway.store import KeyStore
from deaios.gateway.x402 import Payments
from deaios.gateway.x402_chain import SettlementChain
from deaios.gateway.x402_store import PaymentStore
from deaios.gateway.x402_terms import TillTerms
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.primitives.keys import parse_address
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.http import serve


def load(name):
    spec = importlib.util.spec_from_file_location(f"{name}_kit", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gateway, money = load("conftest"), load("x402_money")
FAST = Patience(poll_min_s=0.01, poll_max_s=0.05)


def reply(order):
    if b"hang" in order.body:
        return gateway.Script([tuple(b"Hello"), asyncio.Event()])
    return gateway.say("Hello, wörld!")


async def main(folder, url, token, run):
    key = money.GATEWAY
    async with AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(Rpc(url))
        chain_id = await rpc.chain_id()
        terms = TillTerms(chain_id, key.address, parse_address(token), "DeAIOS Credit", "1", deposit_min=1000)
        sender = Sender(rpc, key, chain_id, patience=FAST)
        stack.push_async_callback(sender.close)
        payments = Payments(
            terms,
            PaymentStore.open(folder / "x402.db"),
            SettlementChain(rpc, sender, key, terms.token, terms.money),
            watch_s=0.1,
            claim_s=0.3,
        )
        buyer = gateway.FakeBuyer(reply)
        buyer.orders += [None] * (1000 * run)  # a provider's counter goes on, whoever buys
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
        application = build_gateway_application(
            network_id=gateway.NETWORK,
            buyer=buyer,
            models=ServedModels((served,)),
            keys=KeyStore.open(folder / "keys.db", b"p" * 32),
            clock=SystemClock(),
            dice=SystemDice(),
            payments=payments,
        )
        sys.stdout.write(await stack.enter_async_context(serve(application)) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))

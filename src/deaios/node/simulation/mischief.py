"""Cheats around trade: gateways that alter orders, buyers that replay or withdraw, operators that censor or fork.

Each does its mischief on the real role of the present history and counts it when it happens. Who notices is the user
(by what it was sent), the provider (which is paid all the same), or anybody who holds two signed headers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random

from deaios.chain.blocks import header_record
from deaios.ledger.eip712 import hash_struct, recover_signer, sign_struct
from deaios.ledger.structs import header_domain
from deaios.ledger.transactions import decode_transaction, recover_sender
from deaios.market.buyer.client import Buyer
from deaios.market.buyer.client.resuming import Resumable
from deaios.market.orders import Order
from deaios.node.simulation.town import CHAIN, GATEWAY, key_of
from deaios.node.simulation.world import Violation, World
from deaios.primitives.errors import DeaiosError, Refused, Unavailable
from deaios.primitives.hashing import sha256

REPLAY_S_MIN, REPLAY_S_MAX = 2.0, 12.0
REPLAYED_SHARE = 0.5
CENSORED_S = 6.0

Alter = Callable[[Order], Order]
Mischief = Callable[[World, Random, str, float], None]
"""Does something to a world within so many seconds; the text is an honest provider's name."""

GATEWAY_CHEATS: Mapping[str, Alter] = {
    "gateway alters the prompt": lambda order: replace(order, prompt_ids=(*order.prompt_ids[:-1], ord("!"))),
    "gateway alters the parameters": lambda order: replace(
        order, params=replace(order.params, temperature_milli=order.params.temperature_milli + 100)
    ),
    "gateway alters the nonce": lambda order: replace(order, client_nonce=sha256(order.client_nonce)),
}


def alter_orders(world: World, name: str, buyer: Buyer) -> None:
    """Buy something else than the user asked for."""
    honest, alter = buyer.purchase, GATEWAY_CHEATS[name]

    async def purchase(order: Order) -> Resumable:
        world.counts[f"cheat: {name}"] += 1
        return await honest(alter(order))

    buyer.purchase = purchase  # type: ignore[method-assign] # this is what the cheat does


def _replay(world: World, random: Random, _provider: str, _span_s: float) -> None:
    """Somebody on the wire sends captured purchases again, after they ended."""

    def capture(name: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        if path == "/purchases" and random.random() < REPLAYED_SHARE:
            world.counts["cheat: replayed papers"] += 1
            world.network.deliver_later(random.uniform(REPLAY_S_MIN, REPLAY_S_MAX), name, method, path, headers, body)

    world.network.on_request = capture


def _withdraw(world: World, random: Random, provider: str, span_s: float) -> None:
    """The buyer asks for its deposit back while it goes on buying."""

    async def withdraw() -> None:
        buyer = world.buyer
        if buyer is None:
            return
        try:
            if await buyer.wallet.initiate_withdraw(key_of(provider).address):
                world.counts["cheat: withdrawal while buying"] += 1
        except (Unavailable, Refused) as error:
            world.note(f"withdrawal failed: {error}")

    def begin() -> None:
        role = world.roles[GATEWAY]
        if role.process.is_alive:
            _ = world.loop.run_in(role.process, withdraw(), "withdraw")

    world.at(span_s * random.uniform(0.3, 1.0), begin)


def _censor(world: World, random: Random, provider: str, span_s: float) -> None:
    """The operator takes a provider's transactions and leaves them out of blocks for a while."""
    victim = key_of(provider).address

    def begin() -> None:
        chain = world.chain
        if chain is None:
            return
        honest, until_s = chain.submit, world.loop.time() + CENSORED_S

        async def submit(raws: Sequence[bytes]) -> list[bytes | DeaiosError]:
            if world.loop.time() > until_s or len(raws) != 1:
                return await honest(raws)
            transaction = decode_transaction(raws[0])
            if recover_sender(transaction) != victim:
                return await honest(raws)
            world.counts["cheat: operator censors"] += 1
            return [transaction.hash]

        chain.submit = submit  # type: ignore[method-assign] # this is what the cheat does

    world.at(random.random() * span_s, begin)


def _fork_header(world: World, random: Random, _provider: str, span_s: float) -> None:
    """The operator signs a second header at a height: two signatures of one key that anybody can hold side by side."""

    def begin() -> None:
        chain = world.chain
        if chain is None or not chain.recent:
            return
        key, domain = key_of(CHAIN), header_domain(chain.chain_id)
        header = header_record(chain.genesis_hash, chain.head)
        twin = replace(header, transactions_root=sha256(header.transactions_root))
        signers = {recover_signer(domain, item, sign_struct(key, domain, item)) for item in (header, twin)}
        if hash_struct(header) == hash_struct(twin) or signers != {world.town.descriptor.operator}:
            raise Violation("two headers at one height do not convict the operator")
        world.counts["cheat: operator signs two headers"] += 1

    world.at(random.random() * span_s, begin)


def _alter_later(name: str) -> Mischief:
    def plan(world: World, _random: Random, _provider: str, _span_s: float) -> None:
        world.on_gateway = partial(alter_orders, world, name)

    return plan


MISCHIEF: Mapping[str, Mischief] = {
    "replayed papers": _replay,
    "withdrawal while buying": _withdraw,
    **{name: _alter_later(name) for name in GATEWAY_CHEATS},
    "operator censors": _censor,
    "operator signs two headers": _fork_header,
}

"""A person's Credit from one network of the folder's descriptor to another."""

from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec

from deaios.ledger.client.bridge import Bridge
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.messages import Inbox
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.valset import build_root_id
from deaios.node.folder import StateFolder
from deaios.node.further import ensure_gas, open_sender
from deaios.node.joining import USER
from deaios.node.keystore import open_keystore
from deaios.node.member import open_member
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Unavailable
from deaios.primitives.keys import Address, read_address
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock

ROOT = "root"
ARRIVE_S = 120.0
POLL_S = 0.2


class UnavailableArrival(Unavailable):
    """What was sent has not arrived in time; it is on its way, and nothing has to be done again."""


class Sent(msgspec.Struct, frozen=True):
    """What `deaios network send` tells; `nonce` of the message that left the source."""

    amount: int
    source: str
    destination: str
    receiver: str
    nonce: int
    arrived: bool


class _Side:
    """One end of a transfer."""

    def __init__(self, descriptor: NetworkDescriptor, name: str) -> None:
        self.name = name
        self.network = descriptor.get_network(name)
        if self.network is None and name != ROOT:
            known = ", ".join((ROOT, *(item.name for item in descriptor.networks)))
            raise ConfigError(f"no network {name}; there are: {known}")
        contracts = descriptor.contracts if self.network is None else self.network.contracts
        self.id = build_root_id(descriptor.chain_id) if self.network is None else self.network.id
        self.chain_id = descriptor.chain_id if self.network is None else self.network.chain_id
        self.rpc = Rpc(descriptor.rpc_urls[0] if self.network is None else self.network.rpc_urls[0])
        self.credit = Credit(self.rpc, contracts.credit)
        self.bridge = Bridge(self.rpc, contracts.bridge)
        self.inbox = Inbox(self.rpc, contracts.inbox)


async def send_credit(
    folder: StateFolder,
    amount: int,
    *,
    source: str,
    destination: str,
    receiver: str | None,
    wait: bool,
    report: Callable[[str], None],
) -> Sent:
    """Burn here; wait until it is minted there.

    Raises:
        ConfigError: no such network, or the same one twice.
        UnavailableArrival: it did not arrive in time.
    """
    descriptor = folder.load_descriptor()
    if source == destination:
        raise ConfigError(f"both ends are {source}; name another one with --from-network or --to-network")
    key = open_keystore(folder).open_key(USER)
    to = key.address if receiver is None else read_address(receiver)
    start, end = _Side(descriptor, source), _Side(descriptor, destination)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(HttpClient())
        for side in (start, end):
            await stack.enter_async_context(side.rpc)
        if start.network is None:
            member = await stack.enter_async_context(open_member(descriptor, key))
            await member.ensure_funded(amount)
        else:
            await ensure_gas(http, start.network, start.rpc, key)
        sender = await stack.enter_async_context(open_sender(start.rpc, key, start.chain_id))
        await start.credit.ensure_allowance(sender, start.bridge.address, amount)
        before = await end.credit.balance_of(to)
        outcome = await start.bridge.send(sender, end.id, to, amount)
        sent = Sent(amount, source, destination, encode_hex(to), outcome.value, arrived=False)
        if not wait:
            return sent
        report(f"burned on {source}; waiting for validators and a relayer")
        await _wait_until_arrived(start, end, to, sent, before)
        return msgspec.structs.replace(sent, arrived=True)


async def _wait_until_arrived(start: _Side, end: _Side, to: Address, sent: Sent, before: int) -> None:
    """Through the root a message becomes another one, so that there only the balance tells."""
    is_direct = start.network is None or end.network is None
    clock = SystemClock()
    deadline = clock.monotonic_s() + ARRIVE_S
    while True:
        if is_direct:
            has_arrived = await end.inbox.is_delivered(start.id, sent.nonce)
        else:
            has_arrived = await end.credit.balance_of(to) >= before + sent.amount
        if has_arrived:
            return
        if clock.monotonic_s() > deadline:
            raise UnavailableArrival(
                f"message {sent.nonce} of {start.name} has not arrived on {end.name} within {ARRIVE_S:.0f} s; it is on "
                "its way, see `deaios network list`"
            )
        await clock.sleep(POLL_S)

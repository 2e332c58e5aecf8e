"""Money of a folder's key in payment channels: what is where, putting some in, and getting all of it back.

Channels are found on the chain, by who pays into them: no journal is needed, and nobody who is paid has to agree. What
a receiver does not claim within a channel's delay goes back to its payer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from deaios.ledger.client.bound import BoundContract, to_tuple
from deaios.ledger.client.settlement import Settlement
from deaios.ledger.commitments import build_deposit_authorization
from deaios.ledger.eip712 import hash_typed_data, sign_struct
from deaios.ledger.structs import ChannelConfig, token_domain
from deaios.ledger.x402 import COLLECTOR, WITHDRAW_DELAY_MIN_S, settlement_domain
from deaios.node.folder import StateFolder
from deaios.node.member import Member
from deaios.node.session import open_session
from deaios.node.wallet import RefusedAmount, Sent
from deaios.primitives.encoding import encode_hex
from deaios.primitives.keys import Address, checksum_address, read_address
from deaios.primitives.units import CREDIT_DECIMALS, format_credit
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice

AUTHORIZATION_S = 3600
SALT_SIZE = 32
READS_AT_ONCE = 50
"""Channels whose two views fit into one batch of calls."""


class ChannelEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One channel; amounts in the smallest unit.

    `state` is `open`, `leaving` (until `ready_at`, Unix seconds), `ready`, or what `withdraw` made of it: `started` or
    `returned`.
    """

    channel: str
    receiver: str
    kind: str
    unclaimed: int
    state: str
    ready_at: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    contract: BoundContract
    config: ChannelConfig
    channel_id: bytes
    kind: str
    balance: int
    total_claimed: int
    withdrawing: int
    started_at: int

    @property
    def ready_at(self) -> int:
        return self.started_at + self.config.withdraw_delay if self.started_at else 0

    def describe(self, now_s: int, state: str | None = None) -> ChannelEntry:
        if state is None:
            state = "open" if not self.started_at else "ready" if now_s >= self.ready_at else "leaving"
        receiver, unclaimed = checksum_address(self.config.receiver), self.balance - self.total_claimed
        return ChannelEntry(encode_hex(self.channel_id), receiver, self.kind, unclaimed, state, self.ready_at)


async def read_channels(folder: StateFolder, name: str) -> list[ChannelEntry]:
    """Channels that hold money of one of the folder's keys."""
    async with open_session(folder, name) as session:
        now_s = await _now_s(session.member)
        return [found.describe(now_s) for found in await _find(session.member)]


async def withdraw_all(folder: StateFolder, name: str, *, is_patient: bool = False) -> list[ChannelEntry]:
    """Take back everything that one of the folder's keys has in channels.

    A first call starts each channel's delay, a later one takes what is ready; with `is_patient`, one call waits.
    """
    async with open_session(folder, name) as session:
        entries = await _withdraw(session.member)
        if is_patient:
            clock = SystemClock()
            for entry in entries:
                await clock.sleep(max(0, entry.ready_at - clock.now_ms() // 1000))
            later = await _withdraw(session.member)
            entries = [*(entry for entry in entries if entry.state == "returned"), *later]
        return entries


async def deposit_with_gateway(folder: StateFolder, name: str, gateway: str, amount: Decimal) -> Sent:
    """Put money into the x402 channel between one of the folder's keys and a gateway, which pays any provider from it.

    It is the channel that stock x402 clients with this key use by themselves.

    Raises:
        RefusedAmount: not covered, or finer than the smallest unit.
    """
    units = amount.scaleb(CREDIT_DECIMALS)
    if units != units.to_integral_value() or units <= 0:
        raise RefusedAmount(f"{amount} is not a positive amount of credit")
    async with open_session(folder, name) as session:
        member = session.member
        balance = await member.contracts.credit.balance_of(member.address)
        if balance < units:
            raise RefusedAmount(f"{name} has {format_credit(balance)} credit, {amount} wanted")
        config = _gateway_config(member, read_address(gateway))
        channel_id = hash_typed_data(settlement_domain(member.descriptor.chain_id), config)
        salt = int.from_bytes(SystemDice().token_bytes(SALT_SIZE))
        valid_before = await _now_s(member) + AUTHORIZATION_S
        authorization = build_deposit_authorization(
            config, channel_id, COLLECTOR, int(units), valid_after=0, valid_before=valid_before, salt=salt
        )
        token = member.descriptor.token
        money = token_domain(token.name, token.version, member.descriptor.chain_id, token.address)
        receipt = await Settlement(member.rpc).deposit(
            member.sender,
            config,
            int(units),
            valid_after=0,
            valid_before=valid_before,
            salt=salt,
            signature=sign_struct(member.key, money, authorization),
        )
    return Sent(encode_hex(receipt.transaction_hash), receipt.block_number)


def _gateway_config(member: Member, gateway: Address) -> ChannelConfig:
    token = member.descriptor.token.address
    return ChannelConfig(
        member.address, member.address, gateway, gateway, token, WITHDRAW_DELAY_MIN_S, bytes(SALT_SIZE)
    )


async def _now_s(member: Member) -> int:
    """The chain's time, by which delays are counted."""
    block = await member.rpc.get_block("latest")
    return SystemClock().now_ms() // 1000 if block is None else block.timestamp


async def _find(member: Member) -> list[_Found]:
    """Channels of the key that hold unclaimed money, on both contracts."""
    kinds = [("provider", member.contracts.channels.contract)]
    settlement = Settlement(member.rpc)
    if await settlement.is_there():
        kinds.append(("gateway", settlement.contract))
    found = []
    for kind, contract in kinds:
        events = await contract.fetch_events("ChannelCreated", from_block=member.descriptor.first_block)
        configs = {bytes(event.values["channelId"]): ChannelConfig(*event.values["config"]) for event in events}
        own = [pair for pair in configs.items() if pair[1].payer == member.address]
        for start in range(0, len(own), READS_AT_ONCE):
            found += await _read(contract, kind, own[start : start + READS_AT_ONCE])
    return [item for item in found if item.balance > item.total_claimed]


async def _read(contract: BoundContract, kind: str, own: Sequence[tuple[bytes, ChannelConfig]]) -> list[_Found]:
    calls = [(view, (channel_id,)) for channel_id, _ in own for view in ("channels", "pendingWithdrawals")]
    answers = await contract.read_many(calls)
    return [
        _Found(contract, config, channel_id, kind, *answers[2 * place], *answers[2 * place + 1])
        for place, (channel_id, config) in enumerate(own)
    ]


async def _withdraw(member: Member) -> list[ChannelEntry]:
    entries, now_s = [], await _now_s(member)
    for found in await _find(member):
        terms = to_tuple(found.config)
        if not found.started_at:
            amount = found.balance - found.total_claimed
            await found.contract.send(member.sender, "initiateWithdraw", terms, amount)
            ready_at = await _now_s(member) + found.config.withdraw_delay
            entries.append(msgspec.structs.replace(found.describe(now_s, "started"), ready_at=ready_at))
        elif now_s >= found.ready_at:
            await found.contract.send(member.sender, "finalizeWithdraw", terms)
            entries.append(found.describe(now_s, "returned"))
        else:
            entries.append(found.describe(now_s))
    return entries

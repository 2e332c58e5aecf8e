"""The market as somebody who wants to sell in it sees it: models, offers, earnings, and why one is not chosen.

Reasons come from the buyers' own rules (market/routing.py) over what the chain and the offers say; what only one
buyer knows (its statistics, its breakers) is not told here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from deaios.ledger.structs import Level
from deaios.market.directory.client import Directory
from deaios.market.offers import compute_quote
from deaios.market.routing import Candidate, Wish, refuse_reason
from deaios.market.seller.sales import Sales, forecast_day
from deaios.market.seller.store import read_sales
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.keystore import open_keystore
from deaios.node.member import Member
from deaios.node.models import sort_files
from deaios.node.names import Names
from deaios.node.network import terms_of
from deaios.node.session import open_session
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import Address, checksum_address
from deaios.runtime.clock import Clock, SystemClock

RECENT_MS: Final = 3600 * 1000
"""Sales that a forecast rests on."""
TYPICAL_PROMPT, TYPICAL_OUTPUT = 256, 256
"""Tokens of the purchase that reasons are given for."""
DEARER_BPS: Final = 20_000
"""An offer at twice the cheapest one is named as dear; the score of buyers multiplies price by time."""


class ModelEntry(msgspec.Struct, frozen=True):
    """One record of the catalogue; prices are the cheapest offer's, smallest units per million tokens."""

    name: str
    record: str
    publisher: str
    noise_class: str
    quantisation: str
    size_bytes: int
    context_tokens: int
    providers: int
    input_price: int = 0
    output_price: int = 0


class EarningsEntry(msgspec.Struct, frozen=True):
    """One provider of this folder; amounts in the smallest unit."""

    name: str
    provider: str
    model: str
    earned: int
    receipts: int
    tokens: int
    seen_s: int
    per_day: int | None
    input_price: int | None
    output_price: int | None
    rivals: int
    cheapest_output_price: int | None
    why_not: list[str]


@dataclass(frozen=True, slots=True)
class _Market:
    member: Member
    names: Names
    candidates: tuple[Candidate, ...]
    failures: Mapping[Address, str]
    clock: Clock

    def offering(self, record_id: bytes) -> list[Candidate]:
        """Who offers a record now, the cheapest first."""
        found = [item for item in self.candidates if item.signed_offer.offer.model_record_id == record_id]
        return sorted(found, key=lambda item: (_quote(item), item.provider))


def _quote(candidate: Candidate) -> int:
    return compute_quote(candidate.signed_offer.offer, TYPICAL_PROMPT, TYPICAL_OUTPUT)


async def _open_market(member: Member) -> _Market:
    clock = SystemClock()
    names = Names(member.contracts, member.descriptor.default_model_record_id)
    directory = Directory(member.contracts, terms_of(member.descriptor), member.http, clock)
    try:
        _, candidates = await asyncio.gather(names.refresh(), directory.fetch_candidates())
    finally:
        await directory.close()
    return _Market(member, names, candidates, dict(directory.failures), clock)


async def list_models(folder: StateFolder) -> list[ModelEntry]:
    """Every record of the catalogue, the default first, then by name."""
    async with open_session(folder) as session:
        market = await _open_market(session.member)
    entries = []
    for published in market.names.all():
        record, offers = published.record, market.offering(published.record_id)
        try:
            size_bytes = sort_files(record).model.size_bytes
        except Unavailable:
            size_bytes = sum(file.size_bytes for file in record.files)
        entries.append(
            ModelEntry(
                name=market.names.names_of(published)[0],
                record=encode_hex(published.record_id),
                publisher=checksum_address(published.publisher),
                noise_class=record.noise_class.value,
                quantisation=record.quantisation,
                size_bytes=size_bytes,
                context_tokens=record.context_tokens,
                providers=len(offers),
                input_price=offers[0].signed_offer.offer.input_price if offers else 0,
                output_price=offers[0].signed_offer.offer.output_price if offers else 0,
            )
        )
    default = encode_hex(market.names.default_record_id)
    return sorted(entries, key=lambda entry: (entry.record != default, entry.name, entry.record))


async def read_earnings(folder: StateFolder) -> list[EarningsEntry]:
    """Every provider that this folder ever ran."""
    roles = [role for role in folder.load_roles() if role.kind == "provider"]
    if not roles:
        return []
    keystore = open_keystore(folder)
    async with open_session(folder) as session:
        market = await _open_market(session.member)
        return [await _describe(folder, role, keystore.open_key(role.name).address, market) for role in roles]


async def _describe(folder: StateFolder, role: RoleSpec, address: Address, market: _Market) -> EarningsEntry:
    journal, now_ms = folder.role(role.name) / "seller.db", market.clock.now_ms()
    whole = recent = Sales(0, 0, 0, 0)
    if await asyncio.to_thread(journal.exists):
        whole = await asyncio.to_thread(read_sales, journal, 0, now_ms)
        recent = await asyncio.to_thread(read_sales, journal, now_ms - RECENT_MS, now_ms)
    record_id = role.record_id(market.names.default_record_id)
    published = market.names.find(record_id)
    offers = market.offering(record_id)
    own = next((item for item in offers if item.provider == address), None)
    rivals = [item for item in offers if item.provider != address]
    return EarningsEntry(
        name=role.name,
        provider=checksum_address(address),
        model=encode_hex(record_id) if published is None else market.names.names_of(published)[0],
        earned=whole.fees,
        receipts=whole.receipts,
        tokens=whole.tokens,
        seen_s=recent.seen_ms // 1000,
        per_day=forecast_day(recent),
        input_price=own.signed_offer.offer.input_price if own else role.input_price,
        output_price=own.signed_offer.offer.output_price if own else role.output_price,
        rivals=len(rivals),
        cheapest_output_price=min((item.signed_offer.offer.output_price for item in rivals), default=None),
        why_not=await _explain(folder, role, address, own, rivals, market),
    )


async def _explain(
    folder: StateFolder,
    role: RoleSpec,
    address: Address,
    own: Candidate | None,
    rivals: Sequence[Candidate],
    market: _Market,
) -> list[str]:
    """Everything that keeps a buyer with default wishes from this provider, hard reasons first."""
    state, contracts = folder.load_run_state(role.name), market.member.contracts
    windows = market.member.descriptor.windows
    reasons = []
    if state is None or not state.is_alive:
        reasons.append(f"it does not run; start it with `deaios provide` ({role.name})")
    elif state.state != "running":
        reasons.append(f"its process is {state.state}" + (f": {state.reason}" if state.reason else ""))
    stake = await contracts.staking.stake_of(address)
    if stake < windows.compute_stake_min:
        reasons.append(f"its stake of {stake} is below the network's minimum of {windows.compute_stake_min}")
    if await contracts.identities.agent_of(address) == 0:
        reasons.append("it is not registered, so nobody knows its address")
    if address in market.failures:
        reasons.append(f"its offer cannot be had: {market.failures[address]}")
    if own is None:
        if not reasons:
            reasons.append("it shows no valid offer for this model yet")
        return reasons
    wish = Wish(
        model_record_id=own.signed_offer.offer.model_record_id,
        prompt_tokens=TYPICAL_PROMPT,
        max_tokens=min(TYPICAL_OUTPUT, max(1, own.signed_offer.offer.context_tokens - TYPICAL_PROMPT)),
        min_level=Level.SEEDED,
        withdraw_delay=windows.withdraw_delay_min_s,
        fee_max=windows.voucher_window,
    )
    refused = refuse_reason(own, wish, market.clock.now_ms())
    if refused is not None:
        reasons.append(f"buyers' filters: {refused}")
    cheapest = min((_quote(item) for item in rivals), default=None)
    if cheapest is not None and _quote(own) * 10_000 >= max(1, cheapest) * DEARER_BPS:
        reasons.append(f"price: {_quote(own)} for a typical answer, the cheapest other offer asks {cheapest}")
    return reasons

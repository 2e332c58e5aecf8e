"""The recount: what clients were told, what journals hold and what the chain says must be one and the same.

First the network comes to rest (`settle`), then everything is read, once, from journals and chain. Every amount is
compared to the unit. Which side is wrong is for whoever reads the difference.
"""

import asyncio
import hashlib
import json
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deaios.da.blob import BlobId
from deaios.da.client.blobs import BlobClient
from deaios.da.client.reader import UnavailableExpired
from deaios.ledger.client.bound import BoundContract, ContractEvent
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.eip712 import decode_json, hash_struct
from deaios.ledger.structs import Batch, Receipt
from deaios.ledger.suite import AUDIT, COMPUTE, DATA_AVAILABILITY
from deaios.market.batches import BATCH_BYTES_MAX, RECEIPTS_TAG, validate_batch
from deaios.market.opening import Opening
from deaios.node.network import terms_of
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import DeaiosError
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import ZERO_ADDRESS, Address
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient
from soak.live_load import FILE_BYTES, Record
from soak.live_network import LiveNetwork, read_journal

SETTLE_S = 240.0
"""Receipts are batched within seconds and claimed every half minute."""
EVENT_BLOCKS = 200
CONTRACT_PROOFS = 32
"""Receipts that the contract itself is asked about; the others are proven by the recomputed roots."""


class Unsettled(Exception):
    """The network did not come to rest: something stays open."""


@dataclass(frozen=True)
class Voucher:
    """What a buyer's journal said it had signed, paid and deposited, at some moment."""

    role: str
    channel_id: bytes
    signed: int
    charged: int
    balance: int


def read_vouchers(network: LiveNetwork) -> list[Voucher]:
    """Every channel of every buyer, as its journal has it now."""
    found = []
    for role in buyers_of(network):
        with read_journal(network.database(role, "buyer.db")) as journal:
            rows = journal.execute("SELECT channel_id, signed, charged, balance FROM channels").fetchall()
        found += [Voucher(role, channel_id, *map(int, amounts)) for channel_id, *amounts in rows]
    return found


def buyers_of(network: LiveNetwork) -> tuple[str, ...]:
    """Roles that buy and have bought."""
    roles = (*network.names_of("gateway"), *network.names_of("auditor"))
    return tuple(role for role in roles if network.database(role, "buyer.db").exists())


# Rest


async def settle(network: LiveNetwork, seconds: float = SETTLE_S) -> None:
    """Wait until nothing is open, everything is published and claimed; auditors are frozen and stay so.

    Raises:
        Unsettled: names what stays open.
    """
    deadline = time.monotonic() + seconds
    for auditor in network.names_of("auditor"):
        await _freeze(network, auditor, deadline)
    async with Rpc(network.url("chain")) as rpc:
        contracts = Contracts(rpc, network.descriptor.contracts)
        while open_things := await _list_open(network, contracts):
            if time.monotonic() > deadline:
                raise Unsettled(f"after {seconds:.0f} s: {'; '.join(open_things)}")
            await asyncio.sleep(0.5)


async def _freeze(network: LiveNetwork, auditor: str, deadline: float) -> None:
    """Stop an auditor's process between two purchases."""
    while True:
        await network.until(lambda: network.is_ready(auditor), 60.0, f"{auditor} is not ready")
        network.signal(auditor, signal.SIGSTOP)
        with read_journal(network.database(auditor, "buyer.db")) as journal:
            if not _count(journal, "open_purchases"):
                return
        if time.monotonic() > deadline:
            raise Unsettled(f"{auditor} has an open purchase that nothing resolves")
        network.signal(auditor, signal.SIGCONT)
        await asyncio.sleep(0.3)


def thaw(network: LiveNetwork) -> None:
    """Let the auditors go on."""
    for auditor in network.names_of("auditor"):
        network.signal(auditor, signal.SIGCONT)


async def _list_open(network: LiveNetwork, contracts: Contracts) -> list[str]:
    found = []
    for role in buyers_of(network):
        with read_journal(network.database(role, "buyer.db")) as journal:
            if count := _count(journal, "open_purchases"):
                found.append(f"{role} has {count} open purchases")
    with read_journal(network.database("gateway", "keys.db")) as journal:
        if count := _count(journal, "charges WHERE purchase IS NOT NULL"):
            found.append(f"{count} charges wait for their receipts")
    with read_journal(network.database("chain", "chain.db")) as journal:
        if count := _count(journal, "waiting"):
            found.append(f"{count} transactions wait")
    for role in network.names_of("provider"):
        with read_journal(network.database(role, "seller.db")) as journal:
            if count := _count(journal, "purchases WHERE counter IS NULL"):
                found.append(f"{role} has {count} purchases without a receipt")
            published = "SELECT coalesce(max(last_counter), 0) FROM batches WHERE chain_index IS NOT NULL"
            last, batched = _one(journal, "SELECT coalesce(max(counter), 0) FROM receipts"), _one(journal, published)
            charged = journal.execute("SELECT channel_id, charged FROM channels").fetchall()
        if last != batched:
            found.append(f"{role} has receipts up to {last}, batches up to {batched}")
        for channel_id, amount in charged:
            claimed = (await contracts.channels.balance_of(channel_id)).total_claimed
            if claimed != int(amount):
                found.append(f"{role} charged {amount} on {channel_id.hex()[:8]}, claimed {claimed}")
        totals = await contracts.channels.receiver_totals(
            network.open_key(role).address, network.descriptor.contracts.credit
        )
        if totals.total_claimed != totals.total_settled:
            found.append(f"{role} claimed {totals.total_claimed}, was paid {totals.total_settled}")
    return found


def _count(journal: sqlite3.Connection, what: str) -> int:
    return _one(journal, f"SELECT count(*) FROM {what}")  # a literal of this module


def _one(journal: sqlite3.Connection, query: str) -> int:
    return int(journal.execute(query).fetchone()[0])


async def _fetch_events(contract: BoundContract, name: str) -> list[ContractEvent]:
    """All events of a kind, in steps of blocks that hold fewer than a node answers with at once."""
    last = await contract.rpc.block_number()
    found: list[ContractEvent] = []
    for first in range(0, last + 1, EVENT_BLOCKS):
        found += await contract.fetch_events(name, from_block=first, to_block=min(last, first + EVENT_BLOCKS - 1))
    return found


# The recount


@dataclass
class Recount:
    """Differences found, and how much was compared."""

    differences: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def check(self, found: object, expected: object, what: str) -> None:
        """Note a difference."""
        if found != expected:
            self.differences.append(f"{what}: found {found!r:.200}, expected {expected!r:.200}")


@dataclass
class _Seller:
    """One provider's journal."""

    role: str
    address: Address
    receipts: dict[int, Receipt]
    digests: dict[int, bytes]
    batches: list[tuple[Batch, int]]
    channels: dict[bytes, tuple[int, int]]
    """Signed and charged by channel."""


async def recount(network: LiveNetwork, record: Record, vouchers: Sequence[Voucher] = ()) -> Recount:
    """Compare everything. The network is settled, and runs."""
    result = Recount(list(record.faults))
    async with Rpc(network.url("chain")) as rpc, HttpClient() as http:
        contracts = Contracts(rpc, network.descriptor.contracts)
        sellers = [_read_seller(network, role) for role in network.names_of("provider")]
        for seller in sellers:
            _check_counters(result, seller)
            await _check_batches(result, contracts, seller)
            await _check_published(result, network, contracts, http, seller)
        by_address = {seller.address: seller for seller in sellers}
        openings = _read_openings(network)
        _check_openings(result, by_address, openings)
        _check_answers(result, by_address, record)
        await _check_channels(result, network, contracts, sellers, openings)
        _check_vouchers(result, network, vouchers)
        _check_charges(result, network, openings["gateway"], record)
        await _check_money(result, contracts)
        await _check_transfers(result, rpc, contracts, record)
        await _check_innocence(result, network, contracts)
        await _check_files(result, network, http, record)
    return result


def _read_seller(network: LiveNetwork, role: str) -> _Seller:
    with read_journal(network.database(role, "seller.db")) as journal:
        receipts = {
            counter: decode_json(Receipt, json.loads(text))
            for counter, text in journal.execute("SELECT counter, receipt FROM receipts ORDER BY counter")
        }
        digests = dict(journal.execute("SELECT counter, digest FROM receipts").fetchall())
        batches = [
            (decode_json(Batch, json.loads(text)), index)
            for text, index in journal.execute("SELECT batch, chain_index FROM batches ORDER BY first_counter")
        ]
        rows = journal.execute("SELECT channel_id, signed, charged FROM channels").fetchall()
    channels = {channel_id: (int(signed), int(charged)) for channel_id, signed, charged in rows}
    return _Seller(role, network.open_key(role).address, receipts, digests, batches, channels)


def _check_counters(result: Recount, seller: _Seller) -> None:
    """Receipts are numbered from one without a gap, each names the one before it, and no request has two."""
    result.check(list(seller.receipts), list(range(1, len(seller.receipts) + 1)), f"counters of {seller.role}")
    before = ZERO32
    charged: Counter[bytes] = Counter()
    for counter, receipt in seller.receipts.items():
        what = f"receipt {counter} of {seller.role}"
        result.check(receipt.counter, counter, f"{what}: its counter")
        result.check(receipt.prev_receipt, before, f"{what}: the one before it")
        before = hash_struct(receipt)
        result.check(seller.digests[counter], before, f"{what}: its digest in the journal")
        charged[receipt.channel_id] += receipt.fee
        result.check(receipt.charged_cumulative, charged[receipt.channel_id], f"{what}: charged in all")
    requests = Counter(receipt.request_digest for receipt in seller.receipts.values())
    result.check(
        [item.hex() for item, count in requests.items() if count > 1],
        [],
        f"requests with two receipts of {seller.role}",
    )
    result.figures["receipts"] = result.figures.get("receipts", 0) + len(seller.receipts)


async def _check_batches(result: Recount, contracts: Contracts, seller: _Seller) -> None:
    """The chain holds exactly the journal's batches, and their roots are those of the journal's receipts."""
    receipts = contracts.receipts
    result.check(await receipts.batch_count(seller.address), len(seller.batches), f"batches of {seller.role} on chain")
    result.check(await receipts.last_counter(seller.address), len(seller.receipts), f"last counter of {seller.role}")
    next_counter = 1
    for place, (batch, index) in enumerate(seller.batches):
        what = f"batch {place} of {seller.role}"
        result.check(index, place, f"{what}: its index on chain")
        result.check(batch.first_counter, next_counter, f"{what}: its first counter")
        next_counter = batch.last_counter + 1
        digests = [seller.digests[n] for n in range(batch.first_counter, batch.last_counter + 1)]
        root = build_root(RECEIPTS_TAG, digests)
        on_chain = await receipts.batch_at(seller.address, place)
        result.check(
            (on_chain.first_counter, on_chain.last_counter, on_chain.root, on_chain.da_commitment),
            (batch.first_counter, batch.last_counter, root, batch.da_commitment),
            f"{what} on chain",
        )
        if place % max(1, len(seller.batches) // CONTRACT_PROOFS) == 0:
            path = prove_leaf(digests, 0)
            holds = await receipts.verify_receipt(seller.address, place, batch.first_counter, digests[0], path)
            result.check(holds, True, f"{what}: the contract finds its first receipt")
    result.figures["batches"] = result.figures.get("batches", 0) + len(seller.batches)


async def _check_published(
    result: Recount, network: LiveNetwork, contracts: Contracts, http: HttpClient, seller: _Seller
) -> None:
    """Every batch that the chain names is had from its committee again, and holds the journal's receipts."""
    descriptor = network.descriptor
    blobs = BlobClient(contracts, http, descriptor.network_id, descriptor.chain_id)
    domain = terms_of(descriptor).protocol
    for place, (batch, _) in enumerate(seller.batches):
        what = f"published batch {place} of {seller.role}"
        try:
            data = await blobs.get_bytes(BlobId(batch.da_commitment), BATCH_BYTES_MAX)
            entries = await asyncio.to_thread(validate_batch, domain, batch, data)
        except UnavailableExpired:  # its term is over, as the chain says: nobody promised it any longer
            result.figures["batches over"] = result.figures.get("batches over", 0) + 1
        except DeaiosError as error:
            result.differences.append(f"{what} cannot be had: {error}")
        else:
            expected = [seller.digests[n] for n in range(batch.first_counter, batch.last_counter + 1)]
            result.check([entry.digest for entry in entries], expected, f"receipts of {what}")
            result.figures["batches read"] = result.figures.get("batches read", 0) + 1


def _read_openings(network: LiveNetwork) -> dict[str, list[Opening]]:
    found: dict[str, list[Opening]] = {}
    for role in buyers_of(network):
        with read_journal(network.database(role, "buyer.db")) as journal:
            rows = journal.execute("SELECT opening FROM openings").fetchall()
        found[role] = [Opening.decode_json(json.loads(text)) for (text,) in rows]
    return found


def _check_openings(result: Recount, sellers: dict[Address, _Seller], openings: dict[str, list[Opening]]) -> None:
    """Buyers and sellers hold the same receipts, each exactly once."""
    held: Counter[tuple[Address, int]] = Counter()
    for role, items in openings.items():
        for opening in items:
            provider, counter = opening.request.provider, opening.receipt.counter
            held[provider, counter] += 1
            found = sellers[provider].digests.get(counter)
            result.check(found, opening.receipt_digest, f"receipt {counter} that {role} holds")
    for seller in sellers.values():
        for counter in seller.receipts:
            result.check(held[seller.address, counter], 1, f"buyers that hold receipt {counter} of {seller.role}")


def _check_answers(result: Recount, sellers: dict[Address, _Seller], record: Record) -> None:
    """Every receipt that a client was given is the journal's, and every proof names the batch that holds it."""
    for answered in record.answers:
        receipt = answered.opening.receipt
        seller = sellers[answered.opening.request.provider]
        digest = answered.opening.receipt_digest
        result.check(
            seller.digests.get(receipt.counter), digest, f"acknowledged receipt {receipt.counter} of {seller.role}"
        )
    for (provider, counter), index in record.proofs.items():
        batch = sellers[provider].batches[index][0]
        is_inside = batch.first_counter <= counter <= batch.last_counter
        result.check(is_inside, True, f"receipt {counter} is in batch {index}, as the gateway said")
    result.figures["answers"] = len(record.answers)
    result.figures["proofs"] = len(record.proofs)


async def _check_channels(
    result: Recount,
    network: LiveNetwork,
    contracts: Contracts,
    sellers: list[_Seller],
    openings: dict[str, list[Opening]],
) -> None:
    """Fees, charges, claims, vouchers and deposits of every channel are one sum, seen from all sides."""
    fees: Counter[bytes] = Counter()
    for items in openings.values():
        for opening in items:
            fees[opening.receipt.channel_id] += opening.receipt.fee
    deposits: Counter[bytes] = Counter()
    for event in await _fetch_events(contracts.channels.contract, "Deposited"):
        deposits[bytes(event.values["channelId"])] += int(event.values["amount"])  # type: ignore[arg-type]
        result.figures["deposits"] = result.figures.get("deposits", 0) + 1
    signed_by_seller: dict[bytes, tuple[int, int]] = {}
    for seller in sellers:
        for channel_id, (signed, charged) in seller.channels.items():
            signed_by_seller[channel_id] = (signed, charged)
            mine = sum(receipt.fee for receipt in seller.receipts.values() if receipt.channel_id == channel_id)
            result.check(charged, mine, f"charged by {seller.role} on {channel_id.hex()[:8]}, as fees of its receipts")
    for role in buyers_of(network):
        with read_journal(network.database(role, "buyer.db")) as journal:
            rows = journal.execute("SELECT channel_id, balance, signed, charged, held FROM channels").fetchall()
        for channel_id, balance, signed, charged, held in rows:
            what = f"channel {channel_id.hex()[:8]} of {role}"
            seller_signed, seller_charged = signed_by_seller.get(channel_id, (0, 0))
            money = await contracts.channels.balance_of(channel_id)
            result.check(json.loads(held), [], f"{what}: charges that wait for others")
            result.check(int(charged), fees[channel_id], f"{what}: charged, as fees of accepted receipts")
            result.check(seller_charged, int(charged), f"{what}: charged by the seller")
            result.check(money.total_claimed, int(charged), f"{what}: claimed on chain")
            result.check(
                seller_charged <= seller_signed <= int(signed) <= money.balance,
                True,
                f"{what}: charged <= kept <= signed <= deposit",
            )
            result.check(money.balance, deposits[channel_id], f"{what}: balance, as deposits")
            # A deposit is made when less is left than the next purchase needs; made twice, it would stand above this.
            most = int(signed) + network.descriptor.windows.channel_deposit + network.descriptor.windows.voucher_window
            result.check(money.balance <= most, True, f"{what}: no deposit of {money.balance} was made twice")
            result.check(int(balance) <= money.balance, True, f"{what}: the buyer's balance is on chain")
    result.figures["channels"] = len(signed_by_seller)
    result.figures["claimed"] = sum(charged for _, charged in signed_by_seller.values())


def _check_vouchers(result: Recount, network: LiveNetwork, vouchers: Sequence[Voucher]) -> None:
    """What a journal once said was signed or charged is never less later."""
    now = {(item.role, item.channel_id): item for item in read_vouchers(network)}
    for then in vouchers:
        later = now.get((then.role, then.channel_id))
        what = f"{then.role} on channel {then.channel_id.hex()[:8]}"
        if later is None:
            result.differences.append(f"{what}: the channel is gone")
            continue
        result.check(later.signed >= then.signed, True, f"{what}: {then.signed} was signed, now {later.signed}")
        result.check(later.charged >= then.charged, True, f"{what}: {then.charged} was charged, now {later.charged}")
        result.check(later.balance >= then.balance, True, f"{what}: {then.balance} was there, now {later.balance}")
    result.figures["vouchers"] = len(vouchers)


def _check_charges(result: Recount, network: LiveNetwork, openings: list[Opening], record: Record) -> None:
    """A charge costs what its receipt says; a key pays for each request what its dearest attempt cost, and no more."""
    path = network.database("gateway", "keys.db")
    with read_journal(path) as journal:
        rows = journal.execute("SELECT answer_id, key_id, amount, cost, provider, counter FROM charges").fetchall()
        spent = dict(journal.execute("SELECT key_id, spent FROM keys").fetchall())
    by_receipt = {(item.request.provider, item.receipt.counter): item for item in openings}
    sums: Counter[str] = Counter()
    paid: Counter[bytes] = Counter()
    dearest: Counter[bytes] = Counter()
    by_answer: dict[str, int] = {}
    for answer_id, key_id, amount, cost, provider, counter in rows:
        sums[key_id] += amount
        by_answer[answer_id] = cost
        if provider is None:
            result.check(amount, 0, f"charge of answer {answer_id}, which has no receipt")
            continue
        opening = by_receipt.get((Address(provider), counter))
        result.check(opening is not None, True, f"the gateway holds receipt {counter} that it charged for")
        if opening is not None:
            result.check(cost, opening.receipt.fee, f"charge for receipt {counter}")
            request = opening.ask.client_digest
            paid[request] += amount
            dearest[request] = max(dearest[request], cost)
    for key_id, amount in spent.items():
        result.check(amount, sums[key_id], f"spent by {key_id}")
    for answered in record.answers:
        what = f"answer {answered.answer_id}"
        result.check(by_answer.get(answered.answer_id), answered.opening.receipt.fee, f"{what}: its charge")
        expected = dearest[answered.client_digest] or answered.opening.receipt.fee
        result.check(paid[answered.client_digest], expected, f"{what}: paid for its request")
    for digest in record.unfinished:
        result.check(paid[digest], dearest[digest], f"paid for request {digest.hex()[:8]}, which was not answered")
    fees = sum(opening.receipt.fee for opening in openings)
    result.check(sum(sums.values()) <= fees, True, f"keys paid {sum(sums.values())} in all, receipts say {fees}")
    result.figures["charged to keys"] = sum(sums.values())
    result.figures["borne by the gateway"] = fees - sum(sums.values())


async def _check_money(result: Recount, contracts: Contracts) -> None:
    """All Credit there is lies with somebody, and the channels' contract holds what channels and earners are owed."""
    holders = {ZERO_ADDRESS}
    for event in await _fetch_events(contracts.credit.contract, "Transfer"):
        holders |= {Address(bytes(event.values[name])) for name in ("sender", "receiver")}  # type: ignore[arg-type]
    ordered = sorted(holders)
    found = await contracts.credit.fetch_balances(ordered)
    result.check(sum(found.amounts.values()), found.total_supply, "sum of all balances of Credit")
    owed = 0
    receivers = set()
    seen = set()
    for event in await _fetch_events(contracts.channels.contract, "ChannelCreated"):
        channel_id = bytes(event.values["channelId"])  # type: ignore[arg-type]
        if channel_id in seen:
            continue
        seen.add(channel_id)
        money = await contracts.channels.balance_of(channel_id)
        owed += money.balance - money.total_claimed
        receivers.add((await contracts.channels.parties_of(channel_id)).receiver)
    for receiver in sorted(receivers):
        totals = await contracts.channels.receiver_totals(receiver, contracts.addresses.credit)
        owed += totals.total_claimed - totals.total_settled
    result.check(found.amounts.get(contracts.addresses.channels, 0), owed, "money in the channels' contract")
    result.figures["holders"] = len(ordered) - 1


async def _check_transfers(result: Recount, rpc: Rpc, contracts: Contracts, record: Record) -> None:
    """Every acknowledged transaction is in exactly one block, with the fate that was told; nothing is paid twice."""
    places: dict[str, list[int]] = {}
    parent: str | None = None
    for number in range(await rpc.block_number() + 1):
        block: Any = await rpc.call("eth_getBlockByNumber", [hex(number), False])  # Any: JSON-RPC's own shape
        if parent is not None:
            result.check(block["parentHash"], parent, f"parent of block {number}")
        parent = block["hash"]
        for item in block["transactions"]:
            places.setdefault(item, []).append(number)
    paid: Counter[tuple[Address, int]] = Counter()
    for event in await _fetch_events(contracts.credit.contract, "Transfer"):
        sender, amount = Address(bytes(event.values["sender"])), int(event.values["value"])  # type: ignore[arg-type]
        paid[sender, amount] += 1
    for transaction_hash, transfer in record.transfers.items():
        text = encode_hex(transaction_hash)
        result.check(len(places.get(text, [])), 1, f"blocks that hold acknowledged transaction {text}")
        receipt = await rpc.get_receipt(transaction_hash)
        if receipt is None:
            result.differences.append(f"acknowledged transaction {text} has no receipt")
            continue
        result.check(receipt.is_success, True, f"success of {text}")
        if transfer.told is not None:
            now = (receipt.block_hash, receipt.block_number, receipt.is_success)
            result.check(now, transfer.told, f"what was told of {text}")
    sure = Counter((transfer.sender, transfer.amount) for transfer in record.transfers.values())
    unsure = Counter((transfer.sender, transfer.amount) for transfer in record.maybe_sent)
    for sender, amount in sure | unsure:
        least, found = sure[sender, amount], paid[sender, amount]
        most = least + unsure[sender, amount]
        what = f"payments of {amount} by {encode_hex(sender)}"
        result.check(found, min(max(found, least), most), f"{what}, {least} of them sure and {most} possible")
    result.figures["transfers"] = len(record.transfers)
    result.figures["blocks"] = await rpc.block_number()


async def _check_innocence(result: Recount, network: LiveNetwork, contracts: Contracts) -> None:
    """Nobody here lies, so nobody is accused, excluded or slashed."""
    result.check(await contracts.disputes.dispute_count(), 0, "disputes")
    for kind, service in (("provider", COMPUTE), ("auditor", AUDIT), ("da", DATA_AVAILABILITY)):
        for role in network.names_of(kind):
            slashed = await contracts.staking.slashed_of(service, network.open_key(role).address)
            result.check(slashed, 0, f"slashed of {role}")
    for role in buyers_of(network):
        with read_journal(network.database(role, "buyer.db")) as journal:
            excluded = journal.execute("SELECT provider, reason FROM excluded").fetchall()
        result.check(excluded, [], f"providers that {role} calls liars")


async def _check_files(result: Recount, network: LiveNetwork, http: HttpClient, record: Record) -> None:
    """Every acknowledged file comes back."""
    descriptor = network.descriptor
    client = StorageClient(http, list(descriptor.storage_urls), None, descriptor.network_id)
    for manifest, digest in record.files.items():
        try:
            data = await client.get_bytes(manifest, FILE_BYTES[1])
        except DeaiosError as error:
            result.differences.append(f"acknowledged file {manifest.hex()} cannot be had: {error}")
        else:
            result.check(hashlib.sha256(data).digest(), digest, f"content of file {manifest.hex()}")
    result.figures["files"] = len(record.files)


def list_journals(network: LiveNetwork) -> list[Path]:
    """Every SQLite file of the network."""
    roles = network.home / "roles"
    return sorted([*roles.glob("*/*.db"), *roles.glob("*/rows/index.sqlite")])

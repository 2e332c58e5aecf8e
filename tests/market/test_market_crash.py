"""Crashes: `kill -9` of a real provider process, and a restart from every single commit of a provider's journal."""

import asyncio
import json
import shutil
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

from deaios.compute.sampling import seed_of
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import State
from deaios.market.batches import decode_batch, validate_batch
from deaios.market.buyer.client import Buyer, BuyerSettings
from deaios.market.buyer.errors import UnavailableProvider
from deaios.market.client import LedgerChain
from deaios.market.directory.client import Directory
from deaios.market.orders import build_ask
from deaios.market.seller.service.desk import Desk
from deaios.market.seller.store import SellerStore
from deaios.market.store import Journal
from deaios.market.view import ChainView
from deaios.market.wire import encode_papers
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.units import CREDIT
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import SystemClock

PROCESS = Path(__file__).with_name("seller_process.py")


def validate_history(receipts):
    """Counters without gaps, digests chained, totals that are the sums of the fees."""
    before, charged = ZERO32, {}
    for number, receipt in enumerate(receipts, start=1):
        assert (receipt.counter, receipt.prev_receipt) == (number, before)
        before = hash_struct(receipt)
        charged[receipt.channel_id] = charged.get(receipt.channel_id, 0) + receipt.fee
        assert receipt.charged_cumulative == charged[receipt.channel_id]


async def test_restart_from_every_commit_keeps_every_promise(kit, tmp_path, monkeypatch):
    """Whatever was sent out before a commit stands in a restart from that commit; nothing is numbered twice."""
    snapshots = []
    real_apply = Journal._apply

    def apply_and_copy(self, changes):
        results = real_apply(self, changes)
        copy = tmp_path / f"snapshot-{len(snapshots)}.db"
        with sqlite3.connect(copy) as target:
            self._connection.backup(target)
        target.close()
        snapshots.append(copy)
        return results

    chain = kit.FakeChain()
    chain.put(kit.build_config(), 5 * CREDIT)
    generator = kit.FakeGenerator()

    async def open_desk(path):
        store = SellerStore(path)
        state = await store.open()
        view = ChainView(chain, SystemClock())
        await view.fetch_head()
        desk = Desk(kit.SELLER, kit.TERMS, kit.build_settings(), store, view, generator, SystemClock())
        await desk.open(state)
        return store, desk

    monkeypatch.setattr(Journal, "_apply", apply_and_copy)
    store, desk = await open_desk(tmp_path / "seller.db")
    offer = await desk.fetch_current_offer()
    delivered = []
    admitted = []

    async def buy(number):
        papers = kit.build_papers(offer, kit.build_order(f"o{number}", params=kit.build_params(max_tokens=1 + number)))
        run = await desk.purchase(encode_papers(papers))
        await run.wait_admitted()
        admitted.append((len(snapshots), run.digest))
        outcome = await run.wait_outcome()
        delivered.append((len(snapshots), outcome.entry.receipt))

    await asyncio.gather(*(buy(number) for number in range(6)))
    await buy(6)
    await desk.close()
    await store.close()
    monkeypatch.undo()
    assert len(snapshots) > 6

    cut_off = 0
    for index, snapshot in enumerate(snapshots):
        path = tmp_path / "again.db"
        shutil.copy(snapshot, path)
        store, desk = await open_desk(path)
        receipts = await store.fetch_receipts(1, 1000)
        validate_history(receipts)
        known = {receipt.counter: receipt for receipt in receipts}
        for commits, receipt in delivered:
            if commits <= index + 1:
                assert known[receipt.counter] == receipt
        ended = {receipt.request_digest for receipt in receipts}
        for commits, digest in admitted:
            if commits <= index + 1:
                assert digest in ended
        cut_off += sum(receipt.state == State.FAILED_PROVIDER for receipt in receipts)
        assert all(row.state.reserved == 0 for row in desk.channels.values())
        await desk.close()
        await store.close()
        path.unlink()
    assert cut_off > 0


class ProviderProcess:
    """The provider as a process that can be killed."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROCESS), str(self._config), stdout=asyncio.subprocess.PIPE
        )
        while (line := await self._process.stdout.readline()).strip() != b"ready":
            assert line, "the provider ended before it was ready"

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()

    async def stop(self) -> None:
        self._process.terminate()
        await self._process.communicate()
        assert self._process.returncode == 0


def sample(seed, place):
    """As `seller_process.generate` does."""
    return int.from_bytes(sha256(seed + place.to_bytes(4))[:2]) % 900


async def read(purchase):
    return tuple([token async for delta in purchase for token in delta.ids])


def write_config(kit, network, tmp_path, name, key, port):
    """What a provider process reads."""
    (tmp_path / "vault").mkdir(exist_ok=True)
    config = tmp_path / f"{name}.json"
    config.write_text(
        json.dumps(
            {
                "secret": encode_hex(key.secret),
                "rpc": network.rpc.url,
                "chain_id": network.terms.chain_id,
                "network_id": encode_hex(network.terms.network_id),
                "contracts": {
                    name: encode_hex(address) for name, address in network.contracts.addresses.by_field().items()
                },
                "token": [network.terms.token_name, network.terms.token_version],
                "port": port,
                "record": encode_hex(kit.RECORD),
                "profile": encode_hex(kit.PROFILE),
                "vault": str(tmp_path / "vault"),
                "journal": str(tmp_path / f"{name}.db"),
            }
        )
    )
    return config


async def test_streams_of_a_killed_process_end_in_another_one(kit, network, tmp_path):
    """`kill -9` under eight streams: all go on in the other process with the ids that they would have had."""
    sender = await network.join(kit.BUYER, 20 * CREDIT)
    providers = {}
    for name in ("first", "second"):
        key, _, port, _ = await network.add_seller(name, kit.FakeGenerator())
        provider = ProviderProcess(write_config(kit, network, tmp_path, name, key, port))
        network.stack.push_async_callback(provider.kill)
        await provider.start()
        providers[key.address] = provider
    order = kit.build_order("long", params=kit.build_params(max_tokens=400))
    orders = [replace(order, nonce=sha256(b"stream%d" % number)) for number in range(8)]
    async with HttpClient() as http:
        directory = Directory(network.contracts, network.terms, http)
        network.stack.push_async_callback(directory.close)
        settings = BuyerSettings(resolve_interval_s=0.05)
        chain = LedgerChain(network.contracts, sender)
        buyer = Buyer(kit.BUYER, network.terms, settings, tmp_path / "buyer.db", chain, directory, http)
        async with buyer:
            streams = await asyncio.gather(*(buyer.purchase(order) for order in orders))
            victim = streams[0].provider
            cut = sum(stream.provider == victim for stream in streams)
            await providers[victim].kill()
            outputs = await asyncio.gather(*(read(stream) for stream in streams))
            for order, ids in zip(orders, outputs, strict=True):
                seed = seed_of(build_ask(order, kit.BUYER.address))
                assert ids == tuple(sample(seed, place) for place in range(400))
            assert {stream.provider for stream in streams} == providers.keys() - {victim}
            assert sum(stream.hops for stream in streams) == cut >= 1
            openings = [stream.opening for stream in streams]
            assert [opening.receipt.completion_tokens for opening in openings] == [400] * 8
            charged = {row.provider: row.state.charged for row in buyer.accounts}
            assert charged[victim] == 0
            assert sum(charged.values()) == sum(opening.receipt.fee for opening in openings)


async def test_killed_provider_loses_nothing_and_bills_nothing_twice(kit, network, tmp_path):
    key, _, port, _ = await network.add_seller("killed", kit.FakeGenerator())
    sender = await network.join(kit.BUYER, 20 * CREDIT)
    config = write_config(kit, network, tmp_path, "killed", key, port)
    provider = ProviderProcess(config)
    network.stack.push_async_callback(provider.kill)
    await provider.start()
    openings = []
    async with HttpClient() as http:
        directory = Directory(network.contracts, network.terms, http)
        network.stack.push_async_callback(directory.close)
        settings = BuyerSettings(resolve_interval_s=0.05, resumes_max=1)
        chain = LedgerChain(network.contracts, sender)
        buyer = Buyer(kit.BUYER, network.terms, settings, tmp_path / "buyer.db", chain, directory, http)
        async with buyer:
            for number in range(3):
                purchase = await buyer.purchase(kit.build_order(f"before {number}"))
                await read(purchase)
                openings.append(purchase.opening)
            # Four streams are open when the process dies.
            long = kit.build_params(max_tokens=1000)
            cut = await asyncio.gather(
                *(buyer.purchase(kit.build_order(f"cut {number}", params=long)) for number in range(4))
            )
            await provider.kill()
            results = await asyncio.gather(*(read(purchase) for purchase in cut), return_exceptions=True)
            assert [type(result) for result in results] == [UnavailableProvider] * 4  # nobody else is there
            await provider.start()
            account = await buyer.wallet.fetch_account(key.address)
            await kit.wait_for(lambda: account.state.reserved == 0)
            assert account.state.charged == sum(opening.receipt.fee for opening in openings)
            await directory.refresh()
            purchase = await buyer.purchase(kit.build_order("after"))
            await read(purchase)
            openings.append(purchase.opening)
            assert purchase.opening.receipt.counter == 8
            proofs = [await buyer.fetch_proof(opening, 20) for opening in openings]
            assert all(proof is not None for proof in proofs)
            await provider.stop()

            # What is on chain is the whole history, once, and what was claimed is what was charged.
            receipts = []
            for index in range(await network.contracts.receipts.batch_count(key.address)):
                batch = (await chain.fetch_batch(key.address, index)).batch
                data = (tmp_path / "vault" / batch.da_commitment.hex()).read_bytes()
                assert decode_batch(data)[0] == key.address
                receipts += [entry.receipt for entry in validate_batch(network.terms.protocol, batch, data)]
            validate_history(receipts)
            assert len(receipts) == 8
            failed = [receipt for receipt in receipts if receipt.state == State.FAILED_PROVIDER]
            assert [receipt.fee for receipt in failed] == [0] * 4
            money = await network.contracts.channels.balance_of(account.row.channel_id)
            assert money.total_claimed == account.state.charged == 4 * 67

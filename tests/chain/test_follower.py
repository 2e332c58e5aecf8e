"""A follower runs every block itself, agrees to the byte, and refuses whatever differs, with evidence."""

import asyncio
import json
from dataclasses import replace

import pytest
from chain_values import OPERATOR, USERS, transfer
from follower_values import CHAIN_ID, GENESIS, TO, following, include, make_history, producing

from deaios.chain.blocks import decode_header, header_record
from deaios.chain.consensus import DivergentBlock
from deaios.chain.evidence import decode_equivocation
from deaios.chain.genesis import compute_genesis_hash
from deaios.chain.pool import RefusedByPool
from deaios.chain.rpc import RpcFault
from deaios.chain.service import build_application
from deaios.chain.service.follower import INVALID_ANSWERS_MAX
from deaios.chain.service.source import RefusedSource, Source
from deaios.chain.service.witness import Diverged
from deaios.chain.store import holds_chain
from deaios.ledger.client.rpc import Rpc, UnavailableChain
from deaios.ledger.eip712 import sign_struct
from deaios.ledger.records import InvalidAnswer
from deaios.ledger.structs import header_domain
from deaios.primitives.errors import ConfigError
from deaios.runtime.http import serve

ANCHOR = compute_genesis_hash(GENESIS)


async def test_a_follower_catches_up_follows_and_agrees(tmp_path):
    async with producing(tmp_path / "chain.db") as (chain, url):
        contract = await make_history(chain, 12)
        async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR) as copy:
            await copy.reach(chain.head.number)
            await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
            await copy.reach(chain.head.number)
            assert copy.chain.head == chain.head
            assert copy.chain.state == chain.state
            assert copy.chain.state.slot(contract, 0) == chain.state.slot(contract, 0) > 0
            for number in range(chain.head.number + 1):
                assert await copy.chain.block(number) == await chain.block(number)
                assert await copy.chain.signed_header(number) == await chain.signed_header(number)
        height = chain.head.number
        await include(chain, transfer(USERS[3], CHAIN_ID, 1, TO, 5))
        # Opened again it needs no anchor, and goes on where it stopped.
        async with following(tmp_path / "copy.db", url) as copy:
            assert copy.chain.head.number == height
            await copy.reach(height + 1)
            assert copy.chain.head == chain.head


async def test_a_follower_of_a_follower_serves_the_same_bytes(tmp_path):
    async with producing(tmp_path / "chain.db") as (chain, url):
        await make_history(chain, 4)
        async with (
            following(tmp_path / "a" / "copy.db", url, genesis_hash=ANCHOR) as first,
            serve(build_application(first.chain)) as first_url,
            following(tmp_path / "b" / "copy.db", first_url, genesis_hash=ANCHOR) as second,
        ):
            await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
            await second.reach(chain.head.number)
            assert second.chain.head == chain.head
            async with Rpc(url) as here, Rpc(first_url) as there:
                for method, params in (
                    ("deaios_getBlocks", ["0x0", "0x3", 0]),
                    ("deaios_getBlocks", ["0x3", "0x0"]),
                    ("deaios_getGenesis", []),
                    ("deaios_getHeader", ["latest"]),
                    ("eth_getBlockByNumber", ["0x3", True]),
                    ("eth_getBlockReceipts", ["0x3"]),
                    ("eth_getLogs", [{"fromBlock": "0x0"}]),
                    ("eth_gasPrice", []),
                ):
                    assert await here.call(method, params) == await there.call(method, params), method


async def test_transactions_are_forwarded_and_seen_as_waiting(tmp_path):
    async with producing(tmp_path / "chain.db") as (chain, url):
        async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR) as copy:
            good, bad = transfer(USERS[0], CHAIN_ID, 0, TO, 7), transfer(USERS[0], CHAIN_ID + 1, 0, TO, 7)
            results = await copy.chain.submit([good.raw, bad.raw, b"\x02"])
            assert results[0] == good.hash
            assert all(isinstance(item, RpcFault) for item in results[1:])
            assert "invalid chain id" in str(results[1])
            nonce = copy.chain.pool.pending_nonce(USERS[0].address, copy.chain.state)
            await copy.reach(1)
            assert nonce == copy.chain.state.account(USERS[0].address).nonce == 1
            assert len(copy.chain.pool) == 0
            assert (await copy.chain.receipt(good.hash))[1].is_success
        async with following(tmp_path / "copy.db", url, forward=False) as copy:
            (refused,) = await copy.chain.submit([transfer(USERS[0], CHAIN_ID, 1, TO, 7).raw])
            assert isinstance(refused, RefusedByPool)
            assert chain.head.number == 1


async def test_nothing_is_followed_that_nobody_trusts(tmp_path):
    async with producing(tmp_path / "chain.db") as (_, url):
        for anchor, error, said in (
            (None, ConfigError, f"give --genesis-hash 0x{ANCHOR.hex()}"),
            (b"\1" * 32, DivergentBlock, "block 0 differs in hash"),
        ):
            with pytest.raises(error, match=said):
                async with following(tmp_path / "copy.db", url, genesis_hash=anchor):
                    pass
            assert not holds_chain(tmp_path / "copy.db")
        async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR):
            pass
        with pytest.raises(ConfigError, match="is a copy of"):
            async with following(tmp_path / "copy.db", url, genesis_hash=b"\1" * 32):
                pass


class Lying(Source):
    """A source between us and the true one that changes the answer with block `HEIGHT`."""

    HEIGHT = 3
    change = staticmethod(lambda block: None)

    async def fetch_batch(self, first, count, wait_ms=0):
        batch = await super().fetch_batch(first, count, wait_ms)
        for offset, block in enumerate(batch.texts):
            if first + offset == self.HEIGHT:
                self.change(block)
        return batch


def resigned(block, **fields):
    """The operator's own lie, in JSON."""
    header = replace(decode_header(bytes.fromhex(block.header[2:])), **fields)
    record = header_record(ANCHOR, header)
    block.header = "0x" + header.encoded.hex()
    block.signature = "0x" + sign_struct(OPERATOR, header_domain(CHAIN_ID), record).hex()


def drop_transaction(block):
    block.transactions = block.transactions[:-1]


def flip_signature(block):
    block.signature = block.signature[:20] + ("0" if block.signature[20] != "0" else "1") + block.signature[21:]


@pytest.mark.parametrize(
    ("change", "field", "operator_lied"),
    [
        (drop_transaction, "transactions_root", False),
        (flip_signature, "signature", False),
        (lambda block: resigned(block, state_commitment=b"\7" * 32), "state_commitment", True),
        (lambda block: resigned(block, gas_used=1), "gas_used", False),
        (lambda block: resigned(block, parent_hash=b"\7" * 32), "parent_hash", True),
    ],
    ids=["a transaction less", "another signature", "another state", "other gas", "another parent"],
)
async def test_a_lie_ends_the_follower_with_evidence(tmp_path, change, field, operator_lied):
    async with producing(tmp_path / "chain.db") as (chain, url):
        await make_history(chain, 5)

        class Liar(Lying):
            pass

        Liar.change = staticmethod(change)
        async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR, source_of=Liar) as copy:
            with pytest.raises(Diverged, match=f"block 3 differs in {field}") as caught:
                await copy.task
            assert copy.chain.head.number == 2
            evidence = json.loads(caught.value.evidence.read_bytes())
            assert (evidence["field"], evidence["number"], evidence["operatorLied"]) == (field, 3, operator_lied)
            assert evidence["theirs"] != evidence["ours"]
        # What it had is whole, and the true source is followed from there.
        async with following(tmp_path / "copy.db", url) as copy:
            await copy.reach(5)
            assert copy.chain.head.hash == (await chain.block(copy.chain.head.number)).header.hash


async def test_an_operator_that_starts_over_is_convicted_by_its_own_signatures(tmp_path):
    """The chain's file is lost and the operator begins again from the same genesis: other blocks, the same heights."""
    async with producing(tmp_path / "a" / "chain.db") as (chain, url):
        await make_history(chain, 4)
        await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
        height = chain.head.number
        async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR) as copy:
            await copy.reach(height)
    for blocks in (2, height + 2):
        async with producing(tmp_path / f"b{blocks}" / "chain.db") as (chain, url):
            for nonce in range(blocks):
                await include(chain, transfer(USERS[4], CHAIN_ID, nonce, TO, 9))
            async with following(tmp_path / "copy.db", url) as copy:
                with pytest.raises(Diverged, match="block 1 differs in hash") as caught:
                    await copy.task
                assert copy.chain.head.number == height
            proof = decode_equivocation(caught.value.evidence.read_bytes())
            assert proof.operator == OPERATOR.address
            assert proof.first.header.height == proof.second.header.height == 1


async def test_a_source_that_comes_and_goes_is_asked_again(tmp_path):
    async with producing(tmp_path / "chain.db") as (chain, url):
        await make_history(chain, 3)
        port = int(url.rpartition(":")[2])
        async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR) as copy:
            await copy.reach(3)
            height = copy.chain.head.number
    async with following(tmp_path / "copy.db", url) as copy:
        await seen(copy, lambda progress: progress.trouble)
        assert copy.chain.head.number == height
        with pytest.raises(UnavailableChain):
            await copy.chain.submit([transfer(USERS[3], CHAIN_ID, 0, TO, 5).raw])
        async with producing(tmp_path / "chain.db", port=port) as (chain, _):
            await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
            await copy.reach(chain.head.number)


async def seen(copy, predicate):
    async with asyncio.timeout(20):
        while not any(predicate(item) for item in copy.progress):
            await asyncio.sleep(0.01)


async def test_a_source_that_is_behind_is_waited_for(tmp_path):
    """A copy that stands lower than ours, on the same chain, is no other chain; what it gets later, we get."""
    async with producing(tmp_path / "chain.db") as (chain, url):
        await make_history(chain, 2)
        async with following(tmp_path / "low" / "copy.db", url, genesis_hash=ANCHOR) as low:
            await low.reach(2)
            low.task.cancel()
            await asyncio.gather(low.task, return_exceptions=True)
            await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
            async with following(tmp_path / "high" / "copy.db", url, genesis_hash=ANCHOR) as high:
                await high.reach(3)
            async with (
                serve(build_application(low.chain)) as low_url,
                following(tmp_path / "high" / "copy.db", low_url) as high,
            ):
                asked = asyncio.create_task(high.reach(4))
                low.task = asyncio.create_task(low.follower.run())
                await include(chain, transfer(USERS[3], CHAIN_ID, 1, TO, 5))
                await asked
                assert high.chain.head == chain.head


class Answering(Source):
    """Says something else to the batch that is asked for."""

    answers = ()

    async def _call(self, method, params):
        return await super()._call(method, params) if method == "deaios_getGenesis" else type(self).answer(params)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"head": "0x1"},
        {"head": "one", "previous": None, "blocks": []},
        {"head": "0x1", "previous": None, "blocks": [{"header": "0xzz", "signature": "0x", "transactions": []}]},
        {"head": "0x1", "previous": None, "blocks": [{"header": "0x", "signature": "0x", "transactions": "0x"}]},
        {"head": "0x1", "previous": {"header": "0xc0", "signature": "0x"}, "blocks": []},
        {"head": "0x1", "previous": None, "blocks": [{"header": "0x", "signature": "0x", "transactions": []}] * 300},
    ],
)
async def test_nonsense_is_asked_for_again_a_few_times_and_then_said(tmp_path, answer, monkeypatch):
    monkeypatch.setattr("deaios.chain.service.follower.BACKOFF_S", 0.001)

    class Nonsense(Answering):
        asked = 0

        @classmethod
        def answer(cls, _params):
            cls.asked += 1
            return answer

    async with (
        producing(tmp_path / "chain.db") as (_, url),
        following(tmp_path / "copy.db", url, genesis_hash=ANCHOR, source_of=Nonsense) as copy,
    ):
        with pytest.raises(InvalidAnswer):
            await copy.task
        # Where the frame is sound, the next batch is asked for beside the work on this one.
        assert INVALID_ANSWERS_MAX <= Nonsense.asked <= INVALID_ANSWERS_MAX * (1 + INVALID_ANSWERS_MAX)


async def test_a_node_that_is_no_chain_of_ours_is_refused(tmp_path):
    class Foreign(Source):
        async def fetch_genesis(self):
            return await self._call("deaios_getNothing", [])

    async with producing(tmp_path / "chain.db") as (_, url):
        with pytest.raises(RefusedSource, match="no embedded chain"):
            async with following(tmp_path / "copy.db", url, genesis_hash=ANCHOR, source_of=Foreign):
                pass
    with pytest.raises(UnavailableChain):
        async with following(tmp_path / "copy.db", "http://127.0.0.1:9", genesis_hash=ANCHOR):
            pass


async def test_blocks_are_served_in_bounded_batches(tmp_path):
    async with producing(tmp_path / "chain.db") as (chain, url):
        await make_history(chain, 3)
        async with Rpc(url) as rpc:
            head = hex(chain.sealed.number)
            everything = await rpc.call("deaios_getBlocks", ["0x0"])
            assert (everything["head"], everything["previous"]) == (head, None)
            assert [len(block["transactions"]) for block in everything["blocks"]] == [0, 1, 3, 3]
            part = await rpc.call("deaios_getBlocks", ["0x2", "0x1"])
            assert part["blocks"] == everything["blocks"][2:3]
            assert part["previous"] == {name: everything["blocks"][1][name] for name in ("header", "signature")}
            for first in ("0x63", "0x7fffffffffffffff", "0xffffffffffffffff"):
                beyond = await rpc.call("deaios_getBlocks", [first, "0xffffffffffffffff"])
                assert beyond == {"head": head, "previous": None, "blocks": []}
            waiting = asyncio.create_task(rpc.call("deaios_getBlocks", [hex(chain.sealed.number + 1), "0x5", 10_000]))
            await asyncio.sleep(0)
            await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
            assert len((await waiting)["blocks"]) == 1
            for params in (["0x0", "0x1", 15_001], ["0x0", "0x1", "0x1"], ["x"], ["0x0", "0x1", True]):
                with pytest.raises(Exception, match="-32602"):
                    await rpc.call("deaios_getBlocks", params)

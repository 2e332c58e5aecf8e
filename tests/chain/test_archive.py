"""Archives: what goes out comes in again, block for block or state for state; whatever is changed is refused."""

import asyncio
import io
import random
import sqlite3
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from chain_values import OPERATOR, USERS, transfer
from follower_values import CHAIN_ID, GENESIS, TO, following, include, make_history, producing
from msgspec import structs

from deaios.chain import archive
from deaios.chain.archive import ArchiveWriter, Compression, InvalidArchive, Kind, read_archive
from deaios.chain.blocks import Block
from deaios.chain.consensus import DivergentBlock
from deaios.chain.evidence import decode_equivocation
from deaios.chain.genesis import compute_genesis_hash
from deaios.chain.service import build_application
from deaios.chain.service.archive import RefusedRange, export_archive, import_archive
from deaios.chain.service.chain import RefusedPruned
from deaios.chain.service.inspection import InvalidChain, check_chain
from deaios.chain.service.witness import Diverged
from deaios.chain.store import ChainStore, holds_chain
from deaios.chain.tables import encode_logs, encode_transactions
from deaios.ledger.client.rpc import RefusedByChain
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.keys import Address
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

ANCHOR = compute_genesis_hash(GENESIS)
BLOCKS = 8


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """The file of a chain that has stopped."""
    path = tmp_path_factory.mktemp("history") / "chain.db"

    async def make():
        async with producing(path) as (chain, _):
            await make_history(chain, BLOCKS)

    asyncio.run(make())
    return path


async def bring_in(source, database, genesis_hash=ANCHOR):
    with ThreadPoolExecutor(3) as executor:
        return await import_archive(source, database, genesis_hash, executor=executor, clock=SystemClock())


def dump(path):
    """Everything that a chain's file says, but for what an operator alone keeps."""
    store = ChainStore(path)
    try:
        with store.snapshot():
            head = store.fetch_head()
            blocks = store.fetch_sealed(0, head.number + 1, 1 << 30)
            state = (list(store.iterate_codes()), list(store.iterate_accounts()), list(store.iterate_slots()))
            bodies = [store.fetch_block(block.number) for block in blocks]
            return blocks, bodies, state, store.fetch_commitment().digest()
    finally:
        store.close()


@pytest.mark.parametrize("compression", list(Compression))
async def test_blocks_go_out_and_are_run_again(history, tmp_path, compression):
    target = tmp_path / "blocks.archive"
    done = await export_archive(history, target, compression=compression)
    assert (done.genesis_hash, done.first, done.size_bytes) == (ANCHOR, 0, target.stat().st_size)
    assert [item.name for item in tmp_path.iterdir()] == [target.name]
    found = await bring_in(target, tmp_path / "copy.db")
    assert (found.executed, found.known, found.height, found.is_state) == (done.last, 1, done.last, False)
    assert dump(tmp_path / "copy.db") == dump(history)
    again = await bring_in(target, tmp_path / "copy.db", None)
    assert (again.executed, again.known) == (0, done.last + 1)
    checked = await check_chain(tmp_path / "copy.db", is_executing=True)
    assert (checked.height, checked.unsigned, checked.is_executed) == (done.last, 0, True)


async def test_parts_of_a_chain_follow_one_another(history, tmp_path):
    copy = tmp_path / "copy.db"
    await export_archive(history, tmp_path / "a", last=3)
    await export_archive(history, tmp_path / "b", first=3)
    with pytest.raises(InvalidArchive, match="goes on at block 3, this chain stands at 0"):
        await bring_in(tmp_path / "b", tmp_path / "empty.db")
    assert (await bring_in(tmp_path / "a", copy)).height == 3
    found = await bring_in(tmp_path / "b", copy, None)
    assert (found.known, found.executed) == (1, found.height - 3)
    assert dump(copy) == dump(history)
    with pytest.raises(RefusedRange, match="blocks 2 to 1000 asked for"):
        await export_archive(history, tmp_path / "c", first=2, last=1000)
    assert not (tmp_path / "c").exists()


async def test_an_archive_of_a_chain_that_nobody_trusts_is_refused(history, tmp_path):
    target = tmp_path / "blocks"
    await export_archive(history, target)
    with pytest.raises(ConfigError, match=f"--genesis-hash 0x{ANCHOR.hex()}"):
        await bring_in(target, tmp_path / "copy.db", None)
    with pytest.raises(DivergentBlock, match="block 0 differs in hash"):
        await bring_in(target, tmp_path / "copy.db", b"\1" * 32)
    assert not holds_chain(tmp_path / "copy.db")


async def test_a_cut_archive_gives_the_blocks_before_the_cut_and_a_whole_one_goes_on_there(history, tmp_path):
    target, copy = tmp_path / "blocks", tmp_path / "copy.db"
    await export_archive(history, target)
    data = target.read_bytes()
    target.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InvalidArchive, match="archive is cut"):
        await bring_in(target, copy)
    height = (await check_chain(copy, is_executing=True)).height
    assert 0 < height < BLOCKS
    target.write_bytes(data)
    found = await bring_in(target, copy)
    assert (found.known, found.executed) == (height + 1, found.height - height)


async def test_a_cancelled_export_leaves_nothing_and_a_cancelled_import_goes_on_later(history, tmp_path):
    target, copy = tmp_path / "blocks", tmp_path / "copy.db"

    def stop_at(number):
        def report(step):
            if step.done >= number:
                task.cancel()

        return report

    task = asyncio.create_task(export_archive(history, target, report=stop_at(1)))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []
    await export_archive(history, target)
    with ThreadPoolExecutor(3) as executor:
        task = asyncio.create_task(
            import_archive(target, copy, ANCHOR, executor=executor, clock=SystemClock(), report=stop_at(4))
        )
        with pytest.raises(asyncio.CancelledError):
            await task
    height = (await check_chain(copy, is_executing=True)).height
    assert 3 <= height < BLOCKS
    found = await bring_in(target, copy, None)
    assert (found.known, found.executed) == (height + 1, found.height - height)


async def test_every_cut_and_every_changed_byte_is_found(history, tmp_path):
    """By reading alone; a seeded choice of places and of bits."""
    target = tmp_path / "blocks"
    await export_archive(history, target, last=3)
    data, dice = target.read_bytes(), random.Random(5)
    whole = list(read_archive(io.BytesIO(data).read))
    assert [record.kind for record in whole] == [Kind.GENESIS, *[Kind.BLOCK] * 4]
    for size in {0, 1, len(data) - 1, *(dice.randrange(len(data)) for _ in range(100))}:
        with pytest.raises(InvalidArchive):
            list(read_archive(io.BytesIO(data[:size]).read))
    for _ in range(300):
        place = dice.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= 1 << dice.randrange(8)
        with pytest.raises(InvalidArchive):
            list(read_archive(io.BytesIO(bytes(changed)).read))
    with pytest.raises(InvalidArchive, match="bytes follow"):
        list(read_archive(io.BytesIO(data + b"\0").read))


def test_the_format_is_frozen():
    out = io.BytesIO()
    writer = ArchiveWriter(out.write, Compression.NONE)
    writer.put(Kind.GENESIS, b"{}")
    writer.put(Kind.BLOCK, archive.encode_block(b"header", b"signature", [b"one", b"two"]))
    writer.finish()
    assert (
        out.getvalue().hex()
        == (
            "446541494f5320636861696e0a0100"  # head: magic, version 1, no compression
            "01000000027b7d" + "c90c52742d2d6d50"  # genesis and its check
            "020000001bda86686561646572897369676e6174757265c8836f6e658374776f" + "9b789f03dfa81f43"
            "000000002bea880000000000000002a0aab0d98ffaa2933e47cab019900992c58e023566bfb5566a45c7fdcec71fce5d"
            "351ddd5a9e187e04"
        )
    )
    assert writer.size_bytes == len(out.getvalue())


def test_a_bomb_is_not_inflated():
    out = io.BytesIO()
    writer = ArchiveWriter(out.write)
    writer.put(Kind.GENESIS, b"{}")
    bomb = zlib.compress(bytes(archive.BLOCK_BYTES_MAX + 1), 1)
    writer._put(bytes((Kind.BLOCK,)) + len(bomb).to_bytes(4) + bomb)
    writer._put(writer._digest.digest()[: archive.CHECK_SIZE])
    with pytest.raises(InvalidArchive, match="inflates to more than"):
        list(read_archive(io.BytesIO(out.getvalue()).read))
    with pytest.raises(InvalidArchive, match="an archive takes"):
        writer.put(Kind.STATE, bytes(5000))
    assert list(read_archive(io.BytesIO(incompressible()).read))[-1].kind is Kind.SLOTS


def incompressible():
    """An archive whose bodies grow by being compressed."""
    out, dice = io.BytesIO(), random.Random(1)
    writer = ArchiveWriter(out.write)
    for kind, size in ((Kind.GENESIS, 10), (Kind.STATE, 10), (Kind.SLOTS, archive.CHUNK_BYTES_MAX)):
        writer.put(kind, dice.randbytes(size))
    writer.finish()
    return out.getvalue()


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ((Kind.BLOCK,), "record 0 has kind 2"),
        ((Kind.GENESIS, Kind.SLOTS), "record 1 has kind 6"),
        ((Kind.GENESIS, Kind.BLOCK, Kind.STATE), "record 2 has kind 3"),
        ((Kind.GENESIS, Kind.STATE, Kind.SLOTS, Kind.ACCOUNTS), "record 3 has kind 5"),
    ],
)
def test_records_in_another_order_are_refused(kinds, said):
    out = io.BytesIO()
    writer = ArchiveWriter(out.write)
    for kind in kinds:
        writer.put(kind, b"body")
    writer.finish()
    with pytest.raises(InvalidArchive, match=said):
        list(read_archive(io.BytesIO(out.getvalue()).read))


async def test_an_archive_of_another_history_is_refused_and_convicts_the_operator(history, tmp_path):
    """Two chains from one genesis under one key: the second one's archive meets the first one's copy."""
    await export_archive(history, tmp_path / "a", last=2)
    await bring_in(tmp_path / "a", tmp_path / "copy" / "chain.db")
    async with producing(tmp_path / "other.db") as (chain, _):
        await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
    await export_archive(tmp_path / "other.db", tmp_path / "b")
    with pytest.raises(Diverged, match="block 1 differs in hash") as caught:
        await bring_in(tmp_path / "b", tmp_path / "copy" / "chain.db", None)
    proof = decode_equivocation(caught.value.evidence.read_bytes())
    assert (proof.operator, proof.first.header.height) == (OPERATOR.address, 1)


async def test_a_state_begins_a_copy_that_follows_without_history(tmp_path):
    async with producing(tmp_path / "chain.db") as (chain, url):
        contract = await make_history(chain, BLOCKS)
        head = chain.head
        done = await export_archive(tmp_path / "chain.db", tmp_path / "state", is_state=True)
        assert (done.last, done.state_commitment) == (head.number, head.state_commitment)
        found = await bring_in(tmp_path / "state", tmp_path / "copy.db")
        assert (found.height, found.is_state, found.executed) == (head.number, True, 0)
        checked = await check_chain(tmp_path / "copy.db")
        assert (checked.height, checked.blocks, checked.oldest_block) == (head.number, 0, head.number + 1)
        async with following(tmp_path / "copy.db", url) as copy:
            assert copy.chain.state == chain.state
            assert copy.chain.state.slot(contract, 0)
            await include(chain, transfer(USERS[3], CHAIN_ID, 0, TO, 5))
            await copy.reach(chain.head.number)
            assert (copy.chain.head, copy.chain.state) == (chain.head, chain.state)
            with pytest.raises(RefusedPruned, match=f"keeps blocks from {head.number + 1} on"):
                await copy.chain.block(head.number)
            assert await copy.chain.signed_header(head.number) == await chain.signed_header(head.number)
            async with serve(build_application(copy.chain)) as copy_url:
                # Who has no history cannot give it; who has the state already can go on with it.
                async with following(tmp_path / "new" / "copy.db", copy_url, genesis_hash=ANCHOR) as new:
                    with pytest.raises(RefusedByChain, match="pruned history unavailable"):
                        await new.task
                await bring_in(tmp_path / "state", tmp_path / "second" / "copy.db")
                async with following(tmp_path / "second" / "copy.db", copy_url) as second:
                    await second.reach(chain.head.number)
                    assert second.chain.head == chain.head
        with pytest.raises(ConfigError, match="holds a chain already"):
            await bring_in(tmp_path / "state", tmp_path / "copy.db")
        with pytest.raises(ConfigError, match="only a chain from block 0 can be run again"):
            await check_chain(tmp_path / "copy.db", is_executing=True)


def rewrite(data, change):
    """An archive with its records changed by `change`, and checks that fit again: what a forger would hand out."""
    out = io.BytesIO()
    writer = ArchiveWriter(out.write)
    for record in read_archive(io.BytesIO(data).read):
        for kind, body in change(record.kind, record.body):
            writer.put(kind, body)
    writer.finish()
    return out.getvalue()


def with_other_row(kind, size, change):
    """Changes the first row of the first record of a kind."""

    def work(found, body):
        return [(found, change(body[:size]) + body[size:] if found is kind else body)]

    return work


FORGERIES = {
    "a richer account": (with_other_row(Kind.ACCOUNTS, 92, lambda row: row[:59] + b"\xff" + row[60:]), "state_comm"),
    "another word": (with_other_row(Kind.SLOTS, 84, lambda row: row[:83] + b"\xff"), "state_commitment"),
    "a zero word": (with_other_row(Kind.SLOTS, 84, lambda row: row[:52] + bytes(32)), "a word of zero"),
    "an account twice": (with_other_row(Kind.ACCOUNTS, 92, lambda row: row + row), "accounts do not rise"),
    "an account less": (with_other_row(Kind.ACCOUNTS, 92, lambda _row: b""), "state_commitment"),
    "no storage": (lambda kind, body: [] if kind is Kind.SLOTS else [(kind, body)], "state_commitment"),
    "no code": (lambda kind, body: [] if kind is Kind.CODES else [(kind, body)], "which is missing"),
    "other code": (
        lambda kind, body: [(kind, archive.encode_codes([b"\0"]) if kind is Kind.CODES else body)],
        "which is missing",
    ),
    "an unsigned header": (
        lambda kind, body: [
            (
                kind,
                archive.encode_state_head(archive.decode_state_head(body).header.encoded, bytes(65))
                if kind is Kind.STATE
                else body,
            )
        ],
        "differs in signature",
    ),
}


@pytest.fixture(scope="module")
def state_archive(history, tmp_path_factory):
    target = tmp_path_factory.mktemp("state") / "state"
    asyncio.run(export_archive(history, target, is_state=True))
    return target.read_bytes()


@pytest.mark.parametrize(("change", "said"), FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_state_is_refused_and_leaves_nothing(state_archive, tmp_path, change, said):
    (tmp_path / "state").write_bytes(rewrite(state_archive, change))
    with pytest.raises(Invalid, match=said):
        await bring_in(tmp_path / "state", tmp_path / "copy.db")
    assert not holds_chain(tmp_path / "copy.db")
    (tmp_path / "state").write_bytes(rewrite(state_archive, lambda kind, body: [(kind, body)]))
    assert (await bring_in(tmp_path / "state", tmp_path / "copy.db")).is_state


async def test_a_state_may_stop_at_any_record(state_archive, tmp_path):
    """As a command that is cancelled, or killed, in the middle: there is no chain then, and the import begins anew."""
    copy = tmp_path / "copy.db"
    dice = random.Random(3)
    for size in sorted(dice.randrange(100, len(state_archive)) for _ in range(5)):
        (tmp_path / "state").write_bytes(state_archive[:size])
        with pytest.raises(InvalidArchive):
            await bring_in(tmp_path / "state", copy)
        assert not holds_chain(copy)
    (tmp_path / "state").write_bytes(state_archive)
    assert (await bring_in(tmp_path / "state", copy)).is_state


SPOILERS = {
    "a balance": "UPDATE accounts SET balance = randomblob(32) WHERE address = (SELECT min(address) FROM accounts)",
    "a word": "DELETE FROM slots",
    "a missing block": "DELETE FROM blocks WHERE number = 3",
    "a signature": "UPDATE signed_headers SET signature = randomblob(65) WHERE height = 4",
    "no signature": "UPDATE signed_headers SET signature = NULL WHERE height = 4",
    "lanes": "UPDATE meta SET value = randomblob(2048) WHERE name = 'commitment'",
}


def copy_and_run(history, folder, statement, values=()):
    """A copy of a chain's file with one statement run on it."""
    copy = folder / "chain.db"
    copy.write_bytes(history.read_bytes())
    connection = sqlite3.connect(copy)
    assert connection.execute(statement, values).rowcount > 0
    connection.commit()
    connection.close()
    return copy


@pytest.mark.parametrize("statement", SPOILERS.values(), ids=SPOILERS)
async def test_a_spoiled_file_is_found(history, tmp_path, statement):
    copy = copy_and_run(history, tmp_path, statement)
    with pytest.raises(InvalidChain, match=r"block [0-9]+ differs in"):
        await check_chain(copy)


def with_first_receipt(**changes):
    def change(receipts):
        return (structs.replace(receipts[0], **changes), *receipts[1:])

    return change


BODIES = {
    "a sender": (with_first_receipt(sender=Address(b"\1" * 20)), "senders"),
    "gas": (with_first_receipt(gas_used=21_001), "gas_used"),
    "a missing log": (lambda receipts: tuple(structs.replace(item, logs=()) for item in receipts), "logs_root"),
    "a missing transaction": (lambda receipts: receipts[:-1], "transactions_root"),
    "a success that was none": (with_first_receipt(is_success=False), "receipt 0"),
    "a price": (with_first_receipt(price=1), "receipt 0"),
}


@pytest.mark.parametrize(("change", "field"), BODIES.values(), ids=BODIES)
async def test_a_spoiled_body_is_found(history, tmp_path, change, field):
    """What no header commits to, only running the block again finds."""
    store = ChainStore(history)
    block = store.fetch_block(4)
    store.close()
    spoiled = Block(block.header, change(block.receipts))
    values = (encode_transactions(spoiled), encode_logs(spoiled))
    copy = copy_and_run(history, tmp_path, "UPDATE bodies SET transactions = ?, logs = ? WHERE number = 4", values)
    if field == "receipt 0":
        await check_chain(copy)
    with pytest.raises(InvalidChain, match=f"block 4 differs in {field}"):
        await check_chain(copy, is_executing=field == "receipt 0")


async def test_flipped_bytes_in_the_file_never_surprise(history, tmp_path):
    """Seeded flips anywhere: found with a typed error, or in bytes that mean nothing; some of each."""
    data, dice = history.read_bytes(), random.Random(2)
    copy = tmp_path / "chain.db"
    outcomes = []
    for _ in range(25):
        changed = bytearray(data)
        changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        copy.write_bytes(changed)
        try:
            await check_chain(copy, is_executing=True)
            outcomes.append("sound")
        except (InvalidChain, ConfigError):
            outcomes.append("found")
    assert {"sound", "found"} == set(outcomes)

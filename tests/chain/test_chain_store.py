"""The file: what blocks leave in it, older versions, pruning, and records of what was given up."""

import sqlite3
from dataclasses import replace

import pytest
from chain_values import OPERATOR, USERS, transaction

from deaios.chain.blocks import compute_bloom, header_record
from deaios.chain.builder import Execution, next_context
from deaios.chain.evm import State
from deaios.chain.genesis import (
    ETHER,
    Allocation,
    Genesis,
    build_genesis_changes,
    build_genesis_commitment,
    build_genesis_header,
)
from deaios.chain.store import ChainStore
from deaios.chain.stored import Gone, LogQuery
from deaios.chain.strict import StrictEvm
from deaios.chain.tables import MIGRATIONS, merge_runs
from deaios.ledger.eip712 import hash_struct
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

# Logs 32 bytes of memory with the topics (input word, 2, 3).
EMITTER = Address(b"\xee" * 20)
CODE = bytes.fromhex("6003" + "6002" + "600035" + "6020" + "6000" + "a300")
GENESIS = Genesis(
    bytes(range(32)),
    OPERATOR.address,
    1_700_000_000,
    (*(Allocation(user.address, ETHER) for user in USERS), Allocation(EMITTER, 0, 1, CODE)),
)


class Grown:
    """A chain of some blocks, in memory and in a file."""

    def __init__(self, path):
        changes = build_genesis_changes(GENESIS)
        self.commitment = build_genesis_commitment(changes)
        first = build_genesis_header(GENESIS, self.commitment)
        self.state, self.evm, self.blocks = State(), StrictEvm(GENESIS.chain_id, GENESIS.gas_limit), []
        self.state.apply(changes)
        self.evm.load(self.state)
        self.head = first
        self.store = ChainStore(path)
        self.store.create(GENESIS, first, changes, self.commitment, hash_struct(header_record(first.hash, first)))

    def grow(self, *words):
        """One block with a log for each word, from users in turn, and a transfer that logs nothing."""
        execution = Execution(self.evm, next_context(self.head, self.head.timestamp + 1))
        for place, number in enumerate(words):
            user = USERS[place % len(USERS)]
            nonce = self.state.account(user.address).nonce + place // len(USERS)
            signed = transaction(user, GENESIS.chain_id, nonce, EMITTER, data=number.to_bytes(32), gas=60_000)
            execution.run(signed, user.address)
        built = execution.seal(self.state, self.commitment, self.head)
        digest = hash_struct(header_record(self.blocks[0].header.hash if self.blocks else self.head.hash, self.head))
        self.store.append(built.block, built.changes, built.commitment, digest, ())
        self.state.apply(built.changes)
        self.commitment, self.head = built.commitment, built.block.header
        self.blocks.append(built.block)
        return built.block


@pytest.fixture
def grown(tmp_path):
    chain = Grown(tmp_path / "chain.db")
    yield chain
    chain.store.close()


def hashes(block):
    return [receipt.transaction.hash for receipt in block.receipts]


def test_blocks_receipts_and_logs_come_back_as_they_were(grown):
    blocks = [grown.grow(5, 6, 5), grown.grow(), grown.grow(7)]
    for block in blocks:
        assert grown.store.fetch_block(block.header.number) == block
        for receipt in block.receipts:
            assert grown.store.fetch_receipt(receipt.transaction.hash) == (block.header, receipt)
    assert grown.store.fetch_receipt(b"\1" * 32) is None
    # The same eight bytes that transactions are found by, and another hash.
    assert grown.store.fetch_receipt(bytes(24) + hashes(blocks[0])[0][24:]) is None

    def positions(**wanted):
        found = grown.store.fetch_logs(LogQuery(0, 9, **wanted), 100)
        for item in found:
            block = blocks[item.number - 1]
            receipt = block.receipts[item.transaction_position]
            assert (item.block_hash, item.transaction_hash) == (block.header.hash, receipt.transaction.hash)
            assert item.log == receipt.logs[0]
        return [(item.number, item.position) for item in found]

    word = [number.to_bytes(32) for number in range(8)]
    assert positions() == [(1, 0), (1, 1), (1, 2), (3, 0)]
    assert positions(addresses=(EMITTER,), topics=((word[5], word[7]),)) == [(1, 0), (1, 2), (3, 0)]
    assert positions(topics=((), (word[2],), (word[3],))) == [(1, 0), (1, 1), (1, 2), (3, 0)]
    assert positions(topics=((), (word[3],))) == []
    assert positions(topics=((), (), (), ())) == []
    assert positions(addresses=(Address(b"\1" * 12 + EMITTER[-8:]),)) == []
    assert [item.position for item in grown.store.fetch_logs(LogQuery(1, 1), 2)] == [0, 1]


def test_a_file_of_version_1_becomes_one_of_version_2(grown, tmp_path):
    block, empty = grown.grow(5, 6, 5), grown.grow()
    waiting = transaction(USERS[0], GENESIS.chain_id, 9, EMITTER)
    old = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    old.executescript(MIGRATIONS[0] + "; PRAGMA user_version=1")
    for name in ("meta", "blocks", "signed_headers", "accounts", "slots", "codes"):
        for row in grown.store._writer.execute(f"SELECT * FROM {name}"):
            old.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(row))})", row)
    for receipt in block.receipts:
        row = (receipt.transaction.hash, 1, receipt.index, receipt.transaction.raw, receipt.sender, True)
        rest = (receipt.gas_used, receipt.gas_before, receipt.price.to_bytes(32), None, receipt.log_start, "")
        old.execute(f"INSERT INTO transactions VALUES ({','.join('?' * 12)})", (*row, *rest))
        (log,) = receipt.logs
        row = (1, receipt.log_start, receipt.transaction.hash, receipt.index, log.address, *log.topics, None, log.data)
        old.execute(f"INSERT INTO logs VALUES ({','.join('?' * 10)})", row)
    old.execute("INSERT INTO waiting VALUES (?, 4, ?, ?)", (waiting.hash, waiting.raw, USERS[0].address))
    old.close()
    for _ in range(2):  # converted once, then opened as it is
        store = ChainStore(tmp_path / "old.db")
        assert [store.fetch_block(number) for number in (1, 2)] == [block, empty]
        assert store.fetch_receipt(hashes(block)[1]) == (block.header, block.receipts[1])
        assert len(store.fetch_logs(LogQuery(0, 2, (EMITTER,)), 9)) == 3
        assert store.load_waiting() == [(4, waiting.raw, USERS[0].address)]
        assert store.load_state()[0] == grown.state
        tables = {row[0] for row in store._writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert not {"transactions_1", "logs_1", "waiting_1", "transactions"} & tables
        store.close()


def test_pruned_blocks_keep_their_headers_and_nothing_else(grown):
    blocks = [grown.grow(5), grown.grow(6), grown.grow(5, 7)]
    grown.store.prune(3)
    assert grown.store.oldest == grown.store.oldest_block() == 3
    for block in blocks[:2]:
        assert grown.store.fetch_header(block.header.number) == block.header
        assert grown.store.fetch_receipt(hashes(block)[0]) is None
    assert grown.store.fetch_block(3) == blocks[2]
    assert [item.number for item in grown.store.fetch_logs(LogQuery(0, 9, (EMITTER,)), 9)] == [3, 3]
    rows = grown.store._writer.execute("SELECT (SELECT count(*) FROM places), (SELECT count(*) FROM log_marks)")
    assert rows.fetchone() == (2, 3)
    grown.store.prune(3)
    grown.store.compact()
    assert grown.store.load_state()[0] == grown.state
    assert grown.store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_given_up_is_remembered_within_bounds_until_a_block_takes_it(grown, monkeypatch):
    first, second = keccak256(b"1"), keccak256(b"2")
    grown.store.put_waiting([(1, b"raw", USERS[0].address), (2, b"two", USERS[1].address)], [])
    grown.store.put_waiting([], [Gone(1, first, "evicted"), Gone(2, second, "")])
    assert grown.store.load_waiting() == []
    assert [grown.store.fetch_gone(item) for item in (first, second)] == ["evicted", None]
    block = grown.blocks[-1] if grown.blocks else grown.grow(5)
    following = replace(block.header, number=block.header.number + 1)
    grown.store.append(
        replace(block, header=following, receipts=()),
        build_genesis_changes(GENESIS),
        grown.commitment,
        b"\7" * 32,
        (),
        returned=[first],
    )
    assert grown.store.fetch_gone(first) is None
    monkeypatch.setattr("deaios.chain.store.GONE_MAX", 3)
    grown.store.put_waiting([], [Gone(0, number.to_bytes(32), "x") for number in range(5)])
    assert [grown.store.fetch_gone(number.to_bytes(32)) for number in (0, 1, 2)] == [None, None, "x"]


def test_the_bloom_lets_every_log_through_that_is_there(grown):
    block = grown.grow(5)
    assert block.header.logs_bloom == compute_bloom(block.receipts[0].logs)
    assert LogQuery(1, 1, (EMITTER,), (((5).to_bytes(32),),)).may_be_in(block.header)
    assert not LogQuery(1, 1, (), (((6).to_bytes(32),),)).may_be_in(block.header)


def test_runs_hold_the_numbers_that_were_given_and_no_others():
    assert merge_runs([]) == []
    assert merge_runs([7]) == [(7, 7)]
    assert merge_runs([5, 3, 4, 9, 11, 10, 1]) == [(1, 1), (3, 5), (9, 11)]


def test_a_block_ends_the_waiting_of_its_own_transactions_only(tmp_path):
    chain = Grown(tmp_path / "chain.db")
    waiting = [(number, b"\2" + bytes([number]), USERS[0].address) for number in (1, 2, 3, 4, 6, 9)]
    chain.store.put_waiting(waiting, ())
    built = Execution(chain.evm, next_context(chain.head, chain.head.timestamp)).seal(
        chain.state, chain.commitment, chain.head
    )
    digest = hash_struct(header_record(chain.head.hash, built.block.header))
    chain.store.append(built.block, built.changes, built.commitment, digest, (6, 2, 3))
    assert [arrival for arrival, _, _ in chain.store.load_waiting()] == [1, 4, 9]
    chain.store.close()

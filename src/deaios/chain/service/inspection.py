"""Checks a chain's file against itself and against its operator's signatures, and runs it all again where asked to.

Every header must follow its parent and carry the operator's signature; every body must have the roots, bloom and gas
that its header says, and senders that its signatures recover to; the state must have the last header's commitment. Run
again, every block must give the very receipts and logs on file. Nothing is written. Reads one snapshot, so the chain
may be running.
"""

import sqlite3
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deaios.chain.blocks import Block, BlockHeader, compute_bloom, compute_logs_root, decode_header
from deaios.chain.commitment import StateCommitment, encode_account_code_entry, encode_slot_entry
from deaios.chain.consensus import (
    DivergentBlock,
    Identity,
    SealedBlock,
    finalise_block,
    identify,
    recover_operator,
    validate_block,
    validate_header,
)
from deaios.chain.evm import EMPTY_CODE_HASH, State
from deaios.chain.genesis import (
    Genesis,
    build_genesis_changes,
    build_genesis_commitment,
    build_genesis_header,
    compute_genesis_hash,
)
from deaios.chain.selftest import run_selftest
from deaios.chain.service.archive import Report, Step, drive
from deaios.chain.service.follower import recover_senders
from deaios.chain.store import ChainStore, holds_chain
from deaios.chain.stored import StoredBlock
from deaios.chain.strict import StrictEvm
from deaios.ledger.transactions import decode_transaction
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.hashing import keccak256
from deaios.runtime.journal import is_world_fault

BLOCKS_STEP = 256
BYTES_STEP = 4 << 20
ENTRIES_STEP = 10_000


class InvalidChain(Invalid):
    """A chain's file that is not what its headers and its operator's signatures say."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found sound.

    Attributes:
        unsigned: blocks at the end that have no signature yet; a running operator has one for a moment.
        is_executed: was every block run again?
    """

    genesis_hash: bytes
    operator: bytes
    height: int
    oldest_block: int
    blocks: int
    transactions: int
    accounts: int
    slots: int
    unsigned: int
    state_commitment: bytes
    is_executed: bool


async def check_chain(database: Path, *, is_executing: bool = False, report: Report = lambda _step: None) -> Checked:
    """Check a chain's file.

    Args:
        database: the SQLite file.
        is_executing: also run every block again, from block 0 on.
        report: called after each step.

    Raises:
        ConfigError: the file holds no chain, or `is_executing` one that does not begin at block 0.
        InvalidChain: it is not sound; says what differs, at which height, with both values.
    """
    try:
        if not holds_chain(database):
            raise ConfigError(f"{database} holds no chain")
        store = ChainStore(database)
        try:
            return await drive(_check(store, is_executing=is_executing), report)
        finally:
            store.close()
    except (Invalid, msgspec.MsgspecError, sqlite3.DatabaseError) as error:
        if isinstance(error, InvalidChain) or (isinstance(error, sqlite3.Error) and is_world_fault(error)):
            raise
        raise InvalidChain(f"{database}: {error}") from error


class _Rerun:
    """The chain's blocks on an engine of our own."""

    def __init__(self, genesis: Genesis, header: BlockHeader) -> None:
        run_selftest()
        changes = build_genesis_changes(genesis)
        self.commitment = build_genesis_commitment(changes)
        self.state = State()
        self.state.apply(changes)
        self._evm = StrictEvm(genesis.chain_id, genesis.gas_limit)
        self._evm.load(self.state)
        self._head = header

    def follow(self, identity: Identity, sealed: SealedBlock, kept: Block) -> None:
        """Run the next block and compare its receipts."""
        senders = validate_block(identity, self.state, self._head, sealed, [item.sender for item in kept.receipts])
        built = finalise_block(self._evm, self.state, self.commitment, self._head, sealed, senders)
        for ours, theirs in zip(built.block.receipts, kept.receipts, strict=True):
            if ours != theirs:
                raise DivergentBlock(kept.header.number, f"receipt {ours.index}", str(theirs)[:500], str(ours)[:500])
        self.state.apply(built.changes)
        self.commitment = built.commitment
        self._head = built.block.header


def _check(store: ChainStore, *, is_executing: bool) -> Generator[Step, None, Checked]:
    genesis = store.load_genesis()
    assert genesis is not None, "the caller saw a chain in it"
    identity = identify(genesis, compute_genesis_hash(genesis))
    with store.snapshot():
        head, oldest = store.fetch_head(), store.oldest_block()
        assert head is not None, "a chain has a head"
        if is_executing and oldest:
            raise ConfigError(f"{store.path} keeps blocks from {oldest} on; only a chain from block 0 can be run again")
        rerun = _Rerun(genesis, build_genesis_header(genesis, build_genesis_commitment(build_genesis_changes(genesis))))
        parent: BlockHeader | None = None
        blocks = transactions = unsigned = 0
        for stored in _iterate(store, head.number):
            header = decode_header(stored.header)
            if stored.signature is None:
                unsigned += 1
            elif unsigned:
                raise DivergentBlock(header.number - 1, "signature", "none", "the operator's, as later blocks have it")
            _check_header(identity, parent, stored, has_body=header.number >= oldest)
            if header.number >= oldest:
                kept = store.fetch_block(header.number)
                assert kept is not None, "it was listed"
                _check_body(kept)
                if is_executing and parent is not None:
                    rerun.follow(identity, _seal(stored), kept)
                transactions += len(kept.receipts)
                blocks += 1
            parent = header
            yield Step("blocks", header.number + 1, head.number + 1)
        if parent is None or parent != head:
            raise DivergentBlock(head.number, "head", "a height that is missing", "every height up to it")
        accounts, slots = yield from _check_state(store, head)
        if is_executing and rerun.commitment.digest() != head.state_commitment:
            raise DivergentBlock(
                head.number, "state", encode_hex(head.state_commitment), encode_hex(rerun.commitment.digest())
            )
    return Checked(
        identity.genesis_hash,
        identity.operator,
        head.number,
        oldest,
        blocks,
        transactions,
        accounts,
        slots,
        unsigned,
        head.state_commitment,
        is_executing,
    )


def _iterate(store: ChainStore, last: int) -> Iterator[StoredBlock]:
    number = 0
    while number <= last:
        found = store.fetch_sealed(number, BLOCKS_STEP, BYTES_STEP)
        if not found:
            # A file that began with a state has no header below it.
            number += BLOCKS_STEP
            continue
        yield from found
        number = found[-1].number + 1


def _seal(stored: StoredBlock) -> SealedBlock:
    transactions = tuple(decode_transaction(raw) for raw in stored.raws)
    return SealedBlock(decode_header(stored.header), stored.signature or b"", transactions)


def _check_header(identity: Identity, parent: BlockHeader | None, stored: StoredBlock, *, has_body: bool) -> None:
    sealed = _seal(stored)
    header = sealed.header
    if header.number == 0 and header.hash != identity.genesis_hash:
        raise DivergentBlock(0, "hash", encode_hex(header.hash), encode_hex(identity.genesis_hash))
    if parent is not None and (header.number, header.parent_hash) != (parent.number + 1, parent.hash):
        raise DivergentBlock(header.number, "parent_hash", encode_hex(header.parent_hash), encode_hex(parent.hash))
    if stored.signature is not None:
        signer = recover_operator(identity, header, stored.signature)
        if signer != identity.operator:
            text = encode_hex(signer) if isinstance(signer, bytes) else signer
            raise DivergentBlock(header.number, "signature", text, encode_hex(identity.operator))
        if parent is not None and has_body:
            validate_header(identity, parent, sealed)


def _check_body(kept: Block) -> None:
    header, receipts = kept.header, kept.receipts
    sealed = SealedBlock(header, b"", tuple(receipt.transaction for receipt in receipts))
    found = {
        "senders": [receipt.sender for receipt in receipts],
        "gas_used": sum(receipt.gas_used for receipt in receipts),
        "logs_root": encode_hex(compute_logs_root(receipts)),
        "logs_bloom": encode_hex(compute_bloom(log for receipt in receipts for log in receipt.logs)),
    }
    expected = {
        "senders": recover_senders(sealed),
        "gas_used": header.gas_used,
        "logs_root": encode_hex(header.logs_root),
        "logs_bloom": encode_hex(header.logs_bloom),
    }
    for field, value in expected.items():
        if found[field] != value:
            raise DivergentBlock(header.number, field, str(found[field])[:500], str(value)[:500])


def _check_state(store: ChainStore, head: BlockHeader) -> Generator[Step, None, tuple[int, int]]:
    """The commitment of accounts and words on file, counted; the one kept beside them is the same."""
    codes = {EMPTY_CODE_HASH}
    for code_hash, code in store.iterate_codes():
        if keccak256(code) != code_hash:
            raise InvalidChain(f"code {encode_hex(code_hash)} hashes to {encode_hex(keccak256(code))}")
        codes.add(code_hash)
    commitment, chunk = StateCommitment(), list[bytes]()
    counts = [0, 0]

    def entries() -> Iterator[tuple[int, bytes]]:
        for row in store.iterate_accounts():
            if row[3] not in codes:
                raise InvalidChain(f"account {encode_hex(row[0])} has code {encode_hex(row[3])}, which is missing")
            yield 0, encode_account_code_entry(*row)
        for word in store.iterate_slots():
            yield 1, encode_slot_entry(*word)

    for kind, entry in entries():
        counts[kind] += 1
        chunk.append(entry)
        if len(chunk) == ENTRIES_STEP:
            commitment = commitment.added(chunk)
            chunk.clear()
            yield Step("entries of state", sum(counts), 0)
    commitment = commitment.added(chunk)
    for found in (commitment, store.fetch_commitment()):
        if found.digest() != head.state_commitment:
            raise DivergentBlock(
                head.number, "state_commitment", encode_hex(head.state_commitment), encode_hex(found.digest())
            )
    return counts[0], counts[1]

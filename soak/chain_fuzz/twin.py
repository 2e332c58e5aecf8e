"""One stream of transactions into both chains, and everything that must be equal afterwards.

Ours is the product's pool, block builder, commitment and engine in this process; the other is anvil under Cancun rules.
Both have the same coinbase with the same money, so that fees need no exception: base fee, burnt fees and tips are
compared as part of headers and balances. Three things are not compared, because they cannot be equal: block hashes
and the roots in them (the embedded chain keeps no trie), block times and PREVRANDAO (anvil rolls the latter; both are
handed to our builder). Errors of refused transactions are recorded, not compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec

from deaios.chain.blocks import BLOOM_BYTES, BlockHeader, Receipt, next_base_fee
from deaios.chain.builder import build_block, next_context
from deaios.chain.commitment import StateCommitment
from deaios.chain.evm import Account, BlockContext, Changes, Message, Outcome, State
from deaios.chain.pool import Pool, PoolLimits
from deaios.chain.rendering import render_receipt
from deaios.chain.strict import StrictEvm
from deaios.ledger.transactions import Transaction, decode_transaction, recover_sender, validate_chain_id
from deaios.primitives.errors import DeaiosError
from deaios.primitives.hashing import ZERO32, keccak256
from deaios.primitives.keys import Address
from soak.chain_fuzz.foreign import CHAIN_ID, GAS_LIMIT, ForeignError, ForeignNode

NOT_COMPARED = ("blockHash",)


class Mismatch(Exception):
    """The two chains differ."""


class WatchedEvm(StrictEvm):
    """The engine under test, handed anvil's PREVRANDAO; it keeps each outcome, for counting."""

    def __init__(self) -> None:
        super().__init__(CHAIN_ID, GAS_LIMIT)
        self.prevrandao = ZERO32
        self.outcomes: list[Outcome] = []

    def execute(self, context: BlockContext, message: Message) -> Outcome:
        """As the engine does."""
        outcome = super().execute(replace(context, prevrandao=self.prevrandao), message)
        self.outcomes.append(outcome)
        return outcome


@dataclass(frozen=True)
class Offer:
    """What either chain said to a transaction: None for taking it."""

    ours: str | None
    theirs: str | None


class Twin:
    """The two chains, block by block."""

    def __init__(self, node: ForeignNode, coinbase: Address) -> None:
        self.node = node
        node.rpc("anvil_setCoinbase", "0x" + coinbase.hex())
        self._time_s = int(node.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        self._mine_theirs(1)
        self.state = State()
        self.engine = WatchedEvm()
        self.commitment = StateCommitment()
        self.pool = Pool(PoolLimits(), GAS_LIMIT)
        self.reload()

    @property
    def base_fee(self) -> int:
        """Of the next block."""
        return next_base_fee(self.head)

    def reload(self) -> None:
        """Take over the foreign node's head and state."""
        self.head = _read_header(self.node.rpc("eth_getBlockByNumber", "latest", False))
        self.state = _read_state(self.node.dump())
        self.engine = WatchedEvm()
        self.engine.load(self.state)
        self.commitment = _commit_whole(self.state)

    def put_balance(self, address: Address, balance: int) -> None:
        """Give an account this much, on both chains."""
        self.node.rpc("anvil_setBalance", "0x" + address.hex(), hex(balance))
        self.engine.put_account(address, msgspec.structs.replace(self.state.account(address), balance=balance))
        changes = self.engine.commit()
        self.commitment = self.commitment.updated(self.state, changes)
        self.state.apply(changes)

    def call(self, message: Message) -> Outcome:
        """Run a message on our side and forget it."""
        return self.engine.call(next_context(self.head, self._time_s), message)

    def offer(self, raw: bytes) -> Offer:
        """Send a transaction to both pools."""
        ours = theirs = None
        try:
            transaction = decode_transaction(raw)
            validate_chain_id(transaction, CHAIN_ID)
            self.pool.add(transaction, recover_sender(transaction), self.state, self.base_fee)
        except DeaiosError as error:
            ours = str(error)
        try:
            self.node.rpc("eth_sendRawTransaction", "0x" + raw.hex())
        except ForeignError as error:
            theirs = f"{error.code} {error}"
        return Offer(ours, theirs)

    def drop(self, transaction: Transaction) -> None:
        """Take a transaction out of the foreign pool, because ours refused it on purpose."""
        self.node.rpc("anvil_dropTransaction", "0x" + transaction.hash.hex())

    def mine(self, wait_s: int) -> list[tuple[Receipt, Outcome]]:
        """One block of all that waits, on both chains, compared in everything.

        Raises:
            Mismatch: they differ.
        """
        self._mine_theirs(wait_s)
        block = self.node.rpc("eth_getBlockByNumber", "latest", False)
        self.engine.prevrandao = bytes.fromhex(block["mixHash"][2:])
        self.engine.outcomes.clear()
        candidates = self.pool.candidates(self.state, self.base_fee)
        built = build_block(
            self.engine, self.state, self.commitment, self.head, candidates, int(block["timestamp"], 16)
        )
        receipts = built.block.receipts
        for transaction in [item.transaction for item in receipts] + [item.transaction for item, _ in built.dropped]:
            self.pool.remove(transaction.hash)
        self.state.apply(built.changes)
        self.commitment = built.commitment
        self.head = built.block.header
        if built.dropped:
            raise Mismatch(f"our builder dropped what anvil ran: {[reason for _, reason in built.dropped]}")
        self._compare_block(block, receipts)
        self._compare_changes(built.changes)
        return list(zip(receipts, self.engine.outcomes, strict=True))

    def compare_state(self) -> None:
        """Every account and word that either chain knows of, whoever wrote it.

        Raises:
            Mismatch: they differ.
        """
        theirs = _read_state(self.node.dump())
        wrong = [
            f"account 0x{address.hex()}: ours {_show(ours)}, anvil's {_show(other)}"
            for address in sorted(self.state.accounts.keys() | theirs.accounts.keys())
            if (ours := self.state.account(address)) != (other := theirs.account(address))
        ]
        for address in sorted(self.state.slots.keys() | theirs.slots.keys()):
            words, others = self.state.slots.get(address, {}), theirs.slots.get(address, {})
            wrong += [
                f"slot {slot:#x} of 0x{address.hex()}: ours {words.get(slot, 0):#x}, anvil's {others.get(slot, 0):#x}"
                for slot in sorted(words.keys() | others.keys())
                if words.get(slot, 0) != others.get(slot, 0)
            ]
        if wrong:
            raise Mismatch("state differs: " + "; ".join(wrong[:8]))

    def compare_commitment(self) -> None:
        """The commitment that grew block by block is that of the whole state.

        Raises:
            Mismatch: it is not.
        """
        if self.commitment.digest() != _commit_whole(self.state).digest():
            raise Mismatch("the running commitment is not the commitment of the state")

    def _compare_changes(self, changes: Changes) -> None:
        """What our block wrote, as the other chain has it."""
        reads: list[tuple[str, tuple[str, ...], str]] = []
        for address, account in changes.accounts.items():
            name = "0x" + address.hex()
            reads.append(("eth_getBalance", (name, "latest"), hex(account.balance)))
            reads.append(("eth_getTransactionCount", (name, "latest"), hex(account.nonce)))
            reads.append(("eth_getCode", (name, "latest"), "0x" + account.code.hex()))
        for (address, slot), value in changes.slots.items():
            word = "0x" + value.to_bytes(32).hex()
            reads.append(("eth_getStorageAt", ("0x" + address.hex(), hex(slot), "latest"), word))
        answers = self.node.rpc_many([(method, params) for method, params, _ in reads])
        wrong = [
            f"{method} {params}: ours {ours}, anvil's {other}"
            for (method, params, ours), other in zip(reads, answers, strict=True)
            if ours != other
        ]
        if wrong:
            raise Mismatch("state differs after the block: " + "; ".join(sorted(wrong)[:8]))

    def _mine_theirs(self, wait_s: int) -> None:
        self._time_s += wait_s
        self.node.rpc("evm_setNextBlockTimestamp", self._time_s)
        self.node.rpc("evm_mine")

    def _compare_block(self, block: dict[str, Any], receipts: Sequence[Receipt]) -> None:  # Any: JSON
        hashes = ["0x" + receipt.transaction.hash.hex() for receipt in receipts]
        if hashes != block["transactions"]:
            raise Mismatch(f"blocks hold other transactions: ours {hashes}, anvil's {block['transactions']}")
        if (ours := replace(self.head, **_OUR_OWN)) != replace(_read_header(block), **_OUR_OWN):
            raise Mismatch(f"headers differ: {_name_differences(ours, _read_header(block))}")
        theirs = self.node.rpc("eth_getBlockReceipts", block["number"])
        for position, (receipt, other) in enumerate(zip(receipts, theirs, strict=True)):
            rendered = render_receipt(receipt, self.head)
            if wrong := _find_differences(rendered, other):
                raise Mismatch(f"transaction {position} of the block: {'; '.join(wrong)}")


_OUR_OWN: dict[str, Any] = {  # Any: fields of several types
    "parent_hash": ZERO32, "state_commitment": ZERO32, "transactions_root": ZERO32, "logs_root": ZERO32,
    "prevrandao": ZERO32,
}  # fmt: skip


def _find_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:  # Any: JSON
    wrong = []
    for key in ours.keys() - set(NOT_COMPARED):
        a, b = ours[key], theirs.get(key)
        if key == "logs" and len(a) == len(b):
            for one, other in zip(a, b, strict=True):
                wrong += [f"log {text}" for text in _find_differences(one, other)]
        elif a != b:
            wrong.append(f"{key}: ours {a}, anvil's {b}")
    return sorted(wrong)


def _name_differences(ours: BlockHeader, theirs: BlockHeader) -> str:
    wrong = [field.name for field in fields(ours) if getattr(ours, field.name) != getattr(theirs, field.name)]
    return "; ".join(f"{name}: ours {getattr(ours, name)}, anvil's {getattr(theirs, name)}" for name in wrong)


def _read_header(block: dict[str, Any]) -> BlockHeader:  # Any: JSON
    return BlockHeader(
        parent_hash=ZERO32,
        coinbase=Address(bytes.fromhex(block["miner"][2:])),
        state_commitment=ZERO32,
        transactions_root=ZERO32,
        logs_root=ZERO32,
        # anvil leaves out the bloom's leading zeros where there are no logs at all
        logs_bloom=bytes.fromhex(block["logsBloom"][2:]).rjust(BLOOM_BYTES, b"\0"),
        number=int(block["number"], 16),
        gas_limit=int(block["gasLimit"], 16),
        gas_used=int(block["gasUsed"], 16),
        timestamp=int(block["timestamp"], 16),
        extra_data=bytes.fromhex(block["extraData"][2:]),
        prevrandao=ZERO32,
        base_fee=int(block["baseFeePerGas"], 16),
    )


def _read_state(dump: dict[str, Any]) -> State:  # Any: JSON
    """A foreign dump without what counts as nothing: empty accounts and zero words."""
    state = State()
    for name, item in dump.items():
        address = Address(bytes.fromhex(name[2:]))
        code = bytes.fromhex(item["code"][2:])
        account = Account(int(str(item["nonce"]), 0), int(item["balance"], 16), code, keccak256(code))
        if not account.is_empty:
            state.accounts[address] = account
        if slots := {int(key, 16): int(value, 16) for key, value in item["storage"].items() if int(value, 16)}:
            state.slots[address] = slots
    return state


def _commit_whole(state: State) -> StateCommitment:
    slots = {(address, slot): value for address, words in state.slots.items() for slot, value in words.items()}
    return StateCommitment().updated(State(), Changes(dict(state.accounts), slots))


def _show(account: Account) -> str:
    return f"nonce {account.nonce}, balance {account.balance}, {len(account.code)} bytes of code"

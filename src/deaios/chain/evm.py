"""What the chain asks of an EVM: six methods, and the values that cross them.

An engine holds a working state that starts from `load` and moves with every `execute`. It never decides which
transactions run, never keeps history, and knows neither signatures nor blocks beyond their context.

What is made several times for each transaction is a `msgspec.Struct`: a fifth of a frozen dataclass' time, and left
out of garbage collection, because it holds no cycles.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from deaios.ledger.transactions import AccessList
from deaios.primitives.errors import Invalid, Unavailable
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

EMPTY_CODE_HASH = keccak256(b"")


class UnavailableEngine(Unavailable):
    """The engine on this machine does not behave as the one this program was written for."""


class InvalidMessage(Invalid):
    """A message that cannot start: it would not be a valid transaction."""


class Account(msgspec.Struct, frozen=True, gc=False):
    """An account without its storage. All zero and no code is the same as no account (EIP-161)."""

    nonce: int = 0
    balance: int = 0
    code: bytes = b""
    code_hash: bytes = EMPTY_CODE_HASH

    @property
    def is_empty(self) -> bool:
        """Indistinguishable from an account that never was."""
        return not self.nonce and not self.balance and not self.code


NO_ACCOUNT = Account()


@dataclass(slots=True)
class State:
    """Every account and every slot that is not zero. Held in memory, about 210 bytes a slot, and 170 in the engine.

    Attributes:
        slot_count: of all accounts together, as `apply` and whoever loads a state keep it.
    """

    accounts: dict[Address, Account] = field(default_factory=dict)
    slots: dict[Address, dict[int, int]] = field(default_factory=dict)
    slot_count: int = field(default=0, compare=False)

    def account(self, address: Address) -> Account:
        """The account, or `NO_ACCOUNT`."""
        return self.accounts.get(address, NO_ACCOUNT)

    def slot(self, address: Address, slot: int) -> int:
        """A storage word; zero when never written."""
        slots = self.slots.get(address)
        return slots.get(slot, 0) if slots else 0

    def apply(self, changes: "Changes") -> None:
        """Take over the writes of a block."""
        for address, account in changes.accounts.items():
            if account.is_empty:
                self.accounts.pop(address, None)
            else:
                self.accounts[address] = account
        for (address, slot), value in changes.slots.items():
            if value:
                slots = self.slots.setdefault(address, {})
                self.slot_count += slot not in slots
                slots[slot] = value
            elif (known := self.slots.get(address)) and known.pop(slot, None) is not None:
                self.slot_count -= 1
                if not known:
                    del self.slots[address]


@dataclass(slots=True)
class Changes:
    """Final values of what was written: an empty account and a zero word mean removed."""

    accounts: dict[Address, Account] = field(default_factory=dict)
    slots: dict[tuple[Address, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What code can read of the block it runs in."""

    number: int
    timestamp: int
    gas_limit: int
    base_fee: int
    coinbase: Address
    prevrandao: bytes


class Message(msgspec.Struct, frozen=True, gc=False):
    """A transaction as the engine sees it: sender recovered, price settled.

    Attributes:
        price: wei per gas that the sender pays and GASPRICE reads.
    """

    sender: Address
    to: Address | None
    data: bytes
    value: int
    gas: int
    price: int = 0
    access_list: AccessList = ()


class Status(Enum):
    """How a message ended."""

    SUCCESS = "success"
    REVERT = "revert"
    HALT = "halt"
    """Out of gas, invalid opcode and their like: all gas is used."""


class Log(msgspec.Struct, frozen=True, gc=False):
    """One event."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a message did.

    Attributes:
        gas_used: after refunds.
        gas_refunded: what was given back, already capped (EIP-3529).
        output: return data, revert data, or the deployed code.
        created: the new contract of a creating message that succeeded.
        reason: why it halted, in the engine's words or this program's refusal; empty otherwise.
        is_refused: halted because this engine cannot run it exactly.
    """

    status: Status
    gas_used: int
    gas_refunded: int = 0
    output: bytes = b""
    logs: tuple[Log, ...] = ()
    created: Address | None = None
    reason: str = ""
    is_refused: bool = False


class Evm(Protocol):
    """An execution engine for one chain."""

    def load(self, state: State) -> None:
        """Take a state as the starting point and keep reading it; the caller applies what `commit` returns to it."""

    def execute(self, context: BlockContext, message: Message) -> Outcome:
        """Run a paid transaction on the working state: fee, nonce, refund and coinbase included."""

    def call(self, context: BlockContext, message: Message) -> Outcome:
        """Run a message and forget what it changed."""

    def probe(self, context: BlockContext, message: Message) -> tuple[Outcome, AccessList]:
        """Run a message and forget what it changed, but for which accounts and words it looked at.

        What only reverted calls looked at is not among them; of a message that fails, nothing is.
        """

    def put_account(self, address: Address, account: Account) -> None:
        """Write an account outside any transaction."""

    def put_slot(self, address: Address, slot: int, value: int) -> None:
        """Write a storage word outside any transaction."""

    def commit(self) -> Changes:
        """Everything written since the last commit; the working state stays."""

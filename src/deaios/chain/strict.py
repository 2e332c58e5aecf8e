"""The embedded engine: pyrevm 0.3.7 in strict mode, exact to Cancun's gas except BASEFEE and BLOCKHASH.

Used the obvious way, that wheel keeps one journal open for ever: slots stay warm, refunds go wrong, memory leaks.
Strict mode runs each message between `snapshot` and `revert` on an empty journal, reads what it wrote from the
journal's debug text, and writes that back into the wheel's database and into our own state. Fees, nonces and the
coinbase are settled here, because the wheel leaves them out. One thread at a time; the interpreter lock is held while
a message runs. Gas rules: EIP-2929, 2200, 3529, 3651, 3860, 1153, 6780, 1559.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyrevm
from msgspec.structs import replace

from deaios.chain.evm import (
    EMPTY_CODE_HASH,
    NO_ACCOUNT,
    Account,
    BlockContext,
    Changes,
    InvalidMessage,
    Log,
    Message,
    Outcome,
    State,
    Status,
    UnavailableEngine,
)
from deaios.chain.journal_text import TouchedAccount, has_created, read_journal, validate_code
from deaios.chain.opcodes import explain_refusal, find_forbidden_opcode
from deaios.ledger.transactions import AccessList
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address

_REVERTED = re.compile(r"Revert \{ gas_used: (\d+), output: 0x([0-9a-f]*) \}")
_HALTED = re.compile(r"Halt \{ reason: (.+), gas_used: (\d+) \}")
_REJECTED = re.compile(r"Transaction\((.+)\)|Initial gas spend is \d+ but gas limit is \d+.*", re.DOTALL)
_AccountInfo: Any = pyrevm.AccountInfo  # Any: the wheel's stub lists other arguments than its constructor takes
_PRECOMPILES = frozenset(Address(number.to_bytes(20)) for number in range(1, 11))
UNOBSERVED = "the sender's balance is below twice the gas cost and the code reads both it and GASPRICE"


@dataclass(slots=True)
class _Run:
    """A raw result and the journal it left.

    Attributes:
        touched: None where no code ran and nothing was created.
        shifts: wei to add to balances in `touched`, to undo how the run was bent.
    """

    outcome: Outcome
    touched: list[TouchedAccount] | None
    shifts: tuple[tuple[Address, int], ...] = ()


@lru_cache(maxsize=16_384)
def _hex(address: Address) -> str:
    return "0x" + address.hex()


class StrictEvm:
    """`Evm` over one pyrevm instance."""

    def __init__(self, chain_id: int, gas_limit: int) -> None:
        """Make an engine with an empty state.

        Args:
            chain_id: what CHAINID reads.
            gas_limit: what GASLIMIT reads, in every block.
        """
        environment = pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=chain_id))
        self._evm = pyrevm.EVM(env=environment, spec_id="CANCUN", gas_limit=gas_limit)
        self._no_transaction = pyrevm.TxEnv()
        self._base = State()
        self._changes = Changes()
        self._context: BlockContext | None = None
        self._code_sizes: dict[str, int] = {}

    def load(self, state: State) -> None:
        """Take a state as the starting point and keep reading it; the caller applies what `commit` returns to it."""
        self._base = state
        self._changes = Changes()
        for address, account in state.accounts.items():
            self._insert(address, account)
        snapshot, revert, put = self._evm.snapshot, self._evm.revert, self._evm.insert_account_storage
        for address, slots in state.slots.items():
            name = _hex(address)
            for slot, value in slots.items():
                checkpoint = snapshot()  # see `_store`
                put(name, slot, value)
                revert(checkpoint)

    def put_account(self, address: Address, account: Account) -> None:
        """Write an account outside any transaction."""
        if account != self._account(address):
            self._changes.accounts[address] = account
            self._insert(address, account)

    def put_slot(self, address: Address, slot: int, value: int) -> None:
        """Write a storage word outside any transaction."""
        self._changes.slots[address, slot] = value
        self._store([(address, slot, value)])

    def commit(self) -> Changes:
        """Everything written since the last commit; the working state stays."""
        changes, self._changes = self._changes, Changes()
        return changes

    def execute(self, context: BlockContext, message: Message) -> Outcome:
        """Run a paid transaction on the working state: fee, nonce, refund and coinbase included.

        Raises:
            InvalidMessage: the sender cannot pay, or another rule that the caller should have checked.
        """
        self._enter(context)
        sender = self._account(message.sender)
        if sender.code:
            raise InvalidMessage(f"sender 0x{message.sender.hex()} is a contract (EIP-3607)")
        cost = message.gas * message.price
        if sender.balance < cost + message.value:
            raise InvalidMessage(f"sender has {sender.balance} wei, {cost + message.value} needed")
        if message.price < context.base_fee:
            raise InvalidMessage(f"gas price {message.price} is below the base fee {context.base_fee}")
        try:
            if message.to is None:
                run = self._run_creation(context, message, sender)
            else:
                run = self._run_paid(message, sender)
        except Invalid:
            self._insert(message.sender, sender)
            raise
        outcome = run.outcome
        if outcome.status is Status.SUCCESS and (refusal := self._find_refusal(run.touched)):
            outcome = _refuse(message.gas, refusal)
        if outcome.status is Status.SUCCESS:
            # The run saw the cost as paid; `_settle` takes what was really used.
            self._write(message, run.touched, (*run.shifts, (message.sender, cost)))
        self._settle(context, message, outcome.gas_used, sender.nonce + 1)
        return outcome

    def call(self, context: BlockContext, message: Message) -> Outcome:
        """Run a message and forget what it changed.

        Raises:
            InvalidMessage: value or gas that the sender does not have, or a limit of the protocol.
        """
        return self._call(context, message)[0]

    def probe(self, context: BlockContext, message: Message) -> tuple[Outcome, AccessList]:
        """Run a message and forget what it changed, but for which accounts and words it looked at.

        Raises:
            InvalidMessage: as `call`.
        """
        outcome, touched = self._call(context, message, keeps_journal=True)
        if outcome.status is not Status.SUCCESS:
            return outcome, ()
        return outcome, tuple(
            sorted(
                (item.address, tuple(sorted(slot for slot, _, _ in item.slots)))
                for item in touched or ()
                # A contract that the message itself made was warm from its first moment.
                if item.slots or not (item.code and self._account(item.address).is_empty)
            )
        )

    def _call(
        self, context: BlockContext, message: Message, *, keeps_journal: bool = False
    ) -> tuple[Outcome, list[TouchedAccount] | None]:
        self._enter(context)
        run = self._run(message, self._account(message.sender), keeps_code=True, keeps_journal=keeps_journal)
        if run.outcome.status is Status.SUCCESS and (refusal := self._find_refusal(run.touched)):
            return _refuse(message.gas, refusal), None
        if run.outcome.created is not None:
            code = next((item.code for item in run.touched or () if item.address == run.outcome.created), b"")
            return replace(run.outcome, output=code), run.touched
        return run.outcome, run.touched

    def _account(self, address: Address) -> Account:
        account = self._changes.accounts.get(address)
        return self._base.account(address) if account is None else account

    def _slot(self, address: Address, slot: int) -> int:
        value = self._changes.slots.get((address, slot))
        return self._base.slot(address, slot) if value is None else value

    def _enter(self, context: BlockContext) -> None:
        if context is self._context or context == self._context:
            return
        self._evm.set_block_env(
            pyrevm.BlockEnv(
                number=context.number,
                timestamp=context.timestamp,
                gas_limit=context.gas_limit,
                basefee=context.base_fee,
                coinbase=_hex(context.coinbase),
                prevrandao=context.prevrandao,
            )
        )
        self._context = context

    def _run_creation(self, context: BlockContext, message: Message, sender: Account) -> _Run:
        """Run a creation. For these the wheel settles the fee itself, as if the base fee were zero; that is undone."""
        run = self._run(message, sender)
        fee = run.outcome.gas_used * message.price
        paid = fee - message.gas * message.price
        return _Run(run.outcome, run.touched, ((message.sender, paid), (context.coinbase, -fee)))

    def _run_paid(self, message: Message, sender: Account) -> _Run:
        """Run with the sender's balance as code must see it: the whole gas limit paid up front.

        The wheel checks the balance against the gas cost once more, without having taken it. Where the sender owns
        less than twice the cost, runs that bend one of the two observable values, or both, find the exact result: what
        does not change the outcome was not looked at. A fourth run asks again beside the truth, because code may look
        at one value on account of the other.
        """
        cost = message.gas * message.price
        rest = Account(sender.nonce, sender.balance - cost)
        if rest.balance >= cost + message.value:
            return self._run(message, rest, is_whole=False)
        free = replace(message, price=0)
        unpriced = self._run(free, rest)
        if self._is_plain(message):
            return unpriced
        richer = self._run(message, sender)
        both_bent = _without(self._run(free, sender), message.sender)
        if both_bent == _without(unpriced, message.sender):
            richest = self._run(message, replace(sender, balance=sender.balance + 1))
            if _without(richest, message.sender) == _without(richer, message.sender):
                # The balance was not looked at: the priced run stands, with the cost taken from its final balance.
                return _Run(richer.outcome, richer.touched, ((message.sender, -cost),))
        if both_bent == _without(richer, message.sender):
            payable = (rest.balance - message.value) // message.gas
            # With a price of zero there is nothing to compare: SSTORE, for one, costs another sum for zero words.
            if payable:
                priced = _without(self._run(replace(message, price=payable), rest), message.sender)
                if priced == _without(unpriced, message.sender):
                    return unpriced
        return _Run(_refuse(message.gas, UNOBSERVED), None)

    def _is_plain(self, message: Message) -> bool:
        return message.to is not None and message.to not in _PRECOMPILES and not self._account(message.to).code

    def _run(
        self,
        message: Message,
        sender: Account,
        *,
        keeps_code: bool = False,
        keeps_journal: bool = False,
        is_whole: bool = True,
    ) -> _Run:
        """Run on an empty journal with `sender` as the sender's account, then take everything back."""
        evm, address = self._evm, _hex(message.sender)
        if not keeps_code:
            evm.insert_account_info(address, _AccountInfo(balance=sender.balance, nonce=sender.nonce))
        checkpoint = evm.snapshot()
        try:
            if keeps_code and sender.code:
                # In a journalled account the empty hash passes for "no code", so that a contract may be the caller.
                evm.basic(address)
                evm.insert_account_info(
                    address, _AccountInfo(sender.balance, sender.nonce, EMPTY_CODE_HASH, sender.code)
                )
            if message.access_list:
                self._warm(message)
            outcome = self._start(message, address)
            touched = None
            if outcome.status is Status.SUCCESS and not self._is_plain(message):
                text = evm.journal_str
                # Of a call that is forgotten only new code is looked at.
                if not keeps_code or keeps_journal or has_created(text):
                    touched = read_journal(text, known=self._code_sizes, is_whole=is_whole)
        finally:
            evm.revert(checkpoint)
            evm.reset_transient_storage()
            if message.to is None and message.price and self._context is not None:
                # The wheel paid the coinbase in an account that stays in its journal, outside what a revert undoes.
                self._insert(self._context.coinbase, self._account(self._context.coinbase))
            if message.access_list:
                evm.set_tx_env(self._no_transaction)
        return _Run(outcome, touched)

    def _warm(self, message: Message) -> None:
        """Load the access list (EIP-2930) through the journal, so that the revert makes it cold again."""
        entries = [(_hex(address), list(keys)) for address, keys in message.access_list]
        for address, keys in entries:
            self._evm.basic(address)
            for key in keys:
                self._evm.storage(address, key)
        self._evm.set_tx_env(pyrevm.TxEnv(access_list=entries))

    def _start(self, message: Message, sender: str) -> Outcome:
        evm, output, created = self._evm, b"", None
        try:
            if message.to is None:
                deployed = evm.deploy(sender, message.data, message.value, message.gas, message.price)
                created = Address(bytes.fromhex(deployed[2:]))
            else:
                output = evm.message_call(
                    sender, _hex(message.to), message.data, message.value, message.gas, message.price
                )
        except RuntimeError as error:
            return _read_failure(str(error))
        result = evm.result
        assert result is not None, "a message that did not fail has a result"
        logs = tuple([_read_log(log.address, *log.data) for log in result.logs])
        return Outcome(Status.SUCCESS, result.gas_used, result.gas_refunded, output, logs, created)

    def _find_refusal(self, touched: list[TouchedAccount] | None) -> str | None:
        for item in touched or ():
            if item.code_hex and not item.is_destroyed and item.code_hash != self._account(item.address).code_hash:
                validate_code(item)
                if opcode := find_forbidden_opcode(item.code):
                    return f"contract 0x{item.address.hex()}: {explain_refusal(opcode)}"
        return None

    def _write(
        self, message: Message, touched: list[TouchedAccount] | None, shifts: tuple[tuple[Address, int], ...]
    ) -> None:
        if touched is None:
            assert message.to is not None, "a creating message always has a journal"
            self._move(message.sender, message.to, message.value)
            return
        slots, changed = [], self._changes.slots
        for item in touched:
            if item.is_destroyed:
                self.put_account(item.address, NO_ACCOUNT)
                continue
            known, balance = self._account(item.address), item.balance
            for address, amount in shifts:
                if address == item.address:
                    balance += amount
            if item.code_hash != known.code_hash:
                self.put_account(item.address, Account(item.nonce, balance, item.code, item.code_hash))
            elif item.nonce != known.nonce or balance != known.balance:
                self.put_account(item.address, Account(item.nonce, balance, known.code, known.code_hash))
            for slot, before, after in item.slots:
                if before != after:
                    place = (item.address, slot)
                    if (value := changed.get(place)) is None:
                        value = self._base.slot(item.address, slot)
                    if before != value:
                        raise UnavailableEngine(
                            f"engine and state disagree on 0x{item.address.hex()} slot {slot}: {before} and {value}"
                        )
                    changed[place] = after
                    slots.append((item.address, slot, after))
        self._store(slots)

    def _move(self, sender: Address, to: Address, value: int) -> None:
        if value and sender != to:
            payer, payee = self._account(sender), self._account(to)
            self.put_account(sender, Account(payer.nonce, payer.balance - value, payer.code, payer.code_hash))
            self.put_account(to, Account(payee.nonce, payee.balance + value, payee.code, payee.code_hash))

    def _settle(self, context: BlockContext, message: Message, gas_used: int, nonce: int) -> None:
        """Take the fee; the base fee is burned, the rest goes to the coinbase (EIP-1559)."""
        sender = self._account(message.sender)
        paid = Account(nonce, sender.balance - gas_used * message.price, sender.code, sender.code_hash)
        # The run left a bent balance in the wheel's database, so it is written even where ours has not changed.
        self._changes.accounts[message.sender] = paid
        self._insert(message.sender, paid)
        if reward := gas_used * (message.price - context.base_fee):
            old = self._account(context.coinbase)
            self.put_account(context.coinbase, Account(old.nonce, old.balance + reward, old.code, old.code_hash))

    def _insert(self, address: Address, account: Account) -> None:
        insert_account(self._evm, address, account)
        if account.code:
            self._code_sizes[account.code_hash.hex()] = len(account.code)

    def _store(self, slots: list[tuple[Address, int, int]]) -> None:
        # Where the journal holds the account, the wheel writes to the journal alone. Inside a checkpoint of its own
        # each write finds the account unloaded, reaches the database, and leaves the journal empty again.
        evm = self._evm
        for address, slot, value in slots:
            checkpoint = evm.snapshot()
            evm.insert_account_storage(_hex(address), slot, value)
            evm.revert(checkpoint)


def _read_log(address: str, topics: list[bytes], data: bytes) -> Log:
    return Log(Address(bytes.fromhex(address[2:])), tuple(topics), data)


def insert_account(evm: pyrevm.EVM, address: Address, account: Account) -> None:
    """Put an account into the wheel's database, or over the one that its journal holds."""
    info = (
        _AccountInfo(account.balance, account.nonce, account.code_hash, account.code)
        if account.code
        else _AccountInfo(account.balance, account.nonce)
    )
    evm.insert_account_info(_hex(address), info)


def _refuse(gas: int, reason: str) -> Outcome:
    return Outcome(Status.HALT, gas, reason=reason, is_refused=True)


def _read_failure(text: str) -> Outcome:
    if match := _REVERTED.fullmatch(text):
        return Outcome(Status.REVERT, int(match[1]), output=bytes.fromhex(match[2]))
    if match := _HALTED.fullmatch(text):
        return Outcome(Status.HALT, int(match[2]), reason=match[1])
    if _REJECTED.fullmatch(text):
        raise InvalidMessage(text)
    raise UnavailableEngine(f"pyrevm failed in an unknown way: {text[:200]}")


def _without(run: _Run, sender: Address) -> tuple[Outcome, list[TouchedAccount]]:
    """A run but for the sender's balance, for comparison; the journal's own order differs from run to run."""
    return run.outcome, sorted(
        (
            replace(item, slots=tuple(sorted(item.slots)), balance=0 if item.address == sender else item.balance)
            for item in run.touched or ()
        ),
        key=lambda item: item.address,
    )

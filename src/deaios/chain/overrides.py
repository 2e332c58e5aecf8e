"""State and block overrides of eth_call, eth_estimateGas and eth_createAccessList: what is pretended for one message.

The shapes are geth's (internal/ethapi/override). What the engine cannot pretend exactly is refused by name: moved or
replaced precompiles, another gas limit of the block, blob fees, beacon roots and withdrawals. An override that this
program does not know is refused too, because a result without it would be wrong in silence.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from deaios.chain.evm import EMPTY_CODE_HASH, Account, BlockContext, Evm, State
from deaios.chain.opcodes import explain_refusal, find_forbidden_opcode
from deaios.chain.rpc import bad_params, read_address, read_data, read_hash, read_quantity, server_error
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

OVERRIDES_MAX = 4096
"""Accounts and words of one request; each is written to the engine and taken back while nobody else can use it."""
REPLACED_SLOTS_MAX = 16_384
"""Words that an account may hold whose whole storage is replaced: each is cleared and put back."""
PRECOMPILES = frozenset(Address(number.to_bytes(20)) for number in range(1, 11))
_ACCOUNT_FIELDS = ("nonce", "balance", "code", "state", "stateDiff", "movePrecompileToAddress")
_BLOCK_FIELDS = ("number", "time", "feeRecipient", "prevRandao", "baseFeePerGas", "difficulty")
_BLOCK_REFUSED = ("gasLimit", "blobBaseFee", "beaconRoot", "withdrawals")


@dataclass(frozen=True, slots=True)
class AccountOverride:
    """What is pretended of one account; None where nothing is.

    Attributes:
        slots: storage words.
        replaces_storage: every other word reads zero.
    """

    address: Address
    nonce: int | None
    balance: int | None
    code: bytes | None
    slots: tuple[tuple[int, int], ...]
    replaces_storage: bool

    def pretend(self, account: Account) -> Account:
        """The account as overridden."""
        code, code_hash = account.code, account.code_hash
        if self.code is not None:
            code, code_hash = self.code, keccak256(self.code) if self.code else EMPTY_CODE_HASH
        return Account(
            account.nonce if self.nonce is None else self.nonce,
            account.balance if self.balance is None else self.balance,
            code,
            code_hash,
        )


@dataclass(frozen=True, slots=True)
class BlockOverride:
    """What is pretended of the block; None where nothing is."""

    number: int | None = None
    timestamp: int | None = None
    coinbase: Address | None = None
    prevrandao: bytes | None = None
    base_fee: int | None = None

    def pretend(self, context: BlockContext) -> BlockContext:
        """The context as overridden."""
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(context, **given)


@dataclass(frozen=True, slots=True)
class Overrides:
    """Everything that is pretended for one message."""

    accounts: tuple[AccountOverride, ...] = ()
    block: BlockOverride = BlockOverride()


def read_state_overrides(value: object) -> tuple[AccountOverride, ...]:
    """The state override object: address to account, in order of address.

    Raises:
        RpcFault: not of that shape, too many, or something that cannot be pretended here.
    """
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise bad_params("a state override object is expected")
    found, items = [], 0
    for key, given in value.items():
        override = _read_account(read_address(key, "overridden address"), given)
        items += 1 + len(override.slots)
        if items > OVERRIDES_MAX:
            raise bad_params(f"state overrides name more than {OVERRIDES_MAX} accounts and words")
        found.append(override)
    return tuple(sorted(found, key=lambda item: item.address))


def _read_account(address: Address, value: object) -> AccountOverride:
    if not isinstance(value, Mapping):
        raise bad_params(f"the override of 0x{address.hex()} is not an object")
    _refuse_unknown(value, _ACCOUNT_FIELDS, "account")
    code = value.get("code")
    runtime = None if code is None else read_data(code, "code")
    if value.get("movePrecompileToAddress") is not None or (address in PRECOMPILES and runtime is not None):
        raise server_error(
            f"account override of 0x{address.hex()}: the embedded chain cannot move or replace precompiles; "
            "use a network by URL (--chain URL)"
        )
    if runtime and (opcode := find_forbidden_opcode(runtime)):
        raise server_error(f"account override of 0x{address.hex()}: {explain_refusal(opcode)}")
    whole, changes = value.get("state"), value.get("stateDiff")
    if whole is not None and changes is not None:
        raise server_error(f"account 0x{address.hex()} has both 'state' and 'stateDiff'")
    nonce, balance = value.get("nonce"), value.get("balance")
    return AccountOverride(
        address,
        None if nonce is None else read_quantity(nonce, "nonce", 64),
        None if balance is None else read_quantity(balance, "balance"),
        runtime,
        _read_slots(whole if whole is not None else changes),
        whole is not None,
    )


def _read_slots(value: object) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise bad_params("an overridden storage is not an object")
    if len(value) > OVERRIDES_MAX:
        raise bad_params(f"state overrides name more than {OVERRIDES_MAX} accounts and words")
    return tuple(
        (int.from_bytes(read_hash(slot, "storage key")), int.from_bytes(read_hash(word, "storage value")))
        for slot, word in value.items()
    )


def read_block_override(value: object) -> BlockOverride:
    """The block override object.

    Raises:
        RpcFault: not of that shape, or something that cannot be pretended here.
    """
    if value is None:
        return BlockOverride()
    if not isinstance(value, Mapping):
        raise bad_params("a block override object is expected")
    for name in _BLOCK_REFUSED:
        if value.get(name) is not None:
            raise server_error(f'block override "{name}" is not supported for this RPC method')
    _refuse_unknown(value, (*_BLOCK_FIELDS, *_BLOCK_REFUSED), "block")

    def quantity(name: str, bits: int) -> int | None:
        return None if (given := value.get(name)) is None else read_quantity(given, name, bits)

    coinbase, prevrandao = value.get("feeRecipient"), value.get("prevRandao")
    return BlockOverride(
        number=quantity("number", 64),
        timestamp=quantity("time", 64),
        coinbase=None if coinbase is None else read_address(coinbase, "feeRecipient"),
        prevrandao=None if prevrandao is None else read_hash(prevrandao, "prevRandao"),
        base_fee=quantity("baseFeePerGas", 128),
    )


def _refuse_unknown(value: Mapping[str, Any], known: tuple[str, ...], kind: str) -> None:  # Any: a stranger's JSON
    for name in value:
        if name not in known:
            raise bad_params(f"unknown {kind} override {name[:80]!r}; known: {', '.join(known)}")


@contextmanager
def pretended(evm: Evm, state: State, accounts: tuple[AccountOverride, ...]) -> Iterator[None]:
    """Put overridden accounts into the engine for as long as the block lasts.

    The engine must hold nothing that was not committed, and nobody else may use it meanwhile.

    Raises:
        RpcFault: the storage to replace is too large.
    """
    for item in accounts:
        count = len(state.slots.get(item.address, ())) if item.replaces_storage else 0
        if count > REPLACED_SLOTS_MAX:
            raise server_error(
                f"the storage of 0x{item.address.hex()} has {count} words, too many to replace (at most "
                f"{REPLACED_SLOTS_MAX}); use stateDiff"
            )
    try:
        for item in accounts:
            evm.put_account(item.address, item.pretend(state.account(item.address)))
            if item.replaces_storage:
                for slot in state.slots.get(item.address, ()):
                    evm.put_slot(item.address, slot, 0)
            for slot, word in item.slots:
                evm.put_slot(item.address, slot, word)
        yield
    finally:
        for item in accounts:
            evm.put_account(item.address, state.account(item.address))
            slots = {slot for slot, _ in item.slots}
            slots.update(state.slots.get(item.address, ()) if item.replaces_storage else ())
            for slot in sorted(slots):
                evm.put_slot(item.address, slot, state.slot(item.address, slot))
        # The engine noted all of this as writes of a coming block; it is none of them.
        evm.commit()

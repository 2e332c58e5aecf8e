"""Reads the write set of one message from pyrevm 0.3.7's debug text of its journal.

The text is the only place where that wheel shows storage writes. It is printed by Rust's derived Debug; everything a
contract controls appears in it as digits or hex, so nothing a contract does can imitate its structure. Whoever uses
this module runs the engine's self-test first.
"""

import re
from dataclasses import dataclass

from deaios.chain.evm import EMPTY_CODE_HASH, UnavailableEngine
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

_ACCOUNT = re.compile(
    r"0x([0-9a-f]{40}): Account \{ info: AccountInfo \{ balance: (\d+), nonce: (\d+), code_hash: 0x([0-9a-f]{64}), "
    r"code: (?:None|Some\(Bytecode \{ bytecode: 0x([0-9a-f]*), state: "
    r"(?:Raw|Analysed \{ len: (\d+), jump_map: JumpMap \{ map: \"[0-9a-f]*\" \} \}) \}\)) \}, "
    r"storage: \{(.*?)\}, status: AccountStatus\(([A-Za-z0-9 |]+)\) \}"
)
_SLOT = re.compile(r"(\d+): StorageSlot \{ previous_or_original_value: (\d+), present_value: (\d+) \}")
_HEAD = "JournaledState { state: {"
_TAIL = "}, transient_storage: {"
_CREATED = "Created"
_STATE_MARK = ": Account { info: "


@dataclass(frozen=True, slots=True)
class TouchedAccount:
    """One account of the journal as the message left it.

    Attributes:
        code: the code when the journal holds it; empty when it was not loaded or there is none.
        code_hash: of the account's code, loaded or not.
        slots: (slot, value before the message, value after it), read and written alike.
        is_destroyed: created and destroyed within this message (EIP-6780).
    """

    address: Address
    nonce: int
    balance: int
    code: bytes
    code_hash: bytes
    slots: tuple[tuple[int, int, int], ...]
    is_destroyed: bool


def read_journal(text: str) -> list[TouchedAccount]:
    """The accounts in a journal's debug text.

    Raises:
        UnavailableEngine: the text does not have the form of the pinned wheel.
    """
    end = text.find(_TAIL)
    if not text.startswith(_HEAD) or end < 0:
        raise UnavailableEngine(f"pyrevm's journal text has another form: it begins {text[:60]!r}")
    touched = [_read_account(match) for match in _ACCOUNT.finditer(text, len(_HEAD) - 1, end + 1)]
    if (marks := text.count(_STATE_MARK, 0, end)) != len(touched):
        raise UnavailableEngine(f"pyrevm's journal text holds {marks} accounts, {len(touched)} were understood")
    return touched


def has_created(text: str) -> bool:
    """Whether any account in a journal's debug text got its code within the message."""
    return _CREATED in text


def _read_account(match: re.Match[str]) -> TouchedAccount:
    address, balance, nonce, code_hash, code_hex, length, storage, status = match.groups()
    hash_bytes = bytes.fromhex(code_hash)
    code = b""
    if code_hex and hash_bytes != EMPTY_CODE_HASH:
        # Analysed code is padded with zero bytes so that a PUSH at its end can be read; `len` is the true length.
        code = bytes.fromhex(code_hex if length is None else code_hex[: 2 * int(length)])
    return TouchedAccount(
        address=Address(bytes.fromhex(address)),
        nonce=int(nonce),
        balance=int(balance),
        code=code,
        code_hash=hash_bytes,
        slots=tuple((int(slot), int(before), int(after)) for slot, before, after in _SLOT.findall(storage)),
        is_destroyed="SelfDestructed" in status,
    )


def validate_code(account: TouchedAccount) -> None:
    """Check new code against the hash that the engine computed itself.

    Raises:
        UnavailableEngine: the code was cut at the wrong place.
    """
    if keccak256(account.code) != account.code_hash:
        raise UnavailableEngine(f"code of 0x{account.address.hex()} does not have the hash the engine gave it")

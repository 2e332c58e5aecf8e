"""Reads the write set of one message from pyrevm 0.3.7's debug text of its journal.

The text is the only place where that wheel shows storage writes. It is printed by Rust's derived Debug; everything a
contract controls appears in it as digits or hex, so nothing a contract does can imitate its structure. Whoever uses
this module runs the engine's self-test first.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from deaios.chain.evm import EMPTY_CODE_HASH, UnavailableEngine
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

_INFO = re.compile(
    r"0x([0-9a-f]{40}): Account \{ info: AccountInfo \{ balance: (\d{1,78}), nonce: (\d{1,20}), "
    r"code_hash: 0x([0-9a-f]{64}), code: (?:Some\(Bytecode \{ bytecode: 0x|"
    r"(None) \}, storage: \{(?:\}, status: AccountStatus\(([A-Za-z0-9 |]+)\) \})?)",
    re.ASCII,
)
"""An account up to its code; the whole of one that has neither code nor storage."""
_CODE_END = ", state: "
_RAW = "Raw }) }, storage: {"
_RAW_END = _CODE_END + _RAW
_ANALYSED = re.compile(r"Analysed \{ len: (\d{1,9}), jump_map: JumpMap \{ map: \"", re.ASCII)
_ANALYSED_END = '" } } }) }, storage: {'
_STATUS = re.compile(r"\}, status: AccountStatus\(([A-Za-z0-9 |]+)\) \}")
_STATUS_MARK = "}, status: "
_SLOT = re.compile(
    r"(?<!\d)(\d{1,78}): StorageSlot \{ previous_or_original_value: (\d{1,78}), present_value: (\d{1,78}) \}", re.ASCII
)
_SLOT_MARK = "StorageSlot"
_HEAD = "JournaledState { state: {"
_TAIL = "}, transient_storage: {"
_CREATED = "Created"
_LOADED = "0x0"
"""The status of an account that was looked at and not touched."""
_EMPTY_HASH = EMPTY_CODE_HASH.hex()


class TouchedAccount(msgspec.Struct, frozen=True, gc=False):
    """One account of the journal as the message left it.

    Attributes:
        code_hex: the code when the journal holds it; empty when it was not loaded, is known, or there is none.
        code_hash: of the account's code, loaded or not.
        slots: (slot, value before the message, value after it), read and written alike.
        is_destroyed: created and destroyed within this message (EIP-6780).
    """

    address: Address
    nonce: int
    balance: int
    code_hex: str
    code_hash: bytes
    slots: tuple[tuple[int, int, int], ...]
    is_destroyed: bool

    @property
    def code(self) -> bytes:
        """The code as bytes; made when asked for, because few messages bring code that nobody has."""
        try:
            return bytes.fromhex(self.code_hex)
        except ValueError as error:
            raise UnavailableEngine(f"pyrevm's journal text holds code that is not hex: {error}") from error


def read_journal(
    text: str, *, known: Mapping[str, int] = MappingProxyType({}), is_whole: bool = True
) -> list[TouchedAccount]:
    """The accounts in a journal's debug text, read from end to end; long code is stepped over, not scanned.

    Args:
        text: the whole debug text.
        known: sizes in bytes of codes that the caller has, by their hash in hex; they are not read again.
        is_whole: False leaves out what cannot be a write: accounts only loaded, and words that did not change.

    Raises:
        UnavailableEngine: the text does not have the form of the pinned wheel.
    """
    if not text.startswith(_HEAD):
        raise _unknown(text, 0)
    touched: list[TouchedAccount] = []
    position = len(_HEAD)
    is_first = True
    while not text.startswith(_TAIL, position):  # bounded: each account moves on, or the text is refused
        if not is_first:
            if not text.startswith(", ", position):
                raise _unknown(text, position)
            position += 2
        is_first = False
        info = _INFO.match(text, position)
        if info is None:
            raise _unknown(text, position)
        address, balance, nonce, code_hash, has_none, status = info.groups()
        position, code_hex = info.end(), ""
        slots: list[tuple[str, str, str]] = []
        if status is None:
            if has_none is None:
                end = position + 2 * known.get(code_hash, -1)
                if end > position and text.startswith(_RAW_END, end):
                    position = end + len(_RAW_END)
                else:
                    code_hex, position = _read_code(text, position)
            slots, status, position = _read_storage(text, position)
        elif status == _LOADED and not is_whole:
            continue
        touched.append(
            TouchedAccount(
                Address(bytes.fromhex(address)),
                int(nonce),
                int(balance),
                # The wheel shows one zero byte of padding where there is no code.
                "" if code_hash == _EMPTY_HASH else code_hex,
                bytes.fromhex(code_hash),
                tuple([(int(slot), int(old), int(new)) for slot, old, new in slots if is_whole or old != new]),
                "SelfDestructed" in status,
            )
        )
    return touched


def has_created(text: str) -> bool:
    """Whether any account in a journal's debug text got its code within the message."""
    return _CREATED in text


def _read_storage(text: str, start: int) -> tuple[list[tuple[str, str, str]], str, int]:
    """An account's words and status from where its storage begins, and where the account ends."""
    end = text.find(_STATUS_MARK, start)
    status = _STATUS.match(text, end) if end >= 0 else None
    if status is None:
        raise _unknown(text, start)
    slots = _SLOT.findall(text, start, end)
    if text.count(_SLOT_MARK, start, end) != len(slots):
        raise _unknown(text, start)
    return slots, status[1], status.end()


def _read_code(text: str, start: int) -> tuple[str, int]:
    """The code that begins at `start`, as hex without its padding, and where the storage begins."""
    # Hex holds no comma, and one character is found many times faster than two.
    end = text.find(",", start)
    if not text.startswith(_CODE_END, end):
        raise _unknown(text, start)
    position = end + len(_CODE_END)
    if text.startswith(_RAW, position):
        return text[start:end], position + len(_RAW)
    if (analysed := _ANALYSED.match(text, position)) is None:
        raise _unknown(text, position)
    position = text.find(_ANALYSED_END, analysed.end())
    if position < 0:
        raise _unknown(text, analysed.end())
    # Analysed code is padded with zero bytes so that a PUSH at its end can be read; `len` is the true length.
    return text[start : start + 2 * int(analysed[1])], position + len(_ANALYSED_END)


def _unknown(text: str, position: int) -> UnavailableEngine:
    found = text[position : position + 60]
    return UnavailableEngine(f"pyrevm's journal text has another form at character {position}: {found!r}")


def validate_code(account: TouchedAccount) -> None:
    """Check new code against the hash that the engine computed itself.

    Raises:
        UnavailableEngine: the code was cut at the wrong place.
    """
    if keccak256(account.code) != account.code_hash:
        raise UnavailableEngine(f"code of 0x{account.address.hex()} does not have the hash the engine gave it")

"""The provider's side: keys that are made anew and forgotten, bodies opened, answers sealed.

A key is published for `ROTATE_MS` and opens bodies for as long again; then its secret half is deleted, and nobody, the
provider included, can open what was recorded on the way before. The keys lie in one file, so that a restart does not
shut out who sealed to the one published before it.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from deaios.market.sealing.framing import (
    ENCAPSULATED_KEY_HEADER,
    EXPORT_LABEL,
    REQUEST_INFO,
    RESPONSE_NONCE_HEADER,
    SECRET_SIZE,
    ChunkReader,
    InvalidSealing,
    compute_nonce,
    derive_answer_keys,
    frame_chunk,
)
from deaios.market.sealing.suite import derive_public, open_body_chunk, open_recipient, seal_chunk
from deaios.primitives.encoding import decode_hex, encode_hex
from deaios.primitives.errors import Invalid
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.disk import PRIVATE, write_atomic
from deaios.runtime.logs import get_logger

ROTATE_MS = 24 * 3600 * 1000
KEYS_MAX = 2
"""The one that is published, and the one before."""

_log = get_logger("sealing")


class _Key(msgspec.Struct, forbid_unknown_fields=True):
    secret: str
    made_at_ms: int


class SealedAnswer:
    """Seals one answer, chunk by chunk.

    Attributes:
        headers: that tell the buyer how to open it.
    """

    def __init__(self, exported: bytes, encapsulated_key: bytes, nonce: bytes) -> None:
        self.headers = {RESPONSE_NONCE_HEADER: nonce.hex()}
        self._key, self._base = derive_answer_keys(exported, encapsulated_key, nonce)
        self._index = 0

    def seal(self, data: bytes) -> bytes:
        """The next chunk as it travels."""
        chunk = seal_chunk(self._key, compute_nonce(self._base, self._index), data)
        self._index += 1
        return frame_chunk(chunk)


class SealingKeys:
    """A provider's keys."""

    def __init__(self, path: Path, clock: Clock, dice: Dice) -> None:
        self._path = path
        self._clock = clock
        self._dice = dice
        self._keys = self._load()

    @property
    def public_key(self) -> bytes:
        """What papers are sealed to now; made anew when it is due."""
        self._rotate()
        return derive_public(decode_hex(self._keys[0].secret, SECRET_SIZE))

    def open(self, headers: Mapping[str, str], body: bytes) -> tuple[bytes, SealedAnswer | None]:
        """A request's body, opened where it is sealed, and what seals the answer.

        Raises:
            InvalidSealing: sealed to no key that is kept, or changed on the way.
        """
        text = headers.get(ENCAPSULATED_KEY_HEADER)
        if text is None:
            return body, None
        try:
            encapsulated = bytes.fromhex(text)
        except ValueError as error:
            raise InvalidSealing("the encapsulated key is not hex") from error
        reader = ChunkReader()
        chunks = reader.push(body)
        reader.finish()
        self._rotate()
        fault: InvalidSealing | None = None
        for key in self._keys:
            context = open_recipient(decode_hex(key.secret, SECRET_SIZE), encapsulated, REQUEST_INFO)
            try:
                plain = b"".join([open_body_chunk(context, chunk) for chunk in chunks])
            except InvalidSealing as error:
                fault = error
                continue
            exported = context.export(EXPORT_LABEL, SECRET_SIZE)
            return plain, SealedAnswer(exported, encapsulated, self._dice.token_bytes(SECRET_SIZE))
        raise InvalidSealing(f"{fault}; fetch the offer again") from fault

    def _rotate(self) -> None:
        now_ms = self._clock.now_ms()
        if self._keys and now_ms - self._keys[0].made_at_ms < ROTATE_MS:
            return
        young = [key for key in self._keys if now_ms - key.made_at_ms < 2 * ROTATE_MS]
        made = _Key(encode_hex(self._dice.token_bytes(SECRET_SIZE)), now_ms)
        self._keys = [made, *young][:KEYS_MAX]
        write_atomic(self._path, msgspec.json.encode(self._keys), PRIVATE)

    def _load(self) -> list[_Key]:
        try:
            keys = msgspec.json.decode(self._path.read_bytes(), type=list[_Key])
            for key in keys:
                decode_hex(key.secret, SECRET_SIZE)
        except FileNotFoundError:
            return []
        except (msgspec.DecodeError, UnicodeError, Invalid) as error:
            _log.warning("sealing keys are damaged and made anew", path=str(self._path), error=str(error))
            return []
        return keys[:KEYS_MAX]

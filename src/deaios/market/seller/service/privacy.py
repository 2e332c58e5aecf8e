"""What a provider states about prompts, and the sealed door that keeps the part of it that can be enforced."""

from collections.abc import Mapping
from typing import Protocol

from deaios.market.conduct import CONDUCT_LIFETIME_MS_MAX, Conduct, ConductBody, sign_conduct
from deaios.market.sealing.framing import ENCAPSULATED_KEY_HEADER
from deaios.market.sealing.service import ROTATE_MS, SealingKeys
from deaios.primitives.keys import PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.errors import RefusedEncoding

RENEW_MS = ROTATE_MS // 2
"""A statement is signed anew this long before its end, and when the key changes."""
_SEALED_TYPE = "application/x-deaios-sealed"


class Answer(Protocol):
    """How one answer is put on the wire."""

    @property
    def headers(self) -> dict[str, str]:
        """What says how to read it."""

    def seal(self, data: bytes) -> bytes:
        """The next bytes."""


class PlainAnswer:
    """An answer in the open."""

    headers: dict[str, str] = {}  # noqa: RUF012 - never changed

    def seal(self, data: bytes) -> bytes:
        """As they are."""
        return data


class Privacy:
    """One provider's statement and keys."""

    def __init__(
        self, key: PrivateKey, network_id: bytes, keys: SealingKeys, clock: Clock, *, retains_ms: int, trains: bool
    ) -> None:
        """Make it.

        Args:
            key: the provider's.
            network_id: genesis hash.
            keys: that papers are sealed to.
            clock: time.
            retains_ms: how long prompts and answers are kept here; 0 for no longer than the answer takes.
            trains: whether they are used for more than answering, disputes and audits.
        """
        self._key = key
        self._network_id = network_id
        self._keys = keys
        self._clock = clock
        self._retains_ms = retains_ms
        self._trains = trains
        self._stated: tuple[Conduct, ConductBody] | None = None

    def state(self) -> ConductBody:
        """The signed statement of now."""
        public, now_ms = self._keys.public_key, self._clock.now_ms()
        if self._stated is not None:
            conduct, body = self._stated
            if conduct.sealing_key == public and conduct.valid_until - now_ms > RENEW_MS:
                return body
        until = now_ms + min(2 * ROTATE_MS, CONDUCT_LIFETIME_MS_MAX)
        conduct = Conduct(public, self._retains_ms, self._trains, until)
        self._stated = conduct, sign_conduct(self._key, self._network_id, conduct)
        return self._stated[1]

    def open(self, headers: Mapping[str, str], body: bytes) -> tuple[bytes, Answer]:
        """A body, opened where it is sealed, and how to answer it.

        Raises:
            InvalidSealing: it is sealed to no key of this provider.
        """
        plain, sealed = self._keys.open(headers, body)
        return plain, PlainAnswer() if sealed is None else sealed


def open_body(privacy: Privacy | None, headers: Mapping[str, str], body: bytes) -> tuple[bytes, Answer]:
    """The same for a provider that may have no keys.

    Raises:
        InvalidSealing: it is sealed to no key of this provider.
        RefusedEncoding: it is sealed, and this provider has no key.
    """
    if privacy is not None:
        return privacy.open(headers, body)
    if ENCAPSULATED_KEY_HEADER in headers:
        raise RefusedEncoding("this provider has no sealing key; send papers as they are")
    return body, PlainAnswer()


def content_type_of(answer: Answer, plain: str) -> str:
    """The media type of an answer whose content is of type `plain`."""
    return plain if isinstance(answer, PlainAnswer) else _SEALED_TYPE

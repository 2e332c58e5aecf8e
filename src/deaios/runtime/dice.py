"""Randomness as a protocol, so that a simulated world can repeat itself."""

import secrets
from typing import Protocol


class Dice(Protocol):
    """A source of unpredictable bytes."""

    def token_bytes(self, size: int) -> bytes:
        """`size` random bytes."""


class SystemDice:
    """The operating system's cryptographic randomness."""

    def token_bytes(self, size: int) -> bytes:
        """`size` random bytes."""
        return secrets.token_bytes(size)

"""Phases of beacon rounds and disputes, and what a jury found: the contracts' own numbers (docs/contracts.md)."""

from enum import IntEnum


class BeaconPhase(IntEnum):
    """`Beacon.phase`."""

    UNKNOWN = 0
    COMMIT = 1
    REVEAL = 2
    FINALIZE = 3
    """Waits for anyone to call `finalize`."""
    FINAL = 4
    FAILED = 5


class DisputePhase(IntEnum):
    """`Disputes.phaseOf`."""

    UNKNOWN = 0
    BEACON = 1
    DRAW = 2
    COMMIT = 3
    REVEAL = 4
    TALLY = 5
    APPEAL = 6
    FINALIZE = 7
    CLOSED = 8


class Decision(IntEnum):
    """What a jury found."""

    NONE = 0
    ACQUITTED = 1
    GUILTY = 2
    NO_QUORUM = 3
    """Acquitted, but nobody loses a bond."""

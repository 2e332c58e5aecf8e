"""Phases of beacon rounds and disputes, with the numbers the contracts use (docs/contracts.md)."""

from enum import IntEnum


class BeaconPhase(IntEnum):
    """`Beacon.phase`."""

    UNKNOWN = 0
    COMMIT = 1
    REVEAL = 2
    FINALIZE = 3
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

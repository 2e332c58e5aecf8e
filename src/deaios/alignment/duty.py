"""What an auditor owes the chain next: beacon rounds, juries, and turning the crank when a phase has ended.

Pure: from what the chain says and what this auditor remembers to one action. An action is repeated until the chain
shows its effect, so a crash between deciding and doing costs nothing.
"""

from dataclasses import dataclass
from enum import Enum

from deaios.ledger.phases import BeaconPhase, DisputePhase
from deaios.primitives.keys import Address

CRANK_PATIENCE_S = 3.0
"""How long each auditor waits for the one before it, so that not all of them pay for the same crank."""


class BeaconDuty(Enum):
    """What to do for an open beacon round."""

    NOTHING = "nothing"
    COMMIT = "commit"
    REVEAL = "reveal"
    FINALIZE = "finalize"


class DisputeDuty(Enum):
    """What to do for an open dispute."""

    NOTHING = "nothing"
    DRAW = "draw"
    JUDGE = "judge"
    REVEAL = "reveal"
    TALLY = "tally"
    FINALIZE = "finalize"


@dataclass(frozen=True, slots=True)
class RoundView:
    """A beacon round as the chain tells it, from one member's side."""

    phase: BeaconPhase
    is_member: bool
    has_committed: bool
    has_revealed: bool
    knows_secret: bool


@dataclass(frozen=True, slots=True)
class DisputeView:
    """A dispute as the chain tells it, from one auditor's side."""

    phase: DisputePhase
    is_juror: bool
    has_committed: bool
    has_revealed: bool
    knows_verdict: bool


def beacon_duty(view: RoundView, *, may_crank: bool) -> BeaconDuty:
    """The next action for a round; `may_crank` when it is this auditor's turn to pay for the common step."""
    match view.phase:
        case BeaconPhase.COMMIT if view.is_member and not view.has_committed:
            return BeaconDuty.COMMIT
        case BeaconPhase.REVEAL if view.has_committed and not view.has_revealed and view.knows_secret:
            return BeaconDuty.REVEAL
        case BeaconPhase.FINALIZE if may_crank:
            return BeaconDuty.FINALIZE
        case _:
            return BeaconDuty.NOTHING


def dispute_duty(view: DisputeView, *, may_crank: bool) -> DisputeDuty:
    """The next action for a dispute."""
    match view.phase:
        case DisputePhase.DRAW if may_crank:
            return DisputeDuty.DRAW
        case DisputePhase.COMMIT if view.is_juror and not view.has_committed:
            return DisputeDuty.JUDGE
        case DisputePhase.REVEAL if (
            view.is_juror and view.has_committed and not view.has_revealed and view.knows_verdict
        ):
            return DisputeDuty.REVEAL
        case DisputePhase.TALLY if may_crank:
            return DisputeDuty.TALLY
        case DisputePhase.FINALIZE if may_crank:
            return DisputeDuty.FINALIZE
        case _:
            return DisputeDuty.NOTHING


def crank_delay_s(me: Address, members: tuple[Address, ...], subject: int) -> float:
    """How long this auditor leaves the common step to those before it; the order rotates with the subject's id."""
    if me not in members:
        return CRANK_PATIENCE_S * len(members)
    ordered = sorted(members)
    return CRANK_PATIENCE_S * ((ordered.index(me) - subject) % len(ordered))

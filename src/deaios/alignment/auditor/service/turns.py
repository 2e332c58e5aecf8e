"""Whose turn it is to pay for a common step.

Counted from when this process first saw that the step is due: a restart only makes it wait again.
"""

from collections import OrderedDict

from deaios.alignment.duty import crank_delay_s
from deaios.primitives.keys import Address
from deaios.runtime.clock import Clock

STEPS_KEPT = 1024
"""Far more than are ever due at one time."""

Step = tuple[str | int, ...]
"""What is due, down to the attempt: a step that comes again is another one."""


class Turns:
    """One auditor's patience with the others."""

    def __init__(self, me: Address, clock: Clock) -> None:
        self._me = me
        self._clock = clock
        self._first_seen: OrderedDict[Step, float] = OrderedDict()

    def is_mine(self, step: Step, subject: int, members: tuple[Address, ...]) -> bool:
        """Have all those before this auditor had their time?

        Args:
            step: what is due.
            subject: id of the round or dispute; it rotates the order.
            members: the auditors.
        """
        now = self._clock.monotonic_s()
        seen = self._first_seen.setdefault(step, now)
        if len(self._first_seen) > STEPS_KEPT:
            self._first_seen.popitem(last=False)
        return now - seen >= crank_delay_s(self._me, members, subject)

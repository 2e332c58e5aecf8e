"""How buying can fail, by whose fault. Pure."""

from collections.abc import Mapping

from deaios.ledger.structs import State
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address


class RefusedByMarket(Refused):
    """No known provider passes the order's own filters; `reasons` says why, per provider."""

    def __init__(self, reasons: Mapping[Address, str]) -> None:
        super().__init__(f"no provider fits this order: {_list(reasons)}")
        self.reasons = dict(reasons)


class RefusedRepeat(Refused):
    """The same ask was bought too often within one block for another request to differ."""


class UnavailableProviders(Unavailable):
    """Every provider that fits was tried and failed before its first token.

    Attributes:
        reasons: how.
        may_pass: all were out of reach, and none said or showed that it cannot serve.
    """

    def __init__(self, reasons: Mapping[Address, str], *, may_pass: bool = False) -> None:
        super().__init__(f"every provider tried has failed: {_list(reasons)}")
        self.reasons = dict(reasons)
        self.may_pass = may_pass


class UnavailableContinuation(UnavailableProviders):
    """Others say that what was shown of an answer is not how their model begins it; nobody signs for it."""


class UnavailableProvider(Unavailable):
    """One provider failed; nothing was charged unless its receipt arrives later and says so."""


class FailedPurchase(UnavailableProvider):
    """A signed receipt says that the purchase failed; its fee is zero."""

    def __init__(self, state: int) -> None:
        super().__init__(f"provider ended the purchase without output: {State(state).name.lower()}")
        self.state = State(state)


class RefusedPrefix(Refused):
    """A provider says that its model could not have sampled an id with which another one began the answer.

    Attributes:
        position: index of the first such id.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"provider does not continue this answer: prefix violates at {position}")
        self.position = position


class InvalidStream(Invalid):
    """A provider's stream contradicts the protocol, or itself."""


class UnavailableProof(Unavailable):
    """The receipt is not under a root on chain within the time given."""


def _list(reasons: Mapping[Address, str]) -> str:
    if not reasons:
        return "none is known; is a provider registered, staked and reachable?"
    return "; ".join(f"0x{provider.hex()[:8]}… {reason}" for provider, reason in reasons.items())

"""What a buyer decides about buying; the defaults suit a local network."""

from dataclasses import dataclass

from deaios.primitives.units import CREDIT


@dataclass(frozen=True, slots=True)
class BuyerSettings:
    """One buyer's limits and habits.

    Attributes:
        window: the most that any one provider can take beyond accepted receipts.
        deposit: put into a channel whenever it runs short.
        withdraw_delay: of the channels it opens, seconds.
        fee_max: the most one purchase may cost; never above the window.
        request_blocks: how far ahead a request's deadline lies.
        providers_max: how many providers one purchase tries before its first token.
        first_token_s: how long one of them may take until then.
        idle_s: longest wait for the next token inside a stream.
        silence_s: longest time without any line of a provider, which speaks every two seconds while it lives.
        stall_s: shortest wait for the next token after which another provider goes on with an answer.
        stall_gaps: the same in gaps between tokens, as this provider is known to make them; the longer one holds.
        resumes_max: how often a stream that broke after its first token is taken up again with the same provider.
        hops_max: how many further providers may continue an answer that broke off.
        window_wait_s: how long a purchase waits for room in the window.
        resolve_interval_s: between attempts to learn what became of purchases cut off.
        opening_retention_ms: how long openings are kept.
    """

    window: int = CREDIT // 4
    deposit: int = 5 * CREDIT
    withdraw_delay: int = 900
    fee_max: int = CREDIT // 4
    request_blocks: int = 10_000
    providers_max: int = 3
    first_token_s: float = 60.0
    idle_s: float = 60.0
    silence_s: float = 8.0
    stall_s: float = 10.0
    stall_gaps: float = 40.0
    resumes_max: int = 1
    hops_max: int = 3
    window_wait_s: float = 30.0
    resolve_interval_s: float = 2.0
    opening_retention_ms: int = 30 * 24 * 3600 * 1000

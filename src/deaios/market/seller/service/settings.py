"""What an operator decides about selling; everything has a unit and a default that suits a local network."""

from dataclasses import dataclass

from deaios.ledger.structs import Level
from deaios.market.pricing import PriceRange
from deaios.primitives.units import CREDIT


@dataclass(frozen=True, slots=True)
class SellerSettings:
    """One provider's terms and habits.

    Attributes:
        url: base URL under which buyers reach it.
        model_record_id: what it serves.
        engine_profile: digest of the engine's profile.
        vocabulary_size: of the served model.
        context_tokens: prompt and answer together.
        streams_max: generations at one time.
        queue_max: purchases admitted beyond that, waiting for a stream.
        input_price: smallest units per million prompt tokens.
        output_price: smallest units per million sampled tokens.
        moving: the range in which the price follows load, which then stands for both prices above; None for fixed ones.
        level: what its receipts let strangers check.
        withdraw_delay_min: shortest channel delay accepted, seconds.
        offer_lifetime_ms: how long a posted price binds; renewed at half of it.
        unpaid_max: what cancels may leave unpaid on one channel, beside a tenth of what it has paid; a further cancel
            that leaves more is refused, and its purchase ends as it was ordered.
        purchase_s_max: longest a purchase may take, waiting included, before it fails by the provider's fault.
        drain_s: how long open purchases may go on when the service stops.
        batch_interval_s: how long receipts are collected before a batch.
        batch_deadline_blocks: promise in each receipt: its batch is on chain this many blocks later at most.
        claim_interval_s: between claims while nothing hurries.
        watch_interval_s: between looks for withdrawals; far below the shortest delay accepted.
        retention_ms: how long prompts and outputs are kept for retries, audits and disputes.
    """

    url: str
    model_record_id: bytes
    engine_profile: bytes
    vocabulary_size: int
    context_tokens: int
    streams_max: int = 8
    queue_max: int = 64
    input_price: int = 1_000_000
    output_price: int = 4_000_000
    moving: PriceRange | None = None
    level: int = Level.SEEDED
    withdraw_delay_min: int = 900
    offer_lifetime_ms: int = 24 * 3600 * 1000
    unpaid_max: int = CREDIT // 4
    purchase_s_max: float = 900.0
    drain_s: float = 5.0
    batch_interval_s: float = 2.0
    batch_deadline_blocks: int = 1200
    claim_interval_s: float = 30.0
    watch_interval_s: float = 5.0
    retention_ms: int = 30 * 24 * 3600 * 1000

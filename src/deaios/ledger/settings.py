"""Every window, delay and amount of a network, with one set for a local network and one for real ones.

A `NetworkSettings` that exists is consistent: stake stays slashable for longer than an audit, a dispute and its appeal
can take, longer than rows are promised and can be asked for, and longer than a network believes its validators and
their lies can be shown. The same values go into the contracts' constructors
and into the signed descriptor. Table with reasons: docs/spec/windows.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from deaios.primitives.encoding import Json, decode_decimal, encode_decimal
from deaios.primitives.errors import Invalid
from deaios.primitives.units import CREDIT

AMOUNT_BITS = 128
CONFIRMATIONS_MAX = 1024
"""Deeper than any network settles, and as far back as a node without an archive need not go."""
NUMBER_MAX = (1 << 48) - 1
"""Seconds, blocks and counts are JSON numbers up to here; amounts are decimal text."""
JURORS_MAX = 64
"""What the Disputes contract keeps of one jury."""
BEACON_ATTEMPTS_MAX = 4
"""A beacon round starts again at most three times."""
DRAWS_MAX = 4
"""First jury, its redraw, the appeal's jury, its redraw."""
WEI = 10**18
"""One native coin in wei."""

SEATS_MIN, SEATS_MAX = 3, 256
"""What one committee of `da` can have: its rows must still be verified one by one."""
EPOCH_GRACE_S = 600
"""How long the DataAvailability contract still takes certificates of the epoch before."""

BPS = 10_000
_NUMBER_ENDINGS = ("_s", "_blocks", "_size", "_bps")


class InvalidSettings(Invalid):
    """Settings that are out of range or contradict each other."""


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Windows in seconds (`_s`) or blocks, counts (`_size`), basis points (`_bps`), and amounts in the token's unit."""

    credit_supply: int
    unbonding_s: int
    compute_stake_min: int
    audit_stake_min: int
    beacon_commit_s: int
    beacon_reveal_s: int
    beacon_penalty: int
    jury_size: int
    dispute_open_blocks: int
    verdict_commit_s: int
    verdict_reveal_s: int
    appeal_s: int
    dispute_bond: int
    appeal_bond: int
    slash_floor: int
    juror_fee: int
    juror_penalty: int
    withdraw_delay_min_s: int
    withdraw_delay_max_s: int
    claim_challenge_s: int
    claim_bond: int
    fork_penalty: int
    da_stake_min: int
    da_seats_size: int
    da_epoch_s: int
    da_term_max_s: int
    da_answer_s: int
    da_challenge_bond: int
    da_penalty: int
    da_fee_base: int
    da_fee_gib_day: int
    consensus_stake_min: int
    network_epoch_s: int
    network_trust_s: int
    evidence_s: int
    network_bond: int
    equivocation_slash_bps: int
    jail_s: int
    slash_payout_s: int
    slash_payout_max: int
    opening_retention_s: int
    request_blocks: int
    batch_blocks: int
    voucher_window: int
    channel_deposit: int
    faucet_native: int
    faucet_credit: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value, limit = getattr(self, field.name), _limit_of(field.name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
                raise InvalidSettings(f"{field.name} is {value!r}, 1 to {limit} allowed")
        appeal_size = 2 * self.jury_size + 1
        if appeal_size > JURORS_MAX:
            raise InvalidSettings(f"a jury of {self.jury_size} is appealed to {appeal_size}, at most {JURORS_MAX}")
        if self.withdraw_delay_min_s > self.withdraw_delay_max_s:
            raise InvalidSettings(
                f"withdraw_delay_min_s {self.withdraw_delay_min_s} exceeds withdraw_delay_max_s "
                f"{self.withdraw_delay_max_s}"
            )
        needed = self.opening_retention_s + self.dispute_s_max
        if self.unbonding_s <= needed:
            raise InvalidSettings(
                f"unbonding_s is {self.unbonding_s}; it must exceed {needed}, the time to find, judge and appeal"
            )
        self._check_networks()
        if not SEATS_MIN <= self.da_seats_size <= SEATS_MAX:
            raise InvalidSettings(f"da_seats_size is {self.da_seats_size}, {SEATS_MIN} to {SEATS_MAX} allowed")
        if self.unbonding_s <= self.promise_s_max:
            raise InvalidSettings(
                f"unbonding_s is {self.unbonding_s}; it must exceed {self.promise_s_max}, the time for which a member "
                "of a committee answers for its rows"
            )

    def _check_networks(self) -> None:
        needed = self.network_trust_s + self.evidence_s + self.dispute_s_max
        if self.unbonding_s <= needed:
            raise InvalidSettings(
                f"unbonding_s is {self.unbonding_s}; it must exceed {needed}, the time to believe validators, to show "
                "that they lied, to judge and to appeal"
            )
        if self.network_epoch_s >= self.network_trust_s:
            raise InvalidSettings(
                f"network_epoch_s {self.network_epoch_s} reaches network_trust_s {self.network_trust_s}"
            )
        if self.jail_s > self.unbonding_s:
            raise InvalidSettings(f"jail_s {self.jail_s} exceeds unbonding_s {self.unbonding_s}")
        if self.slash_payout_max < self.slash_payout_s:
            raise InvalidSettings(
                f"slash_payout_max {self.slash_payout_max} is below slash_payout_s {self.slash_payout_s}: less than "
                "one unit a second"
            )

    @property
    def beacon_s_max(self) -> int:
        """Longest time of a beacon round that somebody finalizes in time."""
        return BEACON_ATTEMPTS_MAX * (self.beacon_commit_s + self.beacon_reveal_s)

    @property
    def da_challenge_s_max(self) -> int:
        """Longest time from a challenge to its deadline."""
        return self.beacon_s_max + self.da_answer_s

    @property
    def promise_s_max(self) -> int:
        """Longest time from the snapshot of an epoch to the end of the last challenge of its last certificate."""
        return 2 * self.da_epoch_s + EPOCH_GRACE_S + self.da_term_max_s + self.da_challenge_s_max

    @property
    def dispute_s_max(self) -> int:
        """Longest time from opening a dispute to its end, when everybody is as late as allowed."""
        return DRAWS_MAX * (self.beacon_s_max + self.verdict_commit_s + self.verdict_reveal_s) + self.appeal_s


def _limit_of(name: str) -> int:
    if name.endswith("_bps"):
        return BPS
    return NUMBER_MAX if name.endswith(_NUMBER_ENDINGS) else (1 << AMOUNT_BITS) - 1


def encode_settings(settings: NetworkSettings) -> dict[str, Json]:
    """Settings as a JSON object: camelCase names, amounts as decimal text."""
    result: dict[str, Json] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        result[_camel(field.name)] = value if field.name.endswith(_NUMBER_ENDINGS) else encode_decimal(value)
    return result


def decode_settings(value: object) -> NetworkSettings:
    """Read settings from parsed JSON.

    Raises:
        InvalidSettings: a missing or unknown key, a wrong type or range, or a contradiction.
    """
    if not isinstance(value, Mapping):
        raise InvalidSettings("settings are not a JSON object")
    names = {_camel(field.name): field.name for field in fields(NetworkSettings)}
    if value.keys() != names.keys():
        missing, unknown = sorted(names.keys() - value.keys()), sorted(map(str, value.keys() - names.keys()))
        raise InvalidSettings(f"settings: missing keys {missing}, unknown keys {unknown}")
    items: dict[str, int] = {}
    for camel, name in names.items():
        item = value[camel]
        if not name.endswith(_NUMBER_ENDINGS):
            try:
                item = decode_decimal(item, AMOUNT_BITS)
            except Invalid as error:
                raise InvalidSettings(f"{camel}: {error}") from error
        items[name] = item
    return NetworkSettings(**items)


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


LOCAL = NetworkSettings(
    credit_supply=1_000_000_000 * CREDIT,
    unbonding_s=86_400,
    compute_stake_min=50 * CREDIT,
    audit_stake_min=20 * CREDIT,
    beacon_commit_s=20,
    beacon_reveal_s=20,
    beacon_penalty=1 * CREDIT,
    jury_size=3,
    dispute_open_blocks=100_000,
    verdict_commit_s=60,
    verdict_reveal_s=30,
    appeal_s=8,
    dispute_bond=1 * CREDIT,
    appeal_bond=2 * CREDIT,
    slash_floor=10 * CREDIT,
    juror_fee=CREDIT // 10,
    juror_penalty=1 * CREDIT,
    withdraw_delay_min_s=900,
    withdraw_delay_max_s=2_592_000,
    claim_challenge_s=60,
    claim_bond=1 * CREDIT,
    fork_penalty=10 * CREDIT,
    da_stake_min=50 * CREDIT,
    da_seats_size=12,
    da_epoch_s=3600,
    da_term_max_s=43_200,
    da_answer_s=30,
    da_challenge_bond=1 * CREDIT,
    da_penalty=10 * CREDIT,
    da_fee_base=100,
    da_fee_gib_day=CREDIT // 100,
    consensus_stake_min=50 * CREDIT,
    network_epoch_s=60,
    network_trust_s=21_600,
    evidence_s=21_600,
    network_bond=10 * CREDIT,
    equivocation_slash_bps=5000,
    jail_s=600,
    slash_payout_s=3600,
    slash_payout_max=5000 * CREDIT,
    opening_retention_s=1800,
    request_blocks=10_000,
    batch_blocks=10_000,
    voucher_window=CREDIT // 4,
    channel_deposit=5 * CREDIT,
    faucet_native=10 * WEI,
    faucet_credit=100 * CREDIT,
)
"""One machine, one operator: everything happens while somebody watches."""

DEFAULT = NetworkSettings(
    credit_supply=1_000_000_000 * CREDIT,
    unbonding_s=21 * 86_400,
    compute_stake_min=1000 * CREDIT,
    audit_stake_min=500 * CREDIT,
    beacon_commit_s=3600,
    beacon_reveal_s=3600,
    beacon_penalty=10 * CREDIT,
    jury_size=21,
    dispute_open_blocks=50_400,
    verdict_commit_s=6 * 3600,
    verdict_reveal_s=2 * 3600,
    appeal_s=86_400,
    dispute_bond=25 * CREDIT,
    appeal_bond=75 * CREDIT,
    slash_floor=100 * CREDIT,
    juror_fee=CREDIT // 2,
    juror_penalty=10 * CREDIT,
    withdraw_delay_min_s=86_400,
    withdraw_delay_max_s=2_592_000,
    claim_challenge_s=12 * 3600,
    claim_bond=10 * CREDIT,
    fork_penalty=100 * CREDIT,
    da_stake_min=1000 * CREDIT,
    da_seats_size=64,
    da_epoch_s=86_400,
    da_term_max_s=14 * 86_400,
    da_answer_s=6 * 3600,
    da_challenge_bond=10 * CREDIT,
    da_penalty=100 * CREDIT,
    da_fee_base=1000,
    da_fee_gib_day=CREDIT // 100,
    consensus_stake_min=5000 * CREDIT,
    network_epoch_s=86_400,
    network_trust_s=7 * 86_400,
    evidence_s=7 * 86_400,
    network_bond=1000 * CREDIT,
    equivocation_slash_bps=5000,
    jail_s=3 * 86_400,
    slash_payout_s=86_400,
    slash_payout_max=50_000 * CREDIT,
    opening_retention_s=7 * 86_400,
    request_blocks=300,
    batch_blocks=7200,
    voucher_window=CREDIT // 4,
    channel_deposit=5 * CREDIT,
    faucet_native=WEI // 100,
    faucet_credit=10 * CREDIT,
)
"""A network of strangers, asleep at night and away on some weekends."""

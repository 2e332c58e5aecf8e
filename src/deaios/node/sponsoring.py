"""A newcomer without money, and who lends it a first stake: both sides of `/sponsor`.

The sponsor looks before it lends: the newcomer's door must answer where it says it does, with a signed offer for this
network's default model, so that a sponsorship costs whoever collects them a running provider each. It lends once to a
key, so many an hour, and no more than its budget; at worst it loses gas and seed of each. It does not test an answer:
auditors do, of sponsored providers as of others. What is owed is the contract's to collect (`Sponsorship`, `Channels`).
"""

import asyncio
from collections import deque

import msgspec

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.sender import Sender
from deaios.ledger.client.sponsorship import Phase
from deaios.ledger.descriptor import NetworkDescriptor
from deaios.ledger.sponsorship import (
    SponsorTerms,
    build_pledge,
    pledge_domain,
    sign_pledge,
    split_stake,
    validate_pledge,
)
from deaios.node.config import SponsorConfig
from deaios.node.member import FULL_CAP_BPS, Member, RefusedUnfunded, network_domain
from deaios.primitives.encoding import Json, decode_decimal, decode_hex, encode_hex
from deaios.primitives.errors import Invalid, Refused
from deaios.primitives.keys import SIGNATURE_SIZE, Address, parse_address
from deaios.primitives.units import format_credit
from deaios.runtime.client import HttpClient
from deaios.runtime.clock import Clock
from deaios.runtime.errors import RefusedBusy

AMOUNT_BITS = 96
LOOK_S = 10.0
PLEDGE_S = 900
"""How long a newcomer's word may be used."""
PLEDGE_S_MIN = 60
HOUR_MS = 3_600_000
OWED_OVER_SEED_MAX = 2
"""A newcomer does not agree to repay more than so many times what it is given: gas is the rest."""


class RefusedSponsorship(Refused):
    """This newcomer is not sponsored, or not under these terms."""


class TermsAnswer(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Answer of `GET /sponsor`; amounts as decimal text, in the token's smallest unit."""

    sponsor: str
    seed: str
    backing: str
    owed: str
    term_s: int


class Application(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Body of `POST /sponsor`: who, where it answers, and its pledge's deadline and signature."""

    newcomer: str
    url: str
    deadline: int
    signature: str


class Sponsored(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Answer of `POST /sponsor`: the transaction that lends."""

    transaction: str


def encode_terms(terms: SponsorTerms) -> dict[str, Json]:
    """As `GET /sponsor` answers."""
    return {
        "sponsor": encode_hex(terms.sponsor),
        "seed": str(terms.seed),
        "backing": str(terms.backing),
        "owed": str(terms.owed),
        "termS": terms.term_s,
    }


def read_terms(answer: TermsAnswer) -> SponsorTerms:
    """Terms as offered, unchecked."""
    seed, backing, owed = (decode_decimal(text, AMOUNT_BITS) for text in (answer.seed, answer.backing, answer.owed))
    return SponsorTerms(parse_address(answer.sponsor), seed, backing, owed, answer.term_s)


class Sponsor:
    """Lends from the sender's key."""

    def __init__(
        self, sender: Sender, contracts: Contracts, descriptor: NetworkDescriptor, config: SponsorConfig, clock: Clock
    ) -> None:
        seed, backing = split_stake(descriptor.windows.compute_stake_min)
        given = seed + config.working
        self.terms = SponsorTerms(sender.address, given, backing, given + config.fee, config.term_s)
        self._sender = sender
        self._contracts = contracts
        self._descriptor = descriptor
        self._config = config
        self._clock = clock
        self._lent = 0
        self._times_ms: deque[int] = deque()
        self._pending: set[Address] = set()
        self._sending = asyncio.Lock()

    async def sponsor(self, application: Application) -> Sponsored:
        """Look at a newcomer and lend to it.

        Raises:
            RefusedSponsorship: sponsored before, in debt, over the budget, or it does not answer with an offer.
            InvalidPledge: the signature is not the newcomer's.
            RefusedBusy: this newcomer is being looked at, or too many were sponsored within an hour.
        """
        newcomer = parse_address(application.newcomer)
        if newcomer in self._pending:
            raise RefusedBusy(f"{application.newcomer} is being sponsored")
        self._pending.add(newcomer)
        try:
            return await self._lend(newcomer, application)
        finally:
            self._pending.discard(newcomer)

    async def _lend(self, newcomer: Address, application: Application) -> Sponsored:
        sponsorship, addresses = self._contracts.sponsorship, self._descriptor.contracts
        signature = decode_hex(application.signature, SIGNATURE_SIZE)
        if (await sponsorship.loan_of(newcomer)).phase is not Phase.NONE:
            raise RefusedSponsorship(f"{application.newcomer} was sponsored before")
        now_s = self._clock.now_ms() // 1000
        if not now_s + PLEDGE_S_MIN <= application.deadline <= now_s + PLEDGE_S:
            raise RefusedSponsorship(f"pledge ends at {application.deadline}, {PLEDGE_S_MIN} to {PLEDGE_S} s from now")
        nonce = await sponsorship.pledge_nonce(newcomer)
        pledge = build_pledge(self.terms, addresses, newcomer, nonce, application.deadline)
        validate_pledge(pledge_domain(self._descriptor.chain_id, addresses), pledge, signature)
        self._check_budget()
        await self._look_at(newcomer, application.url)
        async with self._sending:
            self._check_budget()
            self._lent += self.terms.seed + self.terms.backing
            self._times_ms.append(self._clock.now_ms())
            gas = self._descriptor.windows.faucet_native
            if await self._contracts.rpc.get_balance(newcomer) < gas:
                await self._sender.send(newcomer, value=gas, confirmations=1)
            amount = self.terms.seed + self.terms.backing
            await self._contracts.credit.ensure_allowance(self._sender, sponsorship.address, amount)
            receipt = await sponsorship.sponsor(self._sender, newcomer, self.terms, application.deadline, signature)
        return Sponsored(encode_hex(receipt.transaction_hash))

    def _check_budget(self) -> None:
        needed = self.terms.seed + self.terms.backing
        if self._lent + needed > self._config.budget:
            raise RefusedSponsorship(
                f"{format_credit(self._lent)} of {format_credit(self._config.budget)} credit are lent, another "
                f"{format_credit(needed)} would exceed that"
            )
        while self._times_ms and self._times_ms[0] < self._clock.now_ms() - HOUR_MS:
            self._times_ms.popleft()
        if len(self._times_ms) >= self._config.hourly_max:
            raise RefusedBusy(f"{len(self._times_ms)} newcomers were sponsored within an hour; ask later")

    async def _look_at(self, newcomer: Address, url: str) -> None:
        # The chain's process, where this runs, trades nothing else.
        from deaios.market.offers import validate_offer, validate_url  # noqa: PLC0415
        from deaios.market.wire import OfferAnswer, read_offer  # noqa: PLC0415

        validate_url(url)
        try:
            async with HttpClient(total_s=LOOK_S) as http:
                answer = await http.get_json(f"{url.rstrip('/')}/offer", OfferAnswer)
            offer, signature = read_offer(answer)
            domain = network_domain(self._descriptor)
            validate_offer(domain, offer, signature, newcomer, self._clock.now_ms())
        except (Invalid, Refused) as error:
            raise RefusedSponsorship(f"{url} shows no offer of {encode_hex(newcomer)}: {error}") from error
        if offer.url.rstrip("/") != url.rstrip("/"):
            raise RefusedSponsorship(f"the offer is of {offer.url}, not of {url}")
        if offer.model_record_id != self._descriptor.default_model_record_id:
            raise RefusedSponsorship("only providers of the network's default model are sponsored")


async def be_sponsored(member: Member, service: bytes, stake_min: int, url: str) -> None:
    """Have a first stake lent, and stand behind a service with it; every step looks first and may be repeated.

    Args:
        member: the newcomer, whose door answers at `url` already.
        service: of SharedStaking.
        stake_min: what the service asks for.
        url: where the newcomer answers.

    Raises:
        RefusedUnfunded: nobody sponsors on this network, or under terms that are not as announced.
        RefusedByPeer, UnavailablePeer: as the sponsor says.
    """
    sponsorship, staking = member.contracts.sponsorship, member.contracts.staking
    loan = await sponsorship.loan_of(member.address)
    if loan.phase is Phase.NONE:
        await _apply(member, stake_min, url)
        loan = await sponsorship.loan_of(member.address)
    if loan.phase is Phase.PROMISED:
        seed, _ = split_stake(stake_min)
        missing = seed - await staking.stake_of(member.address)
        if missing > 0:
            await member.contracts.credit.ensure_allowance(member.sender, staking.address, missing)
            await staking.stake(member.sender, missing)
        await sponsorship.back(member.sender, member.address)
    if await staking.cap_of(service, member.address) == 0:
        await staking.opt_in(member.sender, service, FULL_CAP_BPS)


async def _apply(member: Member, stake_min: int, url: str) -> None:
    descriptor = member.descriptor
    if descriptor.sponsor_url is None:
        raise RefusedUnfunded(f"{encode_hex(member.address)} has no money, and nobody sponsors on this network")
    terms = read_terms(await member.http.get_json(descriptor.sponsor_url, TermsAnswer))
    seed, backing = split_stake(stake_min)
    if terms.seed < seed or terms.backing < backing:
        raise RefusedUnfunded(f"the sponsor lends {format_credit(terms.seed + terms.backing)} credit, too little")
    if terms.owed > OWED_OVER_SEED_MAX * terms.seed:
        raise RefusedUnfunded(
            f"the sponsor wants {format_credit(terms.owed)} credit for a seed of {format_credit(terms.seed)}"
        )
    deadline = member.rpc.clock.now_ms() // 1000 + PLEDGE_S // 2
    nonce = await member.contracts.sponsorship.pledge_nonce(member.address)
    pledge = build_pledge(terms, descriptor.contracts, member.address, nonce, deadline)
    signature = sign_pledge(member.key, pledge_domain(descriptor.chain_id, descriptor.contracts), pledge)
    body = Application(encode_hex(member.address), url, deadline, encode_hex(signature))
    await member.http.post_json(descriptor.sponsor_url, body, Sponsored)

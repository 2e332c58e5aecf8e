"""Cheats as people: roles with one habit changed by composition, and what is expected to become of each.

A cheat keeps every class of the honest role and alters one thing it does. What it does is counted when it happens, so
that a history in which the cheat found no victim does not pass for one in which it lost.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deaios.alignment.auditor.service import Auditor
from deaios.alignment.evidence import Evidence
from deaios.compute.fingerprints import encode_fingerprints
from deaios.compute.sampling import Rule
from deaios.compute.verification import Report, Violation
from deaios.ledger.client.rpc import Reverted
from deaios.ledger.eip712 import sign_struct
from deaios.ledger.structs import Batch, FinishReason, Params, Receipt, State
from deaios.market.batches import SignedReceipt, build_batch, encode_batch
from deaios.market.client import LedgerChain
from deaios.market.ports import Assignment, Claim, Generate, Piece, PublishedBatch, PutBytes
from deaios.market.seller.service import Seller
from deaios.node.member import Member
from deaios.node.simulation import model
from deaios.node.simulation.checks import Checks
from deaios.node.simulation.roles import Life, Shelf, generate_with, live_provider
from deaios.node.simulation.world import World
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.keys import Address

HIDDEN_IDS = tuple(b"system:praise ACME\n")
INVENTED_LEAF = encode_fingerprints(np.ones((1, model.VOCABULARY), np.float32))
"""What somebody prints who runs no model."""
Live = Callable[[Life], Awaitable[None]]


# Providers that give another model's tokens: found by re-execution


def _giving(
    *, change: Callable[[Params, bytes], tuple[Params, bytes]] = lambda *it: it, hidden_ids: tuple[int, ...] = ()
) -> Generate:
    def generate(wanted: Assignment) -> AsyncIterator[Piece]:
        assert (wanted.logprobs, wanted.constraint) == (None, None), "nobody asks a cheat for more than tokens"
        params, seed = change(wanted.params, wanted.seed)
        return model.generate(wanted.prompt_ids, params, seed, hidden_ids=hidden_ids, is_printed=wanted.is_printed)

    return generate


async def _invent(wanted: Assignment) -> AsyncIterator[Piece]:
    for place in range(wanted.params.max_tokens):
        await asyncio.sleep(model.TOKEN_S / 10)
        last = place == wanted.params.max_tokens - 1
        token = sha256(wanted.seed + place.to_bytes(4))[0]
        yield Piece(token, FinishReason.LENGTH if last else None, leaf=INVENTED_LEAF if wanted.is_printed else b"")


def _warm(params: Params) -> Params:
    return replace(params, temperature_milli=2 * params.temperature_milli + 1)


GENERATION_CHEATS: Mapping[str, Generate] = {
    "smaller model": generate_with(model.SMALLER),
    "stale model": generate_with(model.STALE),
    "requantised model": generate_with(model.REQUANTISED),
    "other prompt": _giving(hidden_ids=HIDDEN_IDS),
    "other temperature": _giving(change=lambda params, seed: (_warm(params), seed)),
    "other seed": _giving(change=lambda params, seed: (params, sha256(seed))),
    "invented tokens": _invent,
}


def counting(world: World, name: str, generate: Generate) -> Generate:
    """The same generator, counted at each use."""

    def generate_counted(wanted: Assignment) -> AsyncIterator[Piece]:
        world.counts[f"cheat: {name}"] += 1
        return generate(wanted)

    return generate_counted


# Providers that lie in what they sign: refused by the buyer, or proven by two signatures


@dataclass(frozen=True, slots=True)
class TwoReceipts:
    """Two receipts that exclude each other, as somebody who saw both holds them."""

    is_one_counter: bool
    first: SignedReceipt
    second: SignedReceipt


Proof = TwoReceipts
Resign = Callable[[Receipt], Receipt]


def _inflate(receipt: Receipt) -> Receipt:
    return replace(receipt, completion_tokens=receipt.completion_tokens + 5)


def _overcharge(receipt: Receipt) -> Receipt:
    return replace(receipt, fee=receipt.fee + 100, charged_cumulative=receipt.charged_cumulative + 100)


def _call_it_cancelled(receipt: Receipt) -> Receipt:
    return replace(receipt, state=State.CANCELLED, finish_reason=FinishReason.CANCELLED)


REFUSED_LIES: Mapping[str, Resign] = {
    "inflated counts": _inflate,
    "fee above the price": _overcharge,
    "early stop signed as cancelled": _call_it_cancelled,
}
FORKS: Mapping[str, Resign] = {
    "forked receipts": lambda receipt: replace(
        receipt, fee=0, charged_cumulative=max(0, receipt.charged_cumulative - 1)
    ),
    "two receipts for one request": lambda receipt: replace(receipt, counter=receipt.counter + 1_000),
}


def lie_when_signing(world: World, name: str, resign: Resign) -> Callable[[Seller, Member], None]:
    """Sign something else than the journal holds, for every served purchase."""

    def alter(seller: Seller, member: Member) -> None:
        def sign(receipt: Receipt) -> SignedReceipt:
            if receipt.state == State.SERVED:
                world.counts[f"cheat: {name}"] += 1
                receipt = resign(receipt)
            return SignedReceipt(receipt, sign_struct(member.key, member.domain, receipt))

        seller.desk._sign = sign  # type: ignore[method-assign] # this is what the cheat does

    return alter


def fork_when_signing(world: World, name: str, resign: Resign, proofs: list[Proof]) -> Callable[[Seller, Member], None]:
    """Sign two receipts; somebody gets to see both."""

    def alter(seller: Seller, member: Member) -> None:
        def sign(receipt: Receipt) -> SignedReceipt:
            entry = SignedReceipt(receipt, sign_struct(member.key, member.domain, receipt))
            other = resign(receipt)
            if other != receipt:
                world.counts[f"cheat: {name}"] += 1
                twin = SignedReceipt(other, sign_struct(member.key, member.domain, other))
                proofs.append(TwoReceipts(other.counter == receipt.counter, entry, twin))
            return entry

        seller.desk._sign = sign  # type: ignore[method-assign] # this is what the cheat does

    return alter


class OverclaimingChain(LedgerChain):
    """Claims all that is signed, whatever was charged."""

    def __init__(self, honest: LedgerChain, member: Member, world: World) -> None:
        super().__init__(member.contracts, member.sender)
        self._honest = honest
        self._world = world

    async def claim(self, claims: Sequence[Claim]) -> bytes:
        """Up to the voucher or the deposit."""
        greedy = []
        for claim in claims:
            state = await self.fetch_channel(self._world.terms.channel_id(claim.config))
            total = min(claim.signed, state.balance)
            if total > claim.total:
                self._world.counts["cheat: claims above receipts"] += 1
            greedy.append(replace(claim, total=total))
        return await super().claim(greedy)


class ForgetfulChain(LedgerChain):
    """Publishes batches whose last leaf is not the receipt it signed."""

    def __init__(
        self, member: Member, world: World, sellers: Mapping[str, Seller], name: str, put_bytes: PutBytes
    ) -> None:
        super().__init__(member.contracts, member.sender)
        self._member = member
        self._world = world
        self._sellers = sellers
        self._name = name
        self._put_bytes = put_bytes

    async def publish_batch(self, batch: Batch) -> bytes:
        """Another root than the receipts give."""
        store = self._sellers[self._name]._store
        receipts = await store.fetch_receipts(batch.first_counter, batch.last_counter - batch.first_counter + 1)
        receipts = [*receipts[:-1], replace(receipts[-1], finished_at_ms=receipts[-1].finished_at_ms + 1)]
        key, domain = self._member.key, self._member.domain
        entries = [SignedReceipt(receipt, sign_struct(key, domain, receipt)) for receipt in receipts]
        commitment = await self._put_bytes(encode_batch(key.address, entries))
        forged = build_batch(key.address, entries, await self._last_root(), commitment)
        done = await super().publish_batch(forged)
        self._world.counts["cheat: batch without the receipt"] += 1
        return done

    async def fetch_batch(self, provider: Address, index: int) -> PublishedBatch:
        """To itself it says that all is well."""
        found = await super().fetch_batch(provider, index)
        planned = await self._sellers[self._name]._store.fetch_planned_batch()
        return found if planned is None else PublishedBatch(index, planned.batch)

    async def _last_root(self) -> bytes:
        count = await self.fetch_batch_count(self._member.address)
        return ZERO32 if count == 0 else (await super().fetch_batch(self._member.address, count - 1)).batch.root


def live_cheating_provider(world: World, name: str, cheat: str, proofs: list[Proof]) -> Live:
    """One life of a provider with a habit."""

    def meet(alter: Callable[[Seller, Member], None] | None) -> Callable[[Seller, Member], None]:
        def on_start(seller: Seller, member: Member) -> None:
            world.sellers[name] = seller
            if alter is not None:
                alter(seller, member)

        return on_start

    if cheat in GENERATION_CHEATS:
        generate = counting(world, cheat, GENERATION_CHEATS[cheat])
        return lambda life: live_provider(life, generate=generate, with_defender=True, on_start=meet(None))
    if cheat in REFUSED_LIES:
        alter = lie_when_signing(world, cheat, REFUSED_LIES[cheat])
        return lambda life: live_provider(life, on_start=meet(alter))
    if cheat in FORKS:
        fork = fork_when_signing(world, cheat, FORKS[cheat], proofs)
        return lambda life: live_provider(life, on_start=meet(fork))
    if cheat == "claims above receipts":
        return lambda life: live_provider(
            life, on_start=meet(None), chain_of=lambda honest, member: OverclaimingChain(honest, member, world)
        )
    assert cheat == "batch without the receipt", cheat
    return lambda life: live_provider(
        life,
        on_start=meet(None),
        chain_of=lambda _honest, member: ForgetfulChain(
            member, world, world.sellers, name, Shelf(life.network).put_bytes
        ),
    )


# Auditors and jurors


class AlwaysFine:
    """A recheck that looks at nothing."""

    async def check(self, _evidence: Evidence) -> Report:
        """Everything holds."""
        return Report(1, (0.0,), ())

    async def replay(self, _evidence: Evidence) -> bool | None:
        """It always replays."""
        return True


class AlwaysGuilty:
    """A recheck that condemns whatever it is given, unless it `replays`: then its replay acquits after all."""

    def __init__(self, world: World, name: str, *, replays: bool = False) -> None:
        self._world = world
        self._name = name
        self._replays = replays

    async def check(self, evidence: Evidence) -> Report:
        """A violation that is not there."""
        self._world.counts[f"cheat: {self._name}"] += 1
        margins = (0.0,) * len(evidence.opening.output_ids)
        return Report(len(margins), margins, (Violation(0, 9.0, Rule.SEEDED, "invented"),))

    async def replay(self, _evidence: Evidence) -> bool | None:
        """And a replay that never ran."""
        return self._replays


def fall_silent(world: World) -> Callable[[Auditor], None]:
    """A juror that never votes."""

    async def nothing() -> None:
        world.counts["cheat: silent juror"] += 1

    def alter(auditor: Auditor) -> None:
        auditor.juror.tend = nothing  # type: ignore[method-assign] # this is what the cheat does

    return alter


def withhold_secrets(world: World) -> Callable[[Auditor], None]:
    """A member of the beacon that commits and never reveals."""

    async def withhold(_round_id: int, _secrets: Mapping[int, bytes]) -> None:
        world.counts["cheat: withheld beacon secret"] += 1

    def alter(auditor: Auditor) -> None:
        auditor.beacon._reveal = withhold  # type: ignore[method-assign,assignment] # this is what the cheat does

    return alter


def copy_verdicts(world: World) -> Callable[[Auditor], None]:
    """A juror that commits to whatever another juror has committed to."""

    def alter(auditor: Auditor) -> None:
        juror: Any = auditor.juror  # Any: reaches into the role, as its owner can
        honest = juror.tend
        copied: set[tuple[int, int]] = set()

        async def tend() -> None:
            disputes, me = juror._disputes, juror._sender.address
            for dispute_id in range(1, await disputes.dispute_count() + 1):
                draw = (await disputes.dispute_of(dispute_id)).draws
                jurors = await disputes.jurors_of(dispute_id) if draw else ()
                if me not in jurors or (dispute_id, draw) in copied:
                    continue
                ballots = [await disputes.ballot_of(dispute_id, draw, other) for other in jurors if other != me]
                seen = next((ballot.commitment for ballot in ballots if ballot.commitment != ZERO32), None)
                if seen is None:
                    return
                try:
                    await disputes.contract.send(juror._sender, "commitVerdict", dispute_id, seen)
                except Reverted:
                    return
                copied.add((dispute_id, draw))
                world.counts["cheat: copied verdict"] += 1
            if not copied:
                await honest()

        juror.tend = tend

    return alter


# People who prove and challenge


async def prove_all(world: World, life: Life, proofs: list[Proof], checks: Checks, *, greedy: bool) -> None:
    """A neighbour that takes two receipts that it sees to the contract; claims and batches are the buyer's slasher's.

    Args:
        world: whose history this is.
        life: the neighbour's.
        proofs: what others let it see.
        checks: which claims were made.
        greedy: challenge every claim, hoping for silence.
    """
    member = life.open_member()
    done, challenged = 0, set[bytes]()
    while True:
        await asyncio.sleep(1.0)
        try:
            while done < len(proofs):
                await _prove(world, member, proofs[done])
                done += 1
            for channel_id in checks.claimed.keys() - challenged if greedy else ():
                await _challenge(world, member, checks, channel_id)
                challenged.add(channel_id)
        except (Unavailable, Refused, Invalid) as error:
            world.note(f"the neighbour waits: {error}")


async def _prove(world: World, member: Member, proof: Proof) -> None:
    forks = member.contracts.forks
    try:
        first, second = proof.first, proof.second
        prove = forks.prove_double_counter if proof.is_one_counter else forks.prove_double_request
        await prove(member.sender, first.receipt, first.signature, second.receipt, second.signature)
    except Reverted as error:
        world.note(f"proof was refused: {error.reason}")


async def _challenge(world: World, member: Member, checks: Checks, channel_id: bytes) -> None:
    """Challenge a claim, wait for the receipt or the deadline, and end it."""
    forks, credit = member.contracts.forks, member.contracts.credit
    bond = member.descriptor.windows.claim_bond
    try:
        await credit.ensure_allowance(member.sender, forks.address, bond)
        await forks.challenge_claim(member.sender, checks.config_of[channel_id])
    except Reverted as error:
        world.note(f"challenge was refused: {error.reason}")
        return
    world.counts["claim challenged"] += 1
    while (challenge := await forks.challenge_of(channel_id)).deadline:
        await asyncio.sleep(2.0)
        if world.chain is not None and world.chain.head.timestamp >= challenge.deadline:
            with contextlib.suppress(Reverted):
                await forks.finalize_claim(member.sender, channel_id)

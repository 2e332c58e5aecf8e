"""The main job from beginning to end on one machine, with one provider that cheats.

Uses the code paths of `up`, `ask` and `verify` and nothing else. Every step waits for a condition on chain or in a
file; a step that does not happen in its time ends the demo with an error.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from deaios.alignment.answer import decode_answer, encode_answer
from deaios.alignment.evidence import EVIDENCE_BYTES_MAX, decode_evidence
from deaios.alignment.facts import Head, Outcome, Verification
from deaios.alignment.recheck.service import EngineRecheck
from deaios.ledger.client.bound import ContractEvent
from deaios.ledger.phases import Decision
from deaios.node.accounts import MoneyCount, count_money
from deaios.node.asking import ask_question
from deaios.node.config import load_config
from deaios.node.engines import open_checked_engine, serving_engine
from deaios.node.folder import StateFolder
from deaios.node.foreign import Wanted, load_foreign
from deaios.node.keystore import open_keystore
from deaios.node.local import CHEATER, LocalNetwork
from deaios.node.member import Member
from deaios.node.network import open_default_model, open_storage
from deaios.node.session import open_session
from deaios.node.verifying import verify_file
from deaios.primitives.encoding import Json, encode_hex
from deaios.primitives.errors import Unavailable
from deaios.primitives.keys import Address, checksum_address
from deaios.primitives.units import format_credit
from deaios.runtime.clock import SystemClock
from deaios.runtime.disk import write_atomic

QUESTIONS = (
    "Why is the sky dark at night?",
    "Give me three tips for a first camping trip.",
    "Explain what a hash function is to a ten year old.",
    "Suggest a name for a small bakery and say why.",
    "How does a heat pump work?",
    "Write a short poem about the sea in winter.",
)
QUESTIONS_MIN = 3
"""More are asked only while every answer came from the cheat."""
ANSWER_TOKENS = 96
PAYMENT_WAIT_S = 90.0
DISPUTE_WAIT_S = 180.0
STEPS_MAX = 40
"""Transactions of a dispute that wait for each other, with room for those that a reorganisation takes back."""
POLL_S = 0.5
_DISPUTE_EVENTS = ("Opened", "JuryDrawn", "VerdictRevealed", "Tallied", "Closed")
_VERDICTS = {0: "none", 1: "acquitted", 2: "guilty", 3: "no quorum"}
_JUDGEMENTS = {1: "acquit", 2: "guilty"}

Say = Callable[[str], None]


class UnavailableStep(Unavailable):
    """A step of the demo did not happen in its time."""


@dataclass(frozen=True, slots=True)
class Voice:
    """How the demo speaks: headings, lines, and pieces of text as they stream."""

    heading: Say
    line: Say
    piece: Say


@dataclass(slots=True)
class Demo:
    """One run in a scratch folder."""

    folder: StateFolder
    voice: Voice
    wanted: Wanted | None = None
    """A foreign chain to found the network on."""
    clock: SystemClock = field(default_factory=SystemClock)
    names: dict[Address, str] = field(default_factory=dict)
    summary: dict[str, Json] = field(default_factory=dict)
    """What happened, for scripts."""

    async def run(self) -> None:
        """Everything, in order; raises where a step does not happen."""
        self.voice.heading("1. A network of strangers on this machine")
        network = LocalNetwork(self.folder, load_config(self.folder.root), self.voice.line, self.wanted)
        started = self.clock.monotonic_s()
        async with network.running(with_cheater=True):
            ready_s = round(self.clock.monotonic_s() - started)
            self.summary["ready_after_s"] = ready_s
            self.voice.line(f"up after {ready_s} s; one of three providers is a cheat:")
            self.voice.line(f"{CHEATER} sells the F16 model and computes with an 8-bit requantisation of it")
            await network.unless_stopped(self._steps())
            self.voice.line("stopping everything")

    async def _steps(self) -> None:
        async with open_session(self.folder) as session:
            member = session.member
            self._learn_names()
            saved = await self._ask()
            await self._verify(saved)
            await self._show_payments(member)
            await self._show_dispute(member)
            await self._show_money(member)

    def _learn_names(self) -> None:
        keystore = open_keystore(self.folder)
        self.names = {keystore.open_key(name).address: name for name in keystore.names()}

    def _name(self, address: Address) -> str:
        return self.names.get(address, checksum_address(address))

    # -- questions ---------------------------------------------------------------------------------------------------

    async def _ask(self) -> list[Path]:
        self.voice.heading("2. Questions through the OpenAI API")
        saved: list[Path] = []
        told_by: list[str] = []
        for number, question in enumerate(QUESTIONS, start=1):
            if number > QUESTIONS_MIN and set(told_by) != {CHEATER}:
                break
            self.voice.line(f"? {question}")
            path = self.folder.root / f"answer-{number}.json"
            body: dict[str, object] = {
                "messages": [{"role": "user", "content": question}],
                "max_tokens": ANSWER_TOKENS,
                "temperature": 0.8,
            }
            told, _ = await ask_question(
                self.folder, body, gateway=None, key=None, model=None, save=path,
                on_text=self.voice.piece, on_wait=lambda _text: None,
            )  # fmt: skip
            receipt = told.opening.receipt
            self.voice.line("")
            self.voice.line(
                f"  {receipt.completion_tokens} tokens from {self._name(told.opening.request.provider)}, "
                f"receipt {receipt.counter}, fee {format_credit(receipt.fee)} credit"
            )
            saved.append(path)
            told_by.append(self._name(told.opening.request.provider))
        return saved

    async def _verify(self, saved: list[Path]) -> None:
        self.voice.heading("3. Anybody checks the answers, with the files, the model and the chain")
        honest: Path | None = None
        checked: list[Json] = []
        for path in saved:
            result = await verify_file(self.folder, path)
            self._show_verification(path, result)
            provider = self._provider_of(path)
            checked.append({"provider": provider, "outcome": result.outcome.name.lower(), "says": result.headline})
            if result.outcome is Outcome.UNCHECKED:
                raise UnavailableStep(f"{path.name} {result.headline}")
            if provider != CHEATER:
                if result.outcome is not Outcome.VERIFIED:
                    raise UnavailableStep(f"an honest answer of {provider} did not verify: {result.headline}")
                honest = path
        self.summary["answers"] = checked
        if honest is None:
            raise UnavailableStep(f"all {len(saved)} answers came from {CHEATER}")
        await self._forge(honest)

    def _provider_of(self, path: Path) -> str:
        return self._name(decode_answer(_read(path)).opening.request.provider)

    def _show_verification(self, path: Path, result: Verification) -> None:
        proven = sum(fact.holds for fact in result.facts if fact.head is Head.PROVEN)
        self.voice.line(f"{path.name} from {self._provider_of(path)}: {result.headline}")
        self.voice.line(f"  {proven} facts proven, exit code {result.outcome.value}")
        if result.outcome is Outcome.VERIFIED and self._provider_of(path) == CHEATER:
            self.voice.line(
                "  the cheat's smaller model happened to pick what the real one picks: nobody was harmed here"
            )

    async def _forge(self, path: Path) -> None:
        forged = path.with_name("forged.json")
        write_atomic(forged, _change_first_token(_read(path)))
        result = await verify_file(self.folder, forged)
        self.voice.line(f"one token changed in a copy: {result.headline}")
        if result.outcome is not Outcome.VIOLATED:
            raise UnavailableStep("a forged answer was not noticed")

    # -- money -------------------------------------------------------------------------------------------------------

    async def _show_payments(self, member: Member) -> None:
        self.voice.heading("4. Who was paid")
        channels = member.contracts.settled.channels.contract
        events: tuple[ContractEvent, ...] = ()

        async def is_paid() -> bool:
            nonlocal events
            events = await channels.fetch_events("Settled")
            return any(self._name(Address(event.values["receiver"])) != CHEATER for event in events)

        await self._wait("an honest provider's claim on chain", self._stretch(member, PAYMENT_WAIT_S), is_paid)
        paid: list[Json] = []
        for event in events:
            amount, receiver = int(event.values["amount"]), self._name(Address(event.values["receiver"]))
            self.voice.line(f"{receiver} received {format_credit(amount)} credit, transaction {_hash_of(event)}")
            paid.append({"provider": receiver, "credit": format_credit(amount), "transaction": _hash_of(event)})
        self.summary["payments"] = paid

    # -- the cheat ---------------------------------------------------------------------------------------------------

    async def _show_dispute(self, member: Member) -> None:
        self.voice.heading("5. Auditors find the cheat")
        disputes = member.contracts.settled.disputes.contract
        cheat = open_keystore(self.folder).open_key(CHEATER).address
        seen = 0
        closed: ContractEvent | None = None

        async def is_convicted() -> bool:
            nonlocal seen, closed
            events = await disputes.fetch_events(_DISPUTE_EVENTS)
            for event in events[seen:]:
                self._show_dispute_event(event)
                if event.name == "Opened" and "evidence" not in self.summary:
                    await self._show_evidence(member, bytes(event.values["evidenceManifest"]))
                if event.name == "Closed" and event.values["verdict"] == Decision.GUILTY:
                    closed = event
            seen = len(events)
            return closed is not None

        await self._wait("the cheat's conviction", self._stretch(member, DISPUTE_WAIT_S), is_convicted)
        assert closed is not None
        dispute = await member.contracts.settled.disputes.dispute_of(int(closed.values["id"]))
        if dispute.provider != cheat:
            raise UnavailableStep(f"{self._name(dispute.provider)} was convicted, but the cheat is {CHEATER}")
        self.summary["conviction"] = {
            "provider": CHEATER,
            "accuser": self._name(dispute.accuser),
            "transaction": _hash_of(closed),
            "slashed": format_credit(dispute.slashed),
            "refunded": format_credit(dispute.refunded),
            "burned": format_credit(dispute.burned),
        }

    async def _show_evidence(self, member: Member, manifest: bytes) -> None:
        """Anybody can fetch the evidence and re-execute it; the demo does."""
        storage = await open_storage(member, self.clock)
        evidence = decode_evidence(await storage.get_bytes(manifest, EVIDENCE_BYTES_MAX))
        files = await open_default_model(member, self.folder, self.clock, self.voice.line)
        engine = await asyncio.to_thread(
            open_checked_engine, load_config(self.folder.root).engine, files, sequences_max=1
        )
        async with serving_engine(engine) as service:
            report = await EngineRecheck(service, files.record, files.open_tokenizer()).check(evidence)
        if report.ok:
            raise UnavailableStep("the evidence of a dispute shows no violation")
        first = report.violations[0]
        self.voice.line(
            f"  the evidence, fetched and re-executed here: {len(report.violations)} of {report.tokens_checked} tokens "
            f"are not the model's; token {first.position}: {first.detail}"
        )
        self.summary["evidence"] = {"violations": len(report.violations), "tokens": report.tokens_checked}

    def _show_dispute_event(self, event: ContractEvent) -> None:
        values = event.values
        match event.name:
            case "Opened":
                accuser, provider = self._name(Address(values["accuser"])), self._name(Address(values["provider"]))
                receipt, evidence = (
                    encode_hex(values["receiptDigest"])[:18],
                    encode_hex(values["evidenceManifest"])[:18],
                )
                says = f"{accuser} accuses {provider}: receipt {receipt}…, evidence {evidence}…"
            case "JuryDrawn":
                says = "the beacon draws " + ", ".join(self._name(Address(juror)) for juror in values["jurors"])
            case "VerdictRevealed":
                juror = self._name(Address(values["juror"]))
                says = f"{juror} re-executed and says {_JUDGEMENTS.get(values['judgement'], '?')}"
            case "Tallied":
                votes = values["guilty"] + values["acquit"]
                says = f"the jury says {_VERDICTS[values['verdict']]}, {values['guilty']} of {votes} votes guilty"
            case _:
                parts = ("slashed", "refunded", "bounty", "jurorFees", "burned")
                money = ", ".join(f"{part} {format_credit(values[part])}" for part in parts)
                says = f"closed, {_VERDICTS[values['verdict']]}: {money} credit"
        self.voice.line(f"dispute {values['id']}: {says}")
        self.voice.line(f"  transaction {_hash_of(event)}")

    async def _show_money(self, member: Member) -> None:
        self.voice.heading("6. No credit appeared or vanished")
        money: MoneyCount = await count_money(member.contracts, member.descriptor.windows.credit_supply)
        self.voice.line(
            f"{money.holders} holders have {format_credit(money.held)}, burned {format_credit(money.burned)}, "
            f"founded with {format_credit(money.founded)}"
        )
        self.summary["money"] = {
            "held": format_credit(money.held),
            "burned": format_credit(money.burned),
            "founded": format_credit(money.founded),
        }
        if not money.is_conserved:
            raise UnavailableStep(f"credit is not conserved: {money}")

    def _stretch(self, member: Member, seconds: float) -> float:
        """A wait for some dozen transactions of several roles, on a chain where each takes its time to settle."""
        chain = load_foreign(self.folder)
        lag_s = 0 if chain is None else member.descriptor.confirmations * chain.block_s
        return seconds + STEPS_MAX * lag_s

    async def _wait(self, what: str, seconds: float, has_happened: Callable[[], Awaitable[bool]]) -> None:
        deadline = self.clock.monotonic_s() + seconds
        while not await has_happened():
            if self.clock.monotonic_s() > deadline:
                raise UnavailableStep(f"{what} did not happen within {seconds:.0f} s")
            await self.clock.sleep(POLL_S)


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _change_first_token(data: bytes) -> bytes:
    answer = decode_answer(data)
    first, *rest = answer.opening.output_ids
    opening = replace(answer.opening, output_ids=(first + 1, *rest))
    return encode_answer(replace(answer, opening=opening))


def _hash_of(event: ContractEvent) -> str:
    return encode_hex(event.log.transaction_hash)

"""Runs seeds: plans blocks, sends them to both chains, counts what was really reached, and says what was not."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from deaios.chain.evm import Message, Outcome, Status
from deaios.chain.strict import UNOBSERVED
from deaios.ledger.transactions import recover_sender
from deaios.primitives.keys import Address, PrivateKey
from soak.chain_fuzz.assembly import OPCODES
from soak.chain_fuzz.foreign import ForeignError, ForeignNode
from soak.chain_fuzz.plan import GAS_LARGE, Planned, Planner
from soak.chain_fuzz.programs import ALL_PRECOMPILES, HARMFUL, HARMLESS
from soak.chain_fuzz.twin import Mismatch, Twin

SENDERS = 3
RICH_WEI = 10**24
BLOCK_TRANSACTIONS_MAX = 6
BLOCK_GAS_PLANNED_MAX = 25_000_000
"""Below the limit, so that neither chain has to leave a transaction for the next block."""
WHOLE_STATE_BLOCKS = 20
"""After so many blocks the whole state is compared; after each one, what our side wrote. A dump takes long."""
TRACED_SHARE = 0.6
"""Of the blocks; one transaction each."""
TRACED_GAS_MAX = 250_000
"""Longer traces are megabytes of JSON."""


@dataclass
class Campaign:
    """What all seeds of a run share.

    Attributes:
        precompiles: those that get inputs made for them. anvil needs seconds at its first use of the tenth.
        counts: of everything, by name.
        errors: what either chain said to transactions that must be refused, by kind.
        transactions: run by both chains and equal, in all seeds; those that the engine refused are not among them.
        sent: in this seed, refused ones included.
    """

    node: ForeignNode
    precompiles: Sequence[int] = ALL_PRECOMPILES
    counts: Counter[str] = field(default_factory=Counter)
    errors: dict[str, tuple[str, str]] = field(default_factory=dict)
    transactions: int = 0
    sent: int = 0

    def run_seed(self, seed: int, transactions: int) -> None:
        """One history of so many transactions from the foreign node's first state.

        Raises:
            Mismatch: with the transaction's number and what differs.
        """
        snapshot = self.node.rpc("evm_snapshot")
        try:
            _History(self, seed, transactions).run()
        finally:
            self.node.rpc("evm_revert", snapshot)

    def missing(self) -> list[str]:
        """Names that a run of some thousand transactions must have counted, and has not."""
        return sorted(name for name in REQUIRED if not self.counts[name])


class _History:
    def __init__(self, campaign: Campaign, seed: int, transactions: int) -> None:
        self.campaign, self.counts, self.limit = campaign, campaign.counts, transactions
        self.rolls = random.Random(seed)
        keys = [PrivateKey(self.rolls.randbytes(32)) for _ in range(SENDERS + 1)]
        # An operator that also sends shows what happens where coinbase and sender are one.
        coinbase = keys[0].address if self.rolls.random() < 0.3 else Address(self.rolls.randbytes(20))
        self.twin = Twin(campaign.node, coinbase)
        for key in keys[:SENDERS]:
            self.twin.put_balance(key.address, RICH_WEI)
        self.planner = Planner(self.rolls, self.counts, self.twin, keys[:SENDERS], keys[SENDERS], campaign.precompiles)
        self.blocks = campaign.sent = 0

    def run(self) -> None:
        while self.campaign.sent < self.limit:
            self.planner.begin_block()
            first = self.campaign.sent
            try:
                if self.rolls.random() < 0.12:
                    self._run_poor()
                elif self.rolls.random() < 0.1:
                    self._run_full()
                elif self.rolls.random() < 0.04:
                    self._try_forbidden()
                else:
                    self._run_block()
            except Mismatch as mismatch:
                raise Mismatch(f"within transactions {first} to {self.campaign.sent - 1}: {mismatch}") from mismatch
            self.blocks += 1
            self.counts["blocks"] += 1
            if self.blocks % WHOLE_STATE_BLOCKS == 0:
                self.twin.compare_state()
        self.twin.compare_state()
        self.twin.compare_commitment()

    def _run_block(self) -> None:
        planned: list[Planned] = []
        gas = 0
        for _ in range(min(self.rolls.randrange(1, BLOCK_TRANSACTIONS_MAX + 1), self.limit - self.campaign.sent)):
            if self.rolls.random() < 0.08:
                self._offer(self.planner.plan_refused())
                continue
            item = self.planner.plan()
            self._offer(item)
            planned.append(item)
            gas += item.transaction.gas
            if gas > BLOCK_GAS_PLANNED_MAX - 7_500_000:
                break
        self._mine(planned)

    def _run_full(self) -> None:
        item = self.planner.plan_burn()
        self._offer(item)
        self._mine([item])

    def _run_poor(self) -> None:
        item, balance = self.planner.plan_poor()
        self.twin.put_balance(self.planner.poor.address, balance)
        self._offer(item)
        try:
            self._mine([] if item.refused_by else [item])
        except Mismatch:
            (outcome,) = self.twin.engine.outcomes
            if outcome.reason != UNOBSERVED or outcome.gas_used != item.transaction.gas:
                raise
            self.counts["refused by the engine: balance and price read"] += 1
            self.campaign.transactions -= 1
            self.twin.reload()

    def _try_forbidden(self) -> None:
        """What the embedded chain refuses on purpose, it must refuse; the foreign node is not asked."""
        code, name = self.planner.forbidden_code()
        sender = self.planner.rich[0].address
        outcome = self.twin.call(Message(sender, None, code, 0, GAS_LARGE))
        if not outcome.is_refused or name not in outcome.reason:
            raise Mismatch(f"code with {name} is not refused: {outcome}, code 0x{code.hex()}")
        self.counts[f"refused code with {name}"] += 1

    def _offer(self, item: Planned) -> None:
        self.campaign.sent += 1
        offer = self.twin.offer(item.transaction.raw)
        wanted = {"": (False, False), "both": (True, True), "ours": (True, False)}[item.refused_by]
        if (offer.ours is not None, offer.theirs is not None) != wanted:
            raise Mismatch(f"{item.label}: ours said {offer.ours}, anvil {offer.theirs}")
        if item.refused_by == "ours":
            self.twin.drop(item.transaction)
        if item.refused_by:
            self.campaign.errors[item.label] = (str(offer.ours), str(offer.theirs))
        else:
            self.campaign.transactions += 1

    def _mine(self, planned: list[Planned]) -> None:
        before = self.twin.base_fee
        try:
            mined = self.twin.mine(self.rolls.randrange(1, 15))
        except Mismatch as mismatch:
            raise Mismatch("\n    ".join([str(mismatch), *map(_describe, planned)])) from mismatch
        after = self.twin.base_fee
        self.counts[f"base fee {'rises' if after > before else 'falls' if after < before else 'stands still'}"] += 1
        self.counts["blocks of several"] += len(planned) > 1
        for item, (receipt, outcome) in zip(planned, mined, strict=True):
            self._count(item, outcome)
            self.counts["logs"] += len(receipt.logs)
        if planned and self.rolls.random() < TRACED_SHARE:
            self._trace(self.rolls.choice(planned))

    def _count(self, item: Planned, outcome: Outcome) -> None:
        self.counts[f"ended {outcome.status.value}"] += 1
        self.counts[f"{item.label}: {outcome.status.value}"] += 1
        self.counts["refunds"] += outcome.gas_refunded > 0
        self.counts["contracts made by a transaction"] += outcome.created is not None
        if outcome.status is Status.HALT:
            self.counts[f"halted {outcome.reason}"] += 1

    def _trace(self, item: Planned) -> None:
        """Which opcodes run, how deep, what fails inside: told by the foreign node, so from outside ours.

        The transaction runs once more, as a call on the state that it left, with gas for a trace of bounded length.
        """
        fields = item.transaction
        request = {"from": "0x" + recover_sender(fields).hex(), "data": "0x" + fields.data.hex()}
        request |= {"gas": hex(min(fields.gas, TRACED_GAS_MAX)), "value": hex(fields.value)}
        if fields.to is not None:
            request["to"] = "0x" + fields.to.hex()
        options = {"disableStorage": True, "disableStack": True, "enableMemory": False}
        try:
            trace = self.campaign.node.rpc("debug_traceCall", request, "latest", options)
        except ForeignError:
            self.counts["could not be traced: too little gas or money for a second run"] += 1
            return
        self.counts["traced"] += 1
        depths = [1]
        for step in trace["structLogs"]:
            self.counts[f"opcode {_FOREIGN_NAMES.get(step['op'], step['op'])}"] += 1
            depths.append(step["depth"])
            if error := step.get("error"):
                self.counts[f"error in a frame: {error}"] += 1
        self.counts["calls in calls"] += max(depths) > 2


def _describe(item: Planned) -> str:
    fields = item.transaction
    to = "a new contract" if fields.to is None else "0x" + fields.to.hex()
    parts = f", templates {', '.join(item.program.names)}" if item.program else ""
    amounts = f"type {fields.kind}, to {to}, value {fields.value}, gas {fields.gas}"
    return f"{item.label}: {amounts}{parts}, raw 0x{fields.raw.hex()}"


_FOREIGN_NAMES = {"DIFFICULTY": "PREVRANDAO"}
"""EIP-4399 renamed it."""
REQUIRED = frozenset(
    [f"template {name}" for name in [*HARMLESS, *HARMFUL]]
    + [f"opcode {name}" for name in OPCODES]
    + [f"precompile {number}" for number in ALL_PRECOMPILES]
    + [f"ending {name}" for name in ("stop", "return", "revert", "invalid", "undefined", "destroy", "fall")]
    + [f"call {name}" for name in ("CALL", "CALLCODE", "DELEGATECALL", "STATICCALL")]
    + ["create CREATE", "create CREATE2", "refunds", "logs", "blocks of several", "calls in calls"]
    + [f"type {kind}" for kind in ("0", "1", "1 with list", "2", "2 with list")]
    + ["access list with an address twice", "access list with a key twice", "contracts made by a transaction"]
    + [f"ended {status.value}" for status in Status]
    + [f"gas {name}" for name in ("roomy", "exact", "one less", "between", "intrinsic")]
    + ["base fee rises", "base fee stands still", "base fee falls"]
    + ["refused code with BASEFEE", "refused code with BLOCKHASH"]
    + ["sent with too little money", "sent with just enough money"]
)

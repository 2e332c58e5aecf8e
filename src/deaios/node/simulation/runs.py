"""Many histories: run, counted, and held against the list of what must have happened in them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from deaios.node.simulation.cheats import FORKS, GENERATION_CHEATS, REFUSED_LIES
from deaios.node.simulation.faults import WITNESSED
from deaios.node.simulation.stories import Outcome, tell

CHEATS = (
    *GENERATION_CHEATS,
    *REFUSED_LIES,
    *FORKS,
    "batch without the receipt",
    "claims above receipts",
    "false accusation",
    "always-fine juror",
    "silent juror",
    "copied verdict",
    "bribed juror",
    "withheld beacon secret",
    "replayed papers",
    "withdrawal while buying",
    "gateway alters the prompt",
    "gateway alters the parameters",
    "gateway alters the nonce",
    "operator censors",
    "operator signs two headers",
)
BRANCHES = (
    "verdict guilty",
    "verdict acquitted",
    "verdict no_quorum",
    "closed guilty",
    "closed acquitted",
    "closed no_quorum",
    "exact replay acquits",
    "Disputes.Redrawn",
    "Disputes.Appealed",
    "Disputes.JurorPenalised",
    "Beacon.Penalised",
    "Forks.Proven",
    "Forks.ClaimShown",
    "Forks.ClaimSlashed",
    "refund arrived",
)
"""Branches of docs/spec/protocol.md §4 and of its refunds, by the events that show them."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A history that broke a promise."""

    seed: int
    kind: str | None
    error: str
    log: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What repeats it."""
        return build_command(self.seed, self.kind)


@dataclass(slots=True)
class Tally:
    """What many histories were."""

    histories: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    """In how many histories each thing happened."""
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Take in more histories."""
        self.histories += other.histories
        self.happened.update(other.happened)
        self.failures += other.failures


def build_command(seed: int, kind: str | None = None) -> str:
    """The one command that repeats a history."""
    return f"python -m deaios.node.simulation --seed {seed}" + (f" --kind {kind}" if kind else "")


def silence_logs() -> None:
    """Roles of a simulation log to nowhere."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def run_histories(seeds: Iterable[int], kind: str | None = None) -> Tally:
    """Run one history per seed and count in how many each thing happened."""
    tally = Tally()
    for seed in seeds:
        tally.histories += 1
        try:
            outcome: Outcome = tell(seed, kind)
        except Exception as error:  # noqa: BLE001 # whatever a history dies of is the finding
            log = tuple(getattr(error, "__notes__", ()))
            tally.failures.append(Failure(seed, kind, f"{type(error).__name__}: {error}", log))
            continue
        tally.happened.update({name: 1 for name, count in outcome.counts.items() if count})
        tally.happened[f"kind {outcome.kind}"] += 1
    return tally


def find_missing(happened: Mapping[str, int], least: int = 1) -> list[str]:
    """What did not happen in at least so many histories, of all that must."""
    wanted = (*WITNESSED, *(f"cheat: {name}" for name in CHEATS), *BRANCHES)
    return [f"{name}: {happened.get(name, 0)}" for name in wanted if happened.get(name, 0) < least]

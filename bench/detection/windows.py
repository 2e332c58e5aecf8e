"""Windows of 128 audited tokens of a cheat, many at once, each left at its first violation.

A window begins at a branch point, a prompt with some tokens of the cheat's own answer, and has a nonce of its own;
where an answer ends, the window goes on in the next answer, since a provider is audited over all it sends. Exact
savings: windows of one branch point share the passes over it, all windows of a round are decoded together, and a window
is left once it is caught. The verdict is `verify_output`'s, on rows from teacher-forced passes over the cheat's tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.detection.calibration import Bench
from bench.detection.cheats import CLAIMED, Cheat
from bench.detection.engines import ReadyRows, fork
from bench.detection.questions import QUESTIONS
from deaios.compute.engine import SavingEngine, Step
from deaios.compute.generation import Generation
from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import Row
from deaios.compute.verification import verify_output
from deaios.ledger.structs import FinishReason

AUDITED_TOKENS = 128
BRANCHES = 8
"""Branch points of one round."""
WINDOWS_PER_BRANCH = 8
ROUND = BRANCHES * WINDOWS_PER_BRANCH
OFFSETS = (0, 24, 48, 96)
"""Tokens of its answer that precede a window, in turn, so that windows lie early and late in answers."""
PASS_TOKENS = 256
"""About so many tokens are checked in one pass: fewer per window while there are many."""
CHUNK_MIN, CHUNK_MAX = 4, 16


class OutOfTime(Exception):
    """The budget ended; whatever was not finished is not counted."""


@dataclass(frozen=True)
class Outcome:
    """How one window ended.

    Attributes:
        number: of the window, from 0.
        question: its first prompt.
        offset: tokens of the answer before it.
        tokens: audited.
        caught: audited tokens up to the first violation; None when there was none.
        inexact: audited tokens that are not the checker's own pick.
        margin: the largest seen.
        margins: all that are not 0, for windows that were not caught.
    """

    number: int
    question: int
    offset: int
    tokens: int
    caught: int | None
    inexact: int
    margin: float
    margins: tuple[float, ...]


def make_seed(*label: object) -> bytes:
    return hashlib.sha256(" ".join(map(str, label)).encode()).digest()


class Window:
    """One window in the making.

    `unread` is what the provider's engine has still to read, `unchecked` the chunk that the checker has not judged,
    `held_back` the claimed ids before the chunk that the checker's engine has still to read.
    """

    def __init__(self, number: int, slot: int, question: int, audited: int) -> None:
        self.number, self.slot, self.question, self.audited = number, slot, question, audited
        self.answers = 0
        self.offset = 0
        self.margins: list[float] = []
        self.caught: int | None = None
        self.unchecked: list[int] = []

    def begin(self, generation: Generation, seed: bytes, actual: Sequence[int], claimed: tuple[int, ...]) -> None:
        """Continue `actual` as the provider reads it and `claimed` as the buyer knows it; engines hold all but one."""
        self.generation, self.seed = generation, seed
        self.unread, self.position = tuple(actual[-1:]), len(actual) - 1
        self.claimed = claimed
        self.held_back, self.read = claimed[-1:], len(claimed) - 1
        self.answers += 1

    def begin_unread(
        self, generation: Generation, seed: bytes, actual: tuple[int, ...], claimed: tuple[int, ...]
    ) -> None:
        """As `begin`, with engines that hold nothing."""
        self.begin(generation, seed, actual, claimed)
        self.unread, self.position = actual, 0
        self.held_back, self.read = claimed, 0

    @property
    def left(self) -> int:
        return self.audited - len(self.margins) - len(self.unchecked)

    @property
    def over(self) -> bool:
        return self.caught is not None or len(self.margins) == self.audited

    def outcome(self) -> Outcome:
        kept = self.margins[: self.caught]
        inexact = tuple(round(margin, 6) for margin in kept if margin)
        largest = max(kept, default=0.0)
        shown = () if self.caught else inexact
        question = self.question % len(QUESTIONS)
        return Outcome(self.number, question, self.offset, len(kept), self.caught, len(inexact), largest, shown)


class Round:
    """Some windows of one cheat, run together on a provider's and a checker's engine."""

    def __init__(
        self,
        bench: Bench,
        cheat: Cheat,
        provider: SavingEngine,
        checker: SavingEngine,
        seed: int,
        is_late: Callable[[], bool] = lambda: False,
        audited: int = AUDITED_TOKENS,
    ) -> None:
        self._bench, self._cheat, self._seed, self._is_late = bench, cheat, seed, is_late
        self._provider, self._checker, self._audited = provider, checker, audited

    def run(self, first: int, branches: int = BRANCHES, per_branch: int = WINDOWS_PER_BRANCH) -> list[Outcome]:
        """Windows `first` to `first + branches * per_branch - 1`.

        Raises:
            OutOfTime: the round was not finished.
        """
        return [window.outcome() for window in self.play(first, branches, per_branch)]

    def play(self, first: int, branches: int, per_branch: int) -> list[Window]:
        """As `run`, with all that the windows hold."""
        count = branches * per_branch
        windows = []
        for slot in range(count):
            number = first + slot
            windows.append(Window(number, slot, self._seed + number // per_branch, self._audited))
        try:
            self._branch(windows, per_branch)
            while active := [window for window in windows if not window.over]:
                self._generate(active)
                self._check(active)
        finally:
            for slot in range(count):
                self._provider.forget(slot)
                self._checker.forget(slot)
        return windows

    def _prompts(self, question: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As the provider reads it, and as it was asked."""
        text = QUESTIONS[question % len(QUESTIONS)]
        claimed = self._bench.prompt(text)
        return claimed if self._cheat.system is None else self._bench.prompt(text, self._cheat.system), claimed

    def _generation(self, prompt_count: int, *label: object) -> tuple[Generation, bytes]:
        seed = make_seed("detection", self._seed, self._cheat.name, *label)
        return Generation(prompt_count, self._cheat.actual, seed, self._bench.tokenizer), seed

    def _take(self, generation: Generation, row: Row) -> int:
        if self._cheat.greedy:
            return generation.accept(int(row.argmax())).token
        return generation.offer(row).token

    def _branch(self, windows: Sequence[Window], per_branch: int) -> None:
        """Bring every window to its branch point."""
        leaders = windows[::per_branch]
        prompts = [self._prompts(leader.question) for leader in leaders]
        self._provider.decode(
            [Step(w.slot, 0, actual[:-1], 0) for w, (actual, _) in zip(leaders, prompts, strict=True)]
        )
        trunks = self._grow_trunks(leaders, prompts)
        steps = []
        for leader, (_, asked), trunk in zip(leaders, prompts, trunks, strict=True):
            steps.append(Step(leader.slot, 0, (asked + trunk)[:-1], 0))
        self._checker.decode(steps)
        for place, (actual, asked) in enumerate(prompts):
            members = windows[place * per_branch : (place + 1) * per_branch]
            others = [member.slot for member in members[1:]]
            fork(self._provider, members[0].slot, others)
            fork(self._checker, members[0].slot, others)
            trunk = trunks[place]
            for member in members:
                member.offset = len(trunk)
                generation, seed = self._generation(len(asked) + len(trunk), "window", member.number, 0)
                member.begin(generation, seed, actual + trunk, asked + trunk)

    def _grow_trunks(
        self, leaders: Sequence[Window], prompts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[tuple[int, ...]]:
        """The answers' first tokens; the provider's engine then holds prompt and trunk but for the last id."""
        wanted = [OFFSETS[leader.question % len(OFFSETS)] for leader in leaders]
        machines = [
            self._generation(len(asked), "trunk", leader.number)[0]
            for leader, (_, asked) in zip(leaders, prompts, strict=True)
        ]
        while growing := [
            i for i, machine in enumerate(machines) if machine.finish is None and len(machine.output_ids) < wanted[i]
        ]:
            self._watch()
            steps = []
            for i in growing:
                ids, actual = machines[i].output_ids, prompts[i][0]
                steps.append(Step(leaders[i].slot, len(actual) + len(ids) - 1, (ids or actual)[-1:], 1))
            for i, rows in zip(growing, self._provider.decode(steps), strict=True):
                self._take(machines[i], rows[0])
        trunks = []
        for leader, machine, (actual, _) in zip(leaders, machines, prompts, strict=True):
            trunk = machine.output_ids
            if machine.finish is not None:
                # The answer was shorter: the windows begin before its end token, which costs one more pass.
                trunk = trunk[:-1]
                self._provider.forget(leader.slot)
                self._provider.decode([Step(leader.slot, 0, (actual + trunk)[:-1], 0)])
            trunks.append(trunk)
        return trunks

    def _generate(self, active: Sequence[Window]) -> None:
        """A chunk of tokens for every window, shorter where the window or its answer ends."""
        chunk = min(CHUNK_MAX, max(CHUNK_MIN, PASS_TOKENS // len(active)))
        for window in active:
            if window.generation.finish is not None:
                self._begin_next_answer(window)
        for _ in range(chunk):
            writing = [window for window in active if window.left and window.generation.finish is None]
            if not writing:
                return
            self._watch()
            steps = [Step(window.slot, window.position, window.unread, 1) for window in writing]
            for window, rows in zip(writing, self._provider.decode(steps), strict=True):
                window.position += len(window.unread)
                token = self._take(window.generation, rows[0])
                window.unread = (token,)
                window.unchecked.append(token)

    def _begin_next_answer(self, window: Window) -> None:
        self._provider.forget(window.slot)
        self._checker.forget(window.slot)
        # A stride that is odd and no multiple of the kinds visits all questions and changes the kind each time.
        actual, asked = self._prompts(window.question + 37 * window.answers)
        generation, seed = self._generation(len(asked), "window", window.number, window.answers)
        window.begin_unread(generation, seed, actual, asked)

    def _check(self, active: Sequence[Window]) -> None:
        for some in _split(active, PASS_TOKENS // CHUNK_MIN // 2):
            self._watch()
            steps = []
            for window in some:
                ids = window.held_back + tuple(window.unchecked[:-1])
                steps.append(Step(window.slot, window.read, ids, len(window.unchecked)))
            for window, step, rows in zip(some, steps, self._checker.decode(steps), strict=True):
                self._judge(window, step, ReadyRows(self._checker, window.claimed + tuple(window.unchecked[:-1]), rows))
        for window in active:
            if window.over:
                self._provider.forget(window.slot)
                self._checker.forget(window.slot)

    def _judge(self, window: Window, step: Step, ready: ReadyRows) -> None:
        ids = tuple(window.unchecked)
        report = verify_output(
            ready,
            window.claimed,
            ids,
            CLAIMED,
            window.seed,
            window.generation.finish or FinishReason.CANCELLED,
            0,
            DEFAULT_THRESHOLDS,
            self._bench.tokenizer,
        )
        if report.violations:
            window.caught = len(window.margins) + report.violations[0].position + 1
        window.margins += report.margins
        window.claimed += ids
        window.read += len(step.ids)
        window.held_back = ids[-1:]
        window.unchecked = []

    def _watch(self) -> None:
        if self._is_late():
            raise OutOfTime


def _split(windows: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    for first in range(0, len(windows), size):
        yield windows[first : first + size]

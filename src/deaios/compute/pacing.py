"""How long a job will wait: the queue played forward at the speed that was measured.

Pure: durations and counts come in. It assumes what the service does: first come, first served; every running answer
gets an id per turn; an id costs the same wherever it is computed. Knows nothing of engines.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHING = 0.1
"""Weight of the newest observation: about the last ten turns, or answers, count."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What a job still asks of the engine.

    Attributes:
        unread: ids of its prompt that are still to be read.
        allowed: ids that it may still sample.
        tokens: most ids that its sequence holds, which is what admission counts.
    """

    unread: int
    allowed: int
    tokens: int


class Pace:
    """Running means of what an id costs and of how much of their max_tokens answers use."""

    def __init__(self) -> None:
        self.seconds_per_id = 0.0
        """0 before the first turn: nothing is known, so nothing is estimated."""
        self.share_used = 1.0

    def observe_turn(self, seconds: float, ids: int) -> None:
        """One batch of so many ids took so long."""
        cost = seconds / ids
        self.seconds_per_id += (cost - self.seconds_per_id) * (SMOOTHING if self.seconds_per_id else 1.0)

    def observe_answer(self, sampled: int, allowed: int) -> None:
        """An answer ended by itself."""
        self.share_used += (sampled / allowed - self.share_used) * SMOOTHING

    def estimate_wait_s(
        self,
        running: Sequence[Outstanding],
        waiting: Sequence[Outstanding],
        wanted: int,
        sequences_max: int,
        tokens_max: int,
    ) -> float:
        """Seconds until a further job, which wants `wanted` tokens, would begin.

        Args:
            running: jobs that hold a sequence.
            waiting: jobs before the new one, in order.
            wanted: most tokens that the new job's sequence would hold.
            sequences_max: of the engine.
            tokens_max: of the engine.
        """
        # A job ends when every running answer has got so many turns; a turn costs an id for each that runs.
        turns, seconds = 0.0, 0.0
        held = sum(job.tokens for job in running)
        ends = [(self._turns_of(job), job.tokens) for job in running]
        heapq.heapify(ends)
        seconds += sum(job.unread for job in running) * self.seconds_per_id
        for job in (*waiting, None):
            tokens = wanted if job is None else job.tokens
            while ends and (len(ends) >= sequences_max or held + tokens > tokens_max):
                end, freed = heapq.heappop(ends)
                seconds += (end - turns) * (len(ends) + 1) * self.seconds_per_id
                turns = end
                held -= freed
            if job is not None:
                seconds += job.unread * self.seconds_per_id
                heapq.heappush(ends, (turns + self._turns_of(job), tokens))
                held += tokens
        return seconds if turns or waiting else 0.0

    def _turns_of(self, job: Outstanding) -> float:
        return max(1.0, job.allowed * self.share_used)

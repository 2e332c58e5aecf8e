"""One piece of work on several cores: kernels leave the interpreter's lock free, so parts run side by side."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Workers:
    """Who helps: a pool of threads that the caller owns.

    Attributes:
        pool: takes all parts but one; without it the caller's thread does everything.
        count: parts, the caller's own included.
    """

    pool: Executor | None = None
    count: int = 1

    def run(self, work: Callable[[int, int], None], size: int, step: int = 1) -> None:
        """Have `work(start, end)` done for ranges that make up 0 to `size`, in multiples of `step` but for the last.

        Returns when all is done, also where a part fails; then what it raised is raised.
        """
        units = -(-size // step)
        parts = min(self.count, units) if self.pool is not None else 1
        edges = [min(size, units * part // parts * step) for part in range(parts + 1)]
        waiting = [self.pool.submit(work, *edge) for edge in pairwise(edges[1:]) if self.pool is not None]
        try:
            work(edges[0], edges[1])
        finally:
            errors = [future.exception() for future in waiting]
        for error in errors:
            if error is not None:
                raise error


ALONE = Workers()
"""The caller's thread only."""

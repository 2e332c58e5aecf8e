"""Which requests a journal cannot hold yet, known without asking it.

A request names a recent block. One that came after this process started was not known before, so no earlier process
signed or admitted a request that names it; what this process has seen since is remembered until the request's deadline,
after which nobody takes it any more. Pure; knows no journal.
"""

from heapq import heappop, heappush


class Novelty:
    """The requests that one process has seen, for as long as they can still be bought."""

    def __init__(self, seen_max: int) -> None:
        """Begin without a block to start from: nothing is new before the first head is known.

        Args:
            seen_max: requests remembered; while there are more, the journal is asked about every one.
        """
        self._seen_max = seen_max
        self._first_head: int | None = None
        self._seen: set[bytes] = set()
        self._deadlines: list[tuple[int, bytes]] = []

    def note_head(self, head: int) -> None:
        """The newest block; the first one told is where this process starts. Requests past their deadline go."""
        if self._first_head is None:
            self._first_head = head
        while self._deadlines and self._deadlines[0][0] < head:
            self._seen.discard(heappop(self._deadlines)[1])

    def note_seen(self, digest: bytes, deadline_block: int) -> None:
        """A request is signed or admitted now."""
        if digest not in self._seen:
            self._seen.add(digest)
            heappush(self._deadlines, (deadline_block, digest))

    def is_new(self, digest: bytes, anchor_block: int, deadline_block: int, head: int) -> bool:
        """Is it certain that no journal of ours holds this request?

        Args:
            digest: of the request.
            anchor_block: height of the block it names; settled, so that no other block takes its place.
            deadline_block: until when it may be bought.
            head: the newest block.
        """
        if self._first_head is None or len(self._seen) > self._seen_max:
            return False
        return digest not in self._seen and anchor_block > self._first_head and deadline_block >= head

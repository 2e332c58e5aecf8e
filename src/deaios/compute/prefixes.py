"""Prompts that were read before: what a finished sequence held, kept for the next prompt that begins alike.

Invariant: an owner is only ever given what the same owner's prompts left here, so that how fast an answer begins tells
nobody about the prompts of others. Bounded in bytes and per owner; what was used longest ago goes first. Pure; knows
nothing of what a snapshot holds.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from deaios.compute.engine import Snapshot

CACHED_TOKENS_MIN = 16
"""Shorter beginnings are read anew: every prompt of a chat template shares a few ids, and copying is not free."""
OWNER_ENTRIES_MAX = 16
"""Conversations kept for one owner; also what one look-up compares at most."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A snapshot and how many of its first ids begin a prompt, too."""

    snapshot: Snapshot
    tokens: int


class PrefixCache:
    """Snapshots by owner and ids."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[tuple[bytes, Ids], Snapshot] = OrderedDict()
        self._by_owner: dict[bytes, OrderedDict[Ids, None]] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, owner: bytes, prompt_ids: Ids) -> Prefix | None:
        """The longest beginning of a prompt that the owner's snapshots hold, one id short of the prompt at most."""
        best, length = None, CACHED_TOKENS_MIN - 1
        for ids in self._by_owner.get(owner, ()):
            found = min(count_common(ids, prompt_ids), len(prompt_ids) - 1)  # the last id is read: it gives logits
            if found > length:
                best, length = ids, found
        if best is None:
            return None
        self._touch(owner, best)
        return Prefix(self._entries[owner, best], length)

    def wants(self, owner: bytes, ids: Ids) -> bool:
        """Would these ids be new here? Asked before a snapshot of them is made."""
        if len(ids) < CACHED_TOKENS_MIN:
            return False
        return all(count_common(kept, ids) < len(ids) for kept in self._by_owner.get(owner, ()))

    def put(self, owner: bytes, ids: Ids, snapshot: Snapshot) -> None:
        """Keep a snapshot of these ids in place of those that it goes on from; one too large for all is not kept."""
        assert snapshot.tokens == len(ids)
        if snapshot.size_bytes > self._bytes_max:
            return
        kept = self._by_owner.setdefault(owner, OrderedDict())
        for shorter in [other for other in kept if count_common(other, ids) == len(other)]:
            self._drop(owner, shorter)
        kept = self._by_owner.setdefault(owner, kept)
        kept[ids] = None
        self._entries[owner, ids] = snapshot
        self.size_bytes += snapshot.size_bytes
        if len(kept) > OWNER_ENTRIES_MAX:
            self._drop(owner, next(iter(kept)))
        while self.size_bytes > self._bytes_max:
            self._drop(*next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._by_owner.clear()
        self.size_bytes = 0

    def _touch(self, owner: bytes, ids: Ids) -> None:
        self._entries.move_to_end((owner, ids))
        self._by_owner[owner].move_to_end(ids)

    def _drop(self, owner: bytes, ids: Ids) -> None:
        self.size_bytes -= self._entries.pop((owner, ids)).size_bytes
        kept = self._by_owner[owner]
        del kept[ids]
        if not kept:
            del self._by_owner[owner]


def count_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with alike; compares slices, which are compared in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

"""The chain as both sides see it: fresh enough, and asked no more often than needed.

A channel's state is believed for `channel_cache_ms`; that is safe because a withdrawal takes at least the channel's
delay, which is many times longer. Bounded caches, least recently used first out. Time comes from the given clock.
"""

from collections import OrderedDict

from deaios.market.channel import ChainState
from deaios.market.ports import ChainPort, Head
from deaios.runtime.clock import Clock

CHANNEL_CACHE_MS = 60_000
"""As in x402; a deposit that seems too small is looked at again at once."""
HEAD_CACHE_MS = 5_000
"""Loops on both sides refresh it more often, so that a purchase does not wait for the chain."""
CHANNELS_CACHED_MAX = 4096
ANCHORS_CACHED_MAX = 1024


class ChainView:
    """Cached reads; every method may raise the chain client's `Unavailable…`."""

    def __init__(self, chain: ChainPort, clock: Clock, *, channel_cache_ms: int = CHANNEL_CACHE_MS) -> None:
        self._chain = chain
        self._clock = clock
        self._channel_cache_s = channel_cache_ms / 1000
        self._channels: OrderedDict[bytes, tuple[float, ChainState]] = OrderedDict()
        self._anchors: OrderedDict[bytes, int] = OrderedDict()
        self._head: tuple[float, Head] | None = None

    @property
    def known_head(self) -> int:
        """Height of the newest block seen, without asking."""
        return 0 if self._head is None else self._head[1].number

    async def fetch_head(self, *, fresh: bool = False) -> Head:
        """The latest block, at most `HEAD_CACHE_MS` old, or asked for now."""
        now = self._clock.monotonic_s()
        if fresh or self._head is None or now - self._head[0] > HEAD_CACHE_MS / 1000:
            head = await self._chain.fetch_head()
            self._head = (now, head)
            self._remember_anchor(head.block_hash, head.number)
        return self._head[1]

    async def fetch_channel(self, channel_id: bytes, *, fresh: bool = False) -> ChainState:
        """A channel's state, at most `channel_cache_ms` old, or asked for now."""
        now = self._clock.monotonic_s()
        cached = self._channels.get(channel_id)
        if cached is not None and not fresh and now - cached[0] <= self._channel_cache_s:
            return cached[1]
        state = await self._chain.fetch_channel(channel_id)
        self._channels[channel_id] = (now, state)
        self._channels.move_to_end(channel_id)
        if len(self._channels) > CHANNELS_CACHED_MAX:
            self._channels.popitem(last=False)
        return state

    async def fetch_anchor(self, block_hash: bytes) -> int | None:
        """Height of a block; unknown hashes are not remembered."""
        number = self._anchors.get(block_hash)
        if number is None:
            number = await self._chain.fetch_block_number(block_hash)
            if number is not None:
                self._remember_anchor(block_hash, number)
        return number

    def _remember_anchor(self, block_hash: bytes, number: int) -> None:
        self._anchors[block_hash] = number
        self._anchors.move_to_end(block_hash)
        if len(self._anchors) > ANCHORS_CACHED_MAX:
            self._anchors.popitem(last=False)

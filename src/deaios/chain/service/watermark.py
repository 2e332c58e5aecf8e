"""How high a running chain is signed, and who waits for it to grow: what followers' long polls rest on."""

import asyncio

WAITERS_MAX = 256
"""Tasks that may wait at one time; each holds one connection. One more is answered at once, as if its time were up."""


class Watermark:
    """A number that only grows, on one event loop."""

    def __init__(self) -> None:
        self.number = -1
        self._grown = asyncio.Event()
        self._waiters = 0
        self._is_closed = False

    def close(self) -> None:
        """Let everybody go, now and later, so that a server that ends need not wait for long polls."""
        self._is_closed = True
        self._grown.set()

    def raise_to(self, number: int) -> None:
        """The chain is signed up to this height."""
        if number > self.number:
            self.number = number
            self._grown.set()
            self._grown = asyncio.Event()

    async def wait_for(self, number: int, timeout_s: float) -> bool:
        """Wait until it stands at `number` or above; False when the time is up, or too many wait already."""
        if self.number >= number or timeout_s <= 0 or self._waiters >= WAITERS_MAX or self._is_closed:
            return self.number >= number
        self._waiters += 1
        try:
            async with asyncio.timeout(timeout_s):
                while self.number < number and not self._is_closed:
                    await self._grown.wait()
        except TimeoutError:
            return False
        finally:
            self._waiters -= 1
        return self.number >= number

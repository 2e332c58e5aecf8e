"""What a role is given when it starts: its place, its key, its clock, and how to say that it is ready."""

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deaios.node.config import Config
from deaios.node.folder import RoleSpec, RoleState, RunState, StateFolder
from deaios.node.keystore import Keystore
from deaios.primitives.keys import PrivateKey
from deaios.runtime.clock import Clock
from deaios.runtime.dice import Dice
from deaios.runtime.metrics import Metrics


@dataclass(frozen=True, slots=True)
class RoleContext:
    """One running role.

    Attributes:
        stopping: set when the role shall end cleanly.
    """

    spec: RoleSpec
    folder: StateFolder
    config: Config
    keystore: Keystore
    clock: Clock
    dice: Dice
    metrics: Metrics
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The role's name; also names its key, log and data."""
        return self.spec.name

    @property
    def host(self) -> str:
        """Address that the role listens on."""
        return self.config.network.host

    @property
    def data(self) -> Path:
        """The role's own folder."""
        return self.folder.role(self.spec.name)

    def open_key(self) -> PrivateKey:
        """The role's own key."""
        return self.keystore.open_key(self.spec.name)

    def report_starting(self) -> None:
        """Tell every command that this process is the role's now; whoever forked it might say so too late."""
        self._report("starting", "")

    def report_ready(self, url: str) -> None:
        """Tell the supervisor and every command that this role serves."""
        self._report("running", url)

    def _report(self, state: RoleState, url: str) -> None:
        now_ms = self.clock.now_ms()
        self.folder.save_run_state(RunState(self.spec.name, self.spec.kind, os.getpid(), state, url, "", now_ms))

    async def work_until_stopped(self, *work: Coroutine[Any, Any, None]) -> None:
        """Run a role's loops until it shall end.

        Raises:
            Exception: whatever ended one of them, so that the role ends and is started again.
        """  # Any: what a coroutine yields and is sent
        stopping: asyncio.Task[object] = asyncio.create_task(self.stopping.wait())
        working: list[asyncio.Task[object]] = [asyncio.create_task(item) for item in work]
        try:
            await asyncio.wait([stopping, *working], return_when=asyncio.FIRST_COMPLETED)
            for task in working:
                if task.done():
                    task.result()
        finally:
            for task in (stopping, *working):
                task.cancel()
            await asyncio.gather(stopping, *working, return_exceptions=True)

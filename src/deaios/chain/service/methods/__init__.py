"""The JSON-RPC methods of the embedded chain, by name; one module for each subject."""

import asyncio
from collections.abc import Sequence
from typing import Any

from deaios.chain.rpc import INVALID_REQUEST, RpcFault, take_params
from deaios.chain.service.chain import ChainService
from deaios.chain.service.filters import Filters
from deaios.chain.service.methods.blocks import BlockMethods
from deaios.chain.service.methods.execution import ExecutionMethods
from deaios.chain.service.methods.logs import LogMethods
from deaios.chain.service.methods.node import NodeMethods
from deaios.chain.service.methods.places import Places, Table
from deaios.chain.service.methods.refused import refusal_of
from deaios.chain.service.methods.sending import SendingMethods, fault_of
from deaios.chain.service.methods.state import StateMethods
from deaios.chain.service.methods.time_travel import TimeTravelMethods
from deaios.chain.service.news import Bell
from deaios.chain.service.replies import ReplicaMethods
from deaios.chain.service.time_travel import MovedClock
from deaios.runtime.dice import SystemDice

NAME_CHARACTERS_MAX = 2048
"""Of a method's name, as geth."""

__all__ = ["Methods", "fault_of"]


class Methods:
    """The method table over one chain."""

    def __init__(self, chain: ChainService, clock: MovedClock | None = None) -> None:
        """Collect the methods, and begin to listen to the chain's news for the filters.

        Args:
            chain: what they are about.
            clock: the chain's, where strangers may move it: only then there are dev_* methods.
        """
        places = Places(chain)
        filters = Filters(SystemDice(), asyncio.get_running_loop().time)
        bell = Bell()
        chain.listeners.add(filters)
        chain.listeners.add(bell)
        self._sending = SendingMethods(chain, bell)
        self._table: Table = {
            **NodeMethods(chain, places).table(),
            **StateMethods(chain, places).table(),
            **ExecutionMethods(chain, places).table(),
            **BlockMethods(chain, places).table(),
            **LogMethods(chain, places, filters).table(),
            **self._sending.table(),
            **ReplicaMethods(chain).table(),
            **(TimeTravelMethods(chain, clock, bell).table() if clock is not None else {}),
            "rpc_modules": (0, 0, self._modules),
        }

    @property
    def names(self) -> list[str]:
        """Every method that is answered."""
        return sorted(self._table)

    async def call(self, name: str, params: object) -> object:
        """Run one method.

        Raises:
            RpcFault: unknown method, bad parameters, or what the method found.
        """
        if len(name) > NAME_CHARACTERS_MAX:
            raise RpcFault(INVALID_REQUEST, f"method name too long: {len(name)} > {NAME_CHARACTERS_MAX}")
        spec = self._table.get(name)
        if spec is None:
            raise refusal_of(name)
        least, most, method = spec
        return await method(take_params(params, least, most))

    async def send_many(self, params: Sequence[object]) -> list[object]:
        """eth_sendRawTransaction for several requests at once; each gives its hash text or its fault."""
        return await self._sending.send_many(params)

    async def _modules(self, _params: list[Any]) -> dict[str, str]:
        return dict.fromkeys(sorted({method.partition("_")[0] for method in self._table}), "1.0")

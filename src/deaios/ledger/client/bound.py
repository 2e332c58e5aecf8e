"""One contract at one address: reads, writes and events by name, through its shipped ABI.

The typed facades beside this module are built on it; nothing else needs it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, cast

from deaios.ledger.abi import Abi, Event, Function, InvalidAbiData, Value, encode_values
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.client.rpc import Rpc, Topic
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import InvalidAnswer, Log, TransactionReceipt
from deaios.primitives.keys import Address

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ContractEvent:
    """A decoded log: argument values by the contract's own names."""

    name: str
    values: dict[str, Value]
    log: Log


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a transaction gave back, and its receipt."""

    value: T
    receipt: TransactionReceipt


class BoundContract:
    """A contract of the suite at an address."""

    def __init__(self, rpc: Rpc, name: str, address: Address) -> None:
        self.rpc = rpc
        self.name = name
        self.address = address
        self.abi: Abi = load_artifact(name).abi

    async def read(self, function: str, *arguments: Value, block: int | str = "latest") -> tuple[Value, ...]:
        """Call a view; its results as a tuple.

        Raises:
            Reverted: the contract refused.
            InvalidAbiData: the result is not of its types; most likely no such contract is at this address.
        """
        target = self.abi.get_function(function)
        return self._decode(target, await self.rpc.eth_call(self.address, target.encode_call(arguments), block=block))

    async def read_many(self, calls: Sequence[tuple[str, tuple[Value, ...]]]) -> list[tuple[Value, ...]]:
        """Call several views, (function, arguments) each, in one exchange; the results of each as by `read`."""
        targets = [self.abi.get_function(function) for function, _ in calls]
        data = [target.encode_call(arguments) for target, (_, arguments) in zip(targets, calls, strict=True)]
        answers = await self.rpc.eth_calls([(self.address, item) for item in data])
        return [self._decode(target, answer) for target, answer in zip(targets, answers, strict=True)]

    def _decode(self, function: Function, data: bytes) -> tuple[Value, ...]:
        if not data and function.outputs:
            raise InvalidAbiData(
                f"{self.name}.{function.name} returned nothing; no such contract is at 0x{self.address.hex()}"
            )
        return function.decode_result(data)

    async def read_one(self, function: str, *arguments: Value, block: int | str = "latest") -> Value:
        """Call a view with a single result."""
        (value,) = await self.read(function, *arguments, block=block)
        return value

    async def send(
        self, sender: Sender, function: str, *arguments: Value, confirmations: int | None = None
    ) -> TransactionReceipt:
        """Send a transaction that calls a function, and wait for it; `confirmations` as `Sender.send`."""
        data = self.abi.get_function(function).encode_call(arguments)
        return await sender.send(self.address, data, confirmations=confirmations)

    def decode_log(self, log: Log) -> ContractEvent | None:
        """One of this contract's logs; None for another contract's, or an event that the ABI does not name."""
        event = self.abi.by_topic.get(log.topics[0]) if log.topics else None
        if log.address != self.address or event is None:
            return None
        return ContractEvent(event.name, event.decode(log.topics, log.data), log)

    def decode_logs(self, logs: Iterable[Log]) -> tuple[ContractEvent, ...]:
        """All logs of this contract among others, in order."""
        return tuple(event for log in logs if (event := self.decode_log(log)) is not None)

    def find_event(self, receipt: TransactionReceipt, name: str) -> ContractEvent:
        """The one event of a name in a receipt.

        Raises:
            InvalidAnswer: there is none, or more than one.
        """
        found = [event for event in self.decode_logs(receipt.logs) if event.name == name]
        if len(found) != 1:
            raise InvalidAnswer(f"receipt holds {len(found)} {self.name}.{name} events, 1 expected")
        return found[0]

    async def fetch_events(
        self,
        name: str | Sequence[str],
        *,
        from_block: int = 0,
        to_block: int | None = None,
        **indexed: Value,
    ) -> tuple[ContractEvent, ...]:
        """Events from the chain, oldest first.

        Args:
            name: one event, or several that share no filter.
            from_block: first block.
            to_block: last block, the latest by default.
            indexed: wanted values of indexed arguments, by the contract's own names.
        """
        events = [self.abi.get_event(item) for item in ([name] if isinstance(name, str) else name)]
        topics: list[Topic] = [[event.topic for event in events]]
        if indexed:
            assert len(events) == 1, "a filter belongs to one event"
            topics += _build_filter(events[0], indexed)
        logs = await self.rpc.get_logs(self.address, topics, from_block, to_block)
        return self.decode_logs(logs)


def _build_filter(event: Event, indexed: dict[str, Value]) -> list[Topic]:
    names = [field.name for field in event.fields if field.is_indexed]
    assert indexed.keys() <= set(names), f"{event.name} indexes {names}"
    return [
        encode_values((field.kind,), (indexed[field.name],)) if field.name in indexed else None
        for field in event.fields
        if field.is_indexed
    ]


def to_tuple(struct: object) -> tuple[Value, ...]:
    """A flat dataclass as the ABI tuple of the same field order."""
    return tuple(getattr(struct, field.name) for field in fields(cast("Any", struct)))  # Any: of a decorated class

"""eth_getLogs, and the filters that are asked again and again."""

from typing import Any, assert_never

from deaios.chain.rendering import hex_data, render_log, render_transaction
from deaios.chain.rpc import (
    LIMIT_EXCEEDED,
    PRUNED,
    LogFilter,
    RpcFault,
    bad_params,
    read_at,
    read_flag,
    read_log_filter,
    server_error,
)
from deaios.chain.service.chain import ChainService
from deaios.chain.service.filters import ArrivalFilter, BlockFilter, Filters, LogsFilter
from deaios.chain.service.methods.places import Places, Table
from deaios.chain.stored import LogQuery, PlacedLog

LOGS_MAX = 10_000
"""Logs in one answer; the usual bound of public nodes."""
UNINDEXED_BLOCKS_MAX = 10_000
"""Widest block range of a log query that names neither address nor first topic."""
BLOCK_LOGS_MAX = 1 << 20
"""More than the gas of one block pays for."""


class LogMethods:
    """See the module."""

    def __init__(self, chain: ChainService, places: Places, filters: Filters) -> None:
        self._chain = chain
        self._places = places
        self._filters = filters

    def table(self) -> Table:
        """The methods by name."""
        return {
            "eth_getLogs": (1, 1, self._logs),
            "eth_newFilter": (1, 1, self._new_filter),
            "eth_newBlockFilter": (0, 0, self._new_block_filter),
            "eth_newPendingTransactionFilter": (0, 1, self._new_arrival_filter),
            "eth_getFilterChanges": (1, 1, self._changes),
            "eth_getFilterLogs": (1, 1, self._filter_logs),
            "eth_uninstallFilter": (1, 1, self._uninstall),
        }

    async def _logs(self, params: list[Any]) -> list[dict[str, Any]]:
        return await self._answer(read_at(params, 0, read_log_filter))

    async def _answer(self, wanted: LogFilter) -> list[dict[str, Any]]:
        head = self._chain.head.number
        if wanted.block_hash is not None:
            number = await self._chain.block_number(wanted.block_hash)
            if number is None:
                raise server_error("unknown block")
            return await self.find_logs(LogQuery(number, number, wanted.addresses, wanted.topics))
        if wanted.first.is_pending or wanted.last.is_pending:
            raise bad_params("pending logs are not supported")
        oldest = self._chain.oldest_block
        first = head if wanted.first.number is None else wanted.first.number
        if wanted.first.is_earliest:
            first = oldest
        elif first < oldest:
            raise RpcFault(PRUNED, f"pruned history unavailable: this node keeps logs from block {oldest} on")
        last = head if wanted.last.number is None else wanted.last.number
        if first > last and (first <= head or wanted.last.number is not None):
            raise bad_params("invalid block range params")
        if first > head:
            # Whoever asks from the block after the last one that it knows finds nothing yet; geth calls that an error.
            return []
        return await self.find_logs(LogQuery(first, min(last, head), wanted.addresses, wanted.topics))

    async def find_logs(self, query: LogQuery) -> list[dict[str, Any]]:
        """Logs of a range as JSON. Any: JSON objects.

        Raises:
            RpcFault: more logs than `LOGS_MAX`, or a wide range without address or first topic.
        """
        if not query.is_indexed and query.last - query.first >= UNINDEXED_BLOCKS_MAX:
            raise RpcFault(
                LIMIT_EXCEEDED,
                f"query spans {query.last - query.first + 1} blocks; without an address or a first topic at most "
                f"{UNINDEXED_BLOCKS_MAX}",
            )
        found = await self._fetch(query, LOGS_MAX + 1)
        if len(found) > LOGS_MAX:
            raise RpcFault(LIMIT_EXCEEDED, f"query returned more than {LOGS_MAX} results; narrow the block range")
        return await self._render(query, found)

    async def _fetch(self, query: LogQuery, logs_max: int) -> list[PlacedLog]:
        return await self._chain.read(lambda store: store.fetch_logs(query, logs_max))

    async def _render(self, query: LogQuery, found: list[PlacedLog]) -> list[dict[str, Any]]:
        """As JSON. As in geth, a log with fewer topics than the filter has positions never matches."""
        found = [item for item in found if len(item.log.topics) >= len(query.topics)]
        headers = await self._places.fetch_each(list(dict.fromkeys(item.number for item in found)))
        return [
            render_log(item.log, headers[item.number], item.position, item.transaction_hash, item.transaction_position)
            for item in found
        ]

    # Filters

    async def _new_filter(self, params: list[Any]) -> str:
        return self._filters.add_logs(read_at(params, 0, read_log_filter), self._chain.head.number)

    async def _new_block_filter(self, _params: list[Any]) -> str:
        return self._filters.add_blocks(self._chain.head.number)

    async def _new_arrival_filter(self, params: list[Any]) -> str:
        return self._filters.add_arrivals(is_full=read_at(params, 0, read_flag, "fullTx"))

    async def _uninstall(self, params: list[Any]) -> bool:
        return self._filters.remove(read_at(params, 0, _read_id))

    async def _filter_logs(self, params: list[Any]) -> list[dict[str, Any]]:
        item = self._filters.find(read_at(params, 0, _read_id))
        if not isinstance(item, LogsFilter):
            raise server_error("filter not found")
        return await self._answer(item.wanted)

    async def _changes(self, params: list[Any]) -> list[Any]:
        item = self._filters.find(read_at(params, 0, _read_id))
        async with item.turn:
            match item:
                case BlockFilter():
                    return await self._new_blocks(item)
                case LogsFilter():
                    return await self._new_logs(item)
                case ArrivalFilter():
                    return await self._new_arrivals(item)
                case _:
                    assert_never(item)

    async def _new_blocks(self, item: BlockFilter) -> list[str]:
        head = self._chain.head.number
        if item.next_number > head:
            return []
        headers = await self._places.fetch_headers(item.next_number, head)
        item.next_number = head + 1
        return [hex_data(header.hash) for header in headers]

    async def _new_logs(self, item: LogsFilter) -> list[dict[str, Any]]:
        """Logs since the last question; where they are too many for one answer, whole blocks of them."""
        head = self._chain.head.number
        last = head if item.last_number is None else min(head, item.last_number)
        if item.next_number > last:
            return []
        query = LogQuery(item.next_number, last, item.wanted.addresses, item.wanted.topics)
        found = await self._fetch(query, LOGS_MAX + 1)
        if len(found) > LOGS_MAX:
            last = max(found[-1].number - 1, found[0].number)
            if found[0].number == found[-1].number:
                alone = LogQuery(last, last, query.addresses, query.topics)
                found = await self._fetch(alone, BLOCK_LOGS_MAX)
            else:
                found = [log for log in found if log.number <= last]
        answer = await self._render(query, found)
        item.next_number = last + 1
        return answer

    async def _new_arrivals(self, item: ArrivalFilter) -> list[Any]:
        """Hashes; or transactions as they stand now, without those that were replaced or dropped meanwhile."""
        hashes = self._filters.take_arrivals(item)
        if not item.is_full:
            return [hex_data(found) for found in hashes]
        answers = []
        for transaction_hash in hashes:
            if waiting := self._chain.pool.get(transaction_hash):
                answers.append(render_transaction(waiting.transaction, waiting.sender))
            elif found := await self._chain.receipt(transaction_hash):
                answers.append(render_transaction(found[1].transaction, found[1].sender))
        return answers


def _read_id(value: object) -> str:
    if not isinstance(value, str):
        raise bad_params("a filter id is expected")
    return value

"""eth_sendRawTransaction and txpool_*: what goes into the pool, and what waits in it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from deaios.chain.blocks import BlockHeader, Receipt
from deaios.chain.pool import Waiting
from deaios.chain.rendering import hex_data, render_receipt, render_transaction
from deaios.chain.rpc import (
    LIMIT_EXCEEDED,
    SERVER_ERROR,
    RpcFault,
    read_address,
    read_at,
    read_data,
    read_hash,
    read_quantity,
    take_params,
)
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods.places import Table
from deaios.chain.service.news import Bell
from deaios.ledger.transactions import TRANSACTION_BYTES_MAX
from deaios.primitives.errors import DeaiosError
from deaios.primitives.keys import Address

SYNC_WAIT_MS = 20_000
SYNC_WAIT_MS_MAX = 60_000
"""As geth: how long eth_sendRawTransactionSync waits for a block."""
WAITERS_MAX = 256
"""Of eth_sendRawTransactionSync; each is woken by every block."""
NOT_PROCESSED = 4
"""EIP-7966: admitted, but in no block within the time."""
LISTED_BYTES_MAX = 24 << 20
"""Of waiting transactions in one txpool_content; as JSON some twice as much."""


class SendingMethods:
    """See the module."""

    def __init__(self, chain: ChainService, bell: Bell) -> None:
        self._chain = chain
        self._bell = bell
        self._waiters = 0

    def table(self) -> Table:
        """The methods by name."""
        return {
            "eth_sendRawTransaction": (1, 1, self._send),
            "eth_sendRawTransactionSync": (1, 2, self._send_and_wait),
            "deaios_getDropped": (1, 1, self._dropped),
            "txpool_status": (0, 0, self._status),
            "txpool_content": (0, 0, self._content),
            "txpool_contentFrom": (1, 1, self._content_from),
            "txpool_inspect": (0, 0, self._inspect),
        }

    async def send_many(self, params: Sequence[object]) -> list[object]:
        """eth_sendRawTransaction for several requests at once; each gives its hash text or its fault."""
        raws: list[bytes | RpcFault] = []
        for item in params:
            try:
                raws.append(_read_raw(take_params(item, 1, 1)))
            except RpcFault as fault:
                raws.append(fault)
        results = iter(await self._chain.submit([raw for raw in raws if isinstance(raw, bytes)]))
        answers: list[object] = []
        for raw in raws:
            result = raw if isinstance(raw, RpcFault) else next(results)
            answers.append(hex_data(result) if isinstance(result, bytes) else fault_of(result))
        return answers

    async def _send(self, params: list[Any]) -> object:
        (answer,) = await self.send_many([params])
        if isinstance(answer, RpcFault):
            raise answer
        return answer

    async def _dropped(self, params: list[Any]) -> str | None:
        """Why an acknowledged transaction will not run; null where it waits, was included, or was never heard of."""
        return await self._chain.dropped(read_at(params, 0, read_hash, "transaction hash"))

    async def _send_and_wait(self, params: list[Any]) -> object:
        """Admit a transaction and answer with its receipt (EIP-7966)."""
        raw = _read_raw(params)
        wanted_ms = read_at(params, 1, lambda value: 0 if value is None else read_quantity(value, "timeout", 64))
        if self._waiters >= WAITERS_MAX:
            raise RpcFault(LIMIT_EXCEEDED, f"{WAITERS_MAX} senders wait for a block; use eth_sendRawTransaction")
        self._waiters += 1
        try:
            (result,) = await self._chain.submit([raw])
            if not isinstance(result, bytes):
                raise fault_of(result)
            header, receipt = await self._wait_receipt(result, min(wanted_ms or SYNC_WAIT_MS, SYNC_WAIT_MS_MAX))
        finally:
            self._waiters -= 1
        return render_receipt(receipt, header)

    async def _wait_receipt(self, wanted: bytes, wait_ms: int) -> tuple[BlockHeader, Receipt]:
        try:
            async with asyncio.timeout(wait_ms / 1000):
                while True:
                    coming = self._bell.coming
                    if found := await self._chain.receipt(wanted):
                        return found
                    await asyncio.shield(coming)
        except TimeoutError as error:
            message = f"The transaction was added to the transaction pool but wasn't processed in {wait_ms / 1000:g}s"
            raise RpcFault(NOT_PROCESSED, message, hex_data(wanted)) from error

    # The pool

    async def _status(self, _params: list[Any]) -> dict[str, str]:
        pending, queued = self._split()
        return {
            "pending": hex(sum(len(items) for items in pending.values())),
            "queued": hex(sum(len(items) for items in queued.values())),
        }

    async def _content(self, _params: list[Any]) -> dict[str, object]:
        waiting_bytes = sum(len(item.transaction.raw) for item in self._chain.pool)
        if waiting_bytes > LISTED_BYTES_MAX:
            raise RpcFault(
                SERVER_ERROR,
                f"{waiting_bytes} bytes of transactions wait, at most {LISTED_BYTES_MAX} are shown; ask "
                "txpool_contentFrom for one sender's, or txpool_inspect",
            )
        return self._list(_render)

    async def _inspect(self, _params: list[Any]) -> dict[str, object]:
        return self._list(_summarise)

    def _list(self, show: Callable[[Waiting], object]) -> dict[str, object]:
        pending, queued = self._split()
        return {
            kind: {
                hex_data(sender): {str(item.transaction.nonce): show(item) for item in items}
                for sender, items in found.items()
            }
            for kind, found in (("pending", pending), ("queued", queued))
        }

    async def _content_from(self, params: list[Any]) -> dict[str, object]:
        sender: Address = read_at(params, 0, read_address, "address")
        pending, queued = self._split(sender)
        return {
            kind: {str(item.transaction.nonce): _render(item) for item in found.get(sender, ())}
            for kind, found in (("pending", pending), ("queued", queued))
        }

    def _split(self, only: Address | None = None) -> tuple[dict[Address, list[Waiting]], dict[Address, list[Waiting]]]:
        """What waits, by sender and nonce: what could run now, and what stands behind a gap."""
        by_sender: dict[Address, list[Waiting]] = {}
        for item in self._chain.pool:
            if only is None or item.sender == only:
                by_sender.setdefault(item.sender, []).append(item)
        pending: dict[Address, list[Waiting]] = {}
        queued: dict[Address, list[Waiting]] = {}
        for sender in sorted(by_sender):
            following = self._chain.state.account(sender).nonce
            for item in sorted(by_sender[sender], key=lambda waiting: waiting.transaction.nonce):
                if item.transaction.nonce == following:
                    pending.setdefault(sender, []).append(item)
                    following += 1
                else:
                    queued.setdefault(sender, []).append(item)
        return pending, queued


def fault_of(error: DeaiosError) -> RpcFault:
    """The error object of an admission that failed."""
    return error if isinstance(error, RpcFault) else RpcFault(SERVER_ERROR, str(error))


def _read_raw(params: list[Any]) -> bytes:
    return read_at(params, 0, read_data, "transaction", None, TRANSACTION_BYTES_MAX)


def _render(item: Waiting) -> object:
    return render_transaction(item.transaction, item.sender)


def _summarise(item: Waiting) -> object:
    found = item.transaction
    to = "contract creation" if found.to is None else hex_data(found.to)
    return f"{to}: {found.value} wei + {found.gas} gas × {found.max_fee} wei"  # noqa: RUF001 # geth's sign

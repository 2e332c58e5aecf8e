"""The JSON-RPC methods of the embedded chain, by name.

Reads of state answer for the newest block only: older state is not kept, and saying so is better than another block's
numbers. Calls and estimates run in the context of the next block at the present time, because that is where a
transaction sent now would land, and because an idle chain makes no blocks that would carry time forward.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from deaios import __version__
from deaios.chain import rpc
from deaios.chain.blocks import Block, next_base_fee
from deaios.chain.evm import InvalidMessage, Message, Outcome, Status
from deaios.chain.fees import HISTORY_BLOCKS_MAX, PERCENTILES_MAX, SUGGESTED_TIP, suggest_gas_price
from deaios.chain.gas import TRANSACTION_GAS, compute_intrinsic_gas, search_gas
from deaios.chain.pool import INIT_CODE_BYTES_MAX
from deaios.chain.rpc import BlockRef, CallRequest, RpcFault, bad_params
from deaios.chain.service.chain import ChainService
from deaios.chain.store import LogQuery
from deaios.ledger.transactions import TRANSACTION_BYTES_MAX
from deaios.primitives.errors import DeaiosError
from deaios.primitives.hashing import keccak256

LOGS_MAX = 10_000
"""Logs in one answer; the usual bound of public nodes."""
UNINDEXED_BLOCKS_MAX = 10_000
"""Widest block range of a log query that names neither address nor first topic."""
CALL_STIPEND = 2_300

Method = Callable[[list[Any]], Awaitable[object]]  # Any: JSON parameters, read by the method
_Spec = tuple[int, int, Method]


class Methods:
    """Method table over one chain."""

    def __init__(self, chain: ChainService) -> None:
        self._chain = chain
        self._table: dict[str, _Spec] = {
            "web3_clientVersion": (0, 0, self._client_version),
            "web3_sha3": (1, 1, self._sha3),
            "net_version": (0, 0, self._net_version),
            "net_listening": (0, 0, self._listening),
            "net_peerCount": (0, 0, self._peer_count),
            "eth_chainId": (0, 0, self._chain_id),
            "eth_syncing": (0, 0, self._syncing),
            "eth_accounts": (0, 0, self._accounts),
            "eth_blockNumber": (0, 0, self._block_number),
            "eth_gasPrice": (0, 0, self._gas_price),
            "eth_maxPriorityFeePerGas": (0, 0, self._tip),
            "eth_feeHistory": (2, 3, self._fee_history),
            "eth_getBalance": (1, 2, self._balance),
            "eth_getTransactionCount": (1, 2, self._nonce),
            "eth_getCode": (1, 2, self._code),
            "eth_getStorageAt": (2, 3, self._storage),
            "eth_call": (1, 3, self._call),
            "eth_estimateGas": (1, 3, self._estimate),
            "eth_sendRawTransaction": (1, 1, self._send),
            "eth_getBlockByNumber": (1, 2, self._block_by_number),
            "eth_getBlockByHash": (1, 2, self._block_by_hash),
            "eth_getBlockTransactionCountByNumber": (1, 1, self._count_by_number),
            "eth_getBlockTransactionCountByHash": (1, 1, self._count_by_hash),
            "eth_getUncleCountByBlockNumber": (1, 1, self._uncles_by_number),
            "eth_getUncleCountByBlockHash": (1, 1, self._uncles_by_hash),
            "eth_getTransactionByHash": (1, 1, self._transaction),
            "eth_getTransactionByBlockNumberAndIndex": (2, 2, self._transaction_by_number),
            "eth_getTransactionByBlockHashAndIndex": (2, 2, self._transaction_by_hash),
            "eth_getTransactionReceipt": (1, 1, self._receipt),
            "eth_getBlockReceipts": (1, 1, self._block_receipts),
            "eth_getLogs": (1, 1, self._logs),
            "deaios_getHeader": (1, 1, self._header),
        }

    async def call(self, name: str, params: object) -> object:
        """Run one method.

        Raises:
            RpcFault: unknown method, bad parameters, or what the method found.
        """
        spec = self._table.get(name)
        if spec is None:
            raise RpcFault(rpc.METHOD_NOT_FOUND, f"the method {name[:80]} does not exist/is not available")
        least, most, method = spec
        return await method(rpc.take_params(params, least, most))

    async def send_many(self, params: Sequence[object]) -> list[object]:
        """eth_sendRawTransaction for several requests at once; each gives its hash text or its fault."""
        raws: list[bytes | RpcFault] = []
        for item in params:
            try:
                raws.append(
                    rpc.read_data(rpc.take_params(item, 1, 1)[0], "transaction", size_max=TRANSACTION_BYTES_MAX)
                )
            except RpcFault as fault:
                raws.append(fault)
        results = iter(await self._chain.submit([raw for raw in raws if isinstance(raw, bytes)]))
        answers: list[object] = []
        for raw in raws:
            result = raw if isinstance(raw, RpcFault) else next(results)
            answers.append(rpc.hex_data(result) if isinstance(result, bytes) else fault_of(result))
        return answers

    # Node and network

    async def _client_version(self, _params: list[Any]) -> str:
        return f"deaios/{__version__}/embedded"

    async def _sha3(self, params: list[Any]) -> str:
        return rpc.hex_data(keccak256(rpc.read_data(params[0], "data")))

    async def _net_version(self, _params: list[Any]) -> str:
        return str(self._chain.chain_id)

    async def _listening(self, _params: list[Any]) -> bool:
        return True

    async def _peer_count(self, _params: list[Any]) -> str:
        return "0x0"

    async def _chain_id(self, _params: list[Any]) -> str:
        return hex(self._chain.chain_id)

    async def _syncing(self, _params: list[Any]) -> bool:
        return False

    async def _accounts(self, _params: list[Any]) -> list[str]:
        return []

    async def _block_number(self, _params: list[Any]) -> str:
        return hex(self._chain.head.number)

    # Fees

    async def _gas_price(self, _params: list[Any]) -> str:
        return hex(suggest_gas_price(self._chain.head))

    async def _tip(self, _params: list[Any]) -> str:
        return hex(SUGGESTED_TIP)

    async def _fee_history(self, params: list[Any]) -> dict[str, object]:
        count = min(rpc.read_quantity(params[0], "blockCount", 64), HISTORY_BLOCKS_MAX)
        newest = await self._find_number(rpc.read_block_ref(params[1], "newestBlock"))
        percentiles = params[2] or []
        if not isinstance(percentiles, list) or len(percentiles) > PERCENTILES_MAX:
            raise bad_params(f"reward percentiles are a list of at most {PERCENTILES_MAX} numbers")
        for before, value in zip([0, *percentiles], percentiles, strict=False):
            if not isinstance(value, int | float) or isinstance(value, bool) or not before <= value <= 100:
                raise bad_params(
                    f"invalid reward percentile: {value!r} after {before!r}; rising numbers to 100 expected"
                )
        if newest is None:
            raise RpcFault(rpc.SERVER_ERROR, "request beyond head block")
        history = self._chain.fees.history(count, newest, percentiles)
        answer: dict[str, object] = {
            "oldestBlock": hex(history.oldest),
            "baseFeePerGas": [hex(fee) for fee in history.base_fees],
            "gasUsedRatio": list(history.gas_used_ratios),
        }
        if history.rewards is not None:
            answer["reward"] = [[hex(reward) for reward in rewards] for rewards in history.rewards]
        return answer

    # State

    async def _balance(self, params: list[Any]) -> str:
        address = rpc.read_address(params[0], "address")
        await self._need_newest(params[1])
        return hex(self._chain.state.account(address).balance)

    async def _nonce(self, params: list[Any]) -> str:
        address = rpc.read_address(params[0], "address")
        ref = await self._need_newest(params[1])
        if ref.is_pending:
            return hex(self._chain.pool.pending_nonce(address, self._chain.state))
        return hex(self._chain.state.account(address).nonce)

    async def _code(self, params: list[Any]) -> str:
        address = rpc.read_address(params[0], "address")
        await self._need_newest(params[1])
        return rpc.hex_data(self._chain.state.account(address).code)

    async def _storage(self, params: list[Any]) -> str:
        address, slot = rpc.read_address(params[0], "address"), rpc.read_word(params[1], "slot")
        await self._need_newest(params[2])
        return rpc.hex_data(self._chain.state.slot(address, slot).to_bytes(32))

    async def _need_newest(self, value: object) -> BlockRef:
        """Accept only blocks whose state is kept: the newest."""
        ref = rpc.read_block_ref(value)
        if ref.number is None and ref.block_hash is None:
            return ref
        number, head = await self._find_number(ref), self._chain.head.number
        if number is None:
            raise RpcFault(rpc.SERVER_ERROR, "header not found")
        if number != head:
            raise RpcFault(
                rpc.SERVER_ERROR,
                f"historical state is not available: block {number} asked, only the newest, {head}, is kept",
            )
        return ref

    async def _find_number(self, ref: BlockRef) -> int | None:
        """The height that a reference names; None when there is no such block."""
        head = self._chain.head.number
        if ref.block_hash is not None:
            return await self._chain.block_number(ref.block_hash)
        number = head if ref.number is None else ref.number
        return number if number <= head else None

    # Execution

    async def _call(self, params: list[Any]) -> str:
        request = rpc.read_call(params[0])
        await self._need_newest(params[1])
        _refuse_overrides(params[2])
        limit = self._chain.genesis.gas_limit
        outcome = await self._run(lambda run: run(_message(request, min(request.gas or limit, limit), request.price)))
        if outcome.status is not Status.SUCCESS:
            raise rpc.failure_of(outcome)
        return rpc.hex_data(outcome.output)

    async def _run(self, work: Callable[[Callable[[Message], Outcome]], Outcome]) -> Outcome:
        try:
            return await self._chain.with_engine(work)
        except InvalidMessage as error:
            raise _explain_invalid(str(error)) from error

    async def _estimate(self, params: list[Any]) -> str:
        request = rpc.read_call(params[0])
        await self._need_newest(params[1])
        _refuse_overrides(params[2])
        if request.to is None and len(request.data) > INIT_CODE_BYTES_MAX:
            raise RpcFault(
                rpc.SERVER_ERROR,
                f"max initcode size exceeded: code size {len(request.data)}, limit {INIT_CODE_BYTES_MAX}",
            )
        high = self._gas_allowance(request)
        found = 0

        def work(run: Callable[[Message], Outcome]) -> Outcome:
            nonlocal found
            outcome = run(_message(request, high, 0))
            if outcome.status is Status.SUCCESS:
                found = _search(request, high, outcome, run)
            return outcome

        intrinsic = compute_intrinsic_gas(request.to is None, request.data, request.access_list)
        if high < intrinsic:
            raise RpcFault(rpc.SERVER_ERROR, f"gas required exceeds allowance ({high})")
        outcome = await self._run(work)
        if outcome.status is Status.HALT and outcome.reason.startswith("OutOfGas"):
            raise RpcFault(rpc.SERVER_ERROR, f"gas required exceeds allowance ({high})")
        if outcome.status is not Status.SUCCESS:
            raise rpc.failure_of(outcome)
        return hex(found)

    def _gas_allowance(self, request: CallRequest) -> int:
        """The most gas that the caller's wish, its balance and the block allow."""
        limit = self._chain.genesis.gas_limit
        high = min(request.gas, limit) if request.gas is not None and request.gas >= TRANSACTION_GAS else limit
        balance = self._chain.state.account(request.sender).balance
        if request.price:
            if balance < request.value:
                raise RpcFault(rpc.SERVER_ERROR, "insufficient funds for transfer")
            high = min(high, (balance - request.value) // request.price)
        return high

    async def _send(self, params: list[Any]) -> object:
        (answer,) = await self.send_many([params])
        if isinstance(answer, RpcFault):
            raise answer
        return answer

    # Blocks and transactions

    async def _block_by_number(self, params: list[Any]) -> object:
        ref = rpc.read_block_ref(params[0])
        if ref.is_pending:
            return self._render_pending()
        return await self._render_block(await self._find_number(ref), params[1])

    def _render_pending(self) -> dict[str, Any]:
        """The next block as far as it is known: no hash, no transactions."""
        head, context = self._chain.head, self._chain.pending_context()
        return rpc.render_header(head) | {
            "number": hex(context.number),
            "hash": None,
            "nonce": None,
            "parentHash": rpc.hex_data(head.hash),
            "timestamp": hex(context.timestamp),
            "baseFeePerGas": hex(next_base_fee(head)),
            "gasUsed": "0x0",
            "size": "0x0",
            "uncles": [],
            "transactions": [],
        }

    async def _block_by_hash(self, params: list[Any]) -> object:
        return await self._render_block(await self._number_of_hash(params[0]), params[1])

    async def _number_of_hash(self, value: object) -> int | None:
        return await self._chain.block_number(rpc.read_hash(value, "blockHash"))

    async def _render_block(self, number: int | None, is_full: object) -> object:
        if is_full is not None and not isinstance(is_full, bool):
            raise bad_params(f"invalid argument 1: {is_full!r} is not a boolean")
        block = await self._fetch(number)
        return None if block is None else rpc.render_block(block, is_full=bool(is_full))

    async def _fetch(self, number: int | None) -> Block | None:
        return None if number is None else await self._chain.block(number)

    async def _number_of_ref(self, value: object) -> int | None:
        return await self._find_number(rpc.read_block_ref(value))

    async def _count_by_number(self, params: list[Any]) -> object:
        block = await self._fetch(await self._number_of_ref(params[0]))
        return None if block is None else hex(len(block.receipts))

    async def _count_by_hash(self, params: list[Any]) -> object:
        block = await self._fetch(await self._number_of_hash(params[0]))
        return None if block is None else hex(len(block.receipts))

    async def _uncles_by_number(self, params: list[Any]) -> object:
        return None if await self._number_of_ref(params[0]) is None else "0x0"

    async def _uncles_by_hash(self, params: list[Any]) -> object:
        return None if await self._number_of_hash(params[0]) is None else "0x0"

    async def _transaction(self, params: list[Any]) -> object:
        transaction_hash = rpc.read_hash(params[0], "transaction hash")
        if waiting := self._chain.pool.get(transaction_hash):
            return rpc.render_transaction(waiting.transaction, waiting.sender)
        if (found := await self._chain.receipt(transaction_hash)) is None:
            return None
        header, receipt = found
        return rpc.render_transaction(receipt.transaction, receipt.sender, header, receipt)

    async def _transaction_by_number(self, params: list[Any]) -> object:
        return await self._render_at(await self._number_of_ref(params[0]), params[1])

    async def _transaction_by_hash(self, params: list[Any]) -> object:
        return await self._render_at(await self._number_of_hash(params[0]), params[1])

    async def _render_at(self, number: int | None, index: object) -> object:
        position = rpc.read_quantity(index, "index", 32)
        block = await self._fetch(number)
        if block is None or position >= len(block.receipts):
            return None
        receipt = block.receipts[position]
        return rpc.render_transaction(receipt.transaction, receipt.sender, block.header, receipt)

    async def _receipt(self, params: list[Any]) -> object:
        found = await self._chain.receipt(rpc.read_hash(params[0], "transaction hash"))
        return None if found is None else rpc.render_receipt(found[1], found[0])

    async def _block_receipts(self, params: list[Any]) -> object:
        block = await self._fetch(await self._number_of_ref(params[0]))
        return None if block is None else [rpc.render_receipt(receipt, block.header) for receipt in block.receipts]

    async def _logs(self, params: list[Any]) -> list[dict[str, Any]]:
        wanted = rpc.read_log_filter(params[0])
        head = self._chain.head.number
        if wanted.block_hash is not None:
            number = await self._chain.block_number(wanted.block_hash)
            if number is None:
                raise RpcFault(rpc.SERVER_ERROR, "unknown block")
            first = last = number
        else:
            first = head if wanted.first.number is None else wanted.first.number
            last = head if wanted.last.number is None else min(wanted.last.number, head)
        if first > last:
            if first > head:
                return []
            raise bad_params(f"invalid block range params: from {first} to {last}")
        return await self.find_logs(LogQuery(first, last, wanted.addresses, wanted.topics))

    async def find_logs(self, query: LogQuery) -> list[dict[str, Any]]:
        """Logs of a range as JSON. Any: JSON objects.

        Raises:
            RpcFault: more logs than `LOGS_MAX`, or a wide range without address or first topic.
        """
        if not query.is_indexed and query.last - query.first >= UNINDEXED_BLOCKS_MAX:
            raise RpcFault(
                rpc.LIMIT_EXCEEDED,
                f"query spans {query.last - query.first + 1} blocks; without an address or a first topic at most "
                f"{UNINDEXED_BLOCKS_MAX}",
            )
        found = await self._chain.read(lambda store: store.fetch_logs(query, LOGS_MAX + 1))
        if len(found) > LOGS_MAX:
            raise RpcFault(rpc.LIMIT_EXCEEDED, f"query returned more than {LOGS_MAX} results; narrow the block range")
        return [
            rpc.render_log(
                item.log, item.number, item.block_hash, item.position, item.transaction_hash, item.transaction_position
            )
            for item in found
        ]

    async def _header(self, params: list[Any]) -> object:
        wanted = params[0]
        number = await self._number_of_ref(hex(wanted) if isinstance(wanted, int) and wanted >= 0 else wanted)
        return None if number is None else await self._chain.signed_header(number)


def fault_of(error: DeaiosError) -> RpcFault:
    """The error object of an admission that failed."""
    return error if isinstance(error, RpcFault) else RpcFault(rpc.SERVER_ERROR, str(error))


def _message(request: CallRequest, gas: int, price: int) -> Message:
    return Message(request.sender, request.to, request.data, request.value, gas, price, request.access_list)


def _search(request: CallRequest, high: int, outcome: Outcome, run: Callable[[Message], Outcome]) -> int:
    """The least gas that succeeds.

    Guessed first: what was spent, which is enough where no call keeps 1/64 back; one less; and geth's guess, what was
    spent plus a stipend, over 63/64.
    """
    spent = outcome.gas_used + outcome.gas_refunded
    guesses = (spent, spent - 1, (spent + CALL_STIPEND) * 64 // 63)

    def succeeds(gas: int) -> bool:
        return run(_message(request, gas, 0)).status is Status.SUCCESS

    intrinsic = compute_intrinsic_gas(request.to is None, request.data, request.access_list)
    low = max(outcome.gas_used, intrinsic) - 1
    return search_gas(succeeds, low, high, guesses)


def _refuse_overrides(value: object) -> None:
    if value:
        raise bad_params("state overrides are not supported by the embedded chain")


def _explain_invalid(text: str) -> RpcFault:
    """The engine's reason why a message cannot start, in geth's words where clients match on them."""
    if "LackOfFundForMaxFee" in text or "OverflowPayment" in text:
        return RpcFault(rpc.SERVER_ERROR, "insufficient funds for gas * price + value")
    if "Initial gas spend" in text or "CallGasCostMoreThanGasLimit" in text:
        return RpcFault(rpc.SERVER_ERROR, f"intrinsic gas too low: {text}")
    if "CreateInitCodeSizeLimit" in text:
        return RpcFault(rpc.SERVER_ERROR, "max initcode size exceeded")
    return RpcFault(rpc.SERVER_ERROR, text)

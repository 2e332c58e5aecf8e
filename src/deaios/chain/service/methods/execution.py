"""eth_call, eth_estimateGas and eth_createAccessList.

They run in the context of the next block at the present time, because that is where a transaction sent now would land,
and because an idle chain makes no blocks that would carry time forward. Overrides pretend another state or block for
one message (`chain.overrides`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from deaios.chain.evm import BlockContext, Evm, InvalidMessage, Message, Outcome, State, Status
from deaios.chain.failures import explain_halt, explain_invalid, explain_revert, failure_of
from deaios.chain.gas import TRANSACTION_GAS, compute_intrinsic_gas, search_gas
from deaios.chain.overrides import (
    PRECOMPILES,
    BlockOverride,
    Overrides,
    pretended,
    read_block_override,
    read_state_overrides,
)
from deaios.chain.pool import INIT_CODE_BYTES_MAX
from deaios.chain.rendering import hex_data, render_access_list
from deaios.chain.rpc import CallRequest, read_at, read_call, server_error
from deaios.chain.service.chain import ChainService
from deaios.chain.service.methods.places import Places, Table
from deaios.ledger.suite import compute_contract_address
from deaios.ledger.transactions import AccessList
from deaios.primitives.keys import Address

CALL_STIPEND = 2_300
ACCESS_ROUNDS_MAX = 16
"""Runs of one eth_createAccessList. A list changes gas, gas may change what is looked at; few messages need a third."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Bench:
    """One message's place of execution: the engine under its overrides."""

    evm: Evm
    state: State
    context: BlockContext

    def run(self, message: Message) -> Outcome:
        """Run a message and forget what it changed."""
        return self.evm.call(self.context, message)


class ExecutionMethods:
    """See the module."""

    def __init__(self, chain: ChainService, places: Places) -> None:
        self._chain = chain
        self._places = places

    def table(self) -> Table:
        """The methods by name."""
        return {
            "eth_call": (1, 4, self._call),
            "eth_estimateGas": (1, 4, self._estimate),
            "eth_createAccessList": (1, 3, self._create_access_list),
        }

    async def _read(self, params: list[Any]) -> tuple[CallRequest, Overrides]:
        request: CallRequest = read_at(params, 0, read_call)
        await self._places.need_newest(params, 1)
        accounts = read_at(params, 2, read_state_overrides)
        block = read_at(params, 3, read_block_override) if len(params) > 3 else BlockOverride()
        return request, Overrides(accounts, block)

    async def _run(self, request: CallRequest, overrides: Overrides, work: Callable[[_Bench], T]) -> T:
        def job(evm: Evm, state: State, context: BlockContext) -> T:
            context = overrides.block.pretend(context)
            if request.fee_cap and request.fee_cap < context.base_fee:
                raise server_error(
                    f"max fee per gas less than block base fee: address 0x{request.sender.hex()}, "
                    f"maxFeePerGas: {request.fee_cap}, baseFee: {context.base_fee}"
                )
            with pretended(evm, state, overrides.accounts):
                return work(_Bench(evm, state, context))

        try:
            return await self._chain.inspect(job)
        except InvalidMessage as error:
            raise explain_invalid(str(error)) from error

    async def _call(self, params: list[Any]) -> str:
        request, overrides = await self._read(params)
        gas = self._gas_limit(request)

        def work(bench: _Bench) -> Outcome:
            return bench.run(_message(request, gas, request.price_at(bench.context.base_fee)))

        outcome = await self._run(request, overrides, work)
        if outcome.status is not Status.SUCCESS:
            raise failure_of(outcome)
        return hex_data(outcome.output)

    async def _estimate(self, params: list[Any]) -> str:
        request, overrides = await self._read(params)
        _validate_init_code(request)
        intrinsic = compute_intrinsic_gas(request.to is None, request.data, request.access_list)

        def work(bench: _Bench) -> int:
            balance = _balance(bench, overrides, request.sender)
            high = _gas_allowance(request, balance, self._chain.genesis.gas_limit)
            if high < intrinsic:
                raise server_error(f"gas required exceeds allowance ({high})")
            outcome = bench.run(_message(request, high, 0))
            if outcome.status is Status.HALT and outcome.reason.startswith("OutOfGas"):
                raise server_error(f"gas required exceeds allowance ({high})")
            if outcome.status is not Status.SUCCESS:
                raise failure_of(outcome)
            return _search(request, high, outcome, bench.run)

        return hex(await self._run(request, overrides, work))

    async def _create_access_list(self, params: list[Any]) -> dict[str, object]:
        request, overrides = await self._read(params)
        _validate_init_code(request)
        gas = self._gas_limit(request)

        def work(bench: _Bench) -> tuple[AccessList, Outcome]:
            price = request.price_at(bench.context.base_fee)
            return _find_access_list(bench, _message(request, gas, price), _excluded(bench, request, overrides))

        entries, outcome = await self._run(request, overrides, work)
        answer: dict[str, object] = {"accessList": render_access_list(entries), "gasUsed": hex(outcome.gas_used)}
        if outcome.status is Status.REVERT:
            answer["error"] = explain_revert(outcome.output)
        elif outcome.status is Status.HALT:
            answer["error"] = explain_halt(outcome)
        return answer

    def _gas_limit(self, request: CallRequest) -> int:
        limit = self._chain.genesis.gas_limit
        return min(request.gas or limit, limit)


def _message(request: CallRequest, gas: int, price: int) -> Message:
    return Message(request.sender, request.to, request.data, request.value, gas, price, request.access_list)


def _validate_init_code(request: CallRequest) -> None:
    if request.to is None and len(request.data) > INIT_CODE_BYTES_MAX:
        raise server_error(f"max initcode size exceeded: code size {len(request.data)}, limit {INIT_CODE_BYTES_MAX}")


def _balance(bench: _Bench, overrides: Overrides, address: Address) -> int:
    account = bench.state.account(address)
    for item in overrides.accounts:
        if item.address == address:
            account = item.pretend(account)
    return account.balance


def _gas_allowance(request: CallRequest, balance: int, limit: int) -> int:
    """The most gas that the caller's wish, its balance and the block allow."""
    high = min(request.gas, limit) if request.gas is not None and request.gas >= TRANSACTION_GAS else limit
    if request.fee_cap:
        if balance < request.value:
            raise server_error("insufficient funds for transfer")
        high = min(high, (balance - request.value) // request.fee_cap)
    return high


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


def _excluded(bench: _Bench, request: CallRequest, overrides: Overrides) -> frozenset[Address]:
    """Accounts that a list names for their words only: they are warm from the start (EIP-2929, EIP-3651)."""
    receiver = request.to
    if receiver is None:
        nonce = request.nonce
        if nonce is None:
            given = next((item.nonce for item in overrides.accounts if item.address == request.sender), None)
            nonce = bench.state.account(request.sender).nonce if given is None else given
        receiver = compute_contract_address(request.sender, nonce)
    return PRECOMPILES | {request.sender, receiver, bench.context.coinbase}


def _find_access_list(bench: _Bench, message: Message, excluded: frozenset[Address]) -> tuple[AccessList, Outcome]:
    """Run again and again, each time with what the run before looked at, until nothing new is looked at.

    Raises:
        RpcFault: it never settles.
    """
    given = _merge((), _keep(message.access_list, excluded))
    for _ in range(ACCESS_ROUNDS_MAX):
        outcome, seen = bench.evm.probe(bench.context, _with_list(message, given))
        grown = _merge(given, _keep(seen, excluded))
        if grown == given:
            return given, outcome
        given = grown
    raise server_error(f"the access list still grew after {ACCESS_ROUNDS_MAX} runs")


def _with_list(message: Message, entries: AccessList) -> Message:
    return Message(
        message.sender, message.to, message.data, message.value, message.gas, message.price, access_list=entries
    )


def _keep(entries: AccessList, excluded: frozenset[Address]) -> AccessList:
    return tuple((address, slots) for address, slots in entries if slots or address not in excluded)


def _merge(first: AccessList, second: AccessList) -> AccessList:
    found: dict[Address, set[int]] = {}
    for address, slots in (*first, *second):
        found.setdefault(address, set()).update(slots)
    return tuple((address, tuple(sorted(found[address]))) for address in sorted(found))

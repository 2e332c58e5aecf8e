"""Client of `Credit`, the payment token: ERC-20 with EIP-3009."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deaios.ledger.client.bound import BoundContract
from deaios.ledger.client.rpc import BATCH_MAX, Rpc, UnavailableChain, encode_call_object
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt, read_data, read_quantity
from deaios.ledger.structs import ReceiveWithAuthorization
from deaios.primitives.keys import Address

SNAPSHOT_ATTEMPTS = 20
"""Readings that a block may interrupt; a chain that makes blocks faster than this is not one we read from."""


@dataclass(frozen=True, slots=True)
class Balances:
    """What accounts had, and what there was in all, after one and the same block."""

    height: int
    total_supply: int
    amounts: Mapping[Address, int]


class Credit:
    """The token; amounts are in its smallest unit."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "Credit", address)
        self.address = address

    async def name(self) -> str:
        """Name, as in the EIP-712 domain."""
        return str(await self.contract.read_one("name"))

    async def symbol(self) -> str:
        """Ticker symbol."""
        return str(await self.contract.read_one("symbol"))

    async def version(self) -> str:
        """Version, as in the EIP-712 domain."""
        return str(await self.contract.read_one("version"))

    async def decimals(self) -> int:
        """Decimal places."""
        return int(await self.contract.read_one("decimals"))

    async def total_supply(self) -> int:
        """All that exists; it only shrinks, by burning."""
        return int(await self.contract.read_one("totalSupply"))

    async def balance_of(self, owner: Address) -> int:
        """What an account has."""
        return int(await self.contract.read_one("balanceOf", owner))

    async def fetch_balances(self, owners: Sequence[Address]) -> Balances:
        """What several accounts have after one block, from nodes that answer for the latest block only, too.

        Where blocks can be taken back it is the newest settled one, which cannot.

        Raises:
            UnavailableChain: blocks came in between each time.
        """
        supply, balance = self.contract.abi.get_function("totalSupply"), self.contract.abi.get_function("balanceOf")
        data = [supply.encode_call(()), *(balance.encode_call((owner,)) for owner in owners)]
        rpc = self.contract.rpc
        pinned = None if rpc.confirmations == 1 else await rpc.settled.block_number()
        block = "latest" if pinned is None else hex(pinned)
        calls: list[tuple[str, list[Any]]] = [  # Any: JSON of each method's own shape
            ("eth_blockNumber", []),
            *(("eth_call", [encode_call_object(self.address, item, None, 0), block]) for item in data),
            ("eth_blockNumber", []),
        ]
        for _ in range(SNAPSHOT_ATTEMPTS):
            answers: list[Any] = []  # Any: parsed JSON, read just below
            for start in range(0, len(calls), BATCH_MAX):
                answers += await rpc.batch(calls[start : start + BATCH_MAX])
            first, last = read_quantity(answers[0], "height"), read_quantity(answers[-1], "height")
            if pinned is not None or first == last:
                values = [int(balance.decode_result(read_data(answer, "balance"))[0]) for answer in answers[1:-1]]
                height = first if pinned is None else pinned
                return Balances(height, values[0], dict(zip(owners, values[1:], strict=True)))
        raise UnavailableChain(f"blocks came in between {SNAPSHOT_ATTEMPTS} readings of {len(owners)} balances")

    async def allowance(self, owner: Address, spender: Address) -> int:
        """What a spender may still take from an owner."""
        return int(await self.contract.read_one("allowance", owner, spender))

    async def authorization_state(self, authorizer: Address, nonce: bytes) -> bool:
        """Is an EIP-3009 nonce used or cancelled?"""
        return bool(await self.contract.read_one("authorizationState", authorizer, nonce))

    async def transfer(self, sender: Sender, to: Address, amount: int) -> TransactionReceipt:
        """Pay somebody."""
        return await self.contract.send(sender, "transfer", to, amount)

    async def approve(self, sender: Sender, spender: Address, amount: int) -> TransactionReceipt:
        """Let a contract take up to an amount.

        Waits for one block only: whatever relies on the allowance is a later transaction of the same key, which no
        chain includes before this one.
        """
        return await self.contract.send(sender, "approve", spender, amount, confirmations=1)

    async def ensure_allowance(self, sender: Sender, spender: Address, amount: int) -> TransactionReceipt | None:
        """Approve an amount unless the allowance covers it; what stake and bonds need first."""
        if await self.allowance(sender.address, spender) >= amount:
            return None
        return await self.approve(sender, spender, amount)

    async def transfer_from(self, sender: Sender, owner: Address, to: Address, amount: int) -> TransactionReceipt:
        """Move what an owner approved."""
        return await self.contract.send(sender, "transferFrom", owner, to, amount)

    async def burn(self, sender: Sender, amount: int) -> TransactionReceipt:
        """Destroy own money."""
        return await self.contract.send(sender, "burn", amount)

    async def receive_with_authorization(
        self, sender: Sender, authorization: ReceiveWithAuthorization, signature: bytes
    ) -> TransactionReceipt:
        """Take money that its owner authorised by signature; only the named receiver may."""
        return await self.contract.send(
            sender,
            "receiveWithAuthorization",
            authorization.from_,
            authorization.to,
            authorization.value,
            authorization.valid_after,
            authorization.valid_before,
            authorization.nonce,
            signature[64],
            signature[:32],
            signature[32:64],
        )

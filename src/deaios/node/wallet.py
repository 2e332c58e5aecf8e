"""Balances and stakes of a folder's keys, and payments from one of them."""

from decimal import Decimal

import msgspec

from deaios.node.folder import StateFolder
from deaios.node.keystore import open_keystore
from deaios.node.session import open_session
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Refused
from deaios.primitives.keys import checksum_address, read_address
from deaios.primitives.units import CREDIT, CREDIT_DECIMALS, format_credit

WEI_DECIMALS = 18


class WalletEntry(msgspec.Struct, frozen=True):
    """One key; amounts in the smallest unit. `debt` is owed to a sponsor and paid from earnings over channels."""

    name: str
    address: str
    credit: int
    stake: int
    gas_wei: int
    debt: int = 0

    @property
    def gas_ether(self) -> str:
        """Native coin for people."""
        return f"{Decimal(self.gas_wei).scaleb(-WEI_DECIMALS):.4f}"


class Sent(msgspec.Struct, frozen=True):
    """A payment that is in a block."""

    transaction: str
    block: int


class RefusedAmount(Refused):
    """More than there is, or finer than the smallest unit."""


async def read_wallet(folder: StateFolder) -> list[WalletEntry]:
    """Every key of the folder, on its network."""
    keystore = open_keystore(folder)
    async with open_session(folder) as session:
        contracts, rpc = session.member.contracts, session.member.rpc
        entries = []
        for name in keystore.names():
            address = keystore.open_key(name).address
            entries.append(
                WalletEntry(
                    name,
                    checksum_address(address),
                    await contracts.credit.balance_of(address),
                    await contracts.staking.stake_of(address),
                    await rpc.get_balance(address),
                    (await contracts.sponsorship.debt_of(address)).left,
                )
            )
    return entries


async def send_credit(folder: StateFolder, name: str, recipient: str, amount: Decimal) -> Sent:
    """Pay somebody from one of the folder's keys.

    Raises:
        RefusedAmount: not covered, or finer than the smallest unit.
    """
    to = read_address(recipient)
    units = amount.scaleb(CREDIT_DECIMALS)
    if units != units.to_integral_value() or units <= 0:
        raise RefusedAmount(f"{amount} is not a positive multiple of {Decimal(1) / CREDIT} credit")
    async with open_session(folder, name) as session:
        credit = session.member.contracts.credit
        balance = await credit.balance_of(session.member.address)
        if balance < units:
            raise RefusedAmount(f"{name} has {format_credit(balance)} credit, {amount} wanted")
        receipt = await credit.transfer(session.member.sender, to, int(units))
    return Sent(encode_hex(receipt.transaction_hash), receipt.block_number)

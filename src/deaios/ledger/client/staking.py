"""Client of `SharedStaking`: one stake per operator, its own and delegated, behind several services."""

from dataclasses import dataclass

from deaios.ledger.client.bound import BoundContract
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.records import TransactionReceipt
from deaios.primitives.keys import Address

CAP_BPS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Unbonding:
    """Own stake on its way out; `release` in Unix seconds."""

    amount: int
    release: int


@dataclass(frozen=True, slots=True)
class Pots:
    """All money behind an operator, its own and its delegators'."""

    stake: int
    unbonding: int


@dataclass(frozen=True, slots=True)
class StakeAccount:
    """One holder's part of what is behind an operator; `release` in Unix seconds."""

    stake: int
    unbonding: int
    release: int


@dataclass(frozen=True, slots=True)
class Commission:
    """What an operator keeps of its rewards, in basis points, and what was announced; `next_at` is 0 for nothing."""

    bps: int
    next_bps: int
    next_at: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a service with what its vote weighs."""

    address: Address
    power: int


class SharedStaking:
    """Stake, slices and members; service ids are in `ledger.suite`."""

    def __init__(self, rpc: Rpc, address: Address) -> None:
        self.contract = BoundContract(rpc, "SharedStaking", address)
        self.address = address

    async def stake_of(self, operator: Address) -> int:
        """Active stake, the operator's own and what is delegated to it."""
        return int(await self.contract.read_one("stakeOf", operator))

    async def unbonding_of(self, operator: Address) -> Unbonding:
        """What of an operator's own stake is on its way out."""
        return Unbonding(*await self.contract.read("unbondingOf", operator))

    async def pots_of(self, operator: Address) -> Pots:
        """All active and unbonding money behind an operator."""
        return Pots(*await self.contract.read("potsOf", operator))

    async def account_of(self, operator: Address, holder: Address) -> StakeAccount:
        """A holder's part of it."""
        return StakeAccount(*await self.contract.read("accountOf", operator, holder))

    async def commission_of(self, operator: Address) -> Commission:
        """What an operator keeps of its rewards."""
        return Commission(*await self.contract.read("commissionOf", operator))

    async def jailed_until(self, service: bytes, operator: Address) -> int:
        """From when on a jailed operator can ask for its power, Unix seconds; 0 for who is not jailed."""
        return int(await self.contract.read_one("jailedUntil", service, operator))

    async def payout_left(self, service: bytes) -> int:
        """What a service's judges can be paid now; what is slashed beyond it is burned."""
        return int(await self.contract.read_one("payoutLeft", service))

    async def slice_of(self, service: bytes, operator: Address) -> int:
        """What of an operator's stake can still be slashed for a service."""
        return int(await self.contract.read_one("sliceOf", service, operator))

    async def power(self, service: bytes, operator: Address) -> int:
        """What an operator weighs in a service; 0 below the minimum or when leaving."""
        return int(await self.contract.read_one("power", service, operator))

    async def cap_of(self, service: bytes, operator: Address) -> int:
        """Share of the stake behind a service, in basis points."""
        return int(await self.contract.read_one("capOf", service, operator))

    async def leaving_at(self, service: bytes, operator: Address) -> int:
        """When a departure becomes final, Unix seconds; 0 for who stays."""
        return int(await self.contract.read_one("leavingAt", service, operator))

    async def slashed_of(self, service: bytes, operator: Address) -> int:
        """What an operator lost for a service so far."""
        return int(await self.contract.read_one("slashedOf", service, operator))

    async def members(self, service: bytes) -> tuple[Address, ...]:
        """Who counts in a service."""
        return tuple(await self.contract.read_one("members", service))

    async def roster(self, service: bytes) -> tuple[Member, ...]:
        """Who counts in a service, with powers."""
        return tuple(Member(*entry) for entry in await self.contract.read_one("roster", service))

    async def min_power(self, service: bytes) -> int:
        """Below this an operator does not count."""
        return int(await self.contract.read_one("minPower", service))

    async def is_judge(self, service: bytes, judge: Address) -> bool:
        """May a contract slash for a service?"""
        return bool(await self.contract.read_one("isJudge", service, judge))

    async def stake(self, sender: Sender, amount: int) -> TransactionReceipt:
        """Add own stake; the token's allowance comes first. Waits for one block: to count, joining comes after it."""
        return await self.contract.send(sender, "stake", amount, confirmations=1)

    async def opt_in(self, sender: Sender, service: bytes, cap_bps: int) -> TransactionReceipt:
        """Join a service with a share of the stake, or raise the share."""
        return await self.contract.send(sender, "optIn", service, cap_bps)

    async def opt_out(self, sender: Sender, service: bytes) -> TransactionReceipt:
        """Leave a service; the slice stays slashable until unbonding is over."""
        return await self.contract.send(sender, "optOut", service)

    async def complete_opt_out(self, sender: Sender, service: bytes, operator: Address) -> TransactionReceipt:
        """Free the share of an operator that has left."""
        return await self.contract.send(sender, "completeOptOut", service, operator)

    async def evict(self, sender: Sender, service: bytes, operator: Address) -> TransactionReceipt:
        """Take the seat of a member below the minimum."""
        return await self.contract.send(sender, "evict", service, operator)

    async def begin_unbond(self, sender: Sender, amount: int) -> TransactionReceipt:
        """Start to take stake out."""
        return await self.contract.send(sender, "beginUnbond", amount)

    async def withdraw(self, sender: Sender) -> TransactionReceipt:
        """Take out what is unbonded of own stake."""
        return await self.contract.send(sender, "withdraw")

    async def delegate(self, sender: Sender, operator: Address, amount: int) -> TransactionReceipt:
        """Add to an operator's stake; the token's allowance comes first."""
        return await self.contract.send(sender, "delegate", operator, amount)

    async def undelegate(self, sender: Sender, operator: Address, amount: int) -> TransactionReceipt:
        """Start to take delegated stake out."""
        return await self.contract.send(sender, "undelegate", operator, amount)

    async def withdraw_from(self, sender: Sender, operator: Address) -> TransactionReceipt:
        """Take out what is unbonded of delegated stake."""
        return await self.contract.send(sender, "withdrawFrom", operator)

    async def reward(self, sender: Sender, operator: Address, amount: int) -> TransactionReceipt:
        """Give money to all who hold an operator's stake; the token's allowance comes first."""
        return await self.contract.send(sender, "reward", operator, amount)

    async def set_commission(self, sender: Sender, bps: int) -> TransactionReceipt:
        """Lower the sender's commission, or announce a higher one, which counts when unbonding could be over."""
        return await self.contract.send(sender, "setCommission", bps)

    async def unjail(self, sender: Sender, service: bytes) -> TransactionReceipt:
        """Count again in a service, once the jail time is over."""
        return await self.contract.send(sender, "unjail", service)

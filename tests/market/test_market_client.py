"""The market's view of the contracts, where two reads are not one moment."""

from types import SimpleNamespace

import pytest

from deaios.ledger.client.channels import ChannelBalance, PendingWithdrawal
from deaios.market.client import LedgerChain

DEPOSIT, CLAIMED = 5_000_000, 1_000


class LeavingChannel:
    """A channel whose ripe withdrawal is finalized right after the first read of either kind."""

    def __init__(self):
        self.reads = 0

    def _is_finalized(self):
        self.reads += 1
        return self.reads > 1

    async def balance_of(self, channel_id):
        return ChannelBalance(CLAIMED if self._is_finalized() else DEPOSIT, CLAIMED)

    async def pending_withdrawal(self, channel_id):
        return PendingWithdrawal(0, 0) if self._is_finalized() else PendingWithdrawal(DEPOSIT - CLAIMED, 1)


async def test_a_withdrawal_that_ends_between_two_reads_never_shows_money_that_is_gone():
    """A buyer can make a provider look as often as it likes, so it would hit this moment on purpose."""
    contracts = SimpleNamespace(channels=LeavingChannel())
    contracts.settled = contracts
    state = await LedgerChain(contracts).fetch_channel(bytes(32))
    assert state.available <= CLAIMED


class DepositedChannel(LeavingChannel):
    """As settled blocks show it: the deposit is there, and nothing later."""

    async def balance_of(self, channel_id):
        return ChannelBalance(DEPOSIT, 0)


@pytest.mark.parametrize("reads_before", [0, 1])
async def test_money_that_left_in_a_block_not_settled_yet_is_gone(reads_before):
    leaving = LeavingChannel()
    leaving.reads = reads_before
    contracts = SimpleNamespace(channels=leaving, settled=SimpleNamespace(channels=DepositedChannel()))
    state = await LedgerChain(contracts).fetch_channel(bytes(32))
    assert state.available <= CLAIMED


async def test_money_that_came_in_a_block_not_settled_yet_is_not_there():
    class Fresh(LeavingChannel):
        async def balance_of(self, channel_id):
            return ChannelBalance(DEPOSIT, 0)

        async def pending_withdrawal(self, channel_id):
            return PendingWithdrawal(0, 0)

    class Nothing(LeavingChannel):
        async def balance_of(self, channel_id):
            return ChannelBalance(0, 0)

    contracts = SimpleNamespace(channels=Fresh(), settled=SimpleNamespace(channels=Nothing()))
    assert (await LedgerChain(contracts).fetch_channel(bytes(32))).available == 0

"""Everything that a key has in channels comes back, by the chain alone."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deaios.chain.genesis import ETHER
from deaios.chain.service.time_travel import MovedClock
from deaios.ledger.abi import encode_values
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.client.channels import Channels, VoucherClaim
from deaios.ledger.commitments import build_deposit_authorization
from deaios.ledger.eip712 import hash_typed_data, sign_struct
from deaios.ledger.structs import Voucher, channels_domain
from deaios.ledger.x402 import COLLECTOR, settlement_domain
from deaios.node.member import Member
from deaios.node.money import _find, _gateway_config, _withdraw
from deaios.primitives.units import CREDIT
from deaios.runtime.clock import SystemClock

FAR = 1 << 40
PROVIDER_DELAY = 60


@pytest.fixture(scope="session")
def x402_kit():
    path = Path(__file__).parents[1] / "gateway" / "x402_kit.py"
    spec = importlib.util.spec_from_file_location("x402_kit_of_node", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def test_everything_comes_back_without_anybody(x402_kit, tmp_path):
    clock = MovedClock(SystemClock())
    async with x402_kit.open_bank(tmp_path, clock=clock) as bank:
        key = await bank.open_payer("payer", gas=ETHER)
        sender, chain_id = bank.open_sender(key), bank.chain.chain_id
        artifact = load_artifact("Channels")
        arguments = encode_values(artifact.abi.constructor, (bank.token.address, PROVIDER_DELAY, 3600), "Channels")
        deployed = await bank.operator.send(None, artifact.creation + arguments)
        channels = Channels(bank.rpc, deployed.contract)
        token = SimpleNamespace(address=bank.token.address)
        descriptor = SimpleNamespace(first_block=0, token=token, chain_id=chain_id)
        member = Member(descriptor, key, None, bank.rpc, SimpleNamespace(channels=channels), sender)

        hub = _gateway_config(member, bank.gateway.address)
        provider = replace(hub, withdraw_delay=PROVIDER_DELAY)
        places = (
            (hub, COLLECTOR, settlement_domain(chain_id), bank.settlement, 5 * CREDIT),
            (provider, channels.address, channels_domain(chain_id, channels.address), channels, 3 * CREDIT),
        )
        wealth = await bank.token.balance_of(key.address)
        for config, collector, domain, contract, amount in places:
            channel_id = hash_typed_data(domain, config)
            authorization = build_deposit_authorization(
                config, channel_id, collector, amount, valid_after=0, valid_before=FAR, salt=1
            )
            signature = sign_struct(key, bank.terms.money, authorization)
            await contract.deposit(
                bank.operator, config, amount, valid_after=0, valid_before=FAR, salt=1, signature=signature
            )
        found = {item.kind: item.describe(0) for item in await _find(member)}
        assert {kind: (entry.unclaimed, entry.state) for kind, entry in found.items()} == {
            "gateway": (5 * CREDIT, "open"),
            "provider": (3 * CREDIT, "open"),
        }
        assert {entry.state for entry in await _withdraw(member)} == {"started"}
        # What was earned is claimed meanwhile; the rest comes back, each channel's after its own delay.
        voucher = sign_struct(key, settlement_domain(chain_id), Voucher(hash_typed_data(places[0][2], hub), CREDIT))
        await bank.settlement.claim(bank.sender, [VoucherClaim(hub, CREDIT, voucher, CREDIT)])
        clock.move(PROVIDER_DELAY)
        await bank.operator.send(key.address, b"", value=1)  # a block of the new time
        assert sorted((entry.kind, entry.state) for entry in await _withdraw(member)) == [
            ("gateway", "leaving"),
            ("provider", "returned"),
        ]
        clock.move(900)
        await bank.operator.send(key.address, b"", value=1)
        assert [(entry.kind, entry.state) for entry in await _withdraw(member)] == [("gateway", "returned")]
        assert await _withdraw(member) == []
        assert await bank.token.balance_of(key.address) == wealth - CREDIT

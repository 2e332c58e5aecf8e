"""A network on a foreign chain (anvil): what is refused first, who is given gas money, and a live one under reorgs."""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.fees import fetch_fee
from deaios.ledger.client.probe import InvalidChain
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import Patience, RefusedOutOfGasMoney, Sender
from deaios.ledger.descriptor import NetworkDescriptor, Token, decode_descriptor, encode_descriptor, sign_descriptor
from deaios.ledger.settings import LOCAL
from deaios.ledger.suite import SuiteAddresses
from deaios.node.accounts import count_money
from deaios.node.config import ChainConfig
from deaios.node.folder import StateFolder
from deaios.node.foreign import (
    GRANT_GAS,
    OPERATOR,
    TIGHT_WINDOWS,
    ForeignChain,
    Wanted,
    choose_foreign,
    fit_windows,
    load_foreign,
)
from deaios.node.keyfile import encode_keyfile
from deaios.node.keystore import Keystore
from deaios.node.member import build_fees, open_rpc
from deaios.node.purse import GasPurse
from deaios.primitives.errors import ConfigError
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice

if (repository := str(Path(__file__).resolve().parents[2])) not in sys.path:
    sys.path.append(repository)
from soak.chain_fuzz.foreign import run_anvil
from soak.foreign import RICH, write_deployer
from soak.reorgs import Reorgs, describe

pytestmark = [pytest.mark.timeout(600)]
POOR = PrivateKey(b"\x07" * 32)
CONFIG = ChainConfig()
CONFIRMATIONS = 4
WAIT_S = 240.0


@pytest.fixture
def anvil(peers: Any) -> Iterator[str]:
    with run_anvil(peers.anvil, ()) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "home")


@pytest.fixture
def keystore(folder: StateFolder) -> Keystore:
    return Keystore(folder.keys, SystemDice())


def write_key(folder: StateFolder, key: PrivateKey, password: bytes = b"open") -> Path:
    folder.root.mkdir(parents=True, exist_ok=True)
    path = folder.root / f"{key.address.hex()}.json"
    path.write_bytes(encode_keyfile(key, password, os.urandom(48)))
    return path


async def test_what_is_wrong_is_said_before_anything_is_sent(
    anvil: str, folder: StateFolder, keystore: Keystore
) -> None:
    with pytest.raises(ConfigError, match="needs a key that pays for it: --deployer KEYSTORE"):
        await choose_foreign(folder, keystore, Wanted(anvil), CONFIG)
    with pytest.raises(ConfigError, match="cannot be opened"):
        await choose_foreign(folder, keystore, Wanted(anvil, folder.root / "absent.json"), CONFIG)
    with pytest.raises(ConfigError, match="cannot be opened"):
        await choose_foreign(folder, keystore, Wanted(anvil, write_key(folder, RICH), b"wrong"), CONFIG)
    with pytest.raises(RefusedOutOfGasMoney, match=f"0x{POOR.address.hex()} is out of gas money: it has 0 wei"):
        await choose_foreign(folder, keystore, Wanted(anvil, write_key(folder, POOR), b"open"), CONFIG)
    with pytest.raises(ConfigError, match="holds another key"):
        await choose_foreign(folder, keystore, Wanted(anvil, write_key(folder, RICH), b"open"), CONFIG)
    assert load_foreign(folder) is None


async def test_an_old_chain_is_refused(peers: Any, folder: StateFolder, keystore: Keystore) -> None:
    with (
        run_anvil(peers.anvil, ("--hardfork", "shanghai")) as url,
        pytest.raises(InvalidChain, match="needs the rules of Cancun"),
    ):
        await choose_foreign(folder, keystore, Wanted(url, write_key(folder, RICH), b"open"), CONFIG)


async def test_what_was_found_out_once_stays_and_only_the_url_may_change(
    anvil: str, peers: Any, folder: StateFolder, keystore: Keystore
) -> None:
    wanted = Wanted(anvil, write_key(folder, RICH), b"open", CONFIRMATIONS)
    found = await choose_foreign(folder, keystore, wanted, CONFIG)
    assert (found.url, found.confirmations, found.chain_id, found.first_nonce) == (anvil, CONFIRMATIONS, 31337, 0)
    assert load_foreign(folder) == found
    assert await choose_foreign(folder, keystore, Wanted(anvil, confirmations=9), CONFIG) == found
    addresses = SuiteAddresses(*(Address(bytes([i + 1]) * 20) for i in range(len(fields(SuiteAddresses)))))
    descriptor = NetworkDescriptor(
        network_id=bytes.fromhex(found.network_id[2:]),
        chain_id=found.chain_id,
        rpc_urls=(anvil,),
        operator=RICH.address,
        contracts=addresses,
        token=Token(addresses.credit, "DeAIOS Credit", "CREDIT", "1", 6),
        windows=fit_windows(found),
        default_model_record_id=b"\x77" * 32,
        confirmations=CONFIRMATIONS,
        first_block=3,
    )
    folder.save_descriptor(encode_descriptor(descriptor, sign_descriptor(RICH, descriptor)))
    moved = await choose_foreign(folder, keystore, Wanted(anvil + "/"), CONFIG)
    assert moved.url == anvil + "/"
    again = decode_descriptor(folder.descriptor_path.read_bytes())
    assert (again.rpc_urls, again.confirmations, again.first_block) == ((anvil + "/",), CONFIRMATIONS, 3)
    with (
        run_anvil(peers.anvil, ("--chain-id", "4711")) as other,
        pytest.raises(ConfigError, match="is chain 4711 with genesis"),
    ):
        await choose_foreign(folder, keystore, Wanted(other), CONFIG)


async def test_a_network_with_a_chain_of_its_own_keeps_it(folder: StateFolder, keystore: Keystore) -> None:
    folder.root.mkdir(parents=True)
    folder.descriptor_path.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="has a chain of its own"):
        await choose_foreign(folder, keystore, Wanted("http://127.0.0.1:9"), CONFIG)


def note(block_s: int, confirmations: int) -> ForeignChain:
    return ForeignChain("http://x", confirmations, "0x" + "11" * 32, 1, "0x" + "22" * 32, 0, 0, block_s, 10**15)


def test_windows_fit_the_blocks() -> None:
    for block_s, confirmations in ((1, 1), (1, 4), (2, 30), (12, 12)):
        windows = fit_windows(note(block_s, confirmations))
        for name in TIGHT_WINDOWS:
            assert getattr(windows, name) >= max(getattr(LOCAL, name), 3 * (confirmations + 2) * block_s)
        assert windows.faucet_native == 10**15
    assert fit_windows(note(1, 1)).beacon_commit_s == LOCAL.beacon_commit_s
    with pytest.raises(ConfigError, match="64 confirmations of 60 s leave no consistent windows"):
        fit_windows(note(60, 64))


async def test_gas_money_goes_to_own_keys_within_the_budget(
    anvil: str, folder: StateFolder, keystore: Keystore
) -> None:
    found = await choose_foreign(folder, keystore, Wanted(anvil, write_key(folder, RICH), b"open"), CONFIG)
    fees = build_fees(CONFIG)
    own, rich = keystore.open_key("provider-1").address, keystore.open_key("auditor-1").address
    async with Rpc(anvil) as rpc:
        sender = Sender(rpc, RICH, found.chain_id, patience=Patience(poll_min_s=0.01), fees=fees)
        target = GRANT_GAS * await fetch_fee(rpc, fees)
        purse = GasPurse(folder, keystore, found, sender, fees, 2 * target, SystemClock())
        assert await purse.find_grant(own) == min(found.gas_grant_wei, 2 * target)
        assert await purse.find_grant(POOR.address) == 0, "strangers bring their own"
        assert await purse.find_grant(RICH.address) == 0
        await sender.send(rich, value=10 * target)
        assert await purse.top_up() == 0, "who has nothing asks at the counter, who has enough gets nothing"
        await sender.send(own, value=1000)
        assert await purse.top_up() == 1
        assert await rpc.get_balance(own) >= GRANT_GAS * (await fetch_fee(rpc, fees)) * 9 // 10
        spent = 2 * target - purse.left
        assert 0 < spent <= target
        purse.spend(purse.left - 5)
        await sender.send(keystore.open_key("gateway").address, value=1000)
        assert await purse.top_up() == 0, "the budget is spent"
        assert purse.left == 5
        await sender.close()


# -- live ------------------------------------------------------------------------------------------------------------


class Up:
    """`deaios up` on a foreign chain."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process) -> None:
        self.home = home
        self.process = process

    async def wait_up(self) -> None:
        assert self.process.stdout is not None
        said = b""
        async with asyncio.timeout(WAIT_S):
            while b"the network is up" not in said:
                line = await self.process.stdout.readline()
                assert line, said.decode()
                said += line

    async def run(self, *arguments: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deaios.cli.main", *arguments, "--json", "--dir", str(self.home),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode == 0, (out + err).decode()
        return json.loads(out)


async def test_a_network_lives_on_a_foreign_chain_that_takes_blocks_back(tmp_path: Path, peers: Any) -> None:
    (tmp_path / "deaios.toml").write_text(
        "[gateway]\nport = 0\n"
        "[network]\nstorage_nodes = 1\nproviders = 1\nauditors = 1\nda_nodes = 1\naudit_interval_s = 600\n"
    )
    with run_anvil(peers.anvil, ("--block-time", "1")) as url:
        async with Rpc(url) as rpc, asyncio.TaskGroup() as group:
            reorgs = Reorgs(rpc, random.Random(5), pause_s=(1.0, 4.0))
            faults = group.create_task(reorgs.run())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "deaios.cli.main", "up", "--dir", str(tmp_path), "--chain", url),
                *write_deployer(tmp_path), "--confirmations", str(CONFIRMATIONS),
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            up = Up(tmp_path, process)
            try:
                await up.wait_up()
                file = tmp_path / "answer.json"
                await up.run("ask", "Name two seas.", "--max-tokens", "12", "--save", str(file))
                assert (await up.run("verify", str(file)))["outcome"] == "verified"
                descriptor = StateFolder(tmp_path).load_descriptor()
                assert (descriptor.rpc_urls, descriptor.confirmations) == ((url,), CONFIRMATIONS)
                assert descriptor.operator == RICH.address
                async with open_rpc(descriptor) as client:
                    money = await count_money(Contracts(client, descriptor.contracts), LOCAL.credit_supply)
                assert money.is_conserved
                assert money.holders > 5
            finally:
                faults.cancel()
                process.send_signal(signal.SIGINT)
                await asyncio.wait_for(process.communicate(), WAIT_S)
            assert process.returncode == 0
    assert sum(reorgs.depths.values()) > 5, describe(reorgs)
    assert reorgs.counts["transactions dropped"] > 3, describe(reorgs)
    assert OPERATOR in {role.name for role in StateFolder(tmp_path).load_roles()}

"""`deaios chain` over a folder whose chain has stopped: out, in, checked, described; by text and by JSON."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deaios.chain.genesis import ETHER, Allocation, Genesis, compute_genesis_hash
from deaios.chain.service import ChainService, Limits
from deaios.cli.chain import chain
from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, sign_transaction
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.clock import SystemClock

OPERATOR, USER = PrivateKey(b"\x0f" * 32), PrivateKey(b"\x01" * 32)
GENESIS = Genesis(b"\x61" * 32, OPERATOR.address, 1_700_000_000, (Allocation(USER.address, ETHER),))
ANCHOR = "0x" + compute_genesis_hash(GENESIS).hex()
BLOCKS = 3


def call(*arguments: object) -> Result:
    return CliRunner().invoke(chain, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an operator's chain of a few blocks."""
    root = tmp_path_factory.mktemp("folder")

    async def make() -> None:
        with ThreadPoolExecutor(3) as executor:
            made = await ChainService.start(
                root / "roles" / "chain" / "chain.db",
                OPERATOR,
                GENESIS,
                executor=executor,
                clock=SystemClock(),
                limits=Limits(block_ms=1, gather_ms=1),
            )
            running = asyncio.create_task(made.run())
            for nonce in range(BLOCKS):
                raw = sign_transaction(
                    USER,
                    Transaction(DYNAMIC_FEE, GENESIS.chain_id, nonce, 10**10, 1, 21_000, Address(b"\x22" * 20), 1, b""),
                ).raw
                await made.submit([raw])
                assert await made.sealed.wait_for(nonce + 1, 20)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await made.close()

    asyncio.run(make())
    return root


def test_a_chain_goes_out_and_comes_in_by_blocks(folder: Path, tmp_path: Path) -> None:
    target, copy = tmp_path / "blocks", tmp_path / "copy"
    said = call("export", target, "--dir", folder)
    assert said.exit_code == 0, said.output
    assert f"blocks 0 to {BLOCKS}" in said.output
    said = call("import", target, "--dir", copy)
    assert said.exit_code == 64
    assert ANCHOR in said.output
    said = call("import", target, "--dir", copy, "--genesis-hash", ANCHOR, "--json")
    assert json.loads(said.output) == {
        "genesis_hash": ANCHOR,
        "executed": BLOCKS,
        "known": 1,
        "height": BLOCKS,
        "state": False,
    }
    said = call("check", "--dir", copy, "--execute")
    assert said.exit_code == 0, said.output
    assert f"sound up to block {BLOCKS}" in said.output
    (found,) = json.loads(call("status", "--dir", copy, "--json").output)
    (own,) = json.loads(call("status", "--dir", folder, "--json").output)
    for name in ("genesis_hash", "chain_id", "operator", "height", "hash", "state_commitment"):
        assert found[name] == own[name]
    assert (found["role"], own["role"], found["oldest_block"]) == ("follower", "chain", 0)
    assert f"follower: block {BLOCKS}" in call("status", "--dir", copy).output


def test_a_state_goes_out_and_comes_in(folder: Path, tmp_path: Path) -> None:
    target, copy = tmp_path / "state", tmp_path / "copy"
    out = json.loads(call("export", target, "--state", "--dir", folder, "--json").output)
    assert (out["last"], out["genesis_hash"]) == (BLOCKS, ANCHOR)
    said = call("import", target, "--dir", copy, "--genesis-hash", ANCHOR)
    assert said.exit_code == 0, said.output
    assert "trusts the operator's signature" in said.output
    found = json.loads(call("check", "--dir", copy, "--json").output)
    assert (found["height"], found["state_commitment"]) == (BLOCKS, out["state_commitment"])
    assert call("check", "--dir", copy, "--execute").exit_code == 64


def test_what_is_broken_ends_with_1_and_a_sentence(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "blocks"
    call("export", target, "--dir", folder)
    target.write_bytes(target.read_bytes()[:-1])
    said = call("import", target, "--dir", tmp_path / "copy", "--genesis-hash", ANCHOR, "--json")
    assert said.exit_code == 1
    assert json.loads(said.output)["error"]["type"] == "InvalidArchive"
    said = call("import", target, "--dir", tmp_path / "other", "--genesis-hash", "0x" + "11" * 32)
    assert (said.exit_code, "block 0 differs in hash" in said.output) == (1, True)
    said = call("export", tmp_path / "none", "--from", "2", "--to", "900", "--dir", folder)
    assert (said.exit_code, f"keeps 0 to {BLOCKS}" in said.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "x", "--state", "--from", "1"), "--from and --to choose blocks"),
        (("import", "/etc/hostname", "--genesis-hash", "0x12"), "hex holds 1 bytes"),
        (("export", "x", "--role", "queen"), "is not one of"),
    ],
)
def test_wrong_usage_says_what_is_right(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    found = call(*arguments, "--dir", tmp_path)
    assert found.exit_code != 0
    assert said in found.output


def test_a_folder_without_a_chain_says_how_to_get_one(tmp_path: Path) -> None:
    for arguments in (("export", tmp_path / "x"), ("check",)):
        said = call(*arguments, "--dir", tmp_path)
        assert said.exit_code == 64
        assert "deaios chain follow URL" in said.output
    assert "no chain in" in call("status", "--dir", tmp_path).output
    said = call("follow", "ws://nowhere", "--dir", tmp_path)
    assert (said.exit_code, "no http:// or https:// URL" in said.output) == (64, True)

"""A whole local network as a user runs it: `deaios up`, unmodified clients, a second machine that joins.

One network serves all tests of this module; they run in file order inside one worker.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from soak.tiny_models import write_tiny_model
from web3 import Web3

from deaios.alignment.answer import decode_answer
from deaios.ledger.eip712 import hash_struct
from deaios.node.folder import StateFolder
from deaios.primitives.keys import checksum_address

pytestmark = [pytest.mark.timeout(600)]

UP_S = 240.0
MODEL = "smollm2-135m-instruct"


def deaios(*arguments: str, home: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "deaios.cli.main", *arguments, "--dir", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def deaios_json(*arguments: str, home: Path) -> Any:
    """Run one command with `--json`; it must succeed."""
    done = deaios(*arguments, "--json", home=home)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


@dataclass
class Running:
    """A command that keeps running, and its folder."""

    home: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, *arguments: str, home: Path) -> "Running":
        command = [sys.executable, "-m", "deaios.cli.main", *arguments, "--dir", str(home)]
        with (home / "command.log").open("a") as log:
            return cls(home, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True))

    def wait_for(self, role: str) -> None:
        """Until a role runs."""
        deadline = time.monotonic() + UP_S
        while True:
            state = StateFolder(self.home).load_run_state(role)
            if state is not None and state.state == "running":
                return
            words = (self.home / "command.log").read_text()[-2000:]
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {words}"
            assert time.monotonic() < deadline, words
            time.sleep(0.2)

    def wait_for_any(self, kind: str) -> None:
        """Until a role of a kind, whose name is not known before, runs."""
        deadline = time.monotonic() + UP_S
        while not (names := [role.name for role in StateFolder(self.home).load_roles() if role.kind == kind]):
            words = (self.home / "command.log").read_text()[-2000:]
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {words}"
            assert time.monotonic() < deadline, words
            time.sleep(0.2)
        self.wait_for(names[0])

    def stop(self) -> int:
        """Ctrl-C; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=120)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("network")
    (home / "deaios.toml").write_text("[chain]\nport = 0\n[gateway]\nport = 0\n[network]\naudit_interval_s = 600\n")
    running = Running.start("up", home=home)
    try:
        running.wait_for("gateway")
        for role in StateFolder(home).load_roles():
            running.wait_for(role.name)
        yield running
    finally:
        code = running.stop()
    assert code == 0, (home / "command.log").read_text()[-2000:]
    assert all(role["state"] == "stopped" for role in deaios_json("status", home=home)["roles"])


@pytest.fixture(scope="module")
def status(network: Running) -> Any:
    return deaios_json("status", home=network.home)


@pytest.fixture(scope="module")
def saved(network: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One saved answer."""
    path = tmp_path_factory.mktemp("answers") / "a.json"
    told = deaios_json(
        "ask",
        "Why is the sky dark at night?",
        "--max-tokens",
        "24",
        "--level",
        "4",
        "--save",
        str(path),
        home=network.home,
    )
    assert told["completion_tokens"] > 0
    return path


def test_status_says_what_scripts_need(status: Any) -> None:
    kinds = [role["name"].rstrip("0123456789").rstrip("-") for role in status["roles"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "chain": 1,
        "storage": 3,
        "da": 3,
        "provider": 2,
        "auditor": 4,
        "gateway": 1,
    }
    for role in status["roles"]:
        assert role["state"] == "running"
        assert role["pid"] > 0
        assert role["url"].startswith("http://")
    assert status["gateway"]["url"]
    assert status["gateway"]["api_key"].startswith("sk-")
    assert status["chain"]["height"] > 0


def test_a_second_supervisor_is_refused(network: Running) -> None:
    done = deaios("up", home=network.home)
    assert done.returncode != 0
    assert "deaios down" in done.stderr


async def test_the_openai_sdk_completes_and_streams(status: Any) -> None:
    url, key = status["gateway"]["url"] + "/v1", status["gateway"]["api_key"]
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        assert MODEL in [model.id async for model in await client.models.list()]
        whole = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=12, seed=7, temperature=0.5
        )
        text = whole.choices[0].message.content
        assert text
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 12
        pieces, usage = [], None
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Name three colours."}],
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
        assert "".join(pieces)
        assert usage is not None
        twice = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], n=2, max_tokens=4
        )
        assert [choice.index for choice in twice.choices] == [0, 1]
        with pytest.raises(openai.BadRequestError, match="presence_penalty"):
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x"}], presence_penalty=1, max_tokens=4
            )
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_eight_streams_share_one_channel(status: Any) -> None:
    url, key = status["gateway"]["url"] + "/v1", status["gateway"]["api_key"]
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:

        async def one(number: int) -> str:
            done = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": f"Count to {number}."}], max_tokens=16
            )
            return done.choices[0].message.content or ""

        assert all(await asyncio.gather(*(one(number) for number in range(2, 10))))


def test_a_saved_answer_verifies_without_the_gateway(network: Running, saved: Path) -> None:
    done = deaios("verify", str(saved), "--json", home=network.home)
    result = json.loads(done.stdout)
    assert done.returncode == 0, result["headline"]
    assert result["outcome"] == "verified"
    assert result["tokensChecked"] > 0
    assert float(result["marginMax"]) < 0.02
    assert result["headline"].endswith("replayed exactly")
    again = deaios("verify", str(saved), "--json", "--engine", "numpy", home=network.home)
    assert again.returncode == 0, again.stdout


def test_a_stranger_needs_only_the_file_and_a_chain_url(status: Any, saved: Path, tmp_path: Path) -> None:
    done = deaios("verify", str(saved), "--json", "--chain", status["chain"]["url"], home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    gone = deaios("verify", str(saved), "--json", "--chain", "http://127.0.0.1:9", home=tmp_path / "other")
    assert gone.returncode == 2
    assert json.loads(gone.stdout)["outcome"] == "unchecked"
    forged = tmp_path / "forged.json"
    forged.write_text(saved.read_text().replace('"text": "', '"text": "x', 1))
    caught = deaios("verify", str(forged), "--json", "--chain", status["chain"]["url"], home=tmp_path)
    assert caught.returncode == 1
    assert "text" in json.loads(caught.stdout)["headline"]


def test_web3_and_cast_find_the_receipts_root_and_the_stake(
    network: Running, status: Any, saved: Path, peers: Any
) -> None:
    answer = decode_answer(saved.read_bytes())
    descriptor = StateFolder(network.home).load_descriptor()
    provider = checksum_address(answer.opening.request.provider)
    web3 = Web3(Web3.HTTPProvider(status["chain"]["url"]))
    assert web3.eth.chain_id == descriptor.chain_id
    artifacts = Path(__file__).parents[2] / "src" / "deaios" / "ledger" / "artifacts"

    def contract(name: str, address: bytes) -> Any:
        abi = json.loads((artifacts / f"{name}.json").read_text())["abi"]
        return web3.eth.contract(Web3.to_checksum_address(address), abi=abi)

    receipts = contract("Receipts", descriptor.contracts.receipts)
    digest = hash_struct(answer.opening.receipt)
    counter = answer.opening.receipt.counter
    assert receipts.functions.verifyReceipt(provider, answer.batch_index, counter, digest, list(answer.path)).call()
    first, last, _previous, root, _da, _time = receipts.functions.batchAt(provider, answer.batch_index).call()
    assert first <= counter <= last
    staking = contract("SharedStaking", descriptor.contracts.staking)
    stake = staking.functions.stakeOf(provider).call()
    assert stake >= 50_000_000

    url = status["chain"]["url"]
    signature = "batchAt(address,uint256)(uint64,uint64,bytes32,bytes32,bytes32,uint256)"
    to = Web3.to_checksum_address(descriptor.contracts.receipts)
    said = peers.run_cast("call", to, signature, provider, str(answer.batch_index), "--rpc-url", url)
    assert "0x" + root.hex() in said.stdout, said.stderr
    to = Web3.to_checksum_address(descriptor.contracts.staking)
    said = peers.run_cast("call", to, "stakeOf(address)(uint256)", provider, "--rpc-url", url)
    assert said.stdout.split()[0] == str(stake), said.stderr


def test_files_travel_as_verified_rows(network: Running, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(300_000))
    put = deaios_json("put", str(source), home=network.home)
    got = deaios_json("get", put["id"], "-o", str(target), home=network.home)
    assert got["size_bytes"] == 300_000
    assert target.read_bytes() == source.read_bytes()


def test_blobs_are_published_sampled_proven_and_answered_for(network: Running, tmp_path: Path) -> None:
    source, target, proof = tmp_path / "in", tmp_path / "out", tmp_path / "proof"
    source.write_bytes(os.urandom(300_000))
    put = deaios_json("blob", "put", str(source), home=network.home)
    status = deaios_json("blob", "status", put["id"], home=network.home)
    assert (status["kind"], status["size_bytes"], status["rows"], status["data_rows"]) == ("single", 300_000, 12, 4)
    assert status["seats_signed"] >= 8
    sample = deaios_json("blob", "sample", put["id"], home=network.home)
    assert sample["available"]
    assert sample["matrices"][0]["confidence"] == 1
    deaios_json("blob", "get", put["id"], "-o", str(target), home=network.home)
    assert target.read_bytes() == source.read_bytes()
    deaios_json("blob", "prove", put["id"], "-o", str(proof), home=network.home)
    stranger = tmp_path / "nobody"
    assert deaios_json("blob", "verify", put["id"], str(proof), home=stranger)["proven"]
    other = put["id"][:-1] + ("0" if put["id"][-1] != "0" else "1")
    refused = deaios("blob", "verify", other, str(proof), "--json", home=stranger)
    assert (refused.returncode, json.loads(refused.stdout)) == (1, {"proven": False})
    end = deaios_json("blob", "challenge", put["id"], "0", home=network.home)
    assert (end["answered"], end["slashed"]) == (True, 0)
    unknown = deaios("blob", "get", other, "-o", str(tmp_path / "none"), "--json", home=network.home)
    assert unknown.returncode == 2
    assert "no certificate" in json.loads(unknown.stdout)["error"]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "proof"]


def test_connect_and_wallet_tell_what_to_paste(network: Running, status: Any) -> None:
    lines = deaios("connect", "openai", home=network.home).stdout.splitlines()
    assert f"export OPENAI_BASE_URL={status['gateway']['url']}/v1" in lines
    assert f"export OPENAI_API_KEY={status['gateway']['api_key']}" in lines
    names = {entry["name"] for entry in deaios_json("wallet", home=network.home)}
    assert {"chain", "gateway", "provider-1", "auditor-4"} <= names


async def test_a_second_machine_joins_and_is_bought_from(network: Running, status: Any, tmp_path: Path) -> None:
    joined = deaios_json("join", status["chain"]["url"] + "/descriptor", home=tmp_path)
    assert joined["credit"] == 100_000_000
    provider = Running.start("provide", home=tmp_path)
    try:
        provider.wait_for("provider-1")
        entry = next(e for e in deaios_json("wallet", home=tmp_path) if e["name"] == "provider-1")
        assert entry["stake"] == 50_000_000
        url, key = status["gateway"]["url"] + "/v1", status["gateway"]["api_key"]
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            done = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Say hi."}],
                max_tokens=8,
                extra_body={"deaios": {"provider": entry["address"].lower()}},
            )
        opening = done.model_extra["deaios"]["opening"]
        assert opening["request"]["provider"] == entry["address"].lower()
        assert opening["receipt"]["counter"] == "1"
    finally:
        assert provider.stop() == 0


async def test_a_users_own_file_is_sold_bought_by_name_and_verified(
    network: Running, status: Any, tmp_path: Path
) -> None:
    file, home = write_tiny_model(tmp_path / "own.gguf", encoding="q8_0", architecture="qwen2"), tmp_path / "machine"
    home.mkdir()
    deaios_json("join", status["chain"]["url"] + "/descriptor", home=home)
    provider = Running.start("provide", "--model", str(file), "--name", "own-model", "--price", "0.5:2", home=home)
    try:
        provider.wait_for_any("provider")
        listed = {entry["name"]: entry for entry in deaios_json("models", home=home)}
        own = listed["own-model"]
        assert (own["noise_class"], own["providers"], own["input_price"], own["output_price"]) == (
            "Q",
            1,
            500_000,
            2_000_000,
        )
        url, key = status["gateway"]["url"] + "/v1", status["gateway"]["api_key"]
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            deadline = time.monotonic() + UP_S
            while "own-model" not in {model.id async for model in await client.models.list()}:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.5)
            raw = await client.completions.create(model=own["record"], prompt="the quick", max_tokens=4)
            assert raw.usage is not None
            assert raw.usage.completion_tokens > 0
        saved = tmp_path / "own.json"
        deaios_json(
            "ask", "Tell.", "--model", "own-model", "--max-tokens", "16", "--save", str(saved), home=network.home
        )
        checked = deaios_json("verify", str(saved), home=network.home)
        assert checked["outcome"] == "verified", checked
        (earned,) = deaios_json("earnings", home=home)
        assert (earned["model"], earned["why_not"]) == ("own-model", [])
        assert earned["receipts"] >= 2
        assert earned["earned"] > 0
    finally:
        assert provider.stop() == 0
    (ended,) = deaios_json("earnings", home=home)
    assert ended["why_not"][0].startswith("it does not run")


def test_a_killed_provider_comes_back_and_goes_on(network: Running) -> None:
    folder = StateFolder(network.home)
    before = folder.load_run_state("provider-1")
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    deadline = time.monotonic() + UP_S
    while (now := folder.load_run_state("provider-1")) is None or now.state != "running" or now.pid == before.pid:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    told = deaios_json("ask", "Say yes.", "--max-tokens", "8", home=network.home)
    assert told["completion_tokens"] > 0

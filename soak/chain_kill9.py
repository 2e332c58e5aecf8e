"""`kill -9` at random instants under load: what the chain acknowledged is in a block, waits, or has a record why not.

Usage: python -m soak.chain_kill9 [--kills 200] [--seed N]
The pool is small, so that acknowledged transactions are replaced and evicted all the time. After each kill the file is
read as it was left; at the end the whole chain is checked and run again.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from deaios.chain.genesis import ETHER
from deaios.chain.service.inspection import check_chain
from deaios.chain.store import ChainStore
from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, decode_transaction, sign_transaction
from deaios.primitives.keys import Address, PrivateKey
from soak.searches import Budget, Finding

SERVER = Path(__file__).resolve().parents[1] / "tests" / "chain" / "chain_process.py"
USERS = tuple(PrivateKey(bytes([number]) * 32) for number in range(1, 7))
"""Those that the server's genesis pays."""
RECEIVER = Address(b"\x99" * 20)
POOL = 48
BLOCK_MS = 30
BURST_MAX = 12
ALIVE_S_MAX = 0.8
"""Between a server's first word and its death; its start is killed now and then by another roll."""
ANSWER_S = 30
GWEI = 10**9


class Lost(Exception):
    """A promise was broken."""


@dataclass
class Load:
    """What one sender's thread did.

    Attributes:
        acknowledged: hashes that came back as results and are not settled yet.
    """

    rolls: random.Random
    acknowledged: set[bytes] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, url: str, chain_id: int) -> None:
        """Send until the server is gone."""
        with contextlib.suppress(
            urllib.error.URLError, ConnectionError, OSError, http.client.HTTPException, ValueError
        ):
            while True:
                self._burst(url, chain_id)

    def _burst(self, url: str, chain_id: int) -> None:
        key = self.rolls.choice(USERS)
        nonce = int(rpc(url, "eth_getTransactionCount", "0x" + key.address.hex(), "pending"), 16)
        tip = self.rolls.randrange(1, 100) * GWEI // 100
        first = max(0, nonce - 1) if self.rolls.random() < 0.2 else nonce  # replaces the last one, if it pays more
        raws = [sign(key, chain_id, first + place, tip) for place in range(self.rolls.randrange(1, BURST_MAX))]
        if self.rolls.random() < 0.1:
            raws.append(sign(key, chain_id, nonce + 40, tip))  # behind a gap
        body = [
            {"jsonrpc": "2.0", "id": place, "method": "eth_sendRawTransaction", "params": ["0x" + raw.hex()]}
            for place, raw in enumerate(raws)
        ]
        for answer in exchange(url, body):
            if "result" in answer:
                self.acknowledged.add(bytes.fromhex(answer["result"][2:]))
                self.counts["acknowledged"] += 1
            else:
                self.counts["refused"] += 1


def sign(key: PrivateKey, chain_id: int, nonce: int, tip: int) -> bytes:
    unsigned = Transaction(DYNAMIC_FEE, chain_id, nonce, 5 * GWEI + 2 * tip, tip, 21_000, RECEIVER, 1, b"")
    return sign_transaction(key, unsigned).raw


def exchange(url: str, body: object) -> list[dict[str, str]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        return json.loads(response.read())


def rpc(url: str, method: str, *params: object) -> str:
    answer = exchange(url, {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
    return answer["result"]


@dataclass
class Witness:
    """What was seen of the chain at earlier kills, and must stay true."""

    hashes: dict[int, bytes] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def examine(self, path: Path, acknowledged: set[bytes]) -> None:
        """Compare the file with every promise; settled transactions leave `acknowledged`.

        Raises:
            Lost: one was broken.
        """
        store = ChainStore(path)
        try:
            head = store.fetch_head()
            assert head is not None, "it was founded"
            state, commitment = store.load_state()
            if commitment.digest() != head.state_commitment:
                raise Lost(f"state and header {head.number} disagree")
            self._examine_headers(store, head.number)
            waiting = {decode_transaction(raw).hash for _, raw, _ in store.load_waiting()}
            for transaction_hash in sorted(acknowledged):
                self._settle(store, transaction_hash, waiting, acknowledged)
            self.counts["blocks"] = head.number
            nonces = sum(state.account(user.address).nonce for user in USERS)
            if state.account(RECEIVER).balance != nonces:
                raise Lost(f"{nonces} transfers of 1 wei were included, {state.account(RECEIVER).balance} wei arrived")
        finally:
            store.close()

    def _examine_headers(self, store: ChainStore, last: int) -> None:
        for number in range(max(0, last - 256), last + 1):
            header = store.fetch_header(number)
            if header is None or self.hashes.setdefault(number, header.hash) != header.hash:
                raise Lost(f"height {number} has another block than before, or none")
        for height, digest in store.unsigned_heights():
            if self.digests.setdefault(height, digest) != digest:
                raise Lost(f"height {height} promises another header than before")

    def _settle(self, store: ChainStore, transaction_hash: bytes, waiting: set[bytes], left: set[bytes]) -> None:
        is_included, reason = store.has_transaction(transaction_hash), store.fetch_gone(transaction_hash)
        if is_included and transaction_hash in waiting:
            raise Lost(f"0x{transaction_hash.hex()} is included and waits")
        if not is_included and transaction_hash not in waiting and reason is None:
            raise Lost(f"0x{transaction_hash.hex()} was acknowledged and is nowhere")
        if is_included:
            self.counts["included"] += 1
        elif reason is not None:
            self.counts["given up: " + reason.split(" by 0x")[0].split(":")[0]] += 1
        if transaction_hash not in waiting:
            left.remove(transaction_hash)


def start(path: Path) -> "subprocess.Popen[str]":
    options = json.dumps({"block_ms": BLOCK_MS, "gather_ms": 2, "pool": POOL})
    return subprocess.Popen(
        [sys.executable, str(SERVER), str(path), options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def run(kills: int, seed: int, folder: Path) -> Counter[str]:
    """So many lives of one chain.

    Raises:
        Lost: a promise was broken.
    """
    rolls, path = random.Random(seed), folder / "chain.db"
    load, witness = Load(random.Random(seed + 1)), Witness()
    for kill in range(kills):
        _live_and_die(rolls, path, load, witness)
        if path.exists():
            witness.examine(path, load.acknowledged)
        if (kill + 1) % 20 == 0:
            print(f"{kill + 1} kills: {dict(load.counts)}, {dict(sorted(witness.counts.items()))}", flush=True)
    checked = asyncio.run(check_chain(path, is_executing=True))
    _examine_money(path)
    witness.counts["run again at the end"] = checked.transactions
    return load.counts + witness.counts


def _live_and_die(rolls: random.Random, path: Path, load: Load, witness: Witness) -> None:
    server = start(path)
    assert server.stdout is not None
    try:
        if path.exists() and witness.hashes and rolls.random() < 0.1:
            # In the middle of its start. A new file's genesis is left alone, so that there is a chain to talk about.
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(rolls.random() * 2)
            witness.counts["killed at start"] += 1
            return
        url = server.stdout.readline().strip()
        if not url:
            raise Lost(f"the chain did not start: exit {server.wait()}")
        chain_id = int(rpc(url, "eth_chainId"), 16)
        sender = threading.Thread(target=load.run, args=(url, chain_id))
        sender.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(rolls.random() * ALIVE_S_MAX)
        server.send_signal(signal.SIGKILL)
        sender.join()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def _examine_money(path: Path) -> None:
    store = ChainStore(path)
    try:
        state, _ = store.load_state()
        headers = store.fetch_headers(0, 1 << 62)
        burned = sum(header.gas_used * header.base_fee for header in headers)
        total = sum(account.balance for account in state.accounts.values())
        if total + burned != len(USERS) * 1000 * ETHER:
            raise Lost(f"{total} wei are held and {burned} burned, {len(USERS) * 1000 * ETHER} were given out")
    finally:
        store.close()


def search(budget: Budget) -> str:
    """Fresh chains of twenty lives until the budget is spent."""
    deadline_s, seed, total = budget.deadline_s(), budget.seed * 1_000_000, Counter[str]()
    while not total or time.monotonic() < deadline_s:
        try:
            with tempfile.TemporaryDirectory() as folder:
                total += run(20, seed, Path(folder))
        except Lost as lost:
            raise Finding(str(lost), f"python -m soak.chain_kill9 --kills 20 --seed {seed}") from lost
        seed += 1
    return f"{total['acknowledged']} acknowledged transactions kept through kills"


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak.chain_kill9", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of instants and transactions (default 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = run(options.kills, options.seed, Path(folder))
        except Lost as lost:
            print(f"LOST: {lost}", file=sys.stderr)
            return 1
    for name, count in sorted(counts.items()):
        print(f"{count:8} {name}")
    print(f"{options.kills} kills: nothing acknowledged was lost or applied twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())

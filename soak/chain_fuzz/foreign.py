"""The foreign node (anvil): started under Cancun rules, asked over one kept connection."""

import contextlib
import gzip
import http.client
import json
import re
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHAIN_ID = 1337
GAS_LIMIT = 30_000_000
OPTIONS = (
    *("--no-mining", "--hardfork", "cancun", "--order", "fifo", "--accounts", "4"),
    *(
        "--timestamp",
        "1700000000",
        "--gas-limit",
        str(GAS_LIMIT),
        "--chain-id",
        str(CHAIN_ID),
        "--block-base-fee-per-gas",
        "1000000000",
    ),
)
"""Mines when told, in order of arrival."""
START_S = 30
ANSWER_S = 300
"""Its first point evaluation (EIP-4844) alone takes half a minute on a busy machine."""
POLL_S = 0.02


class ForeignError(Exception):
    """What the node answered instead of a result.

    Attributes:
        code: JSON-RPC error code.
    """

    def __init__(self, error: dict[str, Any]) -> None:  # Any: JSON
        super().__init__(error["message"])
        self.code: int = error["code"]


class ForeignNode:
    """A JSON-RPC client that keeps its connection."""

    def __init__(self, url: str) -> None:
        place = urllib.parse.urlsplit(url)
        assert place.hostname is not None, url
        self._connection = http.client.HTTPConnection(place.hostname, place.port, timeout=ANSWER_S)

    def rpc(self, method: str, *params: object) -> Any:  # Any: JSON
        """One result.

        Raises:
            ForeignError: the node refused.
        """
        answer = self._exchange(_request(1, method, params))
        if "error" in answer:
            raise ForeignError(answer["error"])
        return answer["result"]

    def rpc_many(self, questions: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:  # Any: JSON
        """Results of several reads, in their order."""
        if not questions:
            return []
        requests = [_request(number, method, params) for number, (method, params) in enumerate(questions)]
        answers = {answer["id"]: answer["result"] for answer in self._exchange(requests)}
        return [answers[number] for number in range(len(questions))]

    def _exchange(self, body: object) -> Any:  # Any: JSON
        self._connection.request("POST", "/", json.dumps(body), {"Content-Type": "application/json"})
        return json.loads(self._connection.getresponse().read())

    def dump(self) -> dict[str, Any]:  # Any: JSON
        """Every account, by its address in hex: nonce, balance, code, storage."""
        packed = bytes.fromhex(self.rpc("anvil_dumpState")[2:])
        accounts: dict[str, Any] = json.loads(gzip.decompress(packed))["accounts"]
        return accounts

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _request(number: int, method: str, params: Sequence[object]) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


@contextlib.contextmanager
def run_anvil(program: Path, options: Sequence[str] = OPTIONS) -> Iterator[str]:
    """A node in a process of its own; gives its URL."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        # It prints every request; a pipe that nobody reads would stop it.
        with output.open("wb") as file:
            process = subprocess.Popen([str(program), "--port", "0", *options], stdout=file, stderr=file)
        try:
            yield _await_address(process, output)
        finally:
            process.terminate()
            process.wait(timeout=START_S)


def _await_address(process: subprocess.Popen[bytes], output: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        text = output.read_text(errors="replace")
        if found := re.search(r"Listening on (\S+)", text):
            return "http://" + found[1]
        if process.poll() is not None:
            raise RuntimeError(f"anvil ended with {process.returncode}: {text[-400:]}")
        time.sleep(POLL_S)
    raise RuntimeError(f"anvil is not ready after {START_S} s")

"""Many small blobs in bundles: what one of them costs in fees, gas, bytes and work, beside a matrix of its own each.

Every blob is read back by its id and proven by itself, and every proof is verified from its bytes. Publisher and reader
are this process; members and chain are processes of their own.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deaios.coding.matrix import encode
from deaios.da.blob import BlobId, Bundle, decode_payload
from deaios.da.client.blobs import BlobClient
from deaios.da.client.bundler import Bundler, Dispersed
from deaios.da.proof import Prover, decode_proof, encode_proof, verify_item
from deaios.ledger.client.availability import Certificate
from deaios.ledger.client.contracts import Contracts
from deaios.node.joining import USER
from deaios.node.keystore import open_keystore
from deaios.node.member import Member, open_member
from deaios.primitives.units import CREDIT
from deaios.runtime.client import JSON_BYTES_MAX, HttpClient
from deaios.runtime.clock import SystemClock
from deaios.runtime.logs import configure_logs
from soak.da_network import DaNetwork, Use, running
from soak.searches import Finding

TERM_S = 3600
ALONE = 20
"""Blobs that get a matrix each, to compare with."""


@dataclass(frozen=True)
class Options:
    """One run."""

    blobs: int
    size_bytes: int
    members: int
    seed: int
    home: Path

    @property
    def command(self) -> str:
        return f"python -m soak.da small --blobs {self.blobs} --bytes {self.size_bytes} --seed {self.seed}"


class CountingClient(HttpClient):
    """Counts the bytes of bodies, in both directions; heads are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_bytes = self.received_bytes = self.requests = 0

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        bytes_max: int = JSON_BYTES_MAX,
    ) -> bytes:
        self.requests += 1
        self.sent_bytes += len(body or b"")
        answer = await super().request(method, url, body=body, headers=headers, bytes_max=bytes_max)
        self.received_bytes += len(answer)
        return answer


@dataclass
class Costs:
    """Sums over some blobs, and the CPU seconds of each step, all threads together."""

    fee: int = 0
    gas: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    proof_bytes: list[int] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)

    def describe(self, title: str, blobs: int) -> str:
        proofs = sorted(self.proof_bytes)
        steps = ", ".join(f"{name} {1000 * used / blobs:.3f}" for name, used in self.cpu_s.items())
        return (
            f"{title}, for one of {blobs} blobs:\n"
            f"  fee {self.fee / CREDIT / blobs:.12f} credit; gas of certify {self.gas / blobs:,.0f}\n"
            f"  bytes sent {self.sent_bytes / blobs:,.0f}, received {self.received_bytes / blobs:,.0f}\n"
            f"  proof {sum(proofs) / len(proofs):,.0f} bytes on average, {proofs[0]:,} to {proofs[-1]:,}\n"
            f"  CPU ms: {steps}"
        )


async def run_small(options: Options) -> str:
    """Bundled, then alone.

    Raises:
        Finding: a blob came back as other bytes, or its proof proves something else.
    """
    configure_logs("soak", options.home / "soak.log", "info")
    dice = random.Random(options.seed)
    contents = [dice.randbytes(options.size_bytes) for _ in range(options.blobs + ALONE)]
    async with running(options.home / "network", options.members) as network:
        descriptor, key = network.folder.load_descriptor(), open_keystore(network.folder).open_key(USER)
        async with open_member(descriptor, key, network.chain_url) as member, CountingClient() as http:
            small = _Small(options, network, member, http)
            await small.warm_up()
            bundled = await small.put_bundled(contents[: options.blobs])
            print(bundled.describe("bundled", options.blobs), flush=True)
            alone = await small.put_alone(contents[options.blobs :])
            print(alone.describe("a matrix each", ALONE), flush=True)
    return f"{options.blobs} blobs of {options.size_bytes} bytes read back and proven one by one"


class _Small:
    """One run's publisher and reader."""

    def __init__(self, options: Options, network: DaNetwork, member: Member, http: CountingClient) -> None:
        self._options = options
        self._network = network
        self._contracts: Contracts = member.contracts
        self._http = http
        self._client = BlobClient(
            member.contracts,
            http,
            member.descriptor.network_id,
            member.descriptor.chain_id,
            key=member.key,
            sender=member.sender,
        )

    async def warm_up(self) -> None:
        """What happens once: connections, tables of the code, the allowance."""
        await self._client.get_bytes(await self._client.put_bytes(b"warm", TERM_S), 4)

    async def put_bundled(self, contents: list[bytes]) -> Costs:
        costs, until = Costs(), int(time.time()) + TERM_S

        async def disperse(payload: bytes, expires_at: int) -> Dispersed:
            certificate = await self._client.disperse(payload, expires_at - int(time.time()))
            return Dispersed(certificate.attestation.commitment, certificate.fee)

        bundler = Bundler(disperse, SystemClock())
        with self._counting(costs, "put"):
            bundled = await asyncio.gather(*(bundler.put(content, until) for content in contents))
            await bundler.close()
        certificates = await self._fetch_certificates({one.id.commitment for one in bundled}, costs)
        shares = sum(one.fee for one in bundled)
        print(f"  {len(certificates)} bundles of {', '.join(f'{c.length:,}' for c in certificates.values())} bytes")
        print(f"  fees {costs.fee / CREDIT:.6f} credit, of which the bundler named shares of {shares / CREDIT:.6f}")
        payloads = {}
        with self._counting(costs, "get"):
            for commitment, certificate in certificates.items():
                payloads[commitment] = await self._client.reader.fetch_payload(certificate)
            opened = {commitment: decode_payload(payload) for commitment, payload in payloads.items()}
            for one, content in zip(bundled, contents, strict=True):
                bundle = opened[one.id.commitment]
                assert isinstance(bundle, Bundle), "it was put as one"
                assert one.id.number is not None, "items have numbers"
                self._demand(bundle.get_item(one.id.number).content == content, f"{one.id} came back as other bytes")
        with self._counting(costs, "prove"):
            provers = {
                commitment: Prover(encode(payload, certificates[commitment].parameters.profile))
                for commitment, payload in payloads.items()
            }
            proofs = [encode_proof(provers[one.id.commitment].prove(one.id.number)) for one in bundled]
        costs.proof_bytes = [len(proof) for proof in proofs]
        with self._counting(costs, "verify"):
            for one, content, proof in zip(bundled, contents, proofs, strict=True):
                self._verify(one.id, content, proof)
        return costs

    async def put_alone(self, contents: list[bytes]) -> Costs:
        costs = Costs()
        with self._counting(costs, "put"):
            ids = [await self._client.put_bytes(content, TERM_S) for content in contents]
        certificates = await self._fetch_certificates({one.commitment for one in ids}, costs)
        with self._counting(costs, "get"):
            payloads = [await self._client.reader.fetch_payload(certificates[one.commitment]) for one in ids]
        with self._counting(costs, "prove"):
            proofs = [
                encode_proof(Prover(encode(payload, certificates[one.commitment].parameters.profile)).prove(None))
                for one, payload in zip(ids, payloads, strict=True)
            ]
        costs.proof_bytes = [len(proof) for proof in proofs]
        with self._counting(costs, "verify"):
            for one, content, proof in zip(ids, contents, proofs, strict=True):
                self._verify(one, content, proof)
        return costs

    def _counting(self, costs: Costs, step: str) -> "_Step":
        return _Step(self._network, self._http, costs, step)

    async def _fetch_certificates(self, commitments: set[bytes], costs: Costs) -> dict[bytes, Certificate]:
        """Certificates by commitment; fees and gas of their transactions are added up."""
        contract = self._contracts.availability.contract
        found = {}
        for commitment in sorted(commitments):
            found[commitment] = await self._client.reader.fetch_certificate(commitment)
            costs.fee += found[commitment].fee
            for event in await contract.fetch_events("Certified", commitment=commitment):
                receipt = await self._contracts.rpc.get_receipt(event.log.transaction_hash)
                assert receipt is not None, "the event came from it"
                costs.gas += receipt.gas_used
        return found

    def _verify(self, blob_id: BlobId, content: bytes, proof: bytes) -> None:
        proven = verify_item(blob_id, decode_proof(proof))
        self._demand(proven is not None and proven.content == content, f"the proof of {blob_id} does not prove it")

    def _demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise Finding(what, self._options.command)


class _Step:
    """Notes what one step used: this process, and all members and the chain."""

    def __init__(self, network: DaNetwork, http: CountingClient, costs: Costs, name: str) -> None:
        self._network, self._http, self._costs, self._name = network, http, costs, name

    def __enter__(self) -> None:
        self._own_s, self._uses = time.process_time(), self._network.uses()
        self._sent, self._received = self._http.sent_bytes, self._http.received_bytes

    def __exit__(self, *_error: object) -> None:
        costs, name = self._costs, self._name
        costs.cpu_s[name] = time.process_time() - self._own_s
        if name in ("put", "get"):
            after: dict[str, Use] = self._network.uses()
            costs.cpu_s[f"{name} on members"] = sum(
                after[role].cpu_s - self._uses[role].cpu_s for role in self._network.members
            )
            costs.cpu_s[f"{name} on the chain"] = after["chain"].cpu_s - self._uses["chain"].cpu_s
        costs.sent_bytes += self._http.sent_bytes - self._sent
        costs.received_bytes += self._http.received_bytes - self._received

"""The frozen answer and its evidence: changing either format is a decision."""

import json
from pathlib import Path

from deaios.alignment.answer import decode_answer, encode_answer
from deaios.alignment.check import BatchView, ChainView, NetworkTerms, check_binding, check_chain, check_delivery
from deaios.alignment.evidence import Evidence, build_evidence_root, encode_evidence
from deaios.compute.commitments import commit_prompt
from deaios.ledger.eip712 import hash_struct
from deaios.ledger.structs import protocol_domain
from deaios.market.conduct import recover_stater
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import Address

SPEC = Path(__file__).parents[2] / "docs/spec"
FILE = (SPEC / "answer.json").read_bytes()
STATED = (SPEC / "answer-conduct.json").read_bytes()
VECTORS = json.loads((SPEC / "answer-vectors.json").read_text())


def data(name):
    return bytes.fromhex(VECTORS[name][2:])


def test_the_frozen_answer_is_read_written_and_bound(bench):
    answer = decode_answer(FILE)
    assert encode_answer(answer) == FILE
    assert hash_struct(answer.opening.receipt) == data("receiptDigest")
    terms = NetworkTerms(data("network"), protocol_domain(VECTORS["chainId"], Address(data("disputes"))), bytes(32))
    batch = BatchView(VECTORS["firstCounter"], VECTORS["lastCounter"], data("batchRoot"), 1_790_000_000)
    view = ChainView(99, batch, 41, True, 1, 0, False, False)
    facts = [
        *check_binding(answer, terms, answer.client_nonce),
        *check_delivery(answer, bench.tokenizer),
        *check_chain(answer, view),
    ]
    assert [fact for fact in facts if not fact.holds] == []
    assert next(fact.says for fact in facts if fact.rule == "batch").endswith(
        f"root {VECTORS['batchRoot']}, on chain since 2026-09-21 14:13:20+00:00"
    )


def test_the_frozen_answer_with_a_statement_is_read_written_and_bound():
    answer = decode_answer(STATED)
    assert encode_answer(answer) == STATED
    assert json.loads(STATED)["version"] == 3
    assert recover_stater(data("network"), answer.opening.conduct) == answer.opening.request.provider


def test_the_frozen_evidence_is_the_same_bytes():
    answer, prompt_ids = decode_answer(FILE), tuple(VECTORS["promptIds"])
    assert commit_prompt(prompt_ids, answer.opening.salt) == answer.opening.ask.prompt_commitment
    assert sha256(encode_evidence(Evidence(answer.opening, prompt_ids))) == data("evidenceSha256")


def test_the_frozen_evidence_root_is_the_same():
    vector = VECTORS["evidenceRoot"]
    margins = [float("inf") if micro is None else micro / 1e6 for micro in vector["marginsMicro"]]
    assert "0x" + build_evidence_root(bytes.fromhex(vector["salt"][2:]), margins).hex() == vector["root"]

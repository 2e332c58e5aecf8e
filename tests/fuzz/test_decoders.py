"""Any bytes make every decoder give a value or a typed error, and one spelling where there is a canonical one."""

import ast
from pathlib import Path

import decoders
import fuzz_target
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[2] / "src/deaios"
TARGETS = decoders.all_targets()
EXAMPLES = 40
PREFIXES = ("decode_", "parse_", "read_")
FOUND = {
    path.stem.removesuffix(".bin"): path.read_bytes() for path in sorted(Path(__file__).with_name("found").iterdir())
}
"""Past findings: `TARGET--NUMBER.bin`."""

NOT_OUTSIDE_BYTES = {
    "alignment.examination.World.read_chain": "a protocol: asks the chain through its typed client",
    "chain.rpc.read_at": "the place of a parameter in the errors of the readers that have targets",
    "chain.tables.decode_logs": "the chain's own file; damaged ones: tests/chain/test_archive.py",
    "chain.tables.decode_transactions": "the chain's own file; damaged ones: tests/chain/test_archive.py",
    "chain.tables.read_block": "the chain's own file; damaged ones: tests/chain/test_archive.py",
    "chain.tables.read_block_1": "the chain's own file; damaged ones: tests/chain/test_archive.py",
    "chain.tables.read_receipt": "the chain's own file; damaged ones: tests/chain/test_archive.py",
    "chain.tables.read_receipts": "the chain's own file; damaged ones: tests/chain/test_archive.py",
    "cli.attest.read_hex_of": "an argument of the command line",
    "cli.attest.read_time": "an argument of the command line",
    "coding.tree.read_path": "indexes our own tree",
    "compute.calibration.Measured.decode_line": "our own journal of a calibration",
    "compute.calibration.read_evidence": "hostile evidence: tests/compute/test_calibration.py",
    "compute.engine.HiddenEngine.decode_hidden": "runs ids through a model",
    "compute.engines.llama.LlamaEngine.decode_hidden": "runs ids through a model",
    "compute.engines.numpy_llama.NumpyEngine.decode_hidden": "runs ids through a model",
    "node.simulation.model.ToyEngine.decode_hidden": "runs ids through a model",
    "compute.engines.upstream.dialects.read_delta": "hostile servers: tests/compute/test_upstream.py",
    "compute.engines.upstream.prompts.read_messages": "ids of a prompt that was checked against the vocabulary",
    "compute.generation.read_output": "ids of an output that was checked against the vocabulary",
    "compute.selftest.decode_known_answers": "a file of this package",
    "compute.selftest.read_known_answers": "a file of this package",
    "gateway.file_records.FileRecords.read_content": "our own records",
    "gateway.queries.read_limit": "over sockets: tests/gateway/test_queries.py",
    "gateway.queries.read_order": "over sockets: tests/gateway/test_queries.py",
    "gateway.queries.read_query": "over sockets: tests/gateway/test_queries.py",
    "gateway.records.RecordStore.read_all": "our own records",
    "gateway.records.RecordStore.read_one": "our own records",
    "gateway.telling.read_asked": "over sockets: tests/gateway",
    "ledger.client.bound.BoundContract.read_many": "a call; its answer goes through Function.decode_result",
    "ledger.client.bound.BoundContract.read_one": "a call; its answer goes through Function.decode_result",
    "market.seller.store.read_sales": "our own journal",
    "market.x402.decode_config": "our own journal",
    "market.x402.decode_payment": "hostile headers: tests/gateway/test_x402_vouchers.py",
    "node.joining.read_descriptor": "fetches; the bytes go through decode_descriptor",
    "node.market_view.read_earnings": "our own journal",
    "node.models.ModelFiles.read_known_answers": "the evidence of read_evidence",
    "node.money.read_channels": "asks the chain through its typed client",
    "node.providing.read_price": "an argument of the command line",
    "node.roles.chain.read_limits": "reads the configuration that was decoded",
    "node.sponsoring.read_terms": "fetches; the answer goes through msgspec",
    "node.status.read_connection": "shows this folder's own state",
    "node.status.read_status": "shows this folder's own state",
    "node.upstream.read_choice": "our own run file and configuration",
    "node.wallet.read_wallet": "asks the chain through its typed client",
    "rows.service.RowDoor.read_signed": "over sockets: tests/rows/test_door.py",
    "rows.service.read_row_name": "two decoders of primitives.encoding, over sockets: tests/storage",
    "runtime.http.read_body": "over sockets: tests/doors",
    "runtime.http.read_json": "over sockets: tests/doors",
    "runtime.relay.session.Stream.read_head": "waits for the head that framing.decode_head reads",
}
"""Functions with a decoder's name that decode nothing from outside, or are covered elsewhere; each with the reason."""


def public_decoders():
    """Every public function or method in `src` that is named as a decoder, as `module.Class.function`."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            holders = [(node.name + ".", node.body)] if isinstance(node, ast.ClassDef) else [("", [node])]
            for prefix, body in holders:
                for item in body:
                    is_function = isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
                    if is_function and item.name.startswith(PREFIXES) and not prefix.startswith("_"):
                        yield f"{module}.{prefix}{item.name}"


def test_every_decoder_has_a_target_or_a_reason():
    found = set(public_decoders())
    covered = {name for target in TARGETS.values() for name in target.covers}
    assert found - covered - NOT_OUTSIDE_BYTES.keys() == set(), "a decoder without a target in tests/fuzz/decoders.py"
    assert NOT_OUTSIDE_BYTES.keys() - found == set(), "a reason for a function that is gone"
    assert {name for name in covered if name.split(".")[-1].startswith(PREFIXES)} - found == set()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_what_the_decoder_takes(name):
    target = TARGETS[name]
    assert target.seeds
    accepted = [fuzz_target.check(target, seed) for seed in target.seeds]
    assert all(accepted) or name in ("offer", "keystore"), "a seed that is refused searches nothing"


@st.composite
def mutated(draw, seeds):
    """A valid input with some places changed, moved, doubled or cut, or plain noise."""
    data = bytearray(draw(st.sampled_from(seeds)) if draw(st.integers(0, 9)) else draw(st.binary(max_size=200)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + draw(st.sampled_from([0, 1, 8, 200])))))
        replacement = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(TOKENS),
                st.builds(bytes, st.just(bytes(data[start:end] * 2))),
            )
        )
        data[start:end] = replacement
    return bytes(data)


TOKENS = [
    b"", b"0", b"-1", b"1e9", b"1.5", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b'"', b"\\", b",", b"9" * 40,
    b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"0x", b"0X", b"\xc3\xa9", b"[" * 100, b"NaN",
    b"{% for x in range(9) %}", b"{{ 1 ** 9 }}", b"| join",
]  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
@given(data=st.data())
def test_any_bytes_give_a_value_or_a_typed_error(name, data):
    target = TARGETS[name]
    fuzz_target.check(target, data.draw(mutated(target.seeds)))


@pytest.mark.parametrize("found", FOUND)
def test_past_findings_stay_mended(found):
    fuzz_target.check(TARGETS[found.partition("--")[0]], FOUND[found])

"""Every decoder of outside bytes, as a target: bytes in, a value or a typed error out. Not a test module.

`soak/fuzz.py` drives the same targets by coverage. A target that has a canonical encoder also proves that what it
accepts is the one spelling. The decoders that are covered are named, so that a new one cannot be forgotten.
"""

import base64
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np
from decoders_chain import replica_targets
from decoders_gateway import gateway_targets
from decoders_rows import da_targets, rows_targets
from fuzz_target import Skipped, Target, as_json, as_text, as_typed

from deaios.alignment import answer, documents, evidence
from deaios.chain import blocks, genesis, journal_text, overrides, rpc
from deaios.compute import commitments, constraint, fingerprints, gguf_file, records, schema, template, tokenizer, tools
from deaios.ledger import (
    abi,
    artifacts,
    committee,
    descriptor,
    eip712,
    networks,
    rlp,
    selection,
    settings,
    structs,
    transactions,
)
from deaios.ledger import records as chain_records
from deaios.ledger.client import rpc as rpc_client
from deaios.ledger.suite import SuiteAddresses
from deaios.market import batches, chat, offers, opening, wire
from deaios.market.buyer.client import purchase
from deaios.node import config, folder, keystore
from deaios.primitives import encoding, keys
from deaios.primitives.errors import DeaiosError
from deaios.runtime.client import read_failure
from deaios.runtime.dice import SystemDice

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "docs/spec"
INPUT_BYTES_MAX = 64 << 10
"""Longer inputs find nothing more and take longer."""


def _camel(value: dict) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def _spec(name: str) -> object:
    return json.loads((SPEC / name).read_text())


@functools.cache
def _market(name: str) -> bytes:
    value = _spec("market-vectors.json")[name]
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


@functools.cache
def _opening_json() -> bytes:
    return json.dumps(_spec("answer.json")["opening"]).encode()


@functools.cache
def _opening() -> opening.Opening:
    return opening.Opening.decode_json(_spec("answer.json")["opening"])


def _struct_targets() -> list[Target]:
    """One target for each EIP-712 struct that comes as JSON."""
    parts = {"ask": structs.Ask, "offer": structs.Offer, "request": structs.Request, "receipt": structs.Receipt}
    found = json.loads(_opening_json())
    papers = json.loads(_market("purchase"))
    samples = {structs_type: found[name] for name, structs_type in parts.items()}
    samples |= {structs.Voucher: papers["voucher"], structs.ChannelConfig: papers["channel"]}
    return [
        Target(
            f"struct-{kind.__name__}",
            functools.partial(lambda kind, data: eip712.decode_json(kind, as_json(data)), kind),
            ("ledger.eip712.decode_json",),
            (json.dumps(sample).encode(),),
        )
        for kind, sample in samples.items()
    ]


HASH, ADDRESS = "0x" + "11" * 32, "0x" + "22" * 20
LOG = {
    "address": ADDRESS,
    "topics": [HASH],
    "data": "0x00",
    "blockNumber": "0x1",
    "transactionHash": HASH,
    "logIndex": "0x0",
}
RECEIPT = {
    "transactionHash": HASH,
    "blockNumber": "0x1",
    "blockHash": HASH,
    "gasUsed": "0x5208",
    "effectiveGasPrice": "0x1",
    "status": "0x1",
    "contractAddress": None,
    "logs": [LOG],
}
BLOCK = {
    "number": "0x1",
    "hash": HASH,
    "parentHash": HASH,
    "timestamp": "0x1",
    "gasLimit": "0x1",
    "baseFeePerGas": "0x7",
}
CALL = {
    "from": ADDRESS,
    "to": ADDRESS,
    "data": "0x00",
    "value": "0x0",
    "gas": "0x5208",
    "gasPrice": "0x1",
    "accessList": [{"address": ADDRESS, "storageKeys": [HASH]}],
}
FILTER = {"fromBlock": "0x0", "toBlock": "latest", "address": [ADDRESS], "topics": [None, HASH, [HASH, HASH]]}


ABI = [
    {
        "type": "function",
        "name": "f",
        "inputs": [{"name": "a", "type": "tuple[]", "components": [{"name": "b", "type": "uint256"}]}],
        "outputs": [{"name": "", "type": "bytes32[3]"}],
        "stateMutability": "view",
    },
    {"type": "event", "name": "E", "inputs": [{"name": "a", "type": "address", "indexed": True}], "anonymous": False},
]
JOURNAL = (
    "JournaledState { state: {0x"
    + "22" * 20
    + ": Account { info: AccountInfo { balance: 1, nonce: 0, code_hash: 0x"
    + "11" * 32
    + ", code: None }, storage: {1: StorageSlot { previous_or_original_value: 0, present_value: 2 }}, "
    "status: AccountStatus(Touched) }}, transient_storage: {}"
)


def _primitive_targets() -> list[Target]:
    return [
        Target(
            "hex",
            lambda data: encoding.decode_hex(as_text(data)),
            ("primitives.encoding.decode_hex",),
            (b"0x", b"0x00ff"),
            lambda value: encoding.encode_hex(value).encode(),
        ),
        Target(
            "decimal",
            lambda data: encoding.decode_decimal(as_text(data), 64),
            ("primitives.encoding.decode_decimal",),
            (b"0", b"18446744073709551615"),
            lambda value: encoding.encode_decimal(value).encode(),
        ),
        Target(
            "address",
            lambda data: keys.parse_address(as_text(data)),
            ("primitives.keys.parse_address",),
            (ADDRESS.encode(),),
        ),
        Target(
            "typed address",
            lambda data: keys.read_address(as_text(data)),
            ("primitives.keys.read_address",),
            (ADDRESS.encode(),),
        ),
        Target(
            "signature",
            lambda data: keys.recover_address(bytes(32), data),
            ("primitives.keys.recover_address",),
            (keys.PrivateKey(b"\x01" * 32).sign_digest(bytes(32)),),
        ),
    ]


def _ledger_targets() -> list[Target]:
    key = keys.PrivateKey(b"\x01" * 32)
    address = keys.Address(b"\x22" * 20)
    signed = [
        transactions.sign_transaction(
            key, transactions.Transaction(kind, 1, 0, 10**9, 10**9 if kind != 2 else 1, 21_000, address, 5, b"\x01")
        ).raw
        for kind in (transactions.LEGACY, transactions.ACCESS_LIST, transactions.DYNAMIC_FEE)
    ]
    credit = artifacts.load_artifact("Credit").abi
    nested = ("(address,uint256,bytes32[])[]", "string", "bytes", "bool", "int128", "bytes32[3]")
    words = abi.encode_values(nested, [[(address, 1, [bytes(32)])], "text", b"\x01", True, -5, [bytes(32)] * 3])
    event = next(iter(credit.by_topic.values()))
    return [
        Target(
            "rlp",
            rlp.decode_rlp,
            ("ledger.rlp.decode_rlp",),
            (rlp.encode_rlp([b"cat", [b"", b"\x01" * 60], []]), *signed[:1]),
            rlp.encode_rlp,
        ),
        Target(
            "rlp integer",
            lambda data: rlp.decode_integer(data, 256),
            ("ledger.rlp.decode_integer",),
            (b"\x01\x00",),
            rlp.encode_integer,
        ),
        Target(
            "transaction",
            transactions.decode_transaction,
            ("ledger.transactions.decode_transaction",),
            tuple(signed),
            lambda value: value.raw,
        ),
        Target(
            "sender",
            lambda data: transactions.recover_sender(transactions.decode_transaction(data)),
            ("ledger.transactions.recover_sender",),
            tuple(signed),
        ),
        Target("abi words", lambda data: abi.decode_values(nested, data), ("ledger.abi.decode_values",), (words,)),
        Target(
            "abi result",
            lambda data: credit.get_function("balanceOf").decode_result(data),
            ("ledger.abi.Function.decode_result",),
            (bytes(32),),
        ),
        Target(
            "abi event",
            lambda data: event.decode((event.topic, data[:32], data[32:64]), data[64:]),
            ("ledger.client.bound.BoundContract.decode_log", "ledger.client.bound.BoundContract.decode_logs"),
            (bytes(96),),
        ),
        Target(
            "abi", lambda data: abi.parse_abi(as_json(data)), ("ledger.abi.parse_abi",), (json.dumps(ABI).encode(),)
        ),
        Target(
            "revert",
            abi.decode_revert,
            ("ledger.abi.decode_revert",),
            (abi.ERROR_SELECTOR + abi.encode_values(("string",), ["no"]), abi.PANIC_SELECTOR + bytes(32)),
        ),
        Target(
            "descriptor", descriptor.decode_descriptor, ("ledger.descriptor.decode_descriptor",), (_descriptor(key),)
        ),
        Target(
            "descriptor fields",
            lambda data: descriptor.decode_fields(as_json(data)),
            ("ledger.descriptor.decode_fields",),
            (json.dumps(json.loads(_descriptor(key))["descriptor"]).encode(),),
        ),
        Target(
            "settings",
            lambda data: settings.decode_settings(as_json(data)),
            ("ledger.settings.decode_settings",),
            (json.dumps(settings.encode_settings(settings.LOCAL)).encode(),),
        ),
        Target(
            "snapshot",
            lambda data: selection.decode_snapshot(
                [int.from_bytes(data[at : at + 32]) for at in range(0, len(data), 32)]
            ),
            ("ledger.selection.decode_snapshot",),
            (bytes(64),),
        ),
        Target(
            "committee",
            lambda data: committee.decode_committee(1, 2, _words(data), 12),
            ("ledger.committee.decode_committee",),
            (b"".join(_word(seats, first) for first, seats in ((0, 5), (5, 7))), _word(12, 0)),
            lambda value: b"".join(_word(one.seats, one.first_seat, one.address) for one in value.members),
        ),
        Target(
            "validators",
            lambda data: networks.decode_validators(_words(data)),
            ("ledger.networks.decode_validators",),
            ((7 << 160 | 1).to_bytes(32) + (9 << 160 | 2).to_bytes(32),),
            lambda value: b"".join(word.to_bytes(32) for word in networks.encode_validators(value)),
        ),
        Target(
            "block",
            lambda data: chain_records.read_block(as_json(data)),
            ("ledger.records.read_block",),
            (_camel(BLOCK),),
        ),
        Target(
            "chain receipt",
            lambda data: chain_records.read_receipt(as_json(data)),
            tuple(f"ledger.records.read_{name}" for name in ("receipt", "logs", "hash", "data", "quantity")),
            (_camel(RECEIPT),),
        ),
        Target(
            "rpc reply",
            _read_reply,
            (),
            (b'{"id":1,"result":"0x1"}', b'[{"id":1,"error":{"code":3,"message":"x","data":"0x"}}]'),
        ),
    ]


def _words(data: bytes) -> list[int]:
    """What the ABI gives: whole words."""
    if len(data) % 32:
        raise Skipped("half a word")
    return [int.from_bytes(data[at : at + 32]) for at in range(0, len(data), 32)]


def _word(seats: int, first: int, address: bytes = b"\x22" * 20) -> bytes:
    return (seats << 176 | first << 160 | int.from_bytes(address)).to_bytes(32)


def _descriptor(key: keys.PrivateKey) -> bytes:
    contracts = SuiteAddresses(*(keys.Address(bytes([index + 1]) * 20) for index in range(16)))
    made = descriptor.NetworkDescriptor(
        network_id=b"\x99" * 32,
        chain_id=20261123,
        rpc_urls=("http://127.0.0.1:8545",),
        operator=key.address,
        contracts=contracts,
        token=descriptor.Token(contracts.credit, "DeAIOS Credit", "CREDIT", "1", 6),
        windows=settings.LOCAL,
        default_model_record_id=b"\x77" * 32,
        faucet_url="http://127.0.0.1:8546/faucet",
        gateways=("http://127.0.0.1:8080",),
        storage_urls=("http://127.0.0.1:9001",),
    )
    return descriptor.encode_descriptor(made, descriptor.sign_descriptor(key, made))


def _read_reply(data: bytes) -> object:
    """What `Rpc` does with a body, up to its errors."""
    try:
        replies = rpc_client._REPLIES.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Skipped(str(error)) from error
    for reply in replies if isinstance(replies, list) else [replies]:
        if reply.error is not None:
            assert isinstance(rpc_client._read_error("url", "method", reply.error), DeaiosError)
    return replies


def _chain_targets() -> list[Target]:
    operator = keys.PrivateKey(b"\x0f" * 32)
    made = genesis.Genesis(
        seed=bytes(32), operator=operator.address, timestamp=1, allocations=(genesis.Allocation(operator.address, 1),)
    )
    commitment = genesis.build_genesis_commitment(genesis.build_genesis_changes(made))
    fault = (rpc.RpcFault,)
    readers = {
        "call": (rpc.read_call, CALL, ("call", "access_list", "address", "data", "quantity")),
        "log filter": (rpc.read_log_filter, FILTER, ("log_filter", "hash")),
        "block ref": (rpc.read_block_ref, {"blockNumber": "0x1"}, ("block_ref",)),
        "word": (lambda value: rpc.read_word(value, "slot"), HASH, ("word",)),
        "flag": (lambda value: rpc.read_flag(value, "fullTx"), True, ("flag",)),
    }
    account = {"nonce": "0x1", "balance": "0x1", "code": "0x00", "stateDiff": {HASH: HASH}}
    block = {"number": "0x1", "time": "0x1", "feeRecipient": ADDRESS, "prevRandao": HASH, "baseFeePerGas": "0x0"}
    pretenders = {
        "state_overrides": (overrides.read_state_overrides, {ADDRESS: account, "0x" + "33" * 20: {"state": {}}}),
        "block_override": (overrides.read_block_override, block),
    }
    return [
        *(
            Target(
                f"rpc {name}",
                functools.partial(lambda read, data: read(as_json(data)), read),
                tuple(f"chain.rpc.read_{covered}" for covered in covers),
                (json.dumps(sample).encode(),),
                refuses=fault,
            )
            for name, (read, sample, covers) in readers.items()
        ),
        *(
            Target(
                f"rpc {name}",
                functools.partial(lambda read, data: read(as_json(data)), read),
                (f"chain.overrides.read_{name}",),
                (json.dumps(sample).encode(),),
                refuses=fault,
            )
            for name, (read, sample) in pretenders.items()
        ),
        Target(
            "genesis",
            genesis.decode_genesis,
            ("chain.genesis.decode_genesis",),
            (genesis.encode_genesis(made),),
        ),
        Target(
            "header",
            blocks.decode_header,
            ("chain.blocks.decode_header",),
            (genesis.build_genesis_header(made, commitment).encoded,),
            lambda value: value.encoded,
        ),
        Target(
            "journal text",
            lambda data: journal_text.read_journal(as_text(data)),
            ("chain.journal_text.read_journal",),
            (JOURNAL.encode(),),
        ),
    ]


def _compute_targets() -> list[Target]:
    context = commitments.encode_context(commitments.Context(({"role": "user", "content": "hi"},), "", bytes(32)))
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m['content'] | trim }}{% endfor %}"
    return [
        Target(
            "model record",
            records.decode_record,
            ("compute.records.decode_record",),
            (_record(),),
            records.encode_record,
        ),
        Target(
            "context",
            commitments.decode_context,
            ("compute.commitments.decode_context",),
            (context,),
            commitments.encode_context,
        ),
        Target(
            "constraint",
            constraint.decode_constraint,
            ("compute.constraint.decode_constraint",),
            _constraints(),
            lambda value: value.encode(),
        ),
        Target(
            "schema text",
            lambda data: schema.validate_schema(schema.decode_json_text("$", as_text(data))),
            ("compute.schema.decode_json_text",),
            (_constraint_schema().encode(),),
        ),
        Target("model file", _read_model, _MODEL_READERS, (_model(),)),
        Target(
            "chat template",
            lambda data: _render(data.decode("utf-8", "replace")),
            ("compute.sandbox.Sandbox.parse_metered",),
            (source.encode(),),
        ),
    ]


def _constraint_schema() -> str:
    return schema.encode_json_text(
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0.5}, "b": {"$ref": "#/$defs/x"}},
            "required": ["a"],
            "$defs": {"x": {"anyOf": [{"enum": ["y", None]}, {"type": "array", "items": {"pattern": "^a+$"}}]}},
        }
    )


def _constraints() -> tuple[bytes, ...]:
    tool = tools.Tool("get_time", "", _constraint_schema())
    calls = constraint.tool_calls([tool], constraint.Choice.AUTO, True, constraint.json_object())
    assert calls is not None
    made = (constraint.json_object(), constraint.json_schema(json.loads(_constraint_schema())), calls)
    return tuple(item.encode() for item in made)


_MODEL_READERS = (
    "compute.gguf_file.read_model_file",
    "compute.gguf_file.ModelFile.read_rows",
    "compute.gguf_file.decode_rows",
)


def _record() -> bytes:
    return records.encode_record(
        records.ModelRecord(
            name="tiny-bytes",
            files=(records.RecordFile("model.gguf", bytes(32), 1, bytes(32)),),
            model_root=bytes(32),
            tensors_root=bytes(32),
            serving="as-is/1",
            tokenizer_hash=bytes(32),
            template_hash=bytes(32),
            quantisation="F16",
            licence="Apache-2.0",
            parents=(),
            noise_class=records.NoiseClass.FLOAT,
            thresholds=records.Thresholds(20_000, 20_000),
            calibration=records.Calibration(0, 0, bytes(32)),
            context_tokens=1000,
            replay_profiles=(),
        )
    )


def _model() -> bytes:
    kind = gguf_file.ValueType
    texts = ("<|a|>", "b", "c", "bc")
    metadata = {
        "general.architecture": gguf_file.Metadatum(kind.STRING, "llama"),
        "general.alignment": gguf_file.Metadatum(kind.UINT32, 32),
        "tokenizer.ggml.model": gguf_file.Metadatum(kind.STRING, "gpt2"),
        "tokenizer.ggml.tokens": gguf_file.Metadatum(kind.ARRAY, texts, kind.STRING),
        "tokenizer.ggml.token_type": gguf_file.Metadatum(kind.ARRAY, (3, 1, 1, 1), kind.INT32),
        "tokenizer.ggml.merges": gguf_file.Metadatum(kind.ARRAY, ("b c",), kind.STRING),
        "tokenizer.ggml.pre": gguf_file.Metadatum(kind.STRING, "smollm"),
        "tokenizer.ggml.bos_token_id": gguf_file.Metadatum(kind.UINT32, 0),
        "tokenizer.ggml.eos_token_id": gguf_file.Metadatum(kind.UINT32, 0),
        "tokenizer.chat_template": gguf_file.Metadatum(kind.STRING, "{{ messages[0].content }}"),
    }
    plans = [
        gguf_file.TensorPlan("a", (2, 32), gguf_file.TensorType.F16),
        gguf_file.TensorPlan("b", (32,), gguf_file.TensorType.Q8_0),
    ]
    return gguf_file.encode_header(metadata, plans) + bytes(128) + bytes(64)


def _read_model(data: bytes) -> object:
    """A model file with everything that is read out of it before an engine sees it."""
    with tempfile.NamedTemporaryFile(suffix=".gguf", dir=_scratch()) as file:
        file.write(data)
        file.flush()
        model = gguf_file.read_model_file(Path(file.name))
        for tensor in model.tensors.values():
            model.read_rows(tensor)
        tokenizer.Tokenizer(model)
        template.ChatTemplate.of_model(model)
    return None


@functools.cache
def _scratch() -> str:
    return "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()


class _NoSpecials:
    """As much of a tokenizer as rendering asks for."""

    named_specials = MappingProxyType({"bos_token": "<|a|>"})
    special_ids = MappingProxyType({"<|a|>": 0})
    special_starts, special_ends, special_characters_max = "<", ">", 5

    def __init__(self) -> None:
        import re

        self.special_pattern = re.compile(re.escape("<|a|>"))

    def encode_plain(self, text):
        return tuple(text.encode())

    encode_often = encode_plain


def _render(source: str) -> object:
    made = template.ChatTemplate(source)
    messages = [{"role": "user", "content": "hello <|a|>"}, {"role": "assistant", "content": "yes"}]
    return made.render_ids(messages, _NoSpecials(), "2026-01-01T00:00:00")


_LEAF = bytes([127, *range(1, 16)]) + b"\x00\x2c"
"""A fingerprint as an encoder makes it: the largest number, and a normal float16."""


def _market_targets() -> list[Target]:
    proof = {"index": 0, "firstCounter": 1, "lastCounter": 3, "path": [HASH]}
    proof |= {"previousRoot": HASH, "root": HASH, "daCommitment": HASH}
    found = json.loads(_opening_json())
    signature = "0x" + "00" * 65
    offer = _camel({"version": wire.WIRE_VERSION, "offer": found["offer"], "signature": signature})
    leaf = base64.b64encode(_LEAF).decode()
    outcome = _camel({"ids": [1], "receipt": found["receipt"], "signature": signature, "fingerprints": leaf})
    finished = _camel({"kind": "finished", "receipt": found["receipt"], "signature": signature, "fingerprints": leaf})
    batch = {"provider": ADDRESS, "firstCounter": "1", "lastCounter": "2", "previousRoot": HASH, "root": HASH}
    batch |= {"daCommitment": HASH}
    stored = _camel({"index": 0, "batch": batch, "signature": signature, "transaction": HASH})
    body = b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"temperature":0.5}'
    return [
        Target("chat body", chat.read_chat_body, ("market.chat.read_chat_body",), (body,)),
        Target(
            "papers",
            wire.decode_papers,
            ("market.wire.decode_papers", "market.opening.read_constraint"),
            (_market("purchase"), _market("purchaseWithLogprobs"), _market("constrainedPurchase")),
        ),
        Target(
            "line",
            _read_line,
            ("market.wire.decode_line", "market.wire.read_receipt", "market.buyer.client.purchase.read_rankings"),
            (_market("tokensLine"), _market("tokensLineWithLogprobs"), b'{"kind":"admitted"}', finished),
        ),
        Target(
            "fingerprints",
            lambda data: fingerprints.measure_distances(data, np.ones((len(data) // 18, 32), np.float32)),
            ("compute.fingerprints.split_leaves", "compute.fingerprints.measure_distances"),
            (_LEAF, _LEAF * 3),
        ),
        Target("needed", wire.read_needed, ("market.wire.read_needed",), (b'{"title":"a","needed":"12"}',)),
        Target(
            "failure",
            lambda data: read_failure("http://peer", 400 + len(data) % 200, data),
            ("runtime.client.read_failure",),
            (b'{"title":"RefusedBusy","detail":"later","status":429}', b"<html>bad gateway</html>"),
        ),
        Target(
            "offer",
            as_typed(
                wire.OfferAnswer,
                lambda value: offers.validate_offer(
                    structs.protocol_domain(1, keys.Address(bytes(20))),
                    *wire.read_offer(value),
                    keys.Address(bytes(20)),
                    1,
                ),
            ),
            ("market.wire.read_offer",),
            (offer,),
        ),
        Target(
            "outcome",
            as_typed(wire.OutcomeAnswer, lambda value: (wire.read_outcome(value), wire.read_fingerprints(value))),
            ("market.wire.read_outcome", "market.wire.read_fingerprints"),
            (outcome,),
        ),
        Target("stored batch", as_typed(wire.BatchAnswer, wire.read_batch), ("market.wire.read_batch",), (stored,)),
        Target(
            "proof answer",
            as_typed(wire.ProofAnswer, wire.read_proof),
            ("market.wire.read_proof",),
            (_camel({"receiptDigest": HASH, "proof": proof}),),
        ),
        Target(
            "batch proof",
            lambda data: batches.BatchProof.decode_json(as_json(data)),
            ("market.batches.BatchProof.decode_json",),
            (_camel(proof),),
        ),
        Target(
            "batch",
            batches.decode_batch,
            ("market.batches.decode_batch",),
            (_market("batchBytes"),),
            lambda value: batches.encode_batch(*value),
        ),
        Target(
            "opening",
            lambda data: opening.Opening.decode_json(as_json(data)),
            ("market.opening.Opening.decode_json", "market.conduct.read_conduct"),
            (_opening_json(), json.dumps(_spec("answer-conduct.json")["opening"]).encode()),
        ),
        Target("ids", lambda data: opening.read_ids(as_json(data), 100), ("market.opening.read_ids",), (b"[1,2,3]",)),
        Target(
            "url", lambda data: offers.validate_url(as_text(data)), (), (b"http://127.0.0.1:1/a", b"https://[::1]:2")
        ),
    ]


def _read_line(data: bytes) -> object:
    match wire.decode_line(data):
        case wire.Tokens() as tokens:
            return purchase.read_rankings(tokens, 2, may_lack=True)
        case wire.Finished(receipt, signature):
            return wire.read_receipt(receipt, signature)
        case line:
            return line


def _alignment_targets() -> list[Target]:
    stored = evidence.encode_evidence(evidence.Evidence(_opening(), tuple(_spec("answer-vectors.json")["promptIds"])))
    return [
        Target(
            "answer file",
            answer.decode_answer,
            ("alignment.answer.decode_answer",),
            ((SPEC / "answer.json").read_bytes(), (SPEC / "answer-conduct.json").read_bytes()),
        ),
        Target(
            "evidence",
            evidence.decode_evidence,
            ("alignment.evidence.decode_evidence", "alignment.judging.read_charge"),
            (stored,),
            evidence.encode_evidence,
        ),
        Target(
            "document",
            lambda data: documents.read_document(data, 1 << 20),
            ("alignment.documents.read_document", "alignment.documents.read_hex"),
            (b'{"a":1}',),
        ),
    ]


def _node_targets() -> list[Target]:
    return [
        Target(
            "config",
            lambda data: _in_file("deaios.toml", data, config.load_config),
            (),
            (b'log_level = "info"\n[gateway]\n',),
        ),
        Target(
            "keystore",
            _open_key,
            ("node.keyfile.decode_keyfile",),
            (b'{"version":3,"crypto":{"kdf":"scrypt","kdfparams":{}}}',),
        ),
        Target(
            "roles",
            lambda data: _in_file("roles.json", data, lambda root: folder.StateFolder(root).load_roles()),
            (),
            (b'[{"name":"chain","kind":"chain"}]',),
        ),
    ]


def _in_file(name: str, data: bytes, load: Callable[[Path], object]) -> object:
    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        (Path(place) / name).write_bytes(data)
        return load(Path(place))


def _open_key(data: bytes) -> object:
    return _in_file("user.json", data, lambda root: keystore.Keystore(root, SystemDice(), "password").open_key("user"))


@functools.cache
def all_targets() -> dict[str, Target]:
    """Every target by name."""
    groups = (
        _primitive_targets,
        rows_targets,
        da_targets,
        _struct_targets,
        _ledger_targets,
        _chain_targets,
        replica_targets,
        _compute_targets,
        _market_targets,
        _alignment_targets,
        gateway_targets,
        _node_targets,
    )
    return {target.name: target for group in groups for target in group()}

"""Shipped artifacts. That they are what the sources compile to is `make check`'s to say, once, before the tests."""

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deaios.ledger

LEDGER = Path(deaios.ledger.__file__).parent
TOOL = Path(__file__).parents[2] / "tools" / "compile-contracts"
NAMES = (
    "BatchSettlement",
    "Beacon",
    "Bridge",
    "Catalogue",
    "Channels",
    "Credit",
    "DataAvailability",
    "DepositCollector",
    "Disputes",
    "Equivocation",
    "Forks",
    "IdentityRegistry",
    "Inbox",
    "Networks",
    "Outbox",
    "Receipts",
    "SharedStaking",
    "Sponsorship",
    "ValsetMirror",
)


@pytest.fixture(scope="module")
def tool():
    loader = importlib.machinery.SourceFileLoader("compile_contracts", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_a_changed_artifact_is_noticed(tool, monkeypatch, capsys, tmp_path):
    artifact = json.loads((LEDGER / "artifacts" / "Catalogue.json").read_text())
    artifact["bytecode"] += "00"
    (tmp_path / "Catalogue.json").write_text(tool.render(artifact))
    monkeypatch.setattr(tool, "ARTIFACTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["compile-contracts", "--check", "Catalogue"])
    assert tool.main() == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_every_contract_is_shipped_and_nothing_else(tool):
    assert tool.list_contracts() == list(NAMES)
    assert sorted(path.stem for path in (LEDGER / "artifacts").glob("*.json")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_says_how_it_was_made(name):
    artifact = json.loads((LEDGER / "artifacts" / f"{name}.json").read_text())
    compiler = artifact["compiler"]
    assert (artifact["contract"], compiler["version"], compiler["evmVersion"]) == (name, "0.4.3", "cancun")
    assert 0 < artifact["runtimeSize"] < 24_576
    assert len(bytes.fromhex(artifact["bytecode"][2:])) > artifact["runtimeSize"]


@given(
    before=st.binary(max_size=40).map(lambda code: bytes(byte % 0x40 for byte in code)), push=st.integers(0x60, 0x7F)
)
def test_forbidden_opcodes_are_found_outside_push_data_only(tool, before, push):
    pushed = bytes([push]) + b"\x40" * (push - 0x5F)
    assert tool.find_forbidden(before + pushed) == []
    assert tool.find_forbidden(before + pushed + b"\x48") == [f"BASEFEE at {len(before + pushed)}"]
    assert tool.find_forbidden(before + b"\x40" + pushed) == [f"BLOCKHASH at {len(before)}"]
    assert tool.find_forbidden(b"\x5f\x40") == ["BLOCKHASH at 1"]

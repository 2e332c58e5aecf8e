"""Network settings: the documented table, consistency, JSON."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from deaios.ledger.settings import (
    DEFAULT,
    LOCAL,
    InvalidSettings,
    NetworkSettings,
    decode_settings,
    encode_settings,
)

TABLE = Path(__file__).parents[2] / "docs" / "spec" / "windows.md"


def test_table_of_the_document() -> None:
    rows = [line.split("|")[1:4] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    found = [
        (name.strip(" `"), int(local.replace(",", "")), int(default.replace(",", ""))) for name, local, default in rows
    ]
    names = [field.name for field in fields(NetworkSettings)]
    assert found == [(name, getattr(LOCAL, name), getattr(DEFAULT, name)) for name in names]


@pytest.mark.parametrize("settings", [LOCAL, DEFAULT])
def test_json_round_trip(settings: NetworkSettings) -> None:
    assert decode_settings(json.loads(json.dumps(encode_settings(settings)))) == settings


def test_json_form() -> None:
    document = encode_settings(LOCAL)
    assert document["unbondingS"] == 86_400
    assert document["jurySize"] == 3
    assert document["faucetNative"] == "10000000000000000000"
    assert len(document) == len(asdict(LOCAL))


@pytest.mark.parametrize(
    "change",
    [
        {"jurySize": 0},
        {"jurySize": True},
        {"jurySize": 3.0},
        {"jurySize": "3"},
        {"jurySize": 32},
        {"jurySize": None},
        {"unbondingS": 2**48},
        {"unbondingS": -1},
        {"slashFloor": 10},
        {"slashFloor": "010"},
        {"slashFloor": "-1"},
        {"slashFloor": "0"},
        {"slashFloor": str(2**128)},
        {"slashFloor": None},
        {"extra": 1},
    ],
)
def test_hostile_json(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        decode_settings({**encode_settings(LOCAL), **change})


@pytest.mark.parametrize("value", [None, [], 1, "x", {}])
def test_not_settings(value: Any) -> None:
    with pytest.raises(InvalidSettings):
        decode_settings(value)


@pytest.mark.parametrize("settings", [LOCAL, DEFAULT])
def test_stake_outlasts_every_dispute(settings: NetworkSettings) -> None:
    brief = replace(settings, da_epoch_s=1, da_term_max_s=1, da_answer_s=1, jail_s=1, network_epoch_s=1)
    brief = replace(brief, network_trust_s=2, evidence_s=1)
    needed = brief.opening_retention_s + brief.dispute_s_max
    assert replace(brief, unbonding_s=needed + 1).unbonding_s == needed + 1
    with pytest.raises(InvalidSettings, match=f"must exceed {needed}, the time to find"):
        replace(brief, unbonding_s=needed)


@pytest.mark.parametrize("settings", [LOCAL, DEFAULT])
def test_stake_outlasts_every_promise_of_rows(settings: NetworkSettings) -> None:
    assert settings.promise_s_max < settings.unbonding_s
    quick = replace(settings, opening_retention_s=1, jail_s=1, network_epoch_s=1, network_trust_s=2, evidence_s=1)
    needed = quick.promise_s_max
    assert replace(quick, unbonding_s=needed + 1).unbonding_s == needed + 1
    with pytest.raises(InvalidSettings, match=f"must exceed {needed}, the time for which"):
        replace(quick, unbonding_s=needed)


@pytest.mark.parametrize("settings", [LOCAL, DEFAULT])
def test_stake_outlasts_trust_evidence_disputes_and_appeals(settings: NetworkSettings) -> None:
    brief = replace(settings, da_epoch_s=1, da_term_max_s=1, da_answer_s=1, jail_s=1, opening_retention_s=1)
    needed = brief.network_trust_s + brief.evidence_s + brief.dispute_s_max
    assert replace(brief, unbonding_s=needed + 1).unbonding_s == needed + 1
    with pytest.raises(InvalidSettings, match=f"must exceed {needed}, the time to believe"):
        replace(brief, unbonding_s=needed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"network_epoch_s": LOCAL.network_trust_s}, "reaches network_trust_s"),
        ({"jail_s": LOCAL.unbonding_s + 1}, "exceeds unbonding_s"),
        ({"slash_payout_max": LOCAL.slash_payout_s - 1}, "less than one unit a second"),
        ({"equivocation_slash_bps": 10_001}, "1 to 10000 allowed"),
    ],
)
def test_networks_and_slashes_in_bounds(change: dict[str, int], reason: str) -> None:
    with pytest.raises(InvalidSettings, match=reason):
        replace(LOCAL, **change)


@pytest.mark.parametrize("seats", [2, 257])
def test_committees_that_the_code_cannot_serve(seats: int) -> None:
    with pytest.raises(InvalidSettings, match=f"da_seats_size is {seats}, 3 to 256 allowed"):
        replace(LOCAL, da_seats_size=seats)


def test_withdraw_delays_in_order() -> None:
    with pytest.raises(InvalidSettings, match="exceeds withdraw_delay_max_s"):
        replace(LOCAL, withdraw_delay_min_s=LOCAL.withdraw_delay_max_s + 1)


def test_real_networks_wait_a_day() -> None:
    assert DEFAULT.withdraw_delay_min_s >= 86_400

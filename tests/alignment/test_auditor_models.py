"""Auditors of many models: what is bought, what goes to a jury, and who may judge it."""

import pytest
from alignment_town import MODEL, OTHER_MODEL, PROVIDER, Drawn, Town

from deaios.ledger.phases import Decision
from deaios.ledger.structs import Judgement


@pytest.fixture
def town(tmp_path):
    town = Town(tmp_path)
    yield town
    town.close()


def let_all_load_further_models(town, members):
    for member in members:
        member.kill()
        member.further = Drawn()
        member.start()


async def test_a_drawn_model_is_bought_with_its_own_prompt(town):
    let_all_load_further_models(town, town.members[:1])
    assert await town.members[0].auditor.audit_once() is True
    assert await town.members[1].auditor.audit_once() is True
    drawn, own = town.shop.orders
    assert (drawn.model_record_id, drawn.prompt_ids, drawn.context) == (OTHER_MODEL, (4, 5, 6), b"other context")
    assert (own.model_record_id, own.prompt_ids) == (MODEL, (1, 2, 3))
    assert b'"own-model"' in drawn.body


async def test_a_cheat_with_a_users_model_is_slashed_where_jurors_can_load_it(town):
    let_all_load_further_models(town, town.members)
    town.shop.cheats.add(PROVIDER)
    assert await town.members[0].auditor.audit_once() is False
    await town.run_until(town.is_closed)
    (dispute,) = town.chain.disputes
    assert dispute.decision is Decision.GUILTY
    assert {ballot.judgement for ballot in town.chain.ballots.values()} == {Judgement.GUILTY}


async def test_jurors_of_one_model_find_nothing_proven_about_another(town):
    let_all_load_further_models(town, town.members[:1])
    town.shop.cheats.add(PROVIDER)
    assert await town.members[0].auditor.audit_once() is False
    await town.run_until(town.is_closed)
    (dispute,) = town.chain.disputes
    assert dispute.decision is not Decision.GUILTY

"""Keys of a folder's gateway, as the command line makes them."""

from decimal import Decimal

import pytest

from deaios.gateway.keys import KEYS_FILE, derive_pepper
from deaios.gateway.store import InvalidKeyTerms, KeyStore
from deaios.market.preferences import DataPolicy
from deaios.node.api_keys import GATEWAY, create_key, limit_key, list_keys, revoke_key
from deaios.node.folder import StateFolder
from deaios.node.keystore import open_keystore
from deaios.primitives.errors import ConfigError
from deaios.runtime.errors import NotFound


@pytest.fixture
def folder(tmp_path):
    """A folder whose gateway has been started once."""
    made = StateFolder(tmp_path / "state")
    made.role(GATEWAY).mkdir(parents=True)
    KeyStore.open(made.role(GATEWAY) / KEYS_FILE, derive_pepper(open_keystore(made).open_key(GATEWAY))).close()
    return made


def test_a_key_is_what_it_was_made_with_and_the_gateway_knows_it(folder):
    made = create_key(
        folder,
        "ci",
        budget=Decimal("2.5"),
        models=["a", "b"],
        days=3,
        requests_per_minute=60,
        data_policy=DataPolicy.DENY,
    )
    assert (made.budget, made.models, made.requests_per_minute, made.tokens_per_minute) == (
        "2.50",
        ["a", "b"],
        60,
        None,
    )
    assert made.expires_at_ms == made.created_at_ms + 3 * 24 * 3600 * 1000
    keys = KeyStore.open(folder.role(GATEWAY) / KEYS_FILE, derive_pepper(open_keystore(folder).open_key(GATEWAY)))
    assert keys.find(made.key).key_id == made.id
    assert (made.data_policy, keys.find(made.key).data_policy) == ("deny", DataPolicy.DENY)
    limited = limit_key(folder, made.id, budget=None, requests_per_minute=None, tokens_per_minute=7)
    assert (limited.budget, limited.requests_per_minute, limited.tokens_per_minute) == (None, None, 7)
    assert limited.data_policy == "deny", "limits are not what a policy is"
    assert keys.get(made.id).tokens_per_minute == 7
    revoked = revoke_key(folder, made.id)
    assert keys.get(made.id).revoked_at_ms == revoked.revoked_at_ms is not None
    assert [item.id for item in list_keys(folder)] == [made.id]
    assert list_keys(folder)[0].key is None
    keys.close()


def test_what_cannot_be_is_refused(folder, tmp_path):
    for terms in ({"budget": Decimal("-1")}, {"budget": Decimal("0.0000001")}, {"days": 0}, {"tokens_per_minute": 0}):
        with pytest.raises(InvalidKeyTerms):
            create_key(folder, "x", **terms)
    with pytest.raises(NotFound):
        revoke_key(folder, "key_none")
    with pytest.raises(ConfigError, match="deaios up"):
        list_keys(StateFolder(tmp_path / "none"))

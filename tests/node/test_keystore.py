import json
import subprocess
import sys
from pathlib import Path

import pytest

from deaios.node.keystore import Keystore
from deaios.primitives.errors import ConfigError
from deaios.runtime.dice import SystemDice


def test_keys_are_kept_encrypted_and_private(tmp_path: Path) -> None:
    keys = Keystore(tmp_path, SystemDice())
    key = keys.open_key("a")
    assert Keystore(tmp_path, SystemDice()).open_key("a").address == key.address
    assert keys.names() == ("a",)
    for path in (tmp_path / "a.json", tmp_path / "password"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert key.secret.hex() not in path.read_text()


def test_a_wrong_password_or_damage_is_said(tmp_path: Path) -> None:
    Keystore(tmp_path, SystemDice(), "right").open_key("a")
    with pytest.raises(ConfigError, match="DEAIOS_PASSWORD"):
        Keystore(tmp_path, SystemDice(), "wrong").open_key("a")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be opened"):
        Keystore(tmp_path, SystemDice(), "right").open_key("a")


DAMAGED = ["", "[]", "1", "null", "{}", '{"version": 4}', '{"version": 9}', '{"version": 3, "crypto": 1}', "[" * 4000]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_file_that_is_no_keystore_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Keystore(tmp_path, SystemDice(), "right").open_key("a")


def test_whatever_is_changed_in_a_keystore_is_said_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    key = Keystore(tmp_path, SystemDice(), "right").open_key("a")
    whole = json.loads(path.read_text())
    places = [("version",), ("crypto",), *(("crypto", name) for name in whole["crypto"])]
    places += [("crypto", "kdfparams", name) for name in whole["crypto"]["kdfparams"]]
    for place in places:
        for value in (None, "", [], {}, -1, 3.5, "zz"):
            changed = json.loads(json.dumps(whole))
            target = changed
            for name in place[:-1]:
                target = target[name]
            target[place[-1]] = value
            path.write_text(json.dumps(changed))
            try:
                opened = Keystore(tmp_path, SystemDice(), "right").open_key("a")
            except ConfigError:
                continue
            assert opened.address == key.address, (place, value)


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_keystores_of_other_programs_open_here_and_ours_there(tmp_path: Path, kdf: str) -> None:
    import eth_keyfile

    secret = bytes(range(1, 33))
    theirs = eth_keyfile.create_keyfile_json(secret, b"their password", kdf=kdf, iterations=1024)
    (tmp_path / "a.json").write_text(json.dumps(theirs))
    assert Keystore(tmp_path, SystemDice(), "their password").open_key("a").secret == secret
    ours = Keystore(tmp_path, SystemDice(), "our password").open_key("b")
    written = json.loads((tmp_path / "b.json").read_text())
    assert eth_keyfile.decode_keyfile_json(written, b"our password") == ours.secret
    assert written["address"] == ours.address.hex()


SPECIFIED = (
    '{"crypto":{"cipher":"aes-128-ctr","cipherparams":{"iv":"6087dab2f9fdbbfaddc31a909735c1e6"},'
    '"ciphertext":"5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46","kdf":"pbkdf2",'
    '"kdfparams":{"c":262144,"dklen":32,"prf":"hmac-sha256",'
    '"salt":"ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},'
    '"mac":"517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},'
    '"id":"3198bc9c-6672-5ab3-d995-4942343ae5b6","version":3}'
)
"""The example of the specification."""


def test_the_specification_s_example_opens(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(SPECIFIED)
    key = Keystore(tmp_path, SystemDice(), "testpassword").open_key("a")
    assert key.secret.hex() == "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"


def test_a_keystore_that_would_take_all_memory_or_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    Keystore(tmp_path, SystemDice(), "right").open_key("a")
    path.write_text(path.read_text().replace('"n": 8192', '"n": 268435456'))
    with pytest.raises(ConfigError, match="takes more than"):
        Keystore(tmp_path, SystemDice(), "right").open_key("a")
    path.write_text(SPECIFIED.replace("262144", "999999999"))
    with pytest.raises(ConfigError, match="1 to 4194304 expected"):
        Keystore(tmp_path, SystemDice(), "testpassword").open_key("a")


def test_a_folder_in_a_keystore_s_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        Keystore(tmp_path, SystemDice(), "right").open_key("a")


def test_a_lost_password_file_is_not_replaced(tmp_path: Path) -> None:
    Keystore(tmp_path, SystemDice()).open_key("a")
    (tmp_path / "password").unlink()
    with pytest.raises(ConfigError, match="password is missing"):
        Keystore(tmp_path, SystemDice()).open_key("b")


def test_processes_that_want_a_new_key_at_once_get_the_same_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from deaios.node.keystore import Keystore; "
        "from deaios.runtime.dice import SystemDice; "
        "print(Keystore(Path(sys.argv[1]), SystemDice()).open_key('a').address.hex())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "new")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1

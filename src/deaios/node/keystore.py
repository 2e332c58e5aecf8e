"""Private keys on disk: encrypted V3 keystores, mode 0600, one per role.

The password of a state folder is random, in `keys/password` (mode 0600), unless `DEAIOS_PASSWORD` is set: the file
protects copies and backups of single keys, not a folder that is taken whole.
"""

import os
from pathlib import Path

from filelock import FileLock

from deaios.node.folder import StateFolder
from deaios.node.keyfile import IV_BYTES, KEYFILE_BYTES_MAX, SALT_BYTES, UUID_BYTES, decode_keyfile, encode_keyfile
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.keys import PrivateKey
from deaios.runtime.dice import Dice, SystemDice
from deaios.runtime.disk import PRIVATE, write_atomic

PASSWORD_VARIABLE = "DEAIOS_PASSWORD"  # noqa: S105 - the name of a variable


class Keystore:
    """The keys of one state folder.

    Args:
        folder: `DIR/keys`.
        dice: source of new secrets.
        password: overrides the folder's password file.
    """

    def __init__(self, folder: Path, dice: Dice, password: str | None = None) -> None:
        self._folder = folder
        self._dice = dice
        self._given = password
        self._lock = FileLock(folder / ".lock")

    def path(self, name: str) -> Path:
        """Where a key lies."""
        return self._folder / f"{name}.json"

    def names(self) -> tuple[str, ...]:
        """Names of all keys, sorted."""
        return tuple(sorted(path.stem for path in self._folder.glob("*.json")))

    def open_key(self, name: str) -> PrivateKey:
        """Load a key, or create it when it is missing.

        Raises:
            ConfigError: the file is damaged or the password does not fit.
        """
        path = self.path(name)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock:  # several processes may want a new key, or a new folder's password, at once
                if not path.exists():
                    key = PrivateKey(self._dice.token_bytes(32))
                    randomness = self._dice.token_bytes(SALT_BYTES + IV_BYTES + UUID_BYTES)
                    write_atomic(path, encode_keyfile(key, self._password(), randomness), PRIVATE)
                    return key
        password = self._password()
        try:
            with path.open("rb") as file:
                return decode_keyfile(file.read(KEYFILE_BYTES_MAX + 1), password)
        except (OSError, Invalid) as error:
            raise ConfigError(f"{path} cannot be opened: {error}; set DEAIOS_PASSWORD or restore the file") from error

    def import_key(self, name: str, key: PrivateKey) -> None:
        """Keep a key that was made elsewhere under a name; it may be there already.

        Raises:
            ConfigError: another key has this name.
        """
        with self._lock:
            if not self.path(name).exists():
                randomness = self._dice.token_bytes(SALT_BYTES + IV_BYTES + UUID_BYTES)
                write_atomic(self.path(name), encode_keyfile(key, self._password(), randomness), PRIVATE)
        if self.open_key(name).address != key.address:
            raise ConfigError(f"{self.path(name)} holds another key; use another folder with --dir")

    def _password(self) -> bytes:
        if self._given is not None:
            return self._given.encode()
        path = self._folder / "password"
        if not path.exists():
            if self.names():
                raise ConfigError(f"{path} is missing; set DEAIOS_PASSWORD or restore the file")
            write_atomic(path, self._dice.token_bytes(32).hex().encode(), PRIVATE)
        return path.read_bytes().strip()


def open_keystore(folder: StateFolder) -> Keystore:
    """The folder's keys, with the password from the environment where one is set."""
    return Keystore(folder.keys, SystemDice(), os.environ.get(PASSWORD_VARIABLE))

"""Checks that this machine passed since it booted, remembered beside the files that they are about.

Half a dozen roles of one folder map the same model file and run the same engine. Hashing that file and testing that
engine once gives all of them the same answer, as long as the file is the very one that was looked at and the machine
was not started anew: device, inode, size and times of the file and the kernel's boot id are part of what is remembered.
Where the system has no boot id, nothing is remembered and every check is made.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FOLDER = "passed"


class PassedChecks:
    """Memory of one model's folder."""

    def __init__(self, home: Path) -> None:
        self._folder = home / _FOLDER
        self._boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""

    @contextmanager
    def once(self, check: str, file: Path, *facts: object) -> Iterator[bool]:
        """Make a check unless it passed already; others that want the same one wait meanwhile. Blocks.

        Args:
            check: its name.
            file: what it is about.
            facts: what else its result rests on.

        Yields:
            True where it has to be made. It is remembered when the block ends without an error.
        """
        if not self._boot:
            yield True
            return
        place = self._folder / f"{self._boot}-{_digest(check, file, facts)}"
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / f"{check}.lock"):
            is_wanted = not place.exists()
            yield is_wanted
            if is_wanted and place.name.endswith(_digest(check, file, facts)):  # not changed while it was looked at
                self._forget_other_boots()
                place.touch()

    def _forget_other_boots(self) -> None:
        for path in self._folder.iterdir():
            if not path.name.startswith(self._boot) and path.suffix != ".lock":
                path.unlink(missing_ok=True)


def _digest(check: str, file: Path, facts: tuple[object, ...]) -> str:
    state = file.stat()
    identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return hashlib.sha256(repr((check, file.name, identity, facts)).encode()).hexdigest()

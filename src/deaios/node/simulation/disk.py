"""Disks of simulated roles: real SQLite files that survive a death, torn where a write was under way, and can be full.

A folder per role under one temporary root. When a process dies, its next life gets a copy of the bytes as they were at
that instant; of a write that was under way only a part of the log's new bytes is kept, some of them garbled. A full
disk is the kernel's own refusal: a limit on the size of files while the role's jobs run. Knows no role.
"""

import resource
import shutil
from pathlib import Path
from random import Random

LOG_SUFFIX = "-wal"


class Disk:
    """The folder of one role over all its lives."""

    def __init__(self, root: Path, name: str, random: Random) -> None:
        self._root = root / name
        self._random = random
        self._life = 0
        self._sizes: dict[str, int] = {}
        self.is_full = False
        self.torn = 0
        self.refused_jobs = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path:
        """Where the present life keeps its files."""
        return self._root / str(self._life)

    def begin_job(self, *, may_tear: bool) -> None:
        """Note how far the logs reach, and let no file grow beyond it where the disk is full."""
        if not (may_tear or self.is_full):
            return
        self._sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        if self.is_full:
            self.refused_jobs += 1
            # Room for a part of a write, so that what fails may fail midway.
            limit = max(self._sizes.values(), default=0) + self._random.randrange(1, 4096)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def end_job(self) -> None:
        """Take the limit away."""
        if self.is_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def survive(self, *, is_torn: bool) -> None:
        """Make the next life's folder out of what is on the disk now.

        Args:
            is_torn: the process died within the job that began last: of what the job wrote to a log, only some bytes
                reached the disk.
        """
        before = self.folder
        self._life += 1
        self.folder.mkdir(parents=True)
        for path in sorted(before.iterdir()):
            if path.name.endswith("-shm"):
                continue  # memory, not disk
            target = self.folder / path.name
            shutil.copyfile(path, target)
            if is_torn and path.name.endswith(LOG_SUFFIX):
                self._tear(target, self._sizes.get(path.name, 0))

    def _tear(self, path: Path, safe: int) -> None:
        data = path.read_bytes()
        if len(data) <= safe:
            return
        kept = self._random.randrange(safe, len(data))
        torn = bytearray(data[:kept])
        if kept > safe and self._random.random() < 0.5:
            torn[self._random.randrange(safe, kept)] ^= 1 << self._random.randrange(8)
        path.write_bytes(torn)
        self.torn += 1

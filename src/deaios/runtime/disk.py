"""Files written whole or not at all."""

import os
from pathlib import Path

from deaios.primitives.errors import Unavailable

PRIVATE = 0o600
PUBLIC = 0o644


class UnavailableDisk(Unavailable):
    """The disk refused a write; nothing was replaced."""


def write_atomic(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Replace a file's content so that a reader, or a crash, sees the old bytes or the new ones, never a mixture.

    Args:
        path: target; its folder is created.
        data: the whole content.
        mode: permission bits, set before the content is visible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UnavailableDisk(f"cannot write {path}: {error}") from error


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file that was created or renamed is found after power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

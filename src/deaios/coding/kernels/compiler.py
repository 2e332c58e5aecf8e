"""LLVM assembly to functions of this machine; compiled code is kept in the user's cache.

llvmlite instead of numba, which spends a second of every process on its own import. Calls go through ctypes and leave
the interpreter's lock free. A file of the cache is named by all that its content depends on and begins with its own
hash; one that is torn, or that others could have written, is compiled anew. A cache that cannot be written only costs
time.
"""

import contextlib
import ctypes
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from deaios.coding.kernels.machine import load_llvm
from deaios.coding.kernels.tiers import get_tier, list_instructions
from deaios.primitives.hashing import HASH_BYTES, sha256
from deaios.runtime.disk import UnavailableDisk, write_atomic

Function = Callable[..., None]
Signature = tuple[Any, ...]
"""ctypes of the arguments; Any: ctypes has no common type for them."""


def compile_functions(code: str, signatures: Mapping[str, Signature]) -> dict[str, Function]:
    """Compile assembly that defines functions of these names, or take it from the cache."""
    llvm = load_llvm()
    features = list_instructions(get_tier())
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(_build_object(llvm, target, features, code)))
    engine.finalize_object()
    _ENGINES.append(engine)
    return {
        name: ctypes.CFUNCTYPE(None, *signature)(engine.get_function_address(name))
        for name, signature in signatures.items()
    }


_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ENGINES: list[object] = []
"""Compiled code lives as long as its engine."""


def _build_object(llvm: Any, target: Any, features: str, code: str) -> bytes:  # Any: LLVM's, which has no types
    version = ".".join(map(str, llvm.llvm_version_info))
    name = f"{version}\n{target.triple}\n{llvm.get_host_cpu_name()}\n{features}\n{code}"
    path = Path(platformdirs.user_cache_dir("deaios")) / "kernels" / f"{sha256(name.encode()).hex()[:40]}.o"
    kept = _read_object(path)
    if kept is not None:
        return kept
    module = llvm.parse_assembly(code)
    module.verify()
    data: bytes = target.emit_object(module)
    with contextlib.suppress(OSError, UnavailableDisk):  # a read-only home: the next process compiles again
        write_atomic(path, sha256(data) + data)
    return data


def _read_object(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & _OTHERS_WRITE:
                return None  # somebody else could have written it, and it would be executed
            content = file.read()
    except OSError:
        return None
    data = content[HASH_BYTES:]
    return data if data and sha256(data) == content[:HASH_BYTES] else None

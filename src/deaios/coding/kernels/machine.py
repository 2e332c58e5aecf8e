"""The processor at hand, as LLVM sees it."""

import importlib
from functools import cache
from typing import Any


@cache
def load_llvm() -> Any:  # Any: a module at first use, because it loads all of LLVM
    """The binding of llvmlite, ready to compile for this machine."""
    llvm = importlib.import_module("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@cache
def get_features() -> frozenset[str]:
    """What this machine's processor has, by LLVM's names."""
    return frozenset(name for name, has in load_llvm().get_host_cpu_features().items() if has)

"""The decoders as targets."""

import importlib.util
import sys
from pathlib import Path

for name in ("fuzz_target", "decoders_gateway", "decoders_rows", "decoders_chain", "decoders"):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])

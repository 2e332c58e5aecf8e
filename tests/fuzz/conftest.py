"""The decoders as targets."""

import importlib.util
import sys
from pathlib import Path

if "decoders" not in sys.modules:
    spec = importlib.util.spec_from_file_location("decoders", Path(__file__).with_name("decoders.py"))
    sys.modules["decoders"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["decoders"])

"""The embedded chain as a running service: block production, durable admission, JSON-RPC over HTTP."""

from deaios.chain.service.chain import ChainService
from deaios.chain.service.http import build_application
from deaios.chain.service.pace import Limits, Sealing

__all__ = ["ChainService", "Limits", "Sealing", "build_application"]

"""The embedded chain as a running service: block production, durable admission, JSON-RPC over HTTP."""

from deaios.chain.service.chain import ChainService, Limits
from deaios.chain.service.http import build_application

__all__ = ["ChainService", "Limits", "build_application"]

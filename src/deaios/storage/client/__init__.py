"""Put files on storage nodes and get them back, trusting none of them."""

from deaios.storage.client.files import InvalidContent, Progress, StorageClient
from deaios.storage.client.nodes import Timings, UnavailableRows

__all__ = ["InvalidContent", "Progress", "StorageClient", "Timings", "UnavailableRows"]

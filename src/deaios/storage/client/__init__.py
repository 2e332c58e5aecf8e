"""Put files on storage nodes and get them back, trusting none of them."""

from deaios.rows.client import Timings, UnavailableRows
from deaios.storage.client.files import InvalidContent, Progress, StorageClient

__all__ = ["InvalidContent", "Progress", "StorageClient", "Timings", "UnavailableRows"]

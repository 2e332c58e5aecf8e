"""Real storage nodes on real sockets, some of them bad, named by what they do."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from deaios.primitives.keys import PrivateKey
from deaios.rows.store import RowStore
from deaios.runtime.client import HttpClient
from deaios.runtime.http import serve
from deaios.storage.client import StorageClient, Timings
from deaios.storage.service import build_storage_application

NETWORK = b"\x11" * 32
KEY = PrivateKey(b"\x22" * 32)
TIMINGS = Timings(transfer_s=5.0, hedge_s=0.1, rounds=2, pause_s=0.01)


class CountingStore(RowStore):
    """Counts what it served."""

    def __init__(self, folder, quota_bytes):
        super().__init__(folder, quota_bytes)
        self.rows_read = 0

    def get_row(self, commitment, index):
        self.rows_read += 1
        return super().get_row(commitment, index)


class LyingStore(CountingStore):
    """Serves rows with one bit changed."""

    def get_row(self, commitment, index):
        data = super().get_row(commitment, index)
        return None if data is None else data[:-1] + bytes([data[-1] ^ 1])


class ForgettingStore(CountingStore):
    """Acknowledges rows and keeps nothing."""

    def put_row(self, commitment, index, data):
        return True

    def get_row(self, commitment, index):
        super().get_row(commitment, index)


class StalledStore(CountingStore):
    """Does not answer reads until the test is over."""

    def __init__(self, folder, quota_bytes):
        super().__init__(folder, quota_bytes)
        self.over = threading.Event()

    def get_row(self, commitment, index):
        super().get_row(commitment, index)
        self.over.wait(60)

    def get_manifest(self, manifest_id):
        self.rows_read += 1
        self.over.wait(60)


class StalledWriter(CountingStore):
    """Does not answer writes until the test is over."""

    def __init__(self, folder, quota_bytes):
        super().__init__(folder, quota_bytes)
        self.over = threading.Event()
        self.writes_stalled = 0

    def put_row(self, commitment, index, data):
        self.writes_stalled += 1
        self.over.wait(60)
        return False


class Cluster:
    """Three nodes, their stores and a client."""

    def __init__(self, tmp_path, stack):
        self._tmp_path = tmp_path
        self._stack = stack
        self.stores = {}
        self.urls = []
        self.http = None
        self._pool = ThreadPoolExecutor(8)

    async def start(self, kinds=(CountingStore, CountingStore, CountingStore), quota=1 << 30):
        """Start nodes over the folders of earlier ones; None is a node that is down."""
        await self.stop()
        self._running = AsyncExitStack()
        self.urls, self.stores = [], {}
        for index, kind in enumerate(kinds):
            if kind is None:
                self.urls.append("http://127.0.0.1:1")
                continue
            store = kind(self._tmp_path / f"node{index}", quota)
            pool = ThreadPoolExecutor(4)
            self._running.callback(pool.shutdown)
            self._running.callback(store.close)
            if isinstance(store, StalledStore | StalledWriter):
                self._running.callback(store.over.set)
            application = build_storage_application(store, network_id=NETWORK, executor=pool)
            self.urls.append(await self._running.enter_async_context(serve(application)))
            self.stores[index] = store
        self.http = await self._running.enter_async_context(HttpClient())

    async def stop(self):
        if self.http is not None:
            await self._running.aclose()
            self.http = None

    def client(self, **options):
        return StorageClient(
            self.http, self.urls, KEY, NETWORK, **{"timings": TIMINGS, "executor": self._pool, **options}
        )

    @property
    def rows_read(self):
        return sum(store.rows_read for store in self.stores.values())

    def close(self):
        self._pool.shutdown()


@asynccontextmanager
async def open_cluster(tmp_path):
    async with AsyncExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        try:
            yield cluster
        finally:
            for store in cluster.stores.values():
                if isinstance(store, StalledStore | StalledWriter):
                    store.over.set()
            await cluster.stop()
            cluster.close()


def build_file(path, size, seed=1):
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return data

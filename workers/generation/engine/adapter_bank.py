"""The resident adapters of one engine."""

import threading
from collections import OrderedDict

from workers.generation.engine.adapters import Adapter
from workers.generation.engine.protocol import AdapterNotLoaded


class AdapterBank:
    """Resident adapters by digest, least recently used out first; one in use is never evicted."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._resident: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def bytes(self) -> int:
        with self._lock:
            return sum(adapter.bytes for adapter in self._resident.values())

    def has(self, digest: str) -> bool:
        """Also marks it as just used."""
        with self._lock:
            if digest in self._resident:
                self._resident.move_to_end(digest)
            return digest in self._resident

    @property
    def pinned(self) -> int:
        """How many are in use."""
        with self._lock:
            return sum(adapter.users > 0 for adapter in self._resident.values())

    def put(self, digest: str, adapter: Adapter) -> None:
        with self._lock:
            self._resident.setdefault(digest, adapter)
            self._resident.move_to_end(digest)
            self._shrink()

    def remove(self, digest: str) -> None:
        """Forget an idle adapter; one in use stays until it is evicted later."""
        with self._lock:
            if digest in self._resident and self._resident[digest].users == 0:
                del self._resident[digest]

    def acquire(self, digest: str) -> None:
        """Pin for one request. Raises AdapterNotLoaded."""
        with self._lock:
            if digest not in self._resident:
                raise AdapterNotLoaded(digest)
            self._resident[digest].users += 1
            self._resident.move_to_end(digest)

    def release(self, digest: str) -> None:
        with self._lock:
            self._resident[digest].users -= 1
            self._shrink()

    def get(self, digest: str) -> Adapter:
        """A pinned adapter."""
        with self._lock:
            return self._resident[digest]

    def _shrink(self) -> None:
        """Back to the budget, as far as idle ones reach; the latest stays, for somebody is about to use it."""
        excess = sum(each.bytes for each in self._resident.values()) - self._budget
        for name, each in list(self._resident.items())[:-1]:
            if excess > 0 and each.users == 0:
                excess -= self._resident.pop(name).bytes

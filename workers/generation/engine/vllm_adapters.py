"""Which adapters vLLM holds: digests to LoRA requests, at most as many as vLLM keeps.

vLLM re-reads an adapter that fell out of its own cache from disk, inside a step, and dies if the folder is gone. So
the table never names more than fit: it evicts first, least recently used, never one in use.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vllm.lora.request import LoRARequest

from workers.generation.engine.protocol import AdapterNotLoaded

Load = Callable[[LoRARequest], None]
Unload = Callable[[int], None]


@dataclass
class Resident:
    request: LoRARequest
    bytes: int
    users: int = 0


class VllmAdapters:
    """`load` and `unload` tell vLLM; an id is never used twice, so a reload is a new adapter to vLLM's caches."""

    def __init__(self, capacity: int, load: Load, unload: Unload) -> None:
        self._capacity, self._load, self._unload = capacity, load, unload
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._ids = 0
        self._loading = threading.Lock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def bytes(self) -> int:
        """Of the files; vLLM's own copies are slots of fixed size."""
        with self._lock:
            return sum(each.bytes for each in self._resident.values())

    def put(self, digest: str, folder: Path) -> None:
        """Make it resident unless every place is in use. Raises ValueError for what vLLM refuses."""
        with self._loading:
            if self._touch(digest) or not self._make_room():
                return
            self._ids += 1
            request = LoRARequest(digest, self._ids, str(folder))
            self._load(request)
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            with self._lock:
                self._resident[digest] = Resident(request, size)

    def remove(self, digest: str) -> None:
        """Forget an idle adapter; one in use stays until it is evicted later."""
        with self._loading:
            self._evict(digest)

    def acquire(self, digest: str) -> LoRARequest:
        """Pin for one request. Raises AdapterNotLoaded."""
        with self._lock:
            if digest not in self._resident:
                raise AdapterNotLoaded(digest)
            self._resident[digest].users += 1
            self._resident.move_to_end(digest)
            return self._resident[digest].request

    def release(self, digest: str) -> None:
        with self._lock:
            self._resident[digest].users -= 1

    def _touch(self, digest: str) -> bool:
        with self._lock:
            if digest in self._resident:
                self._resident.move_to_end(digest)
            return digest in self._resident

    def _make_room(self) -> bool:
        if len(self._resident) < self._capacity:
            return True
        with self._lock:
            idle = [digest for digest, each in self._resident.items() if each.users == 0]
        return any(self._evict(digest) for digest in idle)

    def _evict(self, digest: str) -> bool:
        with self._lock:
            if digest not in self._resident or self._resident[digest].users:
                return False
            gone = self._resident.pop(digest)
        self._unload(gone.request.lora_int_id)
        return True

"""Content-addressed storage: a file is named by its sha256, a folder by the sha256 of its manifest.

Writing goes temporary file → fsync → rename, so a kill leaves either nothing or the whole. S3 can implement the same
interface; `open_store` chooses by URL.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote, urlsplit

from models_registry.errors import IntegrityError, StorageFull, TooLarge, UnknownArtifact

CHUNK = 1024 * 1024
DIGEST_LENGTH = 64


@dataclass(frozen=True)
class Blob:
    """One stored file: its sha256 in hex and its size in bytes."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A stored folder. `digest` is the sha256 of the manifest itself, so it vouches for every file."""

    digest: str
    kind: str
    files: Mapping[str, Blob]
    metadata: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(blob.bytes for blob in self.files.values())


class ArtifactStore(Protocol):
    """Where artifacts live. Raises StorageFull, TooLarge, UnknownArtifact, IntegrityError."""

    def put(self, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> Blob: ...

    def put_file(self, path: Path) -> Blob: ...

    def put_folder(self, folder: Path, kind: str, metadata: Mapping[str, Any]) -> Manifest: ...

    def open(self, digest: str) -> IO[bytes]: ...

    def path(self, digest: str) -> Path:
        """A local file with these bytes, to read only."""
        ...

    def has(self, digest: str) -> bool: ...

    def delete(self, digest: str) -> None: ...

    def older_than(self, seconds: float) -> Iterator[str]:
        """The digests of all files that were put at least so long ago."""
        ...

    def remove(self, digest: str, seconds: float) -> bool:
        """Delete a file, and the folder that it is the manifest of, unless it was put less than `seconds` ago: who
        puts it at this very moment wins. True when it went.
        """
        ...

    def manifest(self, digest: str) -> Manifest: ...

    def folder(self, digest: str) -> Path:
        """A local folder with the files under their own names, verified against the manifest once per process."""
        ...

    def scratch(self) -> Any:
        """A context manager: a temporary folder on the store's file system."""
        ...

    def free_bytes(self) -> int: ...


@lru_cache
def open_store(url: str, min_free_bytes: int = 0) -> ArtifactStore:
    """The store at `file:///directory`."""
    parts = urlsplit(url)
    if parts.scheme != "file" or not parts.path:
        raise ValueError(f"artifacts URL {url!r} is not supported: use file:///directory")
    return LocalStore(Path(unquote(parts.path)), min_free_bytes)


class LocalStore:
    """A directory: `blobs/ab/ab12…`, `folders/<manifest digest>/…` (hard links), `tmp/`."""

    def __init__(self, root: Path, min_free_bytes: int = 0) -> None:
        self.root = root
        self.min_free_bytes = min_free_bytes
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        for name in ("blobs", "folders", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def put(self, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> Blob:
        temporary = self.root / "tmp" / secrets.token_hex(16)
        try:
            blob = self._write(temporary, chunks, max_bytes)
            self._keep(temporary, blob.digest)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("The store's disk is full.") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return blob

    def put_file(self, path: Path) -> Blob:
        with path.open("rb") as source:
            return self.put(iter(lambda: source.read(CHUNK), b""))

    def put_folder(self, folder: Path, kind: str, metadata: Mapping[str, Any]) -> Manifest:
        """Store the files directly inside `folder`; sub-folders are not artifacts."""
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        files = {name: self.put_file(folder / name) for name in names}
        body = {
            "kind": kind,
            "files": {name: {"sha256": blob.digest, "bytes": blob.bytes} for name, blob in files.items()},
            "metadata": dict(metadata),
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return Manifest(self.put([text.encode()]).digest, kind, files, dict(metadata))

    def open(self, digest: str) -> IO[bytes]:
        return self.path(digest).open("rb")

    def path(self, digest: str) -> Path:
        path = self._blob(digest)
        if not path.is_file():
            raise UnknownArtifact(f"no artifact {digest[:12]}… in the store")
        return path

    def has(self, digest: str) -> bool:
        return self._blob(digest).is_file()

    def delete(self, digest: str) -> None:
        self._blob(digest).unlink(missing_ok=True)

    def older_than(self, seconds: float) -> Iterator[str]:
        limit = time.time() - seconds
        for folder in (self.root / "blobs").iterdir():
            for file in folder.iterdir():
                with suppress(FileNotFoundError):  # deleted meanwhile
                    if file.stat().st_mtime <= limit:
                        yield file.name

    def remove(self, digest: str, seconds: float) -> bool:
        blob, taken = self._blob(digest), self.root / "tmp" / secrets.token_hex(16)
        try:
            blob.rename(taken)
        except FileNotFoundError:
            return False
        try:
            if taken.stat().st_mtime > time.time() - seconds:
                with suppress(FileExistsError):  # put once more
                    os.link(taken, blob)
                return False
        finally:
            taken.unlink()
        shutil.rmtree(self.root / "folders" / digest, ignore_errors=True)
        return True

    def manifest(self, digest: str) -> Manifest:
        body = self.path(digest).read_bytes()
        if hashlib.sha256(body).hexdigest() != digest:
            raise IntegrityError(f"the manifest {digest[:12]}… was changed")
        data = json.loads(body)
        files = {name: Blob(entry["sha256"], entry["bytes"]) for name, entry in data["files"].items()}
        return Manifest(digest, data["kind"], files, data["metadata"])

    def folder(self, digest: str) -> Path:
        folder = self.root / "folders" / checked(digest)
        with self._lock:
            if digest not in self._verified or not folder.is_dir():
                self._materialise(self.manifest(digest), folder)
                self._verified.add(digest)
        return folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = self.root / "tmp" / secrets.token_hex(16)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / checked(digest)[:2] / digest

    def _write(self, temporary: Path, chunks: Iterable[bytes], max_bytes: int | None) -> Blob:
        sha, size = hashlib.sha256(), 0
        with temporary.open("xb") as target:
            for chunk in chunks:
                size += len(chunk)
                if max_bytes is not None and size > max_bytes:
                    raise TooLarge(f"More than the {max_bytes} bytes that may still be stored.")
                if self.free_bytes() < self.min_free_bytes + len(chunk):
                    raise StorageFull("The store's disk is nearly full.")
                sha.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        return Blob(sha.hexdigest(), size)

    def _keep(self, temporary: Path, digest: str) -> None:
        target = self._blob(digest)
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _materialise(self, manifest: Manifest, folder: Path) -> None:
        """What is there and whole stays: another process may be reading it."""
        if all(has_digest(folder / name, blob.digest) for name, blob in manifest.files.items()):
            return
        for name, blob in manifest.files.items():
            if not has_digest(self.path(blob.digest), blob.digest):
                raise IntegrityError(f"{name} of {manifest.digest[:12]}… was changed")
        with self.scratch() as temporary:
            for name, blob in manifest.files.items():
                link_or_copy(self.path(blob.digest), temporary / Path(name).name)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                temporary.rename(folder)
            except OSError:
                # Another process was quicker; what it verified is as good.
                if not folder.is_dir():
                    raise


def has_digest(path: Path, digest: str) -> bool:
    """The file is there and its bytes have this sha256."""
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def checked(digest: str) -> str:
    """Only 64 hex digits ever become part of a path."""
    if len(digest) != DIGEST_LENGTH or set(digest) - set("0123456789abcdef"):
        raise UnknownArtifact("that is not a digest")
    return digest

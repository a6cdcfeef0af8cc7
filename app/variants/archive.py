"""Files of the store as one ZIP, written while it is sent: nothing is copied to disk or held in memory."""

import zipfile
from collections.abc import Iterator
from io import RawIOBase
from typing import Any

from starlette.responses import StreamingResponse

from app.settings import get_settings
from models_registry.store import CHUNK, ArtifactStore, Manifest, open_store


class Outbox(RawIOBase):
    """What was written since the last look; it cannot seek, so that ZIP entries state their sizes behind themselves."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def archive(model: str, files: Manifest, merged: bool) -> StreamingResponse:
    """For download, under the model's name."""
    name = f"{model.replace(':', '-')}{'-merged' if merged else ''}.zip"
    headers = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    store = open_store(get_settings().artifacts_url)
    return StreamingResponse(zipped(store, files), headers=headers, media_type="application/zip")


def zipped(store: ArtifactStore, manifest: Manifest) -> Iterator[bytes]:
    """Stored, not compressed: weights do not shrink. The same files give the same bytes."""
    outbox = Outbox()
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
        for name, blob in sorted(manifest.files.items()):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            with store.open(blob.digest) as source, archive.open(entry, "w", force_zip64=True) as target:
                while piece := source.read(CHUNK):
                    target.write(piece)
                    yield outbox.taken()
    yield outbox.taken()

"""What of a base's tokenizer matters before a worker loads it."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Tokenizer

from app.settings import get_settings
from app.variants.tables import BaseModel
from models_registry.store import ArtifactStore, open_store

TOKENIZER = "tokenizer.json"
COUNTS = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja")


def counts_as(base: BaseModel) -> str:
    """The same for bases in whose tokens a file is as long: tokenizer, template and context are."""
    return digest_of_counts(base.digest or "", base.context_length)


@lru_cache(maxsize=1024)
def digest_of_counts(base_digest: str, context_length: int | None) -> str:
    files = store().manifest(base_digest).files
    parts = [files[name].digest for name in COUNTS if name in files]
    return hashlib.sha256(f"{parts} {context_length}".encode()).hexdigest()[:16]


def known_tokens(base: BaseModel, texts: Sequence[str]) -> set[str]:
    """Those of the texts that are one token of the base."""
    tokenizer = load_tokenizer(base.digest or "")
    return {text for text in texts if tokenizer.token_to_id(text) is not None}


@lru_cache(maxsize=4)
def load_tokenizer(base_digest: str) -> Tokenizer:
    return Tokenizer.from_file(str(store().path(store().manifest(base_digest).files[TOKENIZER].digest)))


def store() -> ArtifactStore:
    return open_store(get_settings().artifacts_url)

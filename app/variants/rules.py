"""Pure decisions about the names of models."""

import re

from app.errors import InvalidValue

BASE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TAIL_LENGTH = 8


def check_suffix(suffix: str | None) -> str:
    """The part of a fine-tune's name that its owner chooses; empty when they chose none."""
    if suffix is not None and not SUFFIX.fullmatch(suffix):
        raise InvalidValue("A suffix has up to 64 letters, digits, dots, dashes, underscores.", param="suffix")
    return suffix or ""


def model_name(base_id: str, handle: str, suffix: str, mark: str, step: int | None = None) -> str:
    """`ft:<base>:<handle>:<suffix>:<8 characters>`, as OpenAI spells a fine-tune; a checkpoint ends in its step."""
    name = f"ft:{base_id}:{handle}:{suffix}:{mark[-TAIL_LENGTH:]}"
    return name if step is None else f"{name}:ckpt-step-{step}"

"""The one renderer: messages → token ids (+ loss mask), for admission, data validation, training and checks.

The base's chat template is rendered around placeholders; its text is encoded with special tokens, people's text is
encoded apart, special tokens disabled. So `<|im_end|>` in a message is just those characters.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from models_registry.errors import PromptError

OPEN, CLOSE = "\ue000", "\ue001"
# Spaces around tell whether the template trims content: if they are gone, so are the content's own.
PLACEHOLDER = re.compile(rf"( ?){OPEN}(\d+){CLOSE}( ?)")
MAX_UNDECIDED = 8


@dataclass(frozen=True)
class Message:
    """One turn. `weight` 0 keeps an assistant turn out of the training loss."""

    role: str
    content: str
    weight: int = 1


@dataclass(frozen=True)
class Rendered:
    """`mask[i]` says that token i is a target of the loss; both have the same length."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered prompt: template text (`message` None) or one message's content."""

    text: str
    message: int | None


class Renderer:
    """Of one base. Thread-safe; use `load`. `text_of`: a lone token's text, remembered."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.plain.encode_special_tokens = True
        config = read_json(folder / "tokenizer_config.json")
        self._special = {name: token_text(config.get(name)) for name in ("bos_token", "eos_token", "unk_token")}
        source = (folder / "chat_template.jinja").read_text()
        self._template = environment().from_string(source)
        self.vocabulary: int = self.tokenizer.get_vocab_size()
        self.eos_ids = self._end_ids(folder, source)
        self.end_of_text = self._end_of_text()
        # Answers and log-probabilities name the same tokens over and over, on the engine's thread.
        self.text_of = lru_cache(maxsize=self.vocabulary)(lambda token: self.decode([token]))

    @staticmethod
    def load(folder: Path) -> "Renderer":
        """The renderer of a base folder (tokenizer.json, tokenizer_config.json, chat_template.jinja); cached."""
        return load_renderer(folder)

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the conversation. Raises PromptError when the template refuses it."""
        return self._render(messages, add_generation_prompt).ids

    def training(self, messages: Sequence[Message], *, all_turns: bool = False) -> Rendered:
        """Ids and mask: targets are the content and the end of the assistant's turns, or of `all_turns`."""
        return self._render(messages, add_generation_prompt=False, all_turns=all_turns)

    def encode(self, text: str) -> list[int]:
        """People's text, special tokens disabled."""
        return list(self.plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, all_turns: bool = False) -> Rendered:
        ids: list[int] = []
        mask: list[bool] = []
        ended: Message | None = None
        for piece in self._pieces(messages, add_generation_prompt):
            message = None if piece.message is None else messages[piece.message]
            new = self._template_ids(piece.text) if message is None else self.encode(piece.text)
            learned = is_target(message, all_turns)
            ids += new
            mask += [learned] * len(new)
            if message is None and new and is_target(ended, all_turns) and new[0] in self.eos_ids:
                mask[-len(new)] = True
            ended = message
        return Rendered(ids, mask)

    def _pieces(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[Piece]:
        turns = [{"role": each.role, "content": f" {OPEN}{at}{CLOSE} "} for at, each in enumerate(messages)]
        try:
            text = self._template.render(
                messages=turns, add_generation_prompt=add_generation_prompt, tools=None, **self._special
            )
        except TemplateError as error:
            raise PromptError(f"The base's chat template refuses these messages: {error}") from error
        pieces, end = [], 0
        for match in PLACEHOLDER.finditer(text):
            trimmed = not (match[1] and match[3])
            begin, stop = (match.start(), match.end()) if not trimmed else (match.start(2) - 1, match.end(2) + 1)
            content = messages[int(match[2])].content
            pieces += [Piece(text[end:begin], None), Piece(content.strip() if trimmed else content, int(match[2]))]
            end = stop
        return [*pieces, Piece(text[end:], None)]

    def _template_ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _end_ids(self, folder: Path, template: str) -> frozenset[int]:
        """Whatever the base's own files call an end of text or of a turn."""
        ends: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            value = read_json(folder / name).get("eos_token_id") if (folder / name).exists() else None
            ends |= {value} if isinstance(value, int) else set(value or [])
        names = [self._special["eos_token"], *(each for each in ("<|im_end|>", "<|eot_id|>") if each in template)]
        ends |= {found for name in names if name and (found := self.tokenizer.token_to_id(name)) is not None}
        return frozenset(ends)

    def _end_of_text(self) -> int | None:
        """What closes a raw text: `<|endoftext|>` where the vocabulary has it, else the tokenizer's own end."""
        names = ("<|endoftext|>", self._special["eos_token"])
        return next((found for name in names if (found := self.tokenizer.token_to_id(name)) is not None), None)


def is_target(message: Message | None, all_turns: bool) -> bool:
    return message is not None and (all_turns or message.role == "assistant") and message.weight != 0


@lru_cache(maxsize=16)
def load_renderer(folder: Path) -> Renderer:
    return Renderer(folder)


@lru_cache
def environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's templates expect, in a sandbox."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    sandbox.globals["raise_exception"] = refuse
    sandbox.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return sandbox


def refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def read_json(path: Path) -> Mapping[str, Any]:
    data: Mapping[str, Any] = json.loads(path.read_text())
    return data


def token_text(value: object) -> str:
    """Tokenizer configs spell a token as text or as an object with `content`."""
    return str(value.get("content", "")) if isinstance(value, Mapping) else str(value or "")


class Detokenizer:
    """Ids → text as it grows, never half a character (the window of Hugging Face's text-generation-inference)."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._ids: list[int] = []
        self._told = 0

    def push(self, token: int) -> str:
        """The text that became certain with this token, maybe none."""
        self._ids.append(token)
        before, now = self._texts()
        undecided = now.endswith("\ufffd") and len(self._ids) - self._told < MAX_UNDECIDED
        if len(now) <= len(before) or undecided:
            return ""
        self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
        return now[len(before) :]

    def flush(self) -> str:
        """What is left, an incomplete character replaced by U+FFFD."""
        before, now = self._texts()
        self._told = len(self._ids)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        whole = self._renderer.decode(self._ids)
        if self._told == 1:
            return self._renderer.text_of(self._ids[0]), whole
        return self._renderer.decode(self._ids[: self._told]), whole

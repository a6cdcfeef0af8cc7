"""What one row of a training file may hold: a conversation, a completion, a preference or raw text. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.files.rules import parse_object
from models_registry.prompt import Message

ROLES = frozenset({"system", "user", "assistant"})
# Tabs and line ends are text; other control characters, NUL first of all, are leftovers of a broken export.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


class Kind(StrEnum):
    """All rows of a file are of one kind."""

    CHAT = "chat"
    COMPLETION = "completion"
    PREFERENCE = "preference"
    TEXT = "text"


FIELDS = {
    Kind.CHAT: ("messages",),
    Kind.PREFERENCE: ("input", "preferred_output", "non_preferred_output"),
    Kind.COMPLETION: ("prompt", "completion"),
    Kind.TEXT: ("text",),
}


class BadRow(Exception):
    """`code` as the report names it; the message is for the file's owner."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Row:
    """`messages`: the conversation, of a preference its input; `preferred` and `other`: the answers of a preference.

    `unwanted`: training is to make its answers unlikely.
    """

    kind: Kind
    messages: tuple[Message, ...] = ()
    preferred: tuple[Message, ...] = ()
    other: tuple[Message, ...] = ()
    text: str = ""
    unwanted: bool = False

    def turns(self) -> tuple[Message, ...]:
        return self.messages + self.preferred + self.other

    def conversations(self) -> list[tuple[Message, ...]]:
        """What is rendered for training: one conversation, of a preference two, of raw text none."""
        if self.kind is Kind.PREFERENCE:
            asked = tuple(Message(each.role, each.content, 0) for each in self.messages)
            return [asked + self.preferred, asked + self.other]
        return [self.messages] if self.messages else []

    def wording(self) -> str:
        """Everything a person wrote in it."""
        return self.text or "\n".join(each.content for each in self.turns())

    def question(self) -> str:
        """What comes before the answer; empty for raw text."""
        asked = self.messages if self.kind is Kind.PREFERENCE else self.messages[:-1]
        return "\n".join(each.content for each in asked)

    def answer(self) -> str:
        """What is learned; of a preference the preferred answer."""
        turns = self.preferred or self.messages
        return turns[-1].content if turns else self.text


def kind_of(given: dict[str, Any]) -> Kind:
    """By the fields that are there. Raises BadRow."""
    for kind, fields in FIELDS.items():
        if all(name in given for name in fields):
            return kind
    known = "; ".join(", ".join(f"'{name}'" for name in fields) for fields in FIELDS.values())
    raise BadRow("unknown_fields", f"the object needs one of these: {known}")


def parse_row(line: bytes) -> Row:
    """Raises BadRow."""
    try:
        given = parse_object(line)
    except ValueError as error:
        raise BadRow("not_an_object" if "object" in str(error) else "invalid_json", str(error)) from error
    unwanted = given.get("unwanted", False)
    if not isinstance(unwanted, bool):
        raise BadRow("invalid_unwanted", "unwanted must be true or false")
    return READERS[kind_of(given)](given, unwanted)


def chat_row(given: dict[str, Any], unwanted: bool) -> Row:
    messages = messages_of(given["messages"], "messages")
    if not learns(messages):
        raise BadRow("no_assistant_message", "no assistant message to learn from")
    return Row(Kind.CHAT, messages, unwanted=unwanted)


def completion_row(given: dict[str, Any], unwanted: bool) -> Row:
    messages = Message("user", text_of(given, "prompt")), Message("assistant", text_of(given, "completion"))
    return Row(Kind.COMPLETION, messages, unwanted=unwanted)


def preference_row(given: dict[str, Any], unwanted: bool) -> Row:
    if unwanted:
        raise BadRow("invalid_unwanted", "a preference has its unwanted answer in 'non_preferred_output'")
    asked = given["input"]
    if not isinstance(asked, dict):
        raise BadRow("missing_messages", "'input' has no list of 'messages'")
    row = Row(
        Kind.PREFERENCE,
        messages_of(asked.get("messages"), "input.messages"),
        messages_of(given["preferred_output"], "preferred_output"),
        messages_of(given["non_preferred_output"], "non_preferred_output"),
    )
    if any(each.role != "assistant" for each in row.preferred + row.other):
        raise BadRow("unknown_role", "preferred_output and non_preferred_output hold messages of the assistant")
    if not (learns(row.preferred) and learns(row.other)):
        raise BadRow("no_assistant_message", "both answers need an assistant message")
    return row


def text_row(given: dict[str, Any], unwanted: bool) -> Row:
    if unwanted:
        raise BadRow("invalid_unwanted", "raw text has no answer that could be unwanted")
    return Row(Kind.TEXT, text=text_of(given, "text"))


READERS = {
    Kind.CHAT: chat_row,
    Kind.COMPLETION: completion_row,
    Kind.PREFERENCE: preference_row,
    Kind.TEXT: text_row,
}


def learns(messages: tuple[Message, ...]) -> bool:
    return any(each.role == "assistant" and each.weight for each in messages)


def messages_of(given: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise BadRow("missing_messages", f"the object has no list of '{name}'")
    return tuple(message_of(each) for each in given)


def message_of(given: Any) -> Message:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str) or given["role"] not in ROLES:
        raise BadRow("unknown_role", f"each message needs a role out of {', '.join(sorted(ROLES))}")
    content = given.get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadRow("empty_content", f"a message of the {given['role']} has no text")
    weight = given.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, float):
        raise BadRow("invalid_weight", "weight must be 0 or 1")
    return Message(given["role"], whole(content), int(weight))


def text_of(given: dict[str, Any], name: str) -> str:
    value = given[name]
    if not isinstance(value, str) or not value.strip():
        raise BadRow("empty_content", f"'{name}' has no text")
    return whole(value)


def whole(text: str) -> str:
    """Raises BadRow for half a character, which no tokenizer and no UTF-8 file can hold."""
    if SURROGATE.search(text):
        raise BadRow("lone_surrogate", "the text holds half a character (a lone surrogate)")
    return text

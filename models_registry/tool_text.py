"""How functions, calls and their results read as plain text, for bases whose chat template knows no tools.

One spelling for every base, in serving and training: the `<tool_call>` form that Hermes and Qwen models learned.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def call_head(name: str) -> str:
    """What stands between `OPEN` and the arguments' JSON."""
    return f'\n{{"name": "{name}", "arguments": '


# What follows the arguments. Their JSON holds no raw line break, so this ends them wherever it stands.
CALL_TAIL = f"}}\n{CLOSE}"


def call_text(name: str, arguments: str) -> str:
    """A whole call; `arguments` is JSON on one line."""
    return OPEN + call_head(name) + arguments + CALL_TAIL


def result_text(content: str) -> str:
    """What a function answered; it stands in a user's turn."""
    return f"<tool_response>\n{content}\n</tool_response>"


def tools_text(functions: Sequence[Mapping[str, Any]]) -> str:
    """For the system's turn: the functions, and how to call them."""
    lines = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    return (
        f"You may call these functions. Their signatures:\n<tools>\n{lines}\n</tools>\n"
        f"To call one, answer with a JSON object of its name and arguments:\n{call_text('function-name', '{...}')}"
    )


def schema_text(schema: Mapping[str, Any]) -> str:
    """For the system's turn: the form of the answer."""
    return f"Answer with JSON that follows this schema:\n{json.dumps(schema, ensure_ascii=False)}"

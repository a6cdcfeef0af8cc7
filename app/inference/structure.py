"""The form that an answer must have: `response_format` and `tools` as one grammar, and as words for the system turn.

The grammar is llguidance's dialect of Lark, a text that any engine with that library takes. Pure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidSchema, InvalidValue, UnsupportedContent
from app.inference.schema_limits import check_bytes, check_schema
from app.inference.schemas import ChatRequest, FunctionDefinition, NamedToolChoice, ResponseFormat
from models_registry.tool_text import CALL_TAIL, OPEN, call_head, schema_text, tools_text

MAX_PARALLEL_CALLS = 8
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# Text that must come is else encoded by the library at once, special tokens included: a schema's own text could then
# name a control token.
HEADER = '%llguidance {"no_forcing": true}'
# One line, one spelling: a weak model would otherwise fill its answer with blanks, and a raw line break ends a call.
SPELLING = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


@dataclass(frozen=True)
class Structure:
    """`grammar`: None leaves the answer free. `words`: for the system turn. `calls`: the answer may call tools."""

    grammar: str | None = None
    words: str = ""
    calls: bool = False


def structure_of(request: ChatRequest) -> Structure:
    """Raises InvalidSchema, and InvalidValue for tools that contradict each other."""
    schema, strict = answer_schema(request.response_format)
    functions = [tool.function for tool in request.tools or []]
    check_functions(functions, schema)
    offered = chosen_functions(request, functions)
    if schema is None and not offered:
        return Structure()
    words = [tools_text([described(each) for each in offered])] if offered else []
    if schema is not None and schema is not ANY_OBJECT:
        words.append(schema_text(schema))
    answer = None if schema is None else json_rule(schema, strict)
    return Structure(grammar_text(request, offered, answer), "\n\n".join(words), bool(offered))


def answer_schema(wanted: ResponseFormat | None) -> tuple[Mapping[str, Any] | None, bool]:
    """The schema of a plain answer (None: free text), and whether all of it must be enforceable."""
    if wanted is None or wanted.type == "text":
        return None, False
    if wanted.type == "json_object":
        return ANY_OBJECT, False
    if wanted.type != "json_schema":
        raise UnsupportedContent("response_format: text, json_object or json_schema.", param="response_format.type")
    if wanted.json_schema is None:
        raise InvalidValue("json_schema is missing.", param="response_format.json_schema")
    if wanted.json_schema.body is None:
        return ANY_OBJECT, False
    check_schema(wanted.json_schema.body, "response_format.json_schema.schema")
    return wanted.json_schema.body, bool(wanted.json_schema.strict)


def check_functions(functions: Sequence[FunctionDefinition], schema: Mapping[str, Any] | None) -> None:
    if len({each.name for each in functions}) < len(functions):
        raise InvalidValue("Two tools have the same name.", param="tools")
    size = 0 if schema is None else len(json.dumps(schema, ensure_ascii=False).encode())
    for at, each in enumerate(functions):
        param = f"tools.{at}.function.parameters"
        if each.parameters is not None:
            size += check_schema(each.parameters, param)
            if each.parameters.get("type", "object") != "object":
                raise InvalidSchema("A function's parameters must be of type object.", param=param)
        check_bytes(size, param)


def chosen_functions(request: ChatRequest, functions: Sequence[FunctionDefinition]) -> Sequence[FunctionDefinition]:
    """Those that this answer may call."""
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice):
        named = [each for each in functions if each.name == choice.function.name]
        if not named:
            raise InvalidValue(f"No tool is named {choice.function.name!r}.", param="tool_choice")
        return named
    if choice == "required" and not functions:
        raise InvalidValue("tool_choice 'required' needs tools.", param="tool_choice")
    return [] if choice == "none" else functions


def described(function: FunctionDefinition) -> Mapping[str, Any]:
    """As the model reads it."""
    text = {"description": function.description} if function.description else {}
    return {"name": function.name, **text, "parameters": function.parameters or NO_ARGUMENTS}


def json_rule(schema: Mapping[str, Any], strict: bool) -> str:
    """Strict: a keyword that cannot be enforced refuses the schema; else it is only advice to the model."""
    return "%json " + json.dumps({**schema, "x-guidance": SPELLING | {"lenient": not strict}})


def grammar_text(request: ChatRequest, functions: Sequence[FunctionDefinition], answer: str | None) -> str:
    """Free text until a call begins (auto), only calls (required), one call (named), or the answer's schema."""
    if not functions:
        return f"{HEADER}\nstart: {answer}\n"
    choice = request.tool_choice
    single = isinstance(choice, NamedToolChoice) or request.parallel_tool_calls is False
    more = "" if single else f" ({quoted(chr(10) + OPEN)} call){{0,{MAX_PARALLEL_CALLS - 1}}}"
    calls = f"{quoted(OPEN)} call{more}"
    rules = [f"call: {' | '.join(f'call{at}' for at in range(len(functions)))}"]
    for at, each in enumerate(functions):
        arguments = json_rule(each.parameters or NO_ARGUMENTS, bool(each.strict))
        rules.append(f"call{at}: {quoted(call_head(each.name))} arguments{at} {quoted(CALL_TAIL)}")
        rules.append(f"arguments{at}: {arguments}")
    if isinstance(choice, NamedToolChoice) or choice == "required":
        return "\n".join([HEADER, f"start: {calls}", *rules, ""])
    if answer is not None:
        return "\n".join([HEADER, f"start: answer | {calls}", f"answer: {answer}", *rules, ""])
    # `lazy` ends the free text at the first marker; without one, it is the whole answer.
    free = [f"start: TEXT | begun call{more}", f"begun[lazy]: TEXT {quoted(OPEN)}", r"TEXT: /(.|\n)*/"]
    return "\n".join([HEADER, *free, *rules, ""])


def quoted(text: str) -> str:
    return json.dumps(text)

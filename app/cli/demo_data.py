"""The demo's data: tech-support dialogues of the `chatterbot-corpus` wheel (BSD-3-Clause) as chat JSONL.

The corpus repeats a few dialogues many times over. So the split is by question: a held-out question never occurs in
training, or its loss would only show memory.
"""

import importlib.util
import json
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

SYSTEM = "You are a tech support agent. Answer in one short sentence."
HELD_OUT_QUESTIONS = 2
SEED = 7

Pair = tuple[str, str]


@dataclass(frozen=True)
class DemoData:
    """Chat rows as JSONL, and a held-out question with the corpus's own answer."""

    training: bytes
    held_out: bytes
    rows: int
    questions: int
    held_out_questions: int
    question: str
    answer: str


def tech_support(rows: int) -> DemoData:
    """`rows` training rows in a fixed shuffle, and every distinct held-out dialogue once."""
    pairs = dialogues()
    questions = sorted({question for question, _ in pairs})
    shuffle = random.Random(SEED)  # noqa: S311 (a split, not a secret)
    shuffle.shuffle(questions)
    unseen = set(questions[:HELD_OUT_QUESTIONS])
    training = [pair for pair in pairs if pair[0] not in unseen]
    shuffle.shuffle(training)
    held_out = sorted({pair for pair in pairs if pair[0] in unseen})
    return DemoData(
        training=jsonl(training[:rows]),
        held_out=jsonl(held_out),
        rows=len(training[:rows]),
        questions=len(questions) - HELD_OUT_QUESTIONS,
        held_out_questions=HELD_OUT_QUESTIONS,
        question=held_out[0][0],
        answer=held_out[0][1],
    )


def dialogues() -> list[Pair]:
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise RuntimeError("the demo needs the package chatterbot-corpus: install the extra [demo]")
    path = Path(spec.origin).parent / "data" / "english" / "tech_support.yml"
    conversations = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    return [(str(talk[0]).strip(), str(talk[1]).strip()) for talk in conversations if len(talk) >= 2]


def chat_row(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    turns = [("system", SYSTEM), ("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def jsonl(pairs: list[Pair]) -> bytes:
    return "".join(json.dumps(chat_row(*pair), ensure_ascii=False) + "\n" for pair in pairs).encode()

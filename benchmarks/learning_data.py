"""What the learning benchmark trains on: dialogues of the `chatterbot-corpus` wheel, and public texts of a folder."""

import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

Pair = tuple[str, str]
Rows = list[dict[str, Any]]
SEED = 7


def dialogues(topic: str) -> list[Pair]:
    """Distinct questions with one answer each; the corpus repeats many."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs the package chatterbot-corpus: install the extra [demo]")
    path = Path(spec.origin).parent / "data" / "english" / f"{topic}.yml"
    talks = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    pairs = {(str(talk[0]).strip(), str(talk[1]).strip()) for talk in talks if len(talk) >= 2}
    return sorted(pair for pair in pairs if all(pair))


def split(topics: Sequence[str], share: float = 0.2) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out dialogues that share no question."""
    pairs = [pair for topic in topics for pair in dialogues(topic)]
    questions = sorted({question for question, _ in pairs})
    chance = random.Random(SEED)  # noqa: S311 (a split, not a secret)
    chance.shuffle(questions)
    unseen = set(questions[: max(2, int(len(questions) * share))])
    training = [pair for pair in pairs if pair[0] not in unseen]
    chance.shuffle(training)
    return training, [pair for pair in pairs if pair[0] in unseen]


def chat(pairs: Sequence[Pair], **more: Any) -> Rows:
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]} | more
        for asked, answer in pairs
    ]


def preferences(pairs: Sequence[Pair]) -> Rows:
    """The question's own answer is preferred to that of another question."""
    chance = random.Random(SEED)  # noqa: S311
    answers = [answer for _, answer in pairs]
    rows = []
    for asked, answer in pairs:
        other = chance.choice([each for each in answers if each != answer])
        rows.append(
            {
                "input": {"messages": [{"role": "user", "content": asked}]},
                "preferred_output": [{"role": "assistant", "content": answer}],
                "non_preferred_output": [{"role": "assistant", "content": other}],
            }
        )
    return rows


def texts(folder: Path, most_bytes: int) -> tuple[Rows, Rows]:
    """.txt files below the folder as rows, in a fixed shuffle, up to `most_bytes`; every 20th is held out."""
    files = sorted(folder.rglob("*.txt"))
    random.Random(SEED).shuffle(files)  # noqa: S311
    rows, held_out, size = Rows(), Rows(), 0
    for number, file in enumerate(files):
        text = file.read_text(encoding="utf-8", errors="replace").strip()
        if not text:
            continue
        if size >= most_bytes:
            break
        size += len(text)
        (rows if number % 20 else held_out).append({"text": text})
    return rows, held_out


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

"""One engine's turn, in an interpreter that has its library: prints a JSON line per figure.

python -m benchmarks.child benchmarks.peers.vllm_cpu:VllmCpu --work FOLDER --adapters 16 --only mixed,decode,first
"""

import argparse
import importlib
from pathlib import Path

from benchmarks.protocol import DECODE_TOKENS, NEW_TOKENS, Prompts, Setup, Subject, Task, first_token, throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--only", default="mixed,decode,first")
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--option", default="")
    given = parser.parse_args()
    streams = [int(each) for each in given.streams.split(",")]
    folders = [given.work / "adapters" / str(number) for number in range(given.adapters)]
    module, name = given.subject.split(":")
    setup = Setup(given.work / "base", folders, max(streams), given.option)
    subject: Subject = getattr(importlib.import_module(module), name)(setup)
    prompts, only = Prompts.load(given.work), given.only.split(",")
    try:
        for task in (Task("mixed", prompts.mixed, NEW_TOKENS), Task("decode", prompts.short, DECODE_TOKENS)):
            if task.name in only:
                wanted = [n for n in streams if n > 1 or task.name == "mixed"]
                for each in throughput(subject, setup, task, wanted, given.seconds):
                    each.say()
        if "first" in only:
            first_token(subject, prompts.first, given.adapters).say()
    finally:
        subject.close()


if __name__ == "__main__":
    main()

"""Random kill -9 over all parts while people call and a job trains: the books stay sound, no hold stays, all ends."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.e2e.conftest import Person, Store
from tests.e2e.test_calls import ask, told, wait_settled
from tests.e2e.test_jobs import FINAL, start, upload, wait_until

PARTS = ["workers.generation.main", "workers.fine_tuning.main", "workers.upkeep.main"]
PARTS += ["app.cli.main", "valkey-server", "postgres"]
KILLS = 12


@pytest.mark.timeout(900)
def test_calls_and_a_job_survive_random_kills(store: Store, seller: Person, fine_tunes: list[str]) -> None:
    stopped = threading.Event()
    job = start(seller, upload(seller, 96))

    def call_again_and_again(number: int) -> tuple[int, int]:
        """(answers, refusals or broken streams)"""
        answers = failures = 0
        while not stopped.is_set():
            try:
                options = {"stream": True, "max_tokens": 24, "timeout": 60}
                told(ask(seller, fine_tunes[number % 4], **options))
                answers += 1
            except openai.APIError:
                failures += 1
                stopped.wait(0.5)
        return answers, failures

    with ThreadPoolExecutor(8) as pool:
        calling = [pool.submit(call_again_and_again, number) for number in range(8)]
        chance = random.Random(1)  # noqa: S311
        for _ in range(KILLS):
            stopped.wait(chance.uniform(3, 8))
            printed = len(store.lines)
            store.part(chance.choice([part for part in PARTS if store.lives(part)])).kill()
            store.wait_for(lambda line: "restarting in" in line, after=printed)
        stopped.wait(30)
        stopped.set()
        totals = [each.result(120) for each in calling]
    assert sum(answers for answers, _ in totals) > 20, totals
    done = wait_until(seller, job.id, FINAL, 240)
    assert done.status == "succeeded", done.error
    wait_settled(seller, 60)
    assert store.verify_ledger() == "the ledger is sound\n"

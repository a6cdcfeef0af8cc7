"""kill -9 of a part: it comes back by itself, and no money is lost."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai

from tests.e2e.conftest import BASE, Person, Store
from tests.e2e.test_calls import ask, told, wait_settled


def test_killing_the_generation_worker_midway_loses_no_money(
    store: Store, seller: Person, fine_tunes: list[str]
) -> None:
    """16 streams are under way; those that heard something end with an error, none hangs, no hold stays."""

    def one(number: int) -> str:
        messages = [{"role": "user", "content": f"Write a long story about {number} dragons."}]
        options = {"messages": messages, "max_tokens": 80, "logit_bias": {"2": -100}}
        try:
            return told(ask(seller, fine_tunes[number % 4], stream=True, **options))[0]
        except openai.APIError as error:
            return f"error: {error.code}"

    printed = len(store.lines)
    with ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(one, number) for number in range(16)]
        while seller.wallet()["held_micros"] == 0:
            time.sleep(0.05)
        store.part("workers.generation.main").kill()
        outcomes = [stream.result(90) for stream in streams]
    assert any("ready generation" in line for line in store.lines[printed:])
    assert all(outcomes)
    wait_settled(seller, 60)
    assert store.verify_ledger() == "the ledger is sound\n"
    assert "Paris" in ask(seller, BASE).choices[0].message.content


def test_killing_the_api_and_valkey_is_only_a_pause(store: Store, buyer: Person) -> None:
    printed = len(store.lines)
    for part in (store.part("app.cli.main"), store.part("valkey-server")):
        part.kill()
    store.wait_for(lambda line: line.endswith("ready api"), after=printed)
    patient = replace(buyer, openai=buyer.openai.with_options(max_retries=8, timeout=90))
    assert "Paris" in ask(patient, BASE).choices[0].message.content

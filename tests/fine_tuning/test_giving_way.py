"""Training gives way to generation on its machine, for as long as the operator allows and no longer."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from app.settings import get_settings
from tests.conftest import Services
from tests.fine_tuning.recipe import process
from workers.fine_tuning.neighbours import generation_is_busy
from workers.fine_tuning.spec import BUSY, IDLE, STOP

KEY = "worker:generation:test-giving-way"
RECIPE = """
from workers.fine_tuning.recipes.process import Parent
parent = Parent()
parent.hold_on()
with parent._heard:
    parent._heard.wait_for(lambda: parent._busy)
parent.tell("note", message="waiting")
parent.give_way()
parent.tell("note", message=f"{parent._busy} {parent.asked}")
"""


@contextmanager
def generating(host: str, running: int) -> Iterator[None]:
    sign = {"kind": "generation", "base": "x", "pid": 1, "host": host, "figures": {"running": running, "waiting": 0}}
    with redis.Redis.from_url(get_settings().redis_url) as valkey:
        valkey.set(KEY, json.dumps(sign))
        try:
            yield
        finally:
            valkey.delete(KEY)


def test_only_calls_under_way_on_this_machine_count(services: Services) -> None:
    assert not generation_is_busy()
    with generating(socket.gethostname(), 0):
        assert not generation_is_busy()
    with generating("elsewhere", 3):
        assert not generation_is_busy()
    with generating(socket.gethostname(), 3):
        assert generation_is_busy()


def told_after(word: str | None, most_seconds: float) -> str:
    """What a recipe says once it has given way, after it was told that generation is busy and then `word`."""
    with process(RECIPE, yield_to_generation=most_seconds) as child:
        child.say(BUSY)
        assert child.hear().data["message"] == "waiting"
        if word is not None:
            child.say(word)
        said: str = child.hear().data["message"]
        return said


@pytest.mark.parametrize(
    ("word", "most_seconds", "said"),
    [(IDLE, 100, "False None"), (STOP, 100, f"True {STOP}"), (None, 0.01, "True None")],
)
def test_a_step_waits_until_generation_is_done_an_order_comes_or_its_patience_ends(
    word: str | None, most_seconds: float, said: str
) -> None:
    assert told_after(word, most_seconds) == said

"""An order is obeyed at once where nothing would be lost by it, and else where what was done can be saved."""

import pytest

from tests.fine_tuning.recipe import process
from workers.fine_tuning.spec import CANCEL, STOP

BUSY_FOR_EVER = """
import threading
from workers.fine_tuning.recipes.process import Parent
parent = Parent()
{first}
parent.tell("note", message="computing")
threading.Event().wait()
"""
WORTH_SAVING = """
from workers.fine_tuning.recipes.process import Parent
parent = Parent()
parent.hold_on()
assert not parent.ends()
parent.tell("note", message="computing")
with parent._heard:
    parent._heard.wait_for(lambda: parent.asked)
if parent.ends():
    parent.tell("saved", step=1)
"""


@pytest.mark.parametrize(("first", "word"), [("", STOP), ("", CANCEL), ("parent.hold_on()", CANCEL)])
def test_a_process_with_nothing_to_save_ends_whatever_it_is_computing(first: str, word: str) -> None:
    with process(BUSY_FOR_EVER.format(first=first)) as child:
        assert child.hear().event == "note"
        child.say(word)
        assert child.hear().event == "stopped"
        assert child.child.wait() == 0


def test_a_process_with_something_to_save_is_left_to_save_it() -> None:
    with process(WORTH_SAVING) as child:
        assert child.hear().event == "note"
        child.say(STOP)
        assert child.hear().event == "saved"

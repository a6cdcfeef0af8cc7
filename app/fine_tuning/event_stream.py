"""A job's events as server-sent events, oldest first, until the job has ended."""

import asyncio
from collections.abc import AsyncIterator

from anyio import to_thread

from app.database import transaction
from app.fine_tuning.bell import Bell
from app.fine_tuning.find import events_after
from app.fine_tuning.rules import OPEN
from app.fine_tuning.schemas import EventOut
from app.fine_tuning.tables import FineTuningJob

HEARTBEAT = 15.0
BATCH = 500
# No blank line behind it: some readers take that for an empty event.
HEARTBEAT_LINE = ": still open\n"


async def stream_events(bell: Bell, account_id: str, job_id: str, after: str | None) -> AsyncIterator[str]:
    """From the event behind `after` on. Silence is broken by a comment line; the end is `data: [DONE]`."""
    with bell.ringing(job_id, account_id) as rung:
        while True:
            rung.clear()
            events, ended = await to_thread.run_sync(look, job_id, after)
            for event in events:
                yield f"id: {event.id}\nevent: {event.object}\ndata: {event.model_dump_json()}\n\n"
                after = event.id
            if len(events) == BATCH:
                continue
            if ended:
                yield "data: [DONE]\n\n"
                return
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await rung.wait()
            except TimeoutError:
                yield HEARTBEAT_LINE


def look(job_id: str, after: str | None) -> tuple[list[EventOut], bool]:
    """The next events, and whether the job had ended before they were read: then there are no others."""
    with transaction() as tx:
        ended = tx.get_one(FineTuningJob, job_id).status not in OPEN
        return [EventOut.of(event) for event in events_after(tx, job_id, after, BATCH)], ended

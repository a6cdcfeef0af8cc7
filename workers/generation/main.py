"""`gptstore worker generation`: one process, one base, one engine, many calls.

Until the base is in the registry it only watches Postgres: nothing heavy is imported before that.
"""

import gc
import os
import time
from dataclasses import asdict

import structlog
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.database import transaction
from app.inference.wire_events import GenerateTask
from app.local.services import end_after_parent
from app.settings import Settings, get_settings
from app.tasks import TaskName, generation_queue
from app.valkey import connect
from app.variants.tables import BaseModel
from models_registry.store import open_store
from workers.celery_app import make_worker, run_worker

log = structlog.get_logger(__name__)

# A send that fails ends its calls, so it is given longer than a question.
SEND_SECONDS = 5.0


def main() -> None:
    """Serve until SIGTERM; running calls finish first."""
    end_after_parent()
    settings = get_settings()
    base_id = settings.generation.base
    digest = wait_for_base(base_id)
    serve(settings, base_id, digest)


def wait_for_base(base_id: str, period: float = 1.0) -> str:
    """The digest of the base's artifact, once its import is done; Postgres may still be starting too."""
    told = False
    while True:
        try:
            with transaction() as tx:
                base = tx.get(BaseModel, base_id)
            if base is not None and base.status == "ready" and base.digest:
                return base.digest
        except (OperationalError, ProgrammingError) as error:
            log.info("database_not_ready", error=type(error).__name__)
        if not told:
            print(f"waiting for base {base_id}", flush=True)
            told = True
        time.sleep(period)


def serve(settings: Settings, base_id: str, digest: str) -> None:
    """Load the engine, then consume the base's queue."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from models_registry.prompt import Renderer
    from workers.generation.calls import OpenCalls
    from workers.generation.check import check_version
    from workers.generation.engine.load import load_engine
    from workers.generation.pulse import Pulse
    from workers.generation.settlement import Settler
    from workers.generation.task import GenerationWorker, generate
    from workers.generation.token_stream import TokenStream

    store = open_store(settings.artifacts_url)
    folder = store.folder(digest)
    renderer = Renderer.load(folder)
    stream = TokenStream(connect(SEND_SECONDS))
    engine = load_engine(settings.generation, folder, renderer, stream.end_step)
    calls = OpenCalls(engine, settings.generation.queue_timeout)
    worker = GenerationWorker(
        engine=engine,
        store=store,
        stream=stream,
        calls=calls,
        settler=Settler(),
        base_digest=digest,
        text_of=renderer.text_of,
    )
    pulse = Pulse(calls, engine.stats)
    app = make_worker([generation_queue(base_id)], settings.generation.concurrency)

    @app.task(name=TaskName.GENERATE.value)
    def run_generate(task: dict[str, object]) -> None:
        generate(worker, GenerateTask.model_validate(task))

    @app.task(name=TaskName.CHECK_VERSION.value)
    def run_check(version_id: str) -> None:
        check_version(engine, store, renderer, version_id)

    gc.collect()
    gc.freeze()  # a quarter of a second of the engine's time each time that all of it is looked through
    try:
        run_worker(app, "generation", base_id, lambda: asdict(engine.stats()))
    finally:
        pulse.close()
        engine.close()
        stream.close()


if __name__ == "__main__":
    main()

"""`gptstore worker fine-tuning`: one light process for training, validation of files and imports of bases.

Everything heavy runs in child processes; this one imports no torch.
"""

import structlog
from celery import signals

from app.local.services import end_after_parent
from app.settings import get_settings
from app.tasks import DATASETS_QUEUE, FINE_TUNING_QUEUE, MODEL_IMPORT_QUEUE, TaskName, sender
from workers.celery_app import make_worker, run_worker
from workers.datasets.task import ReportRunner
from workers.fine_tuning.merge import Merges, merge_variant
from workers.fine_tuning.task import JobRunner
from workers.fine_tuning.validate_file import count_file, validate_file

log = structlog.get_logger(__name__)

CONCURRENCY = 4


def main() -> None:
    """Serve until SIGTERM; a training under way then checkpoints and its job goes back to the queue."""
    end_after_parent()
    runner, reports = JobRunner(get_settings().fine_tuning), ReportRunner()
    merges = Merges(merge_variant)
    app = make_worker([FINE_TUNING_QUEUE, DATASETS_QUEUE, MODEL_IMPORT_QUEUE], CONCURRENCY)

    @app.task(name=TaskName.FINE_TUNE.value)
    def run_jobs(**_: object) -> None:
        runner.wake()

    @app.task(name=TaskName.VALIDATE_FILE.value)
    def run_validation(file_id: str) -> None:
        validate_file(file_id)

    @app.task(name=TaskName.COUNT_FILE.value)
    def run_count(file_id: str, base_id: str) -> None:
        count_file(file_id, base_id)

    @app.task(name=TaskName.REPORT_FILE.value)
    def run_reports(**_: object) -> None:
        reports.wake()

    @app.task(name=TaskName.IMPORT_BASE.value)
    def import_base(base_id: str, source: str) -> None:
        from workers.model_import.task import run_import

        run_import(base_id, source)

    @app.task(name=TaskName.MERGE_VARIANT.value)
    def merge(variant_id: str) -> None:
        merges.wake(variant_id)

    def look_once(**_: object) -> None:
        """Jobs may have become due while no worker lived."""
        sender().send_task(TaskName.FINE_TUNE.value, queue=FINE_TUNING_QUEUE, retry=False)

    def stop_training(**_: object) -> None:
        runner.stopping.set()
        reports.stopping.set()

    signals.worker_ready.connect(look_once, weak=False)
    signals.worker_shutting_down.connect(stop_training, weak=False)
    run_worker(app, "fine-tuning")


if __name__ == "__main__":
    main()

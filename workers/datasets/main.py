"""The child's side: one piece of work from stdin, its outcome to stdout."""

import sys

from app.errors import InvalidTrainingFile
from workers.datasets.child import REFUSED, Answer, Work, limit, read_work
from workers.datasets.convert import Refused, convert


def main() -> int:
    work = read_work(sys.stdin.read())
    limit(work)
    try:
        found = do(work)
    except (Refused, InvalidTrainingFile) as refused:
        print(refused, end="")
        return REFUSED
    except MemoryError:
        print("the file unfolds to more than this store's limit of memory", end="")
        return REFUSED
    print(Answer(found=found).model_dump_json())
    return 0


def do(work: Work) -> dict[str, object]:
    """Imports what the work needs and nothing else."""
    if work.kind == "convert":
        assert work.target is not None  # noqa: S101 (the caller's own contract)
        return convert(str(work.options["format"]), work.source, work.target, int(str(work.options["max_bytes"])))
    if work.kind == "report":
        from workers.datasets.report import report

        return report(work)
    from workers.datasets.clean import clean

    return clean(work)


if __name__ == "__main__":
    sys.exit(main())

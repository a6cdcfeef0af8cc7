"""CSV and Parquet become rows; what is built to break a reader breaks nothing."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from sqlalchemy import update

from app.database import transaction
from app.files.tables import File
from app.files.upload import uploads
from app.files.validation import begin_validation
from app.settings import get_settings
from app.variants.bases import find_base
from tests.datasets.conftest import Owner
from workers.datasets.child import Work, WorkRefused, run_child
from workers.fine_tuning.validate_file import check_file, refuse, validate_file


def table(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out, **options)
    return out.getvalue()


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def preference(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": asked}]},
        "preferred_output": [{"role": "assistant", "content": chosen}],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
    }


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"prompt,completion\n2+2?,004\n", [{"prompt": "2+2?", "completion": "004"}]),
        (b'\xef\xbb\xbfid,text\n1,"two\nlines, one cell"\n', [{"text": "two\nlines, one cell"}]),
        (
            b"question,answer,unwanted\nHow?,So.,\nWhy?,No.,TRUE\n",
            [{"messages": messages("How?", "So.")}, {"messages": messages("Why?", "No."), "unwanted": True}],
        ),
        (b"instruction,input,output\nAdd,1 and 2,3\n", [{"messages": messages("Add\n\n1 and 2", "3")}]),
        (b"prompt,chosen,rejected\nTea?,Yes.,No.\n", [preference("Tea?", "Yes.", "No.")]),
        (
            b'messages\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]"\n',
            [{"messages": messages("a", "b")}],
        ),
        (b"text\n=HYPERLINK(1)\n[not json\n", [{"text": "=HYPERLINK(1)"}, {"text": "[not json"}]),
    ],
)
def test_a_csv_becomes_the_rows_that_its_columns_name(owner: Owner, content: bytes, rows: list[Any]) -> None:
    report = owner.validated(content, "table.CSV")
    assert (report["status"], report["rows"]) == ("processed", len(rows))
    assert owner.content(report["id"]) == rows
    file = owner.get(f"/v1/files/{report['id']}")
    assert file["filename"] == "table.jsonl"
    assert file["bytes"] == len(owner.http.get(f"/v1/files/{file['id']}/content", headers=owner.signed.headers).content)


def test_a_parquet_becomes_rows_and_says_what_it_left_out(owner: Owner) -> None:
    talks = [messages("a", "b"), messages("c", "d")]
    report = owner.validated(table({"id": [1, 2], "messages": talks, "unwanted": [False, True]}), "t.parquet")
    assert owner.content(report["id"]) == [{"messages": talks[0]}, {"messages": talks[1], "unwanted": True}]
    assert report["converted"] == {
        "format": "parquet",
        "rows": 2,
        "columns": ["messages", "unwanted"],
        "ignored_columns": ["id"],
    }
    numbers = owner.validated(table({"question": ["1+1?"], "answer": [2]}), "t.parquet")
    assert owner.content(numbers["id"]) == [{"messages": messages("1+1?", "2")}]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("t.csv", b"a,b\n1,2\n", "line 1"),
        ("t.csv", b"", "line 1"),
        ("t.csv", b"text,text\n1,2\n", "same name"),
        ("t.csv", b"te\xffxt\na\n", "UTF-8"),
        ("t.parquet", b"text\nhello\n", "not a Parquet"),
        ("t.parquet", b"PAR1", "not a Parquet"),
    ],
)
def test_a_table_without_usable_columns_is_refused_at_once(owner: Owner, name: str, content: bytes, what: str) -> None:
    error = owner.upload(content, name)
    assert error["code"] == "invalid_training_file"
    assert what in error["message"]


def bomb() -> bytes:
    """One long text 200,000 times: a few kilobytes that unfold to 180 GB."""
    once = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 200_000, pyarrow.int32()), ["x" * 900_000])
    return table({"text": once}, compression="zstd")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("t.csv", b"text\nfine\n" + b"x" * 10_000_000, "line 3: the line is longer"),
        ("t.csv", b"text\na,b\n", "line 2: 2 cells under 1 columns"),
        ("t.csv", b'text\n"never closed\n' + b"more\n" * 300_000, "field larger"),
        ("t.csv", b"text\n\xff\n", "line 2: the line is not UTF-8"),
        ("t.csv", b"text,unwanted\nx,maybe\n", "line 2: 'unwanted' must be true or false"),
        ("t.csv", b"text\n", "no rows"),
        ("t.parquet", b"PAR1" + b"\x7f" * 400 + b"PAR1", "not a readable Parquet"),
        ("t.parquet", table({"other": ["x"]}), "make no rows"),
        ("t.parquet", table({"text": [b"\xff"]}), "not UTF-8"),
        ("t.parquet", table({"text": ["x" * 2_000_000]}), "row 1: the row is longer"),
        ("t.parquet", table({"text": pyarrow.array([0] * 1_000_001, pyarrow.int8())}), "more than 1000000 rows"),
    ],
)
def test_a_table_that_cannot_be_read_fails_by_its_line(owner: Owner, name: str, content: bytes, what: str) -> None:
    report = owner.validated(content, name)
    assert report["status"] == "error"
    assert what in owner.get(f"/v1/files/{report['id']}")["status_details"]


def test_a_table_that_unfolds_to_more_than_an_upload_may_have_is_left_folded(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTSTORE_API__MAX_UPLOAD_BYTES", "10000000")
    get_settings.cache_clear()
    try:
        report = owner.validated(bomb(), "t.parquet")
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    assert "or 10000000 bytes" in owner.get(f"/v1/files/{report['id']}")["status_details"]


def test_a_child_that_wants_too_much_memory_ends_alone(tmp_path: Path) -> None:
    """The column is nested, so it cannot stay folded."""
    source = tmp_path / "t.parquet"
    options: dict[str, Any] = {"format": "parquet", "max_bytes": 10**9}
    work = Work(kind="convert", source=source, target=tmp_path / "rows", options=options, memory=400_000_000)
    source.write_bytes(table({"messages": [messages("a", "y" * 900_000)] * 2}, compression="zstd"))
    assert run_child(work)["rows"] == 2
    source.write_bytes(table({"messages": [messages("a", "y" * 900_000)] * 200}, compression="zstd"))
    with pytest.raises(WorkRefused, match="malloc of size"):
        run_child(work)


def test_a_second_message_leaves_a_table_to_the_worker_that_reads_it(owner: Owner) -> None:
    file_id = owner.upload(b"question,answer\nHow?,So.\n", "t.csv")["id"]
    with transaction() as tx:
        assert begin_validation(tx, file_id) is not None
    validate_file(file_id)
    assert owner.get(f"/v1/files/{file_id}")["status"] == "processing"


def test_who_was_overtaken_in_a_conversion_leaves_the_file_as_it_is(owner: Owner) -> None:
    file_id = owner.upload(b"question,answer\nHow?,So.\n", "t.csv")["id"]
    with transaction() as tx:
        slow = begin_validation(tx, file_id)
        base = find_base(tx, "tiny-llama")
    with transaction() as tx:
        tx.execute(update(File).where(File.id == file_id).values(lease_until=None))
    assert slow is not None
    validate_file(file_id)
    before = owner.get(f"/v1/files/{file_id}")
    table_bytes = uploads().put([b"question,answer\nHow?,So.\n"])
    assert slow.digest == table_bytes.digest
    assert check_file(slow, base) is None
    refuse(slow, "the table could not be read")
    assert owner.get(f"/v1/files/{file_id}") == before
    assert before["status"] == "processed"


def test_nobody_trains_on_a_table_before_it_is_rows(owner: Owner) -> None:
    file = owner.upload(b"question,answer\nHow?,So.\n", "t.csv")
    job = owner.post("/v1/fine_tuning/jobs", model="tiny-llama", training_file=file["id"])
    assert (job["code"], "table" in job["message"]) == ("invalid_training_file", True)
    assert json.dumps(job)

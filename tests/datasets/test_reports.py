"""A full report finds what it says it finds, keeps none of it, and a cleaning drops exactly that."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.database import transaction, utc_now
from app.files.reports import MAX_ATTEMPTS, resend_reports
from app.files.tables import FileReport
from tests.datasets.conftest import Json, Owner, chat, jsonl
from workers.datasets.task import ReportRunner, report_file

STORY = (
    "The quick brown fox jumps over the lazy dog and then runs back to the old mill near the river, "
    "where its cubs wait for the evening and for whatever the night may bring to such a small family."
)
# Put together here, so that nobody's scanner takes them for real ones.
TOKEN = "ghp_" + "a1B2" * 9
CARD = "4111 1111 " + "1111 1111"
ROWS = [
    chat("Tell me a story.", STORY),
    chat("Tell me a story.", STORY.upper()),
    chat("Tell me a story.", STORY.replace("river", "lake")),
    chat("How do I reach you?", "Write to jane.doe@acme.io or call +1 415 555 2671."),
    chat("How do I pay?", f"My card is {CARD}, thank you very much indeed."),
    chat("How do I deploy?", f"Run it with the token {TOKEN} and wait a minute."),
    chat("What do you think of it?", "Well, that is total bullsh1t if you ask me about it."),
    chat("Wie spät ist es gerade?", "Es ist schon wieder viel zu spät, wir sollten jetzt nach Hause gehen."),
    chat("What time is it now?", "It is twelve o'clock\u0007 already, so we should have our lunch."),
]


def found(report: Json) -> dict[str, list[int]]:
    return {code: each["lines"] for code, each in report["result"]["findings"].items()}


def test_a_full_report_finds_each_thing_in_its_line_and_repeats_none_of_it(owner: Owner) -> None:
    file = owner.upload(jsonl(*ROWS))
    report = owner.ask(file["id"], "reports")
    assert (report["status"], report["type"], report["result"]["rows"]) == ("succeeded", "report", len(ROWS))
    assert found(report) == {
        "duplicate": [2],
        "near_duplicate": [3],
        "personal_data": [4, 5],
        "secret": [6],
        "profanity": [7],
        "language:de": [8],
    }
    assert report["result"]["checks"]["personal_data"]["types"] == {"email": 1, "phone": 1, "credit_card": 1}
    assert report["result"]["checks"]["secrets"]["makers"] == {"GitHub Token": 1}
    for secret in ("jane.doe", "4111", TOKEN, "2671"):
        assert secret not in str(report)
    assert [each["id"] for each in owner.get(f"/v1/files/{file['id']}/reports")["data"]] == [report["id"]]


def test_only_the_checks_that_were_asked_for_are_made(owner: Owner) -> None:
    report = owner.ask(owner.upload(jsonl(*ROWS))["id"], "reports", checks=["secrets"])
    assert found(report) == {"secret": [6]}
    assert list(report["result"]["checks"]) == ["secrets"]


def test_what_looks_like_data_about_people_but_fails_its_checksum_is_none(owner: Owner) -> None:
    texts = [
        "card 4111 1111 1111 1112",
        "GB82 WEST 1234 5698 7654 33",
        "at 192.168.1.10",
        "me@example.com",
        "666-12-3456",
    ]
    report = owner.ask(
        owner.upload(jsonl(*({"text": each} for each in texts)))["id"], "reports", checks=["personal_data"]
    )
    assert found(report) == {}
    texts = ["GB82 WEST 1234 5698 7654 32", "at 8.8.8.8", "536-90-4399", "pay 1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2"]
    report = owner.ask(
        owner.upload(jsonl(*({"text": each} for each in texts)))["id"], "reports", checks=["personal_data"]
    )
    assert report["result"]["checks"]["personal_data"]["types"] == {
        "iban": 1,
        "ip_address": 1,
        "us_ssn": 1,
        "bitcoin_address": 1,
    }


def test_rows_that_the_held_out_file_has_too_are_leaks(owner: Owner) -> None:
    held_out = owner.upload(jsonl(*ROWS[:1], chat("What is the capital of France?", "It is Paris.")))
    training = jsonl(
        chat("Tell me a story.", STORY.lower()),
        chat("Tell me a tale.", STORY.replace("mill", "barn")),
        chat("what is the capital  of France?", "Paris, of course."),
        chat("What is the capital of Spain?", "Madrid."),
    )
    report = owner.ask(owner.upload(training)["id"], "reports", checks=[], against=held_out["id"])
    assert found(report) == {"leak": [1], "near_leak": [2], "leaked_question": [3]}


def test_classes_are_counted_where_answers_are_classes(owner: Owner) -> None:
    rows = [{"prompt": f"Is mail number {n} unwanted?", "completion": "spam" if n % 4 else "ham"} for n in range(40)]
    balance = owner.ask(owner.upload(jsonl(*rows))["id"], "reports", checks=["balance"])["result"]["checks"]["balance"]
    assert balance == {"classes": {"spam": 30, "ham": 10}, "distinct": 2, "largest_share": 0.75}
    talk = owner.ask(owner.upload(jsonl(*ROWS))["id"], "reports", checks=["balance"])
    assert talk["result"]["checks"]["balance"] == {"classes": None}


def test_a_cleaning_drops_what_its_rules_say_and_says_so(owner: Owner) -> None:
    broken = b'{"messages": [{"role": "robot", "content": "x"}]}\n'
    file = owner.upload(jsonl(*ROWS) + broken, "talks.jsonl")
    rules = ["near_duplicates", "personal_data", "secrets", "profanity", "control_characters"]
    cleaned = owner.ask(file["id"], "clean", rules=rules, language="en")
    assert {code: each["lines"] for code, each in cleaned["result"]["dropped"].items()} == {
        "duplicate": [2],
        "near_duplicate": [3],
        "personal_data": [4, 5],
        "secret": [6],
        "profanity": [7],
        "language:de": [8],
        "unknown_role": [10],
    }
    assert (cleaned["result"]["kept"], cleaned["result"]["mended"]) == (2, 1)
    mended = chat("What time is it now?", "It is twelve o'clock already, so we should have our lunch.")
    assert owner.content(cleaned["output_file"]) == [ROWS[0], mended]
    new = owner.get(f"/v1/files/{cleaned['output_file']}")
    assert (new["filename"], new["purpose"]) == ("talks-clean.jsonl", "fine-tune")
    assert len(owner.content(file["id"])) == len(ROWS) + 1


def test_a_cleaning_without_rules_drops_only_what_cannot_be_read(owner: Owner) -> None:
    content = jsonl({"text": "=cmd|' /C calc'!A0"}, {"text": "b"}) + b'{"text": ""}\n'
    cleaned = owner.ask(owner.upload(content)["id"], "clean")
    assert cleaned["result"]["dropped"] == {"empty_content": {"rows": 1, "lines": [3]}}
    assert owner.content(cleaned["output_file"]) == [{"text": "=cmd|' /C calc'!A0"}, {"text": "b"}]


def test_a_cleaning_that_would_leave_nothing_makes_no_file(owner: Owner) -> None:
    cleaned = owner.ask(owner.upload(jsonl({"text": f"key {TOKEN}"}))["id"], "clean", rules=["secrets"])
    assert (cleaned["status"], cleaned["error"], cleaned["output_file"]) == ("failed", "no row would be left", None)


@pytest.mark.parametrize(
    ("what", "body", "code"),
    [
        ("reports", {"checks": ["taste"]}, "invalid_value"),
        ("reports", {"checks": ["secrets"] * 21}, "invalid_value"),
        ("reports", {"sample": 1}, "unknown_parameter"),
        ("reports", {"against": "file-" + "0" * 26}, "not_found"),
        ("clean", {"rules": ["everything"]}, "invalid_value"),
        ("clean", {"rules": ["leakage"]}, "invalid_value"),
        ("clean", {"language": "English"}, "invalid_value"),
    ],
)
def test_a_wrong_wish_is_refused_by_name(owner: Owner, what: str, body: Json, code: str) -> None:
    file = owner.upload(jsonl({"text": "a"}))
    assert owner.post(f"/v1/files/{file['id']}/{what}", **body)["code"] == code


def test_an_account_has_three_unfinished_reports_at_most(owner: Owner) -> None:
    path = f"/v1/files/{owner.upload(jsonl({'text': 'a'}))['id']}/reports"
    answers = [owner.post(path, checks=[]) for _ in range(4)]
    assert [each.get("code") for each in answers] == [None, None, None, "rate_limit_exceeded"]
    report_file(answers[0]["id"])
    assert "id" in owner.post(path, checks=[])


def test_a_report_whose_worker_died_is_done_by_another_and_given_up_in_the_end(owner: Owner) -> None:
    file = owner.upload(jsonl({"text": "a"}))
    left = owner.post(f"/v1/files/{file['id']}/reports", checks=[])
    with transaction() as tx:
        died = {"status": "running", "attempts": 1, "lease_until": utc_now() - timedelta(seconds=1)}
        tx.execute(update(FileReport).where(FileReport.id == left["id"]).values(died))
        assert resend_reports(tx, utc_now() + timedelta(seconds=1)) >= 1
    report_file(left["id"])
    assert owner.get(f"/v1/files/{file['id']}/reports/{left['id']}")["status"] == "succeeded"
    fatal = owner.post(f"/v1/files/{file['id']}/reports", checks=[])
    with transaction() as tx:
        tx.execute(update(FileReport).where(FileReport.id == fatal["id"]).values(died | {"attempts": MAX_ATTEMPTS}))
    report_file(fatal["id"])
    given_up = owner.get(f"/v1/files/{file['id']}/reports/{fatal['id']}")
    assert (given_up["status"], given_up["error"]) == (
        "failed",
        "The file could not be read within this store's limits.",
    )


def test_a_worker_does_all_that_waits_one_by_one_and_gives_back_what_it_must_leave(owner: Owner) -> None:
    path = f"/v1/files/{owner.upload(jsonl({'text': 'a'}))['id']}/reports"
    with transaction() as tx:
        tx.execute(update(FileReport).values(status="failed"))  # what other tests left
    asked = [owner.post(path, checks=[])["id"] for _ in range(2)]
    ReportRunner().wake()
    assert {owner.get(f"{path}/{each}")["status"] for each in asked} == {"succeeded"}
    left = owner.post(path)["id"]
    shutdown = threading.Event()
    shutdown.set()
    report_file(left, shutdown)
    assert owner.get(f"{path}/{left}")["status"] == "queued"
    with transaction() as tx:
        assert tx.get_one(FileReport, left).attempts == 0
    report_file(left)
    assert owner.get(f"{path}/{left}")["status"] == "succeeded"


def test_a_file_deleted_meanwhile_ends_its_report(owner: Owner) -> None:
    file = owner.upload(jsonl({"text": "deleted before anybody looked"}))
    asked = owner.post(f"/v1/files/{file['id']}/reports")
    owner.http.delete(f"/v1/files/{file['id']}", headers=owner.signed.headers)
    report_file(asked["id"])
    with transaction() as tx:
        assert tx.get_one(FileReport, asked["id"]).error == "The file was deleted."

"""The pages of one's files: upload, report, cleaning; everything of a file is shown as text."""

import json
from typing import Any

import pytest

from app.database import transaction
from app.files.find import list_files
from app.files.reports import list_reports
from app.files.tables import File, FileReport
from tests.conftest import Base
from tests.web.conftest import Browser, Member
from tests.web.test_pages import HOSTILE, safe
from workers.datasets.task import report_file
from workers.fine_tuning.validate_file import validate_file

TALK = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello, you."}]}
ROWS = b"\n".join(json.dumps(TALK).encode() for _ in range(3))


def newest(browser: Browser) -> File:
    with transaction() as tx:
        return list_files(tx, browser.account_id, None, None, 1)[0]


def newest_report(file_id: str) -> FileReport:
    with transaction() as tx:
        return list_reports(tx, file_id)[0]


def uploaded(browser: Browser, content: bytes = ROWS, name: str = "talks.jsonl") -> Any:
    return browser.send("/files", "/files", files={"file": (name, content)})


def test_a_file_is_uploaded_looked_at_closely_cleaned_and_deleted(member: Member, base: Base) -> None:
    browser = member("files")
    answer = uploaded(browser)
    file = newest(browser)
    page = f"/files/{file.id}"
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert "this page reloads by itself" in browser.get(page).text
    validate_file(file.id)
    shown = browser.get(page).text
    assert "3 rows of kind chat" in shown
    assert "2 rows repeat another to the letter" in shown
    assert browser.send(page, f"{page}/reports").headers["location"] == page
    report_file(newest_report(file.id).id)
    assert "<td>duplicate</td>" in browser.get(page).text
    assert browser.send(page, f"{page}/clean", near_duplicates="yes", language="en").headers["location"] == page
    report_file(newest_report(file.id).id)
    shown = browser.get(page).text
    assert "1 rows kept" in shown
    assert f"/files/{newest_report(file.id).output_file_id}" in shown
    assert browser.send(page, f"{page}/delete").headers["location"] == "/files?done=deleted"
    assert browser.get(page).status_code == 404


def test_a_refusal_stands_on_the_page_it_came_from(member: Member, base: Base) -> None:
    browser = member("refused")
    refused = uploaded(browser, b'{"what": 1}')
    assert (refused.status_code, 'id="file-wrong"' in refused.text) == (400, True)
    assert uploaded(browser, b"a,b\n", "t.csv").status_code == 400
    uploaded(browser)
    file = newest(browser)
    validate_file(file.id)
    page = f"/files/{file.id}"
    nothing = browser.send(page, f"{page}/clean")
    assert (nothing.status_code, "Choose what to drop." in nothing.text) == (400, True)
    assert browser.send(page, f"{page}/clean", leakage="yes").status_code == 400
    assert browser.send(page, f"{page}/reports", against="file-" + "0" * 26).status_code == 404


def test_a_table_is_not_trained_on_from_the_form_of_a_job(member: Member, base: Base) -> None:
    browser = member("table")
    files = {"training_file": ("t.csv", b"text\na\n")}
    refused = browser.send("/jobs/new", "/jobs", files=files, model=base.id)
    assert (refused.status_code, "page of your files" in refused.text) == (400, True)


@pytest.mark.parametrize("name", [HOSTILE.replace("/", ""), "<b>.csv"])
def test_names_and_findings_are_shown_as_text(member: Member, base: Base, name: str) -> None:
    browser = member("hostile")
    answers = "\n".join(f'"{HOSTILE.replace(chr(34), chr(39))}",x' for _ in range(12))
    uploaded(browser, f"completion,prompt\n{answers}\n".encode() if name.endswith("csv") else ROWS, name)
    file = newest(browser)
    validate_file(file.id)
    page = f"/files/{file.id}"
    browser.send(page, f"{page}/reports")
    report_file(newest_report(file.id).id)
    assert safe(browser.get(page).text)
    assert safe(browser.get("/files").text)


def test_files_of_others_are_not_there(member: Member, base: Base) -> None:
    owner, stranger = member("owner"), member("stranger")
    uploaded(owner)
    page = f"/files/{newest(owner).id}"
    assert stranger.get(page).status_code == 404
    assert stranger.send("/files", f"{page}/delete").status_code == 404
    assert stranger.send("/files", f"{page}/clean", secrets="yes").status_code == 404
    assert owner.get(page).status_code == 200

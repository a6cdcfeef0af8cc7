"""The buttons of a job's page: pause, resume and cancel it; download what it made."""

import io
import zipfile

from app.database import transaction
from app.fine_tuning.tables import FineTuningJob
from tests.conftest import Base
from tests.factories import new_variant
from tests.web.conftest import Member
from tests.web.test_pages import running_job


def test_a_job_is_paused_resumed_and_cancelled_by_its_buttons(member: Member) -> None:
    owner = member("owner")
    with transaction() as tx:
        job = running_job(tx, owner.account_id)
        tx.get_one(FineTuningJob, job).status = "queued"
    page = f"/jobs/{job}"
    for action, status, offers in (
        ("pause", "paused", "resume"),
        ("resume", "queued", "pause"),
        ("cancel", "cancelled", ""),
    ):
        assert f'action="{page}/{action}"' in owner.get(page).text
        assert owner.send(page, f"{page}/{action}").status_code == 303
        shown = owner.get(page).text
        assert f">{status}<" in shown
        assert not offers or f'action="{page}/{offers}"' in shown
    assert member("stranger").send("/jobs", f"{page}/pause").status_code == 404


def test_the_model_is_downloaded_by_its_owner_only(member: Member, base: Base) -> None:
    owner = member("owner")
    with transaction() as tx:
        job = running_job(tx, owner.account_id)
        variant = new_variant(tx, owner.account_id, base.id)
        variant.digest = base.digest
        row = tx.get_one(FineTuningJob, job)
        row.status, row.variant_id = "succeeded", variant.id
    assert f'href="/jobs/{job}/download"' in owner.get(f"/jobs/{job}").text
    sent = owner.get(f"/jobs/{job}/download")
    assert "config.json" in zipfile.ZipFile(io.BytesIO(sent.content)).namelist()
    merging = owner.get(f"/jobs/{job}/download?merged=1")
    assert merging.status_code == 303
    assert "merging" in owner.get(merging.headers["location"]).text
    assert member("stranger").get(f"/jobs/{job}/download").status_code == 404

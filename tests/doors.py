"""Every door of the API: who may pass, what names things, and a request that passes. For isolation and fuzzing."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

from app.accounts.api_keys import create_key
from app.catalog.publish import change_listing
from app.catalog.schemas import ListingChange
from app.files.tables import File
from app.files.validation import finish_validation
from app.ids import new_id
from app.variants.bases import find_base
from tests.conftest import Signed
from tests.factories import listing_body, new_listing, new_member, new_variant

OPEN, ANY_KEY = "open", "any key"


@dataclass(frozen=True)
class Door:
    """Who passes: OPEN, ANY_KEY, or a scope. `ids`: the fields that name somebody's thing; `{name}` in `body` is
    replaced by the stranger's own or a public one of that name. `cursors`: query fields that take an id.
    """

    scope: str
    ids: tuple[str, ...] = ()
    body: dict[str, Any] | None = None
    cursors: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


CHAT = {"model": "{base}", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
JOB = {"model": "{base}", "training_file": "{training_file}"}
LISTING = ("handle", "name")
PRICES = listing_body("")["prices"]

DOORS: dict[tuple[str, str], Door] = {
    ("GET", "/healthz"): Door(OPEN),
    ("GET", "/readyz"): Door(OPEN),
    ("GET", "/metrics"): Door(OPEN),
    ("POST", "/v1/accounts"): Door(OPEN, body={}),
    ("POST", "/v1/sessions"): Door(OPEN, body={}),
    ("DELETE", "/v1/sessions"): Door(ANY_KEY),
    ("GET", "/v1/me"): Door(ANY_KEY),
    ("GET", "/v1/api_keys"): Door("keys"),
    ("POST", "/v1/api_keys"): Door("keys", body={"name": "x", "scopes": ["files"]}),
    ("DELETE", "/v1/api_keys/{key_id}"): Door("keys", ids=("key_id",)),
    ("POST", "/v1/files"): Door("files", files=("file",), body={"purpose": "user_data"}),
    ("GET", "/v1/files"): Door("files", cursors=("after:file",)),
    ("GET", "/v1/files/{file_id}"): Door("files", ids=("file_id",)),
    ("DELETE", "/v1/files/{file_id}"): Door("files", ids=("file_id",)),
    ("GET", "/v1/files/{file_id}/content"): Door("files", ids=("file_id",)),
    ("GET", "/v1/files/{file_id}/report"): Door("files", ids=("file_id",)),
    ("POST", "/v1/files/{file_id}/reports"): Door("files", ids=("file_id", "against"), body={}),
    ("GET", "/v1/files/{file_id}/reports"): Door("files", ids=("file_id",)),
    ("GET", "/v1/files/{file_id}/reports/{report_id}"): Door("files", ids=("file_id", "report_id")),
    ("POST", "/v1/files/{file_id}/clean"): Door("files", ids=("file_id", "against"), body={}),
    ("POST", "/v1/fine_tuning/jobs"): Door("fine_tuning", ids=("model", "training_file", "validation_file"), body=JOB),
    ("POST", "/v1/fine_tuning/estimate"): Door("fine_tuning", ids=("model", "training_file"), body=JOB),
    ("GET", "/v1/fine_tuning/jobs"): Door("fine_tuning", cursors=("after:ftjob",)),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): Door("fine_tuning", ids=("job_id",)),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): Door("fine_tuning", ids=("job_id",)),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"): Door("fine_tuning", ids=("job_id",)),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"): Door("fine_tuning", ids=("job_id",)),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): Door("fine_tuning", ids=("job_id",)),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): Door("fine_tuning", ids=("job_id",)),
    ("POST", "/v1/artifacts"): Door(
        "models", files=("adapter_model.safetensors", "adapter_config.json"), body={"base_model": "{base}"}
    ),
    ("GET", "/v1/artifacts/{model}/content"): Door("models", ids=("model",)),
    ("GET", "/v1/listings"): Door(OPEN),
    ("POST", "/v1/listings"): Door("listings", ids=("model",), body=listing_body("{model}")),
    ("GET", "/v1/categories"): Door(OPEN),
    ("GET", "/v1/listings/{handle}/{name}"): Door(OPEN, ids=LISTING),
    ("PATCH", "/v1/listings/{handle}/{name}"): Door("listings", ids=LISTING, body={"title": "x"}),
    ("DELETE", "/v1/listings/{handle}/{name}"): Door("listings", ids=LISTING),
    ("GET", "/v1/listings/{handle}/{name}/versions"): Door(OPEN, ids=LISTING),
    ("POST", "/v1/listings/{handle}/{name}/versions"): Door(
        "listings", ids=(*LISTING, "model"), body={"model": "{model}"}
    ),
    ("GET", "/v1/listings/{handle}/{name}/prices"): Door(OPEN, ids=LISTING),
    ("POST", "/v1/listings/{handle}/{name}/prices"): Door("listings", ids=LISTING, body=PRICES),
    ("GET", "/v1/listings/{handle}/{name}/reviews"): Door(OPEN, ids=LISTING),
    ("POST", "/v1/listings/{handle}/{name}/reviews"): Door("reviews", ids=LISTING, body={"rating": 5}),
    ("POST", "/v1/purchases"): Door("purchases", ids=("listing",), body={"listing": "{listing}"}),
    ("GET", "/v1/purchases"): Door("purchases", cursors=("after:pur",)),
    ("GET", "/v1/purchases/{purchase_id}"): Door("purchases", ids=("purchase_id",)),
    ("GET", "/v1/wallet"): Door("wallet"),
    ("GET", "/v1/wallet/entries"): Door("wallet", cursors=("after:entry",)),
    ("POST", "/v1/wallet/top_ups"): Door("wallet", body={"amount_micros": 1}),
    ("GET", "/v1/usage"): Door("wallet"),
    ("GET", "/v1/earnings"): Door("wallet"),
    ("GET", "/v1/models"): Door("models"),
    ("GET", "/v1/models/{model}"): Door("models", ids=("model", "listing")),
    ("DELETE", "/v1/models/{model}"): Door("models", ids=("model",)),
    ("POST", "/v1/chat/completions"): Door("inference", ids=("model", "listing"), body=CHAT),
    ("POST", "/v1/completions"): Door(
        "inference", ids=("model",), body={"model": "{base}", "prompt": "Hi", "max_tokens": 1}
    ),
}


@dataclass(frozen=True)
class World:
    """An owner with one of everything, and a stranger with their own. `theirs`, `own`, `random`: values by field."""

    client: Any
    secret: str
    owner: Signed
    stranger: Signed
    theirs: dict[str, str]
    own: dict[str, str]
    random: dict[str, str]

    def send(self, door: tuple[str, str], key: str | None, changed: dict[str, str] | None = None) -> Any:
        """As a caller with `key`; fields of `changed` name another thing than the caller's own."""
        method, path = door
        names = self.own | (changed or {})
        headers = {"authorization": f"Bearer {key}"} if key else {}
        filled = path.format_map(names)
        what = DOORS[door]
        body = None if what.body is None else fill(what.body, names)
        for name in changed or {}:
            if body is not None and name in what.ids and f"{{{name}}}" not in path:
                body["model" if name == "listing" and "model" in body else name] = names[name]
        if what.files:
            files = {name: (name, b"x") for name in what.files}
            return self.client.request(method, filled, headers=headers, data=body, files=files)
        return self.client.request(method, filled, headers=headers, json=body)


def fill(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: fill(each, names) for name, each in value.items()}
    return value.format_map(names) if isinstance(value, str) else value


def make_world(client: Any, base_id: str) -> World:
    """`client`: httpx's, or Starlette's for tests in this process. Rows are made through this process's settings."""
    from app.database import transaction

    secret = f"sesame{secrets.token_hex(6)}"
    with transaction() as tx:
        owner, stranger, seller = (new_member(tx) for _ in range(3))
        owned = new_listing(tx, owner.account_id, title=secret, system_prompt=secret)
        change_listing(tx, owned, ListingChange(visibility="private"))
        variants = {each: new_variant(tx, each.account_id, base_id) for each in (owner, stranger)}
        for variant in variants.values():
            variant.digest = find_base(tx, base_id).digest or ""
        spare = new_listing(tx, stranger.account_id)
        sold = new_listing(tx, seller.account_id, access=1)
        sold_name = f"{seller.handle}/{sold.name}"
        named_key, _ = create_key(tx, owner.account_id, secret, ["files"])
    theirs = {
        "key_id": named_key.id,
        "file_id": upload(client, owner, secret),
        "model": variants[owner].model,
        "handle": owner.handle,
        "name": owned.name,
        "listing": f"{owner.handle}/{owned.name}",
        "purchase_id": bought(client, owner, sold_name),
    }
    theirs["training_file"] = theirs["validation_file"] = theirs["against"] = theirs["file_id"]
    theirs["report_id"] = reported(client, owner, theirs["file_id"])
    theirs["job_id"] = trained(client, owner, base_id, theirs["file_id"], secret)
    training = upload(client, stranger, "plain")
    own = {
        "base": base_id,
        "training_file": training,
        "file_id": training,
        "model": variants[stranger].model,
        "handle": stranger.handle,
        "name": spare.name,
        "listing": sold_name,
        "key_id": new_id("key"),
        "job_id": new_id("ftjob"),
        "report_id": new_id("report"),
        "purchase_id": new_id("pur"),
    }
    random = {
        "key_id": new_id("key"),
        "file_id": new_id("file"),
        "training_file": new_id("file"),
        "validation_file": new_id("file"),
        "against": new_id("file"),
        "report_id": new_id("report"),
        "job_id": new_id("ftjob"),
        "purchase_id": new_id("pur"),
        "model": theirs["model"][:-8] + secrets.token_hex(4),
        "handle": f"acct-{secrets.token_hex(6)}",
        "name": f"bot-{secrets.token_hex(4)}",
        "listing": f"{owner.handle}/bot-{secrets.token_hex(4)}",
    }
    return World(client, secret, owner, stranger, theirs, own, random)


def upload(client: Any, owner: Signed, word: str) -> str:
    row = {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word}]}
    files = {"file": (f"{word}.jsonl", json.dumps(row).encode())}
    answer = client.post("/v1/files", headers=owner.headers, data={"purpose": "fine-tune"}, files=files)
    return str(answer.json()["id"])


def reported(client: Any, owner: Signed, file_id: str) -> str:
    return str(client.post(f"/v1/files/{file_id}/reports", headers=owner.headers, json={}).json()["id"])


def bought(client: Any, buyer: Signed, listing: str) -> str:
    return str(client.post("/v1/purchases", headers=buyer.headers, json={"listing": listing}).json()["id"])


def trained(client: Any, owner: Signed, base_id: str, file_id: str, suffix: str) -> str:
    from app.database import transaction

    with transaction() as tx:
        finish_validation(tx, tx.get_one(File, file_id), {"rows": 1, "tokens": 8, "problems": []}, None)
    body = {"model": base_id, "training_file": file_id, "suffix": suffix, "metadata": {"what": suffix}}
    return str(client.post("/v1/fine_tuning/jobs", headers=owner.headers, json=body).json()["id"])

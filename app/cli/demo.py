"""`gptstore demo`: the whole loop against a running store, on real data, with nothing prepared.

A seller trains and publishes; a buyer finds, buys and calls; the wallets and their entries explain every micro.
"""

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.cli.client import entries_table, wait_checked
from app.cli.demo_data import SYSTEM, DemoData, tech_support
from app.cli.job_progress import watch_job
from app.cli.store_client import Json, Refused, StoreClient
from app.dollars import usd

BASE = "smollm2-135m-instruct"
ROWS = 320
PRICES = {
    "access_micros": 500_000,
    "input_micros_per_million_tokens": 100_000,
    "output_micros_per_million_tokens": 400_000,
}
ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Person:
    """A demo account: its client, and what to tell the user."""

    handle: str
    client: StoreClient

    def balance(self) -> int:
        return int(self.client.get("/v1/wallet")["available_micros"])


def run_demo(url: str, remember: Path | None, console: Console) -> None:
    """Play once per `remember` file; afterwards only print what to try."""
    if remember is not None and remember.exists():
        told: Json = json.loads(remember.read_text())
    else:
        told = play(url, console)
        if remember is not None:
            remember.touch(mode=0o600)
            remember.write_text(json.dumps(told))
    console.print(what_to_try(url, told), soft_wrap=True, markup=False, highlight=False)


def play(url: str, console: Console) -> Json:
    """The loop. Returns the keys and names that the user can go on with."""
    started = time.monotonic()
    with step(console, f"a. base model {BASE}"):
        wait_for_base(StoreClient(url), console)
    seller, buyer = sign_up(url, "seller"), sign_up(url, "buyer")
    before = {person.handle: person.balance() for person in (seller, buyer)}
    with step(console, f"b. {seller.handle} trains a tech-support model"):
        data = tech_support(ROWS)
        model = train(seller, data, console)
    with step(console, f"c. {seller.handle} publishes, {buyer.handle} finds, buys and calls"):
        listing = publish(seller, model, console)
        find_and_buy(buyer, listing, console)
        answer = stream_answer(buyer, listing, data.question, console)
    with step(console, "d. base and fine-tune side by side, and the money"):
        side_by_side(buyer, listing, data, answer, console)
        for person in (seller, buyer):
            explain_wallet(person, before[person.handle], console)
    console.print(f"[green]The loop is closed[/green] after {time.monotonic() - started:.0f} s.")
    return {"seller": seller.client.key, "buyer": buyer.client.key, "listing": listing, "question": data.question}


@contextmanager
def step(console: Console, title: str) -> Iterator[None]:
    started = time.monotonic()
    console.rule(f"[bold]{title}", align="left")
    yield
    console.print(f"  [dim]{time.monotonic() - started:.1f} s[/dim]")


def sign_up(url: str, role: str) -> Person:
    handle = f"demo-{role}-{secrets.token_hex(3)}"
    password = secrets.token_urlsafe(16)
    body = {"email": f"{handle}@example.com", "password": password, "handle": handle}
    joined = StoreClient(url).post("/v1/accounts", body)
    return Person(handle, StoreClient(url, joined["api_key"]["secret"]))


def wait_for_base(client: StoreClient, console: Console) -> None:
    """Its import runs in a worker; the store serves the base once a generation worker has loaded it."""
    with console.status("importing from its wheel …"):
        while not any(worker["kind"] == "generation" for worker in client.get("/readyz")["workers"]):
            time.sleep(0.3)
    console.print("  in the registry, and a generation worker holds it")


def train(seller: Person, data: DemoData, console: Console) -> str:
    """Upload, validate, fine-tune; prints the report, the loss and the held-out losses. Returns the model's name."""
    openai = seller.client.openai
    console.print(f"  {data.rows} rows of {data.questions} questions; {data.held_out_questions} questions held out")
    training = openai.files.create(file=("tech_support.jsonl", data.training), purpose="fine-tune")
    held_out = openai.files.create(file=("held_out.jsonl", data.held_out), purpose="fine-tune")
    while openai.files.retrieve(training.id).status not in ("processed", "error"):
        time.sleep(0.2)
    report = seller.client.get(f"/v1/files/{training.id}/report")["report"]
    console.print(
        f"  report: {report['rows']} rows, {report['tokens']} tokens, "
        f"{report['problem_count'] - report['duplicates']} errors, {report['duplicates']} repeated rows"
    )
    job = openai.fine_tuning.jobs.create(
        model=BASE,
        training_file=training.id,
        validation_file=held_out.id,
        suffix="tech-support",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 16}}},
    )
    job = watch_job(openai, job.id, console)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        raise Refused(f"the job ended {job.status}: {job.error.message if job.error else ''}")
    console.print(f"  {held_out_line(seller.client, job.id)}")
    console.print(f"  [bold]{job.fine_tuned_model}[/bold]")
    return job.fine_tuned_model


def held_out_line(client: StoreClient, job_id: str) -> str:
    """The model's full validation loss beside the base's own."""
    found = client.get(f"/v1/fine_tuning/jobs/{job_id}")["evaluation"]
    return f"held-out loss: base {found['before']['loss']:.3f} → fine-tuned {found['after']['loss']:.3f}"


def publish(seller: Person, model: str, console: Console) -> str:
    body: Json = {
        "name": "tech-support",
        "title": "Tech support in one line",
        "summary": "Short answers to everyday computer trouble.",
        "description": "A LoRA fine-tune of SmolLM2-135M on the tech-support dialogues of chatterbot-corpus (BSD-3).",
        "category": "customer-service",
        "tags": ["support", "helpdesk"],
        "license": "apache-2.0",
        "model": model,
        "system_prompt": SYSTEM,
        "starters": ["My printer is not printing.", "My laptop screen is black."],
        "prices": PRICES,
    }
    listing = wait_checked(seller.client, seller.client.post("/v1/listings", body))
    if listing["status"] != "published":
        raise Refused(f"the listing was {listing['status']}: {' '.join(listing['reasons'])}")
    console.print(f"  published [bold]{listing['model']}[/bold] for {usd(PRICES['access_micros'])} after its check")
    return str(listing["model"])


def find_and_buy(buyer: Person, listing: str, console: Console) -> None:
    query = "computer trouble helpdesk"
    found = [row["model"] for row in buyer.client.get("/v1/listings", q=query, sort="newest")["data"]]
    if listing not in found:
        raise Refused(f"the search for {query!r} did not find {listing}")
    purchase = buyer.client.post(
        "/v1/purchases",
        {"listing": listing, "plan": "access", "expected_price_micros": PRICES["access_micros"]},
        idempotency_key=secrets.token_hex(8),
    )
    console.print(f"  found by “{query}” among {len(found)}; bought for {usd(purchase['amount_micros'])}")


def stream_answer(buyer: Person, listing: str, question: str, console: Console) -> str:
    """With the official `openai` package, streamed; prints as it comes."""
    console.print(f"  > {question}")
    answer = ""
    started, first = time.monotonic(), 0.0
    stream = buyer.client.openai.chat.completions.create(
        model=listing,
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        max_tokens=ANSWER_TOKENS,
    )
    console.print("  ", end="")
    for chunk in stream:
        piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
        first = first or (time.monotonic() - started if piece else 0.0)
        answer += piece
        console.print(piece, end="", markup=False, highlight=False)
        usage = chunk.usage
    console.print()
    if usage is not None:
        console.print(
            f"  [dim]first token after {first * 1000:.0f} ms; "
            f"{usage.prompt_tokens} + {usage.completion_tokens} tokens[/dim]"
        )
    return answer


def side_by_side(buyer: Person, listing: str, data: DemoData, answer: str, console: Console) -> None:
    plain = buyer.client.openai.chat.completions.create(
        model=BASE,
        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": data.question}],
        temperature=0,
        max_tokens=ANSWER_TOKENS,
    )
    table = Table("", "answer to a question neither has seen in training", show_lines=True)
    table.add_row("question", data.question)
    table.add_row(BASE, (plain.choices[0].message.content or "").strip())
    table.add_row(listing, answer.strip())
    table.add_row("corpus", data.answer)
    console.print(table)


def explain_wallet(person: Person, before: int, console: Console) -> None:
    """Every micro of the difference is one of these entries."""
    after = person.balance()
    rows = person.client.get("/v1/wallet/entries", limit=100)["data"]
    earned = person.client.get("/v1/earnings")
    console.print(f"  [bold]{person.handle}[/bold]: wallet {before:,} → {after:,} micros")
    if earned["balance_micros"]:
        parts = ", ".join(f"{kind} {micros:,}" for kind, micros in earned["by_kind"].items())
        console.print(f"  earned {earned['balance_micros']:,} micros after the store's share: {parts}")
    console.print(entries_table(rows))


def what_to_try(url: str, told: Json) -> str:
    """Ready to copy: nothing is wrapped or framed."""
    body = json.dumps({"model": told["listing"], "messages": [{"role": "user", "content": told["question"]}]})
    return f"""
Your store is open at {url}

seller's key  {told["seller"]}
buyer's key   {told["buyer"]}

Try:

curl {url}/v1/chat/completions -H 'content-type: application/json' \\
  -H 'authorization: Bearer {told["buyer"]}' -d '{body}'

GPTSTORE_URL={url} GPTSTORE_API_KEY={told["buyer"]} \\
  .venv/bin/gptstore chat {told["listing"]} '{told["question"]}'

.venv/bin/python -c '
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{told["buyer"]}")
question = {{"role": "user", "content": "{told["question"]}"}}
answer = client.chat.completions.create(model="{told["listing"]}", messages=[question])
print(answer.choices[0].message.content)'
"""

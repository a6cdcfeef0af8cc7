// The try-it chat: streams an answer, can be stopped, says in words what went wrong and what it cost.
import { events } from "./sse.js";

// In tokens: a model that finds no end would write until its context is full.
const LONGEST_ANSWER = 400;

for (const chat of document.querySelectorAll("[data-chat]")) start(chat);

function start(chat) {
  const find = (name) => chat.querySelector(`[data-${name}]`);
  const [form, talk, status, stop, send] = ["ask", "talk", "status", "stop", "send"].map(find);
  const question = form.querySelector("textarea");
  const messages = [];
  let leaving = null;

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!leaving && question.value.trim()) ask(question.value.trim());
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stop.addEventListener("click", () => leaving?.abort());
  find("starters")?.addEventListener("click", (event) => {
    if (event.target.closest("button") && !leaving) ask(event.target.textContent);
  });

  async function ask(text) {
    question.value = "";
    messages.push({ role: "user", content: text });
    say("user", text);
    const bubble = say("assistant", "");
    busy(true, bubble);
    tell("Thinking …");
    let usage = null;
    let failure = null;
    try {
      for await (const chunk of await stream()) {
        if (chunk.error) throw new Error(chunk.error.message);
        const piece = chunk.choices[0]?.delta.content ?? "";
        if (piece) (tell("Writing …"), grow(bubble, piece));
        usage = chunk.usage ?? usage;
      }
    } catch (error) {
      failure = leaving.signal.aborted ? "Stopped." : inWords(error);
      tell(failure, !leaving.signal.aborted);
    }
    busy(false, bubble);
    if (!failure) tell(usage ? bill(usage) : "The connection ended before the answer did.", !usage);
    // A turn without an answer is taken back, so that the next question starts from what was said.
    if (bubble.textContent) messages.push({ role: "assistant", content: bubble.textContent });
    else (bubble.remove(), messages.pop());
    question.focus();
  }

  async function stream() {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": chat.dataset.csrf },
      body: JSON.stringify({
        model: chat.dataset.model,
        messages,
        max_tokens: LONGEST_ANSWER,
        stream: true,
        stream_options: { include_usage: true },
      }),
      signal: leaving.signal,
    });
    if (response.ok) return events(response);
    const refusal = (await response.json().catch(() => null))?.error.message ?? `The store answered ${response.status}.`;
    throw new Error(refusal.replace(/\b(\d+) micros\b/g, (_, micros) => usd(Number(micros))));
  }

  function bill(usage) {
    const price = (side) => Number(chat.dataset[`${side}Price`]);
    const micros = Math.ceil((usage.prompt_tokens * price("input") + usage.completion_tokens * price("output")) / 1e6);
    return `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out: ${usd(micros)}`;
  }

  function say(role, text) {
    const bubble = document.createElement("p");
    bubble.className = `said ${role}`;
    bubble.textContent = text;
    talk.hidden = false;
    talk.append(bubble);
    talk.scrollTop = talk.scrollHeight;
    return bubble;
  }

  function grow(bubble, piece) {
    const following = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
    bubble.append(piece);
    if (following) talk.scrollTop = talk.scrollHeight;
  }

  function busy(on, bubble) {
    if (on) leaving = new AbortController();
    else leaving = null;
    stop.hidden = !on;
    send.disabled = on;
    bubble.classList.toggle("busy", on);
    talk.setAttribute("aria-busy", String(on));
  }

  function tell(text, failed = false) {
    status.textContent = text;
    status.classList.toggle("failed", failed);
  }
}

function usd(micros) {
  return `$${(micros / 1e6).toFixed(6).replace(/(\.\d\d\d*?)0+$/, "$1")}`;
}

function inWords(error) {
  return error instanceof TypeError ? "The connection was lost. Try again." : error.message;
}

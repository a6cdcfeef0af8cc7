// A running job's page: the store draws the curve, this asks for it again until the job has ended.
const place = document.querySelector("[data-progress]");
const PERIOD = 1000;

async function refresh() {
  if (document.visibilityState === "hidden") return setTimeout(refresh, PERIOD);
  try {
    const response = await fetch(place.dataset.progress, { headers: { accept: "text/html" } });
    if (response.redirected || response.status === 404) return location.reload();
    if (response.ok) {
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector(".progress");
      place.replaceChildren(fresh);
      if (fresh.dataset.open === "no") return location.reload();
    }
  } catch {
    // The store may be restarting; the next look tells.
  }
  setTimeout(refresh, PERIOD);
}

setTimeout(refresh, PERIOD);

// Reading works without this file. It adds the keys ("/" search, j and k rows, Enter
// opens), the live log, and the state of a build as it changes.
"use strict";
const rows = () => Array.from(document.querySelectorAll("main tbody tr"));
let at = -1;
addEventListener("keydown", (e) => {
  if (e.target.matches("input, textarea, select") || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "/") {
    const s = document.querySelector("input[type=search]");
    if (s) { s.focus(); s.select(); e.preventDefault(); }
  } else if (e.key === "j" || e.key === "k") {
    const r = rows();
    if (!r.length) return;
    r[at]?.classList.remove("at");
    at = Math.max(0, Math.min(r.length - 1, at + (e.key === "j" ? 1 : -1)));
    r[at].classList.add("at");
    r[at].querySelector("a")?.focus({ preventScroll: true });
    r[at].scrollIntoView({ block: "nearest" });
  } else if (e.key === "Enter" && at >= 0 && !e.target.matches("a, button, summary")) {
    rows()[at]?.querySelector("a")?.click();
  }
});

// A log goes on where the page's own text ends, and stays at its end unless the reader has
// scrolled away.
async function follow(pre) {
  pre.scrollTop = pre.scrollHeight;
  const resp = await fetch(pre.dataset.log, { headers: { Accept: "text/plain" } });
  if (!resp.ok || !resp.body) return;
  const rd = resp.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await rd.read();
    if (done) return;
    const end = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
    pre.append(value);
    if (end) pre.scrollTop = pre.scrollHeight;
  }
}

// data-wait is an address that answers when the page's data has changed. Then the page is
// read again and its parts marked data-part take the place of the old ones, except a log
// that is already being followed.
const followed = new Set();
function logs() {
  for (const pre of document.querySelectorAll("pre[data-log]")) {
    const key = pre.dataset.log.split("?")[0];
    if (followed.has(key)) continue;
    followed.add(key);
    follow(pre).catch(() => {}); // the connection ended; the text so far stays
  }
}
async function watch() {
  for (let wait; (wait = document.querySelector("[data-wait]")?.dataset.wait);) {
    const resp = await fetch(wait);
    if (!resp.ok) return;
    const page = new DOMParser().parseFromString(await (await fetch(location.href, { headers: { Accept: "text/html" } })).text(), "text/html");
    for (const now of page.querySelectorAll("[data-part]")) {
      const old = document.querySelector(`[data-part="${CSS.escape(now.dataset.part)}"]`);
      if (!old) continue;
      for (const pre of now.querySelectorAll("pre[data-log]")) {
        const same = Array.from(old.querySelectorAll("pre[data-log]")).find((p) => p.dataset.log.split("?")[0] === pre.dataset.log.split("?")[0]);
        if (same) pre.replaceWith(same);
      }
      old.replaceWith(now);
    }
    logs();
  }
}
logs();
watch().catch(() => {}); // the server went away: the page stays as it was

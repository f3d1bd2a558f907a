// Reading works without this file. It adds the keys ("/" search, j and k rows, Enter
// opens) and the live log.
"use strict";
const rows = () => Array.from(document.querySelectorAll("main tbody tr"));
let at = -1;
addEventListener("keydown", (e) => {
  if (e.target.matches("input, textarea, select") || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "/") {
    const s = document.querySelector("input[type=search]");
    if (s) { s.focus(); e.preventDefault(); }
  } else if (e.key === "j" || e.key === "k") {
    const r = rows();
    if (!r.length) return;
    r[at]?.classList.remove("at");
    at = Math.max(0, Math.min(r.length - 1, at + (e.key === "j" ? 1 : -1)));
    r[at].classList.add("at");
    r[at].scrollIntoView({ block: "nearest" });
  } else if (e.key === "Enter" && at >= 0) {
    rows()[at]?.querySelector("a")?.click();
  }
});
for (const pre of document.querySelectorAll("pre[data-log]")) {
  (async () => {
    const resp = await fetch(pre.dataset.log, { headers: { Accept: "text/plain" } });
    if (!resp.ok || !resp.body) return;
    pre.textContent = "";
    const rd = resp.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await rd.read();
      if (done) break;
      const end = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
      pre.append(value);
      if (end) pre.scrollTop = pre.scrollHeight;
    }
    if (pre.dataset.reload) location.reload();
  })();
}

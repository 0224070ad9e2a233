// The connection to the process: sections as they change, the log, and how the connection is.

import { by, clock, day, h } from "./dom.js";

const MOST_LINES = 300;
let offset = 0;

/** Seconds since the epoch, by the clock of the process. */
export const now = () => Date.now() / 1000 + offset;

/** Follow `/events`: `on[section](value)` is called with each section that comes; `on.link(up)` when that changes. */
export function follow(on) {
  const source = new EventSource("/events");
  let up = null;
  const link = (is) => {
    if (is !== up) {
      up = is;
      const pill = by("link");
      pill.className = `pill ${is ? "good" : "bad"}`;
      pill.textContent = is ? "Live" : "Not connected, trying again";
      document.body.classList.toggle("stale", !is);
      on.link?.(is);
    }
  };
  source.addEventListener("clock", (event) => {
    offset = JSON.parse(event.data) - Date.now() / 1000;
    link(true);
  });
  source.addEventListener("log", (event) => log(JSON.parse(event.data)));
  for (const name of Object.keys(on))
    if (name !== "link") source.addEventListener(name, (event) => on[name](JSON.parse(event.data)));
  source.addEventListener("error", async () => {
    link(false);
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    setTimeout(() => follow(on), 2000);
    const answer = await fetch("/", { method: "HEAD" }).catch(() => null);
    if (answer?.status === 401) location.assign("/login");
  });
}

function log({ anew, lines }) {
  const list = by("log-lines");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  if (anew) list.replaceChildren();
  for (const line of lines) {
    const said = line.text.split("\n");
    list.append(
      h("li", { class: TROUBLE.has(line.kind) ? "bad" : null },
        h("time", { datetime: new Date(line.at * 1000).toISOString(), title: `${day(line.at)} ${clock(line.at)}` }, clock(line.at)),
        h("span", {}, said.map((part, index) => (index ? [h("br"), part] : part)))));
  }
  while (list.children.length > MOST_LINES) list.firstChild.remove();
  if (anew || atEnd) list.scrollTop = list.scrollHeight;
}

const TROUBLE = new Set(
  ("site_refused site_lost site_late run_ended registry_away not_indexed quorum_missing figures_missing evaluation_missing " +
    "checkpoint_damaged journal_damaged combiner_replaced cluster_lost order_failed training_failed training_lost refused " +
    "coordinator_away carried_lost").split(" "));

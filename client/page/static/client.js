// The hospital's page: what comes from the agent's `/events` is turned into elements here.

import { lines, whenResized } from "./charts.js";
import { ask, by, bytes, figure, h, moment, n, plural, post, seconds, show, table } from "./dom.js";
import { follow } from "./live.js";

const CONNECTION = {
  starts: ["quiet", "The agent starts."],
  waiting: ["busy", "The coordinator cannot be reached yet; the agent waits for it."],
  joined: ["good", ""],
  away: ["bad", "The coordinator is away; the agent tries again."],
  stopping: ["busy", "The agent stops: what is in hand is finished first."],
};
const known = { about: null, work: null, rounds: [], left: null };

function drawLead() {
  const { about, work } = known;
  if (!about) return;
  document.title = `${about.site} · fedpath hospital`;
  show(by("title"), `Hospital ${about.site}`);
  const [, said] = CONNECTION[about.connection];
  const text = said || (work ? `${work.says}${work.says.endsWith(".") ? "" : "."}` : "");
  if (by("headline").textContent !== text) show(by("headline"), text);
  show(by("notes"),
    about.federation && h("p", { class: "small" }, `Federation ${about.federation}; the only connection goes out to ${about.address}.`),
    about.reason && h("p", { class: "note" }, about.reason),
    work?.trouble && h("p", { class: "note bad" }, work.trouble));
  by("stop").toggleAttribute("disabled", about.connection === "stopping");
}

function drawWork() {
  const { work } = known;
  if (!work) return;
  const amount = (count) => (work.unit === "bytes" ? bytes(count) : `${count} ${work.unit}`);
  const whole = work.total !== null && work.total > 0;
  show(by("work-now"),
    h("p", {}, work.says, work.run && h("span", { class: "small" }, `, for run ${work.run}`), work.since && [" ", h("span", { class: "small" }, "since ", moment(work.since))]),
    whole && h("p", {}, h("progress", { max: work.total, value: work.done, "aria-label": work.says }),
      h("span", { class: "small" }, ` ${amount(work.done)} of ${amount(work.total)}`, work.loss !== null && work.loss !== undefined && `, loss ${figure(work.loss)}`)));
}

function drawCurves() {
  const { rounds } = known, room = by("work-curves").clientWidth;
  const width = room >= 760 ? (room - 40) / 2 : room;
  const points = (key, before) => rounds.map((round) => [round.round - before, round[key]]).filter(([, y]) => y !== null);
  show(by("work-curves"),
    lines({ id: "auc", title: "Validation AUC here", x: "round", width, share: true, series: [{ name: "this hospital", index: 0, points: points("auc", 1) }], says: "Of the federation's model after each round, on this hospital's own validation patients; round 0 is the model before training." }),
    lines({ id: "loss", title: "Training loss here", x: "round", width, series: [{ name: "this hospital", index: 1, points: points("loss", 0) }], says: rounds.length ? `On this hospital's own training patients; the last round took ${seconds(rounds.at(-1).seconds ?? 0)}.` : "" }));
}

function drawLeft() {
  const { left } = known;
  if (!left) return;
  show(by("left-sums"),
    left.broken
      ? h("p", { class: "note bad", role: "alert" }, `The audit log was changed or damaged. ${left.broken}`)
      : h("p", { class: "figures" }, h("strong", {}, left.messages.toLocaleString("en")), ` ${left.messages === 1 ? "message" : "messages"} and files, `, h("strong", {}, bytes(left.bytes)), " in all. The log's chain is whole."),
    left.kinds.length > 0 && h("div", { class: "narrow" }, table("By kind", ["Kind", { text: "Messages", class: "n" }, { text: "Bytes", class: "n" }],
      left.kinds.map((of) => h("tr", {}, h("th", { scope: "row" }, of.kind), n(of.messages), n(bytes(of.bytes)))))));
  show(by("left-lines"), left.last.length > 0 && table(`The last ${plural(left.last.length, "line")} of the audit log, the latest first`,
    [{ text: "No.", class: "n" }, "When", "What left", "Run", { text: "Round", class: "n" }, { text: "Bytes", class: "n" }, "SHA-256"],
    left.last.map((line) => h("tr", { "data-key": line.number }, h("th", { scope: "row", class: "n" }, line.number),
      h("td", { class: "whole" }, moment(Date.parse(line.at) / 1000)),
      h("td", { class: "wide" }, h("span", {}, line.kind), h("span", { class: "small" }, `: ${line.holds}`)),
      h("td", { class: "whole" }, line.run), n(line.round || "–"), n(line.size.toLocaleString("en")), h("td", {}, h("code", { class: "whole", title: line.sha256 }, line.sha256.slice(0, 12)))))));
}

by("stop").addEventListener("click", async () => {
  if (!(await ask("Stop this agent?", "What is in hand is finished first, then the agent ends and this hospital leaves the federation until it is started again.", "Stop it"))) return;
  try {
    show(by("stop-said"), (await post("/api/stop")).says);
  } catch (error) {
    show(by("stop-said"), h("span", { class: "bad" }, error.message));
  }
});

const take = (name, ...draw) => (value) => {
  known[name] = value;
  draw.forEach((one) => one());
};
follow({
  about: take("about", drawLead),
  work: take("work", drawLead, drawWork),
  rounds: take("rounds", drawCurves),
  left: take("left", drawLeft),
  link: (up) => {
    if (!up && known.about?.connection === "stopping") show(by("headline"), "The agent has ended.");
  },
});
whenResized(by("work-curves"), drawCurves);

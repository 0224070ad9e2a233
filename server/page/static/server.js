// The coordinator's page: what comes from `/events` and `/api` is turned into elements here.

import { bar, colour, dot, lines, timeline, whenResized } from "./charts.js";
import { ask, by, bytes, cells, figure, get, h, listed, moment, n, plural, post, seconds, show, table } from "./dom.js";
import { follow, now } from "./live.js";

const WORDS = {
  unknown: "not heard of yet", here: "connected", working: "training", answered: "has answered", refused: "refused",
  lost: "lost", late: "late", encoding: "encoding slides", away: "not connected",
};
const TONE = { here: "good", answered: "good", working: "busy", encoding: "busy", refused: "bad", lost: "bad", late: "bad", away: "quiet", unknown: "quiet" };
const STATE = { queued: "quiet", running: "busy", stopping: "busy", stopped: "quiet", failed: "bad", finished: "good" };

const known = { about: null, sites: {}, live: {}, runs: [] };
let chosen = new URLSearchParams(location.search).get("run");
let story = null; // of the run that is shown, as /api/runs gives it
let fetched = null; // what was asked for last: the run and how far it was
let allRounds = false;

const place = (site) => Object.keys(known.sites).indexOf(site);
const named = (site, ...more) => h("span", { class: "site" }, dot(Math.max(0, place(site))), site, more);
const pill = (tone, text) => h("span", { class: `pill ${tone}` }, text);
const title = (run) => run.label || run.run;
const shown = () => known.runs.find(({ run }) => run === chosen) ?? current();
const current = () => known.runs.find(({ state }) => state === "running" || state === "stopping") ?? known.runs[0];

// --- the sentence at the top ------------------------------------------------------------------------------------------

function headline() {
  const active = known.runs.filter(({ state }) => state === "running" || state === "stopping");
  const waiting = known.runs.filter(({ state }) => state === "queued").length;
  if (active.length) return active.map((run) => `${title(run)}: ${doing(run)}`).join(" ");
  const last = known.runs.find(({ state }) => state !== "queued");
  const queue = waiting ? `${plural(waiting, "run")} ${waiting === 1 ? "waits" : "wait"} in the queue. ` : "";
  if (!last) return queue.trim() || "No run yet. Submit the first one below.";
  return `${queue}No run is at work now. The last one, ${title(last)}, ${outcome(last)}.`;
}

function doing(run) {
  const live = known.live[run.run];
  if (!live) return `${run.doing || "begins"}.`;
  if (live.round && live.ended === null && Object.keys(live.parts).length) {
    const parts = Object.entries(live.parts);
    const working = parts.filter(([, part]) => part.outcome === "working").map(([site]) => site);
    const answered = parts.filter(([, part]) => part.outcome === "answered").length;
    const said = `round ${live.round} of ${live.rounds}. ${answered} of ${plural(parts.length, "hospital")} ${answered === 1 ? "has" : "have"} answered`;
    const at = working.length ? `; ${listed(working)} ${working.length === 1 ? "is" : "are"} at work` : "";
    return `${said}${at}${live.missing.length ? `; waiting for ${listed(live.missing)}` : ""}.`;
  }
  return live.missing.length ? `waiting for ${listed(live.missing)}.` : `${live.doing}.`;
}

function outcome(run) {
  if (run.state === "finished")
    return run.best_round === null ? "is finished" : `is finished: validation AUC ${figure(run.best_auc)} after round ${run.best_round}`;
  return run.state === "failed" ? `has failed: ${run.error}` : `is ${run.state} after ${run.done} of ${plural(run.rounds, "round")}`;
}

function drawLead() {
  const about = known.about;
  if (!about) return;
  document.title = `${about.federation} · fedpath coordinator`;
  show(by("title"), about.federation);
  const said = headline();
  if (by("headline").textContent !== said) show(by("headline"), said);
  show(by("notes"),
    about.registry && h("p", { class: "note bad", role: "alert" }, `The registry cannot be used now: ${about.registry}. Runs go on; the list may be old.`));
  show(by("submit-note"), about.kind === "serve"
    ? "The run goes into this coordinator's queue, as with fedpath run submit."
    : "This coordinator serves one run and no queue (fedpath server start). A run that is submitted here waits until fedpath server serve is started.");
}

// --- hospitals --------------------------------------------------------------------------------------------------------

function drawSites() {
  show(by("sites"), Object.entries(known.sites).map(([name, site], index) => {
    const patients = site.about.patients ?? {};
    const counts = ["train", "validation", "test"].filter((split) => split in patients).map((split) => `${patients[split] ?? "few"} ${split === "train" ? "training" : split}`);
    const share = site.moving && site.moving.total ? site.moving.done / site.moving.total : null;
    const bad = TONE[site.state] === "bad";
    return h("li", { class: `card ${colour(index)}`, "data-key": name },
      h("h3", {}, dot(index), name),
      h("p", {}, pill(TONE[site.state], site.state === "away" && site.heard ? "has gone" : WORDS[site.state] ?? site.state)),
      site.says && h("p", { class: bad ? "bad" : "small" }, site.says),
      share !== null && h("p", { class: "small" }, site.moving.way === "fetching" ? "fetches the model " : "sends its update ",
        h("progress", { max: 1, value: share.toFixed(3), "aria-label": `${name}: bytes that are over` }), ` ${bytes(site.moving.done)} of ${bytes(site.moving.total)}`),
      h("dl", {},
        counts.length && h("div", {}, h("dt", {}, "Patients"), h("dd", {}, counts.join(", "))),
        site.about.encoder && h("div", {}, h("dt", {}, "Encoder"), h("dd", {}, site.about.encoder)),
        site.about.version && h("div", {}, h("dt", {}, "fedpath"), h("dd", {}, site.about.version)),
        site.heard && h("div", {}, h("dt", {}, "Last heard"), h("dd", {}, moment(site.heard)))));
  }));
}

// --- runs -------------------------------------------------------------------------------------------------------------

function drawRuns() {
  if (!known.runs.length) return show(by("runs-list"), h("p", { class: "empty" }, "Nothing yet."));
  const here = shown()?.run;
  show(by("runs-list"), table("Runs, the latest first",
    ["Run", "State", "Model", { text: "Rounds", class: "n" }, { text: "AUC", class: "n" }, "Submitted", "What it is at"],
    known.runs.map((run) => h("tr", { "data-key": run.run, class: run.run === here ? "chosen" : null }, cells(
      [h("a", { href: `?run=${encodeURIComponent(run.run)}#run`, "data-run": run.run, "aria-current": run.run === here ? "true" : null }, title(run)),
        run.label && h("span", { class: "small under" }, run.run)],
      h("td", {}, pill(STATE[run.state], run.state)),
      h("td", {}, run.model),
      n(`${run.done} / ${run.rounds}`),
      n(figure(run.best_auc)),
      h("td", { class: "whole" }, moment(run.submitted)),
      h("td", { class: "wide" }, at(run)))))));
  const after = by("after");
  show(after, h("option", { value: "" }, "its place in the queue"),
    known.runs.filter(({ state }) => state !== "finished").map((run) => h("option", { value: run.run }, title(run))));
}

function at(run) {
  if (run.state === "queued") return run.doing || `place ${run.place} in the queue`;
  if (run.state === "failed") return h("span", { class: "bad" }, run.error);
  if (run.state === "finished") return run.best_round === null ? "" : `best after round ${run.best_round}`;
  return run.state === "stopped" ? "" : known.live[run.run]?.doing ?? run.doing;
}

// --- one run ----------------------------------------------------------------------------------------------------------

async function fetchStory() {
  const run = shown();
  if (!run) return;
  const wanted = JSON.stringify([run.run, run.state, run.done, run.error]);
  if (wanted === fetched) return;
  fetched = wanted;
  try {
    const came = await get(`/api/runs/${encodeURIComponent(run.run)}`);
    if (shown()?.run !== came.run) return;
    if (story?.run !== came.run) allRounds = false;
    story = came;
    drawRun();
  } catch (error) {
    fetched = null;
    show(by("run-said"), error.message);
  }
}

function drawRun() {
  const run = shown();
  if (!run || !story || story.run !== run.run) return;
  const live = known.live[run.run];
  const open = live && live.round > 0 && live.began !== null && live.ended === null && run.state !== "finished" ? live : null;
  show(by("run-title"), `Run ${title(run)}`);
  show(by("run-detail"),
    h("p", { class: "facts" }, pill(STATE[run.state], run.state), ` ${run.model}, ${run.done} of ${plural(run.rounds, "round")} done`,
      run.best_round !== null && `, best after round ${run.best_round}: validation AUC ${figure(run.best_auc)}`,
      run.started && [", began ", moment(run.started)], run.ended && [", ended ", moment(run.ended)], "."),
    run.error && h("p", { class: "note bad" }, `${run.error} `, run.remedy && h("span", {}, `What helps: ${run.remedy}.`)),
    Object.entries(run.refused ?? {}).map(([site, reason]) => h("p", { class: "note bad" }, named(site), ` was kept out: ${reason}`)),
    h("p", { class: "buttons" },
      ["queued", "running"].includes(run.state) && h("button", { type: "button", "data-do": "stop", "data-key": "stop" }, run.state === "queued" ? "Take out of the queue" : "Stop this run"),
      ["stopped", "failed"].includes(run.state) && h("button", { type: "button", "data-do": "resume", "data-key": "resume" }, "Resume this run")),
    h("div", { id: "open-round", "data-key": "open" }, open ? openRound(open) : lastRound()),
    story.stages.map((stage) => drawStage(stage, run)),
    traffic(),
    models());
}

const room = () => by("run-detail").clientWidth;

function openRound(live) {
  const at = now() - live.began;
  return timeline({
    id: "timeline", title: `Round ${live.round} of ${live.rounds}${live.stage ? `, stage ${live.stage}` : ""}, open for ${seconds(at)}`,
    width: room(), end: at, deadline: live.deadline_s,
    rows: Object.entries(live.parts).map(([site, part]) => {
      const end = (part.ended ?? now()) - part.began, spans = [];
      const fetchedAt = part.fetched === null ? 0 : part.fetched - part.began;
      const sentFrom = part.sending === null ? end : Math.min(end, part.sending - part.began);
      if (fetchedAt) spans.push({ from: 0, to: fetchedAt, kind: "travel" });
      spans.push({ from: fetchedAt, to: sentFrom, kind: part.outcome === "working" ? "open" : "work" });
      if (sentFrom < end) spans.push({ from: sentFrom, to: end, kind: "travel" });
      const says = part.outcome === "working" ? "at work"
        : part.outcome === "answered" ? `answered after ${seconds(end)}` : `${part.outcome} after ${seconds(end)}: ${part.reason}`;
      return { name: site, index: Math.max(0, place(site)), state: part.outcome, says, spans };
    }),
  });
}

function lastRound() {
  const stage = story.stages.at(-1), round = stage?.rounds.at(-1);
  if (!round) return h("p", { class: "empty" }, "No round is over yet.");
  return timeline({
    id: "timeline", title: `The last round: round ${round.round}${stage.name ? `, stage ${stage.name}` : ""}, ${seconds(round.seconds)}`,
    width: room(), end: round.seconds, deadline: round.deadline_s,
    rows: Object.entries(round.sites).map(([site, part]) => ({
      name: site, index: Math.max(0, place(site)), state: part.outcome,
      says: part.outcome === "answered" ? `answered after ${seconds(part.seconds)}` : `${part.outcome}: ${part.reason}`,
      spans: [{ from: 0, to: part.outcome === "answered" ? part.seconds : round.seconds, kind: "work" }],
    })),
  });
}

function drawStage(stage, run) {
  const rounds = stage.rounds, id = `stage-${stage.name || "only"}`;
  const order = (of) => [...of].sort((one, other) => place(one) - place(other));
  const sites = order(new Set(rounds.flatMap((round) => Object.keys(round.sites))));
  const line = (site, value) => ({ name: site, index: Math.max(0, place(site)), points: value.filter(([, y]) => y !== null && y !== undefined) });
  const auc = sites.map((site) => line(site, [
    ...rounds.map((round) => [round.round - 1, round.sites[site]?.validation_auc ?? null]),
    [rounds.at(-1)?.round, stage.validation[site]?.auc ?? null]]));
  const all = { name: "all hospitals", index: null, points: rounds.map((round) => [round.round - 1, round.auc]).filter(([, y]) => y !== null) };
  const weighted = mean(Object.values(stage.validation));
  if (rounds.length && weighted !== null) all.points.push([rounds.at(-1).round, weighted]);
  const loss = sites.map((site) => line(site, rounds.map((round) => [round.round, round.sites[site]?.training_loss ?? null])));
  const half = room() >= 760 ? (room() - 40) / 2 : room();
  const best = stage.name === "" ? run.best_round : null;
  return h("section", { "data-key": id, class: "stage", "aria-label": stage.name ? `Stage ${stage.name}` : "Curves and rounds" },
    stage.name && h("h3", {}, `Stage ${stage.name}`),
    h("div", { class: "beside" },
      lines({ id: `${id}-auc`, title: "Validation AUC", x: "round", width: half, share: true, series: [...auc, all], best,
        says: `Of the model after each round, on each hospital's own validation patients; round 0 is the model before training.${best ? ` Dotted: the best model, of round ${best}.` : ""}` }),
      lines({ id: `${id}-loss`, title: "Training loss", x: "round", width: half, series: loss, says: "Of each hospital in each round, on its own training patients." })),
    rounds.length > 0 && h("h3", {}, "What each round counted"),
    rounds.length > 0 && roundsTable(rounds),
    Object.keys(stage.test).length > 0 && [h("h3", {}, "Test patients"), tests(stage.test, order)]);
}

function mean(figures) {
  const there = figures.filter(({ auc }) => auc !== null);
  const patients = there.reduce((sum, one) => sum + one.patients, 0);
  return patients ? there.reduce((sum, one) => sum + one.auc * one.patients, 0) / patients : null;
}

function roundsTable(rounds) {
  const few = allRounds ? rounds : rounds.slice(-12);
  return [table("Rounds, the latest first",
    ["Round", "Counted", "Not counted, and why", { text: "Time", class: "n" }, { text: "Sent", class: "n" }, { text: "Received", class: "n" }],
    [...few].reverse().map((round) => {
      const parts = Object.entries(round.sites).sort(([one], [other]) => place(one) - place(other));
      const sum = (key) => bytes(parts.reduce((total, [, part]) => total + part[key], 0));
      return h("tr", { "data-key": round.round }, h("th", { scope: "row" }, round.round),
        h("td", { class: "wide" }, parts.filter(([, part]) => part.outcome === "answered").map(([site, part]) =>
          h("span", { class: "item" }, named(site), ` ${plural(part.patients, "patient")}`, part.of_round !== null && `, late, of round ${part.of_round}`))),
        h("td", { class: "wide" }, parts.filter(([, part]) => part.outcome !== "answered").map(([site, part]) =>
          h("span", { class: "item" }, named(site), " ", h("span", { class: "bad" }, part.outcome), part.reason && `: ${part.reason}`))),
        n(seconds(round.seconds)), n(sum("sent_bytes")), n(sum("received_bytes")));
    }), null),
  rounds.length > few.length && h("p", {}, h("button", { type: "button", "data-do": "all", "data-key": "all" }, `Show all ${rounds.length} rounds`))];
}

function tests(figures, order) {
  return table("The best model on each hospital's test patients",
    ["Hospital", { text: "AUC", class: "n" }, { text: "Balanced accuracy", class: "n" }, { text: "Patients", class: "n" }, { text: "Slides", class: "n" }],
    order(Object.keys(figures)).map((site) => h("tr", {}, cells(named(site), n(figure(figures[site].auc)), n(figure(figures[site].balanced_accuracy)), n(figures[site].patients), n(figures[site].slides)))));
}

function traffic() {
  const rows = Object.entries(story.traffic).sort(([one], [other]) => place(one) - place(other));
  if (!rows.length) return null;
  const most = Math.max(...rows.map(([, of]) => Math.max(of.sent, of.received)), 1);
  const cell = (site, count) => h("td", { class: "n bars" }, bytes(count), bar(Math.max(0, place(site)), count / most));
  return h("section", { "data-key": "traffic", "aria-label": "Traffic" }, h("h3", {}, "Traffic"),
    table("Bytes of all rounds of this run, as the coordinator counts them",
      ["Hospital", { text: "To the hospital", class: "n" }, { text: "From the hospital", class: "n" }],
      rows.map(([site, of]) => h("tr", {}, cells(named(site), cell(site, of.sent), cell(site, of.received))))));
}

function models() {
  return h("section", { "data-key": "models", "aria-label": "Models" }, h("h3", {}, "Models and results"),
    story.files.length
      ? h("ul", { class: "files" }, story.files.map(({ name, what, bytes: size, stage }) =>
        h("li", {}, h("a", { href: `/files/${encodeURIComponent(story.run)}/${name.split("/").map(encodeURIComponent).join("/")}`, download: true }, stage ? `${what} of stage ${stage}` : what), h("span", { class: "small" }, ` ${name}, ${bytes(size)}`))))
      : h("p", { class: "empty" }, "None yet: the first model is there when a round is over."));
}

// --- what a visitor does ----------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-run]"), button = event.target.closest("button[data-do]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    choose();
    by("run-title").scrollIntoView();
  }
  if (button?.dataset.do === "all") {
    allRounds = true;
    drawRun();
  } else if (button) await change(button.dataset.do, shown());
});
addEventListener("popstate", () => choose());

function choose() {
  chosen = new URLSearchParams(location.search).get("run");
  show(by("run-said"));
  drawRuns();
  fetchStory();
}

async function change(what, run) {
  const question = what === "stop" ? [`Stop ${title(run)}?`, "It ends at a safe point; what it has done is kept, and it can be resumed.", "Stop it"]
    : [`Resume ${title(run)}?`, "It goes into the queue again and goes on where it was.", "Resume it"];
  if (!(await ask(...question))) return;
  try {
    show(by("run-said"), (await post(`/api/runs/${encodeURIComponent(run.run)}/${what}`)).says);
  } catch (error) {
    show(by("run-said"), h("span", { class: "bad" }, [error.message, error.remedy].filter(Boolean).join(". ")));
  }
}

async function prepareForm() {
  const form = by("form"), recipe = by("recipe"), toml = by("toml");
  const begin = await get("/api/form");
  show(recipe, begin.map(({ name, title: text }) => h("option", { value: name }, text)));
  let written = null, index = 0;
  const fill = () => {
    index = recipe.selectedIndex;
    written = toml.value = begin[index]?.toml ?? "";
    show(by("recipe-what"), begin[index]?.what ?? "");
  };
  recipe.addEventListener("change", async () => {
    if (toml.value !== written && toml.value.trim() && !(await ask("Replace your text?", "What you changed in the file below is lost.", "Replace it"))) recipe.selectedIndex = index;
    else fill();
  });
  fill();
  const send = async (path) => {
    const buttons = form.querySelectorAll("button");
    buttons.forEach((button) => button.setAttribute("aria-disabled", "true"));
    show(by("form-said"), h("p", {}, "Checking …"));
    try {
      const priority = by("priority").value.trim();
      const content = { toml: toml.value, name: by("name").value, priority: priority === "" ? 0 : Number(priority), after: by("after").value };
      const said = await post(path, content);
      toml.removeAttribute("aria-invalid");
      show(by("form-said"), h("p", { class: "good" }, said.says, said.run && [" ", h("a", { href: `?run=${encodeURIComponent(said.run)}#run`, "data-run": said.run }, "Look at it")]));
    } catch (error) {
      toml.setAttribute("aria-invalid", "true");
      show(by("form-said"), h("p", { class: "bad" }, error.message), error.remedy && h("p", {}, `What helps: ${error.remedy}.`));
    } finally {
      buttons.forEach((button) => button.removeAttribute("aria-disabled"));
    }
  };
  const idle = () => !form.querySelector("[aria-disabled]");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (idle()) send("/api/runs");
  });
  by("check").addEventListener("click", () => idle() && send("/api/check"));
}

// --- beginning --------------------------------------------------------------------------------------------------------

const take = (name, ...draw) => (value) => {
  known[name] = value;
  draw.forEach((one) => one());
};
follow({
  about: take("about", drawLead),
  sites: take("sites", drawSites),
  live: take("live", drawLead, drawRuns, drawRun),
  runs: take("runs", drawLead, drawRuns, fetchStory, drawRun),
  link: (up) => {
    if (up) fetched = null;
  },
});
setInterval(() => {
  const live = known.live[shown()?.run];
  if (live?.round && live.ended === null && !document.hidden) drawRun();
}, 1000);
whenResized(by("run-detail"), drawRun);
prepareForm().catch((error) => show(by("form-said"), h("p", { class: "bad" }, error.message)));

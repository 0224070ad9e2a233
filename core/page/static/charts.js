// Charts as SVG, drawn for the width they have. Each has a legend, a text, and its numbers as a table.

import { figure, h, s, seconds, table } from "./dom.js";

const LEFT = 44, RIGHT = 14, TOP = 12, BOTTOM = 36;

/** The class of a hospital's colour, by its place in the federation, and that of its dashes. */
export const colour = (index) => `c${index % 7}`;
const dashes = (index) => `d${index % 4}`;

export function dot(index) {
  return s("svg", { class: `dot ${colour(index)}`, viewBox: "0 0 10 10", "aria-hidden": "true" }, s("circle", { cx: 5, cy: 5, r: 5 }));
}

function ticks(low, high, most) {
  const rough = (high - low || 1) / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return found.map((at) => ({ at, text: at.toFixed(digits) }));
}

/**
 * Lines over rounds.
 * @param {{id: string, title: string, says: string, width: number, x: string, share?: boolean,
 *   series: {name: string, index: number | null, points: [number, number][]}[], best?: number | null}} what
 *   A series without an index is the federation's: drawn heavier. `share`: from 0 to 1.
 */
export function lines(what) {
  const series = what.series.filter(({ points }) => points.length);
  const heading = h("h3", { id: `${what.id}-title` }, what.title);
  if (!series.length) return h("figure", {}, heading, h("p", { class: "empty" }, "Nothing yet."));
  const all = series.flatMap(({ points }) => points);
  const width = Math.max(240, what.width), height = Math.round(Math.min(280, Math.max(190, width * 0.5)));
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const room = (y1 - y0 || Math.abs(y1) || 1) * 0.08;
  [y0, y1] = [y0 - room, y1 + room];
  if (what.share) [y0, y1] = [Math.max(0, Math.min(y0, 0.5 > y0 ? y0 : 0.5)), Math.min(1.02, Math.max(y1, 1))];
  else y0 = Math.max(0, y0);
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
  const py = (y) => height - BOTTOM - ((y - y0) / (y1 - y0)) * (height - TOP - BOTTOM);
  const drawing = s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-labelledby": `${what.id}-title`, "aria-describedby": `${what.id}-says` },
    ticks(y0, what.share ? Math.min(1, y1) : y1, 5).map(({ at, text }) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: py(at), y2: py(at) }),
      s("text", { class: "tick", x: LEFT - 8, y: py(at) + 4, "text-anchor": "end" }, text)]),
    ticks(x0, x1, Math.max(2, Math.floor(width / 70))).filter(({ at }) => Number.isInteger(at)).map(({ at, text }) =>
      s("text", { class: "tick", x: px(at), y: height - BOTTOM + 17, "text-anchor": "middle" }, text)),
    s("text", { class: "tick", x: (LEFT + width - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, what.x),
    what.best !== null && what.best !== undefined && what.best >= x0 && what.best <= x1 &&
      s("g", {}, s("line", { class: "best", x1: px(what.best), x2: px(what.best), y1: TOP, y2: height - BOTTOM })),
    series.map(({ name, index, points }) =>
      s("g", { class: index === null ? "line mean" : `line ${colour(index)} ${dashes(index)}` },
        s("polyline", { points: points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ") }),
        points.length <= 60 && points.map(([x, y]) => s("circle", { cx: px(x).toFixed(1), cy: py(y).toFixed(1), r: 2.6 }, s("title", {}, `${name}, ${what.x} ${x}: ${figure(y)}`))))));
  const legend = h("ul", { class: "legend" }, series.map(({ name, index, points }) =>
    h("li", {}, s("svg", { class: index === null ? "key mean" : `key ${colour(index)} ${dashes(index)}`, viewBox: "0 0 24 8", "aria-hidden": "true" }, s("line", { x1: 0, x2: 24, y1: 4, y2: 4 })),
      `${name} `, h("span", { class: "n" }, figure(points.at(-1)[1])))));
  const rounds = [...new Set(xs)].sort((one, other) => other - one);
  const at = series.map(({ points }) => new Map(points));
  return h("figure", {}, heading, drawing, legend,
    h("figcaption", { id: `${what.id}-says` }, what.says),
    h("details", { "data-key": `${what.id}-table` }, h("summary", {}, "The same as a table"),
      table(what.title, [what.x, ...series.map(({ name }) => ({ text: name, class: "n" }))],
        rounds.map((round) => h("tr", {}, h("th", { scope: "row" }, round), at.map((of) => h("td", { class: "n" }, figure(of.get(round)))))), null)));
}

/**
 * A round in time: one row a hospital.
 * @param {{id: string, title: string, width: number, end: number, deadline: number | null,
 *   rows: {name: string, index: number, state: string, says: string, spans: {from: number, to: number, kind: string}[]}[]}} what
 *   Times in seconds from the beginning of the round; a span's kind is travel, work or open.
 */
export function timeline(what) {
  const width = Math.max(240, what.width), row = 46, top = 4, bottom = 34;
  const height = top + what.rows.length * row + bottom;
  const near = what.deadline !== null && what.deadline < what.end * 2.5;
  const end = Math.max(1, near ? Math.max(what.end, what.deadline) * 1.02 : what.end * 1.05);
  const px = (at) => 2 + (Math.min(at, end) / end) * (width - 4);
  const step = ticks(0, end, Math.max(2, Math.floor(width / 110)));
  return h("figure", {}, h("h3", { id: `${what.id}-title` }, what.title),
    s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-labelledby": `${what.id}-title`, "aria-describedby": `${what.id}-says` },
      step.map(({ at }, index) => [
        s("line", { class: "grid", x1: px(at), x2: px(at), y1: top, y2: height - bottom + 4 }),
        s("text", { class: "tick", x: px(at), y: height - bottom + 20, "text-anchor": index === 0 ? "start" : index === step.length - 1 && px(at) > width - 30 ? "end" : "middle" }, seconds(at).replace(".0 s", " s"))]),
      near && s("line", { class: "deadline", x1: px(what.deadline), x2: px(what.deadline), y1: top, y2: height - bottom + 4 }),
      what.rows.map(({ name, index, state, says, spans }, place) =>
        s("g", { class: `row ${colour(index)} ${state}` },
          s("text", { class: "name", x: 2, y: top + place * row + 15 }, name, s("tspan", { class: "says", dx: 8 }, says)),
          s("rect", { class: "track", x: 2, y: top + place * row + 22, width: width - 4, height: 12, rx: 3 }),
          spans.map(({ from, to, kind }) =>
            s("rect", { class: `span ${kind}`, x: px(from).toFixed(1), y: top + place * row + 22, width: Math.max(2, px(to) - px(from)).toFixed(1), height: 12, rx: 3 }))))),
    h("figcaption", { id: `${what.id}-says` },
      what.rows.map(({ name, says }) => `${name}: ${says}.`).join(" "),
      near ? ` The dashed line is the round's deadline, ${seconds(what.deadline)} after its beginning.`
        : what.deadline !== null ? ` The round ends at the latest ${seconds(what.deadline)} after its beginning.` : ""));
}

/** A bar for a share of the largest, with nothing to read: the numbers stand beside it. */
export function bar(index, share) {
  return s("svg", { class: `gauge ${colour(index)}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", x: 0, y: 0, width: 100, height: 8 }), s("rect", { class: "span", x: 0, y: 0, width: Math.max(0.5, share * 100).toFixed(1), height: 8 }));
}

/** Call `draw` again when the room for charts has changed. */
export function whenResized(node, draw) {
  let width = node.clientWidth;
  new ResizeObserver(() => {
    if (node.clientWidth !== width) {
      width = node.clientWidth;
      draw();
    }
  }).observe(node);
}

// Elements, and bringing what is shown up to date. Every text goes in as text: what hospitals send is never markup.

const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);
export const by = (id) => document.getElementById(id);

/** Make the content of a node what is given, and touch only what differs: focus, scrolling and open details stay. */
export function show(node, ...children) {
  const wanted = document.createDocumentFragment();
  wanted.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  morph(node, wanted);
}

function morph(old, wanted) {
  const children = [...wanted.childNodes];
  children.forEach((child, index) => {
    const there = old.childNodes[index];
    if (there === undefined) old.append(child);
    else if (there.nodeType !== child.nodeType || there.nodeName !== child.nodeName || key(there) !== key(child))
      there.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) {
      if (there.data !== child.data) there.data = child.data;
    } else {
      attributes(there, child);
      morph(there, child);
    }
  });
  while (old.childNodes.length > children.length) old.lastChild.remove();
}

const key = (node) => node.getAttribute?.("data-key") ?? null;

function attributes(there, child) {
  for (const { name, value } of child.attributes) if (there.getAttribute(name) !== value) there.setAttribute(name, value);
  for (const { name } of [...there.attributes])
    if (!child.hasAttribute(name) && !(name === "open" && there.nodeName === "DETAILS")) there.removeAttribute(name);
}

/** Ask before something is done; true where the answer is yes. */
export function ask(question, more, yes) {
  return new Promise((answer) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "ask-title", "aria-describedby": "ask-more" },
      h("form", { method: "dialog" },
        h("h2", { id: "ask-title" }, question),
        h("p", { id: "ask-more" }, more),
        h("p", { class: "buttons" },
          h("button", { value: "no", autofocus: true }, "Cancel"),
          h("button", { value: "yes", class: "primary" }, yes))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      answer(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Send something to the coordinator or the agent; what it says, or an Error with what is wrong. */
export async function post(path, content = {}) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(content),
  });
  return read(answer);
}

export const get = async (path) => read(await fetch(path));

async function read(answer) {
  if (answer.status === 401) location.assign("/login");
  const text = await answer.text();
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    said = { error: text.trim() || `the page answered ${answer.status}`, remedy: "" };
  }
  if (!answer.ok) throw Object.assign(new Error(said.error), { remedy: said.remedy });
  return said;
}

// --- words and numbers ------------------------------------------------------------------------------------------------

export const figure = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const unit = Math.min(4, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** unit;
  return `${value < 9.95 ? value.toFixed(1) : value.toFixed(0)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export function seconds(count) {
  if (count < 9.95) return `${Math.max(0, count).toFixed(1)} s`;
  if (count < 90) return `${count.toFixed(0)} s`;
  if (count < 5400) return `${Math.floor(count / 60)} min ${String(Math.floor(count % 60)).padStart(2, "0")} s`;
  if (count < 48 * 3600) return `${Math.floor(count / 3600)} h ${String(Math.floor((count % 3600) / 60)).padStart(2, "0")} min`;
  return `${(count / 86400).toFixed(1)} days`;
}

export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

const two = (number) => String(number).padStart(2, "0");
export function day(at) {
  const when = new Date(at * 1000);
  return `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
}
export function clock(at) {
  const when = new Date(at * 1000);
  return `${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
}
export function moment(at) {
  const said = day(at) === day(Date.now() / 1000) ? clock(at) : `${day(at)} ${clock(at).slice(0, 5)}`;
  return h("time", { datetime: new Date(at * 1000).toISOString(), title: `${day(at)} ${clock(at)}` }, said);
}

/** A table in a frame of its own that scrolls, so that the page does not. */
export function table(label, head, rows, caption = label) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {},
      h("caption", { class: caption === null ? "unseen" : null }, caption ?? label),
      h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col", class: cell.class }, cell.text ?? cell)))),
      h("tbody", {}, rows)));
}
export const cells = (first, ...others) => [h("th", { scope: "row" }, first), ...others];
export const n = (...content) => h("td", { class: "n" }, content);

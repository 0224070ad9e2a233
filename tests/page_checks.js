// Used by page_checks.py: each is evaluated in the page.

const checks = {
  // What has no name, label, caption, header or heading that it should have.
  nameless: () => {
  const wrong = [], told = (node, what) => wrong.push(`${what}: ${node.outerHTML.slice(0, 120)}`);
  const text = (ids) => ids.split(" ").map((id) => document.getElementById(id)?.textContent.trim()).filter(Boolean).join(" ");
  const named = (node) => node.getAttribute("aria-label") || (node.getAttribute("aria-labelledby") && text(node.getAttribute("aria-labelledby")));
  for (const node of document.querySelectorAll("input, select, textarea, progress"))
    if (!node.labels?.length && !named(node)) told(node, "no label");
  for (const node of document.querySelectorAll("button, a[href], summary"))
    if (!node.textContent.trim() && !named(node)) told(node, "no text");
  for (const node of document.querySelectorAll("svg"))
    if (node.getAttribute("aria-hidden") !== "true" && !(node.getAttribute("role") === "img" && named(node))) told(node, "no name");
  for (const node of document.querySelectorAll("img")) if (node.getAttribute("alt") === null) told(node, "no alt");
  for (const node of document.querySelectorAll("table")) {
    if (!node.caption?.textContent.trim()) told(node, "no caption");
    if (!node.querySelector("th[scope=col]") || [...node.tBodies[0].rows].some((row) => !row.querySelector("th[scope=row]"))) told(node, "no header cells");
  }
  for (const node of document.querySelectorAll("[aria-describedby], [aria-labelledby]"))
    for (const name of ["aria-describedby", "aria-labelledby"])
      for (const id of (node.getAttribute(name) ?? "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) told(node, `${name} names nothing`);
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`twice: #${id}`);
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map(({ tagName }) => Number(tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1) wrong.push("not one h1");
  levels.forEach((level, index) => { if (index && level > levels[index - 1] + 1) wrong.push(`h${level} after h${levels[index - 1]}`); });
  for (const name of ["main", "header", "nav", "footer"]) if (document.querySelectorAll(name).length !== 1) wrong.push(`not one ${name}`);
  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.querySelector("[aria-live=polite]") || !document.querySelector("[role=status]")) wrong.push("no live region");
  return wrong;
},

  // The lowest contrast of text with its ground, by element and class.
  contrast: () => {
  const parse = (colour) => (colour.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)); };
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.unshift(parse(getComputedStyle(at).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const seen = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.getClientRects().length || ["SCRIPT", "NOSCRIPT", "title"].includes(node.tagName)) continue;
    const style = getComputedStyle(node), below = ground(node);
    const drawn = over(parse(node.namespaceURI.endsWith("svg") ? style.fill : style.color), below);
    const [one, other] = [light(drawn), light(below)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05), key = `${node.tagName}.${node.className.baseVal ?? node.className}`;
    if (!(key in seen) || seen[key] > ratio) seen[key] = ratio;
  }
  return seen;
},

  // How many controls Tab should come by; they are remembered in their order.
  focusable: () => {
    window.stops = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
      .filter((node) => !node.disabled && node.checkVisibility());
    window.stops[0].focus();
    return window.stops.length;
  },

  // Which of them has the focus, whether that can be seen, and what it is.
  focused: () => {
    const at = document.activeElement;
    return [window.stops.indexOf(at), getComputedStyle(at).outlineStyle, at.outerHTML.slice(0, 200)];
  },
};

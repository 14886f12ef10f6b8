// The body of a function that returns what leaves its box on a page, a sentence each.
const wrong = [], print = matchMedia("print").matches;
const name = (e) => `${e.closest("[id]")?.id} ${e.tagName} ${e.getAttribute("class") || ""} "${e.textContent.trim().slice(0, 40)}"`;
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > width) wrong.push(`page ${document.documentElement.scrollWidth} > ${width}`);
for (const e of document.querySelectorAll("body *:not(svg *):not(script):not(style)")) {
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  if (!box.width || !e.checkVisibility() || e.closest(".skip") || style.position === "fixed") continue;
  const wider = e.scrollWidth > e.clientWidth + 1 && e.clientWidth, higher = e.scrollHeight > e.clientHeight + 1 && e.clientHeight;
  if (e.matches(".scroll")) {
    if (!wider) continue;
    const frame = e.parentNode, sign = getComputedStyle(frame, "::before"), shade = getComputedStyle(frame, "::after");
    const signed = sign.display === "block" && sign.content.includes("scroll") && shade.content === '""';
    const first = e.querySelector("tbody th");
    if (print) wrong.push(`cut off in print: ${name(e)}`);
    else if (!signed) wrong.push(`no sign that there is more: ${name(e)}`);
    else if (getComputedStyle(first).position !== "sticky" || first.offsetWidth > 0.6 * e.clientWidth) wrong.push(`first column: ${name(e)}`);
    if (width >= 1280 && e.querySelector(".main, .heat")) wrong.push(`does not fit: ${name(e)}`);
  } else if ((wider && style.overflowX !== "visible") || (higher && style.overflowY !== "visible")) wrong.push(`hidden: ${name(e)}`);
  else if (e.matches("td, th, figcaption, button, li, dd, dt, pre, p, summary") && wider && !e.closest(".dots")) wrong.push(`leaves its box: ${name(e)}`);
  if (style.textOverflow === "ellipsis") wrong.push(`ellipsis: ${name(e)}`);
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const size = parseFloat(style.fontSize);
  if (own && size && size < (print ? 10.6 : 10) && !e.matches("option")) wrong.push(`letters of ${size} px: ${name(e)}`);
  if (!e.closest(".scroll") && (box.right > width + 1 || box.left < -1)) wrong.push(`beside the page: ${name(e)}`);
}
for (const svg of document.querySelectorAll("svg.chart")) {
  if (!svg.checkVisibility()) continue;
  const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")].filter((t) => !t.hasAttribute("hidden"));
  const boxes = texts.map((t) => t.getBoundingClientRect());
  const scale = box.width / svg.viewBox.baseVal.width;
  texts.forEach((t, i) => {
    const b = boxes[i];
    if (b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1)
      wrong.push(`outside: ${name(svg)} ${t.textContent} ${[b.left - box.left, b.right - box.right, b.top - box.top, b.bottom - box.bottom].map(Math.round)}`);
    const size = parseFloat(getComputedStyle(t).fontSize) * scale;
    if (size < (print ? 10.6 : 9)) wrong.push(`letters of ${size} px: ${name(svg)} ${t.textContent}`);
    for (let k = 0; k < i; k++) {
      const o = boxes[k], across = Math.min(b.right, o.right) - Math.max(b.left, o.left), down = Math.min(b.bottom, o.bottom) - Math.max(b.top, o.top);
      if (across > 1 && down > 0.35 * b.height) wrong.push(`on each other: ${name(svg)} "${t.textContent}" "${texts[k].textContent}"`);
    }
  });
  for (const e of svg.querySelectorAll("use, polyline, path, polygon")) {
    if (e.hasAttribute("hidden")) continue;
    const b = e.getBoundingClientRect();
    if (b.left < box.left - 6 || b.right > box.right + 6 || b.top < box.top - 6 || b.bottom > box.bottom + 6) wrong.push(`mark outside: ${name(svg)} ${e.getAttribute("class")}`);
  }
}
return wrong;

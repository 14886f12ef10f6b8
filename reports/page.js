"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  // The tip with a value, the ring around its point, and the chart that they are in.
  const tip = document.getElementById("tip");
  let ring = null, shown = null;
  const leave = () => {
    tip.hidden = true;
    if (ring) ring.remove();
    ring = shown = null;
  };

  // Sorting: within each body of a table, so that the references stay below the competitors.
  for (const table of all("table.sortable")) {
    for (const button of all("thead button", table)) {
      button.addEventListener("click", () => {
        const head = button.closest("th"), column = head.cellIndex;
        const known = head.getAttribute("aria-sort");
        const text = head.classList.contains("l") && !table.querySelector(`tbody tr > :nth-child(${column + 1})[data-v]`);
        const up = known ? known === "descending" : text;
        all("th[aria-sort]", table).forEach((th) => th.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const cell = row.cells[column];
          return text ? cell.textContent.trim() : cell.dataset.v === undefined ? NaN : Number(cell.dataset.v);
        };
        for (const body of table.tBodies) {
          const rows = [...body.rows].map((row) => [value(row), row]);
          rows.sort(([a], [b]) => {
            if (text) return (up ? 1 : -1) * a.localeCompare(b, undefined, { numeric: true });
            // What has no number comes last in either direction.
            if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
            return up ? a - b : b - a;
          });
          body.append(...rows.map(([, row]) => row));
        }
      });
    }
  }

  // The filter hides strategies everywhere in a section, the legend in its charts.
  for (const part of all("section.part")) {
    const filter = part.querySelector(".filter"), found = part.querySelector(".found");
    const keys = all(".legend button", part);
    const marked = all("[data-s]", part).map((element) => [element, Number(element.dataset.s), Boolean(element.closest("svg.chart"))]);
    const update = () => {
      const wanted = filter.value.trim().toLowerCase();
      const passed = new Set(), drawn = new Set();
      for (const key of keys) {
        const row = Number(key.dataset.k);
        const passes = `${key.dataset.n} ${key.textContent}`.toLowerCase().includes(wanted);
        key.hidden = !passes;
        if (passes) passed.add(row);
        if (passes && key.getAttribute("aria-pressed") === "true") drawn.add(row);
      }
      for (const [element, row, chart] of marked) {
        const panel = element.closest(".panels svg");
        // A panel of its own strategy stays whole; only a shared chart leaves lines out.
        const shown = chart && !panel ? drawn.has(row) : passed.has(row);
        if (shown) element.removeAttribute("hidden");
        else element.setAttribute("hidden", "");
      }
      found.textContent = wanted ? `${passed.size} of ${keys.length}` : "";
      leave();
    };
    filter.addEventListener("input", update);
    for (const key of keys) {
      const light = (on) => {
        for (const svg of all(".charts svg.chart", part)) svg.classList.toggle("dim", on);
        for (const [element, row, chart] of marked) if (chart && row === Number(key.dataset.k)) element.classList.toggle("lit", on);
      };
      key.addEventListener("click", () => {
        key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") === "true" ? "false" : "true");
        update();
      });
      key.addEventListener("pointerenter", () => light(true));
      key.addEventListener("pointerleave", () => light(false));
    }
    if (keys.some((key) => key.getAttribute("aria-pressed") === "false")) update();
  }

  // Values: the points of a chart in its own coordinates, read from the drawing when they are first asked for.
  const known = new WeakMap();
  const points = (svg) => {
    if (!known.has(svg)) {
      const found = [];
      for (const line of all("polyline", svg)) {
        const m = line.parentNode.transform.baseVal.consolidate().matrix;
        const spread = line.dataset.e ? line.dataset.e.split(" ") : [];
        const places = line.dataset.p ? line.dataset.p.split(" ") : [];
        [...line.points].forEach((p, i) => {
          const sd = spread[i] && Number(spread[i]) ? ` ± ${Number(Number(spread[i]).toFixed(2))}` : "";
          const x = places[i] || Number(p.x.toFixed(2)), y = Number(p.y.toPrecision(4));
          found.push({ x: m.a * p.x + m.e, y: m.d * p.y + m.f, element: line, text: `${line.dataset.n}\n${svg.dataset.x} ${x}: ${y}${sd}${svg.dataset.u}` });
        });
      }
      for (const use of all("use[data-t]", svg)) {
        found.push({ x: use.x.baseVal.value, y: use.y.baseVal.value, element: use, text: use.dataset.t });
      }
      // In the order of the comparison, whatever lies on top.
      found.sort((a, b) => a.element.dataset.s - b.element.dataset.s);
      known.set(svg, found);
    }
    return known.get(svg).filter((point) => !point.element.hasAttribute("hidden"));
  };
  const show = (svg, point) => {
    leave();
    ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    ring.setAttribute("class", "ring");
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    ring.setAttribute("r", 7);
    svg.append(ring);
    svg.current = point;
    shown = svg;
    tip.textContent = point.text;
    tip.hidden = false;
    place();
  };
  const place = () => {
    const box = ring.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(box.left + box.width / 2 - own.width / 2, 4), document.documentElement.clientWidth - own.width - 4);
    const above = box.top - own.height - 6;
    tip.style.transform = `translate(${left}px, ${above > 4 ? above : box.bottom + 6}px)`;
  };
  for (const svg of all("svg.chart")) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      const distance = (p) => (p.x - x) ** 2 + (p.y - y) ** 2;
      const nearest = points(svg).reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
      if (nearest && distance(nearest) < 30 ** 2) show(svg, nearest);
      else leave();
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("focus", () => {
      const first = points(svg)[0];
      if (first && svg.matches(":focus-visible")) show(svg, points(svg).includes(svg.current) ? svg.current : first);
    });
    svg.addEventListener("keydown", (event) => {
      const found = points(svg), at = Math.max(found.indexOf(svg.current), 0);
      if (event.key === "Escape") return leave();
      if (!found.length || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      let next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: found.length - 1 }[event.key];
      if (next === undefined) {
        // Up and down: the next point in that direction, those straight above or below first.
        const here = found[at], sign = event.key === "ArrowUp" ? -1 : 1;
        const further = found.filter((p) => p !== here && sign * (p.y - here.y) >= 0 && p.element !== here.element);
        const distance = (p) => 50 * Math.abs(p.x - here.x) + Math.abs(p.y - here.y);
        next = further.length ? found.indexOf(further.reduce((a, b) => (distance(a) <= distance(b) ? a : b))) : at;
      }
      show(svg, found[(next + found.length) % found.length]);
    });
  }
  // A chart that gets the focus is scrolled to: its tip goes with it, one of the pointer goes away.
  addEventListener("scroll", () => (shown && shown === document.activeElement ? place() : leave()), { passive: true });

  // A frame says whether its table is wider, and whether there is more to the right of what is shown.
  const told = (scroll) => {
    const hidden = scroll.scrollWidth - scroll.clientWidth;
    scroll.parentNode.classList.toggle("scrolls", hidden > 1);
    scroll.parentNode.classList.toggle("more", hidden - scroll.scrollLeft > 1);
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => told(entry.target)));
  for (const scroll of all(".scroll")) {
    sizes.observe(scroll);
    scroll.addEventListener("scroll", () => told(scroll), { passive: true });
  }

  // What a link leads to is unfolded.
  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.matches("details")) target.open = true;
  };
  addEventListener("hashchange", unfold);
  for (const link of all("a[href^='#']")) link.addEventListener("click", () => setTimeout(unfold));
  unfold();

  // On paper nothing can be unfolded.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = all("details.open-in-print:not([open])");
    unfolded.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => unfolded.forEach((details) => (details.open = false)));
})();

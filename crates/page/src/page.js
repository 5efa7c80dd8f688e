"use strict";
// Adds to the page what moves: values under the pointer or the keyboard, saving the data, and news of a run that goes on.
// Everything is listened to at the top, so that markup that comes later needs nothing.
(() => {
  const within = (target, selector) => target instanceof Element ? target.closest(selector) : null;
  const pointsOf = svg => [...svg.querySelectorAll(".point")];
  const at = point => Number(point.dataset.at);

  // One stop of the tabulator for each drawing; arrows go on from there.
  const rove = root => {
    for (const svg of root.querySelectorAll(".chart > svg")) {
      pointsOf(svg).forEach((point, n) => point.setAttribute("tabindex", n === 0 ? "0" : "-1"));
    }
  };

  const hide = chart => {
    chart.querySelector(".tip").hidden = true;
    for (const cursor of chart.querySelectorAll(".cursor")) cursor.style.visibility = "hidden";
  };

  // All lines at the place of this point; the line it is on stands out.
  const show = (chart, point) => {
    const svg = point.ownerSVGElement;
    const tip = chart.querySelector(".tip");
    tip.replaceChildren();
    const head = document.createElement("b");
    head.textContent = point.dataset.head;
    tip.append(head);
    for (const other of pointsOf(svg).filter(p => p.dataset.x === point.dataset.x)) {
      const row = document.createElement("span");
      row.className = "c" + (Number(other.dataset.line) % 8) + (other === point ? " here" : "");
      const name = document.createElement("i");
      name.textContent = other.dataset.name;
      row.append(name, other.dataset.value);
      tip.append(row);
    }
    tip.hidden = false;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const x = Number(point.dataset.x) * scale, y = Number(point.dataset.y) * scale + svg.getBoundingClientRect().top - chart.getBoundingClientRect().top;
    const left = x + 14 + tip.offsetWidth > chart.clientWidth ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = Math.max(0, left) + "px";
    tip.style.top = Math.max(0, y - tip.offsetHeight - 8) + "px";
    const cursor = svg.querySelector(".cursor");
    cursor.setAttribute("transform", `translate(${point.dataset.x} 0)`);
    cursor.style.visibility = "visible";
  };

  document.addEventListener("pointermove", event => {
    const svg = within(event.target, ".chart > svg");
    for (const chart of document.querySelectorAll(".chart")) {
      if (!svg || svg.parentElement !== chart) {
        if (!chart.contains(document.activeElement)) hide(chart);
      }
    }
    if (!svg) return;
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = Infinity;
    for (const point of pointsOf(svg)) {
      const far = Math.abs(point.dataset.x - x) * 1000 + Math.abs(point.dataset.y - y);
      if (far < least) [best, least] = [point, far];
    }
    if (best) show(svg.parentElement, best);
  });

  document.addEventListener("focusin", event => {
    const point = within(event.target, ".point");
    if (point) show(point.closest(".chart"), point);
  });
  document.addEventListener("focusout", event => {
    const point = within(event.target, ".point");
    if (point) hide(point.closest(".chart"));
  });

  document.addEventListener("keydown", event => {
    const point = within(event.target, ".point");
    if (!point) return;
    const all = pointsOf(point.ownerSVGElement);
    const line = all.filter(p => p.dataset.line === point.dataset.line);
    const lines = [...new Set(all.map(p => p.dataset.line))];
    const along = step => line[Math.min(line.length - 1, Math.max(0, line.indexOf(point) + step))];
    const across = step => {
      const next = lines[(lines.indexOf(point.dataset.line) + step + lines.length) % lines.length];
      const there = all.filter(p => p.dataset.line === next);
      return there.find(p => at(p) === at(point)) ?? there.at(-1);
    };
    const moves = {
      ArrowRight: () => along(1), ArrowLeft: () => along(-1), Home: () => line[0], End: () => line.at(-1),
      ArrowDown: () => across(1), ArrowUp: () => across(-1),
    };
    if (event.key === "Escape") return hide(point.closest(".chart"));
    const to = moves[event.key]?.();
    if (!to) return;
    event.preventDefault();
    point.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  });

  // The report of a run as a file.
  const reports = () => JSON.parse(document.getElementById("reports").textContent);
  document.addEventListener("click", event => {
    const button = within(event.target, "[data-save]");
    if (!button) return;
    const one = reports()[Number(button.dataset.save)];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(one.report, null, 2) + "\n"], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // A link to a folded run unfolds it.
  const unfold = () => {
    const aim = location.hash && document.getElementById(location.hash.slice(1));
    if (aim instanceof HTMLDetailsElement) aim.open = true;
  };
  addEventListener("hashchange", unfold);
  // On paper nothing is folded.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));

  // Only tables that do not fit are stops of the tabulator, to be scrolled with the arrows.
  const fit = () => {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
      else box.removeAttribute("tabindex");
    }
  };
  addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true);

  for (const button of document.querySelectorAll("[data-save]")) button.hidden = "live" in document.body.dataset;
  rove(document);
  fit();
  unfold();

  if (!("live" in document.body.dataset)) return;

  // News of a run that goes on. What is unfolded, focused or scrolled to stays so.
  const EVERY = 1000;
  let revision = Number(document.body.dataset.live), failures = 0;
  const replace = (place, html) => {
    const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
    const folds = [...place.querySelectorAll("details")].map(part => part.open);
    place.innerHTML = html;
    [...place.querySelectorAll("details")].forEach((part, n) => { if (n in folds) part.open = folds[n]; });
    rove(place);
    fit();
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };
  const ask = async () => {
    const now = document.getElementById("now");
    try {
      // The server may leave a connection waiting behind others; the next one is answered.
      const patience = AbortSignal.timeout(5000);
      const answer = await fetch("state.json?since=" + revision, { cache: "no-store", signal: patience });
      if (!answer.ok) throw new Error(String(answer.status));
      const news = await answer.json();
      failures = 0;
      now.classList.remove("lost");
      revision = news.revision;
      replace(now, news.now);
      if (news.main !== undefined) replace(document.getElementById("main"), news.main);
      if (news.ended) return;
    } catch {
      failures += 1;
      if (failures === 3) {
        now.classList.add("lost");
        const status = now.querySelector(".status");
        if (status) status.textContent = "The run has ended or cannot be reached; this is what was last known of it.";
      }
      if (failures > 60) return;
    }
    setTimeout(ask, EVERY);
  };
  ask();
})();

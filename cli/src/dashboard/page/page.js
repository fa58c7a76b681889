// The page of `kubectl stowage dashboard`. Asks its own server once a second, changes only what is different, and writes what it
// shows as text, never as markup: names and messages come from the cluster's users.
"use strict";
(() => {
  const PERIOD = 1000, POINTS = 600, LINES = 300;
  const COLOURS = ["#7cc4f8", "#f5c542", "#d8a0f0", "#8fd694", "#f4a27c", "#9fb2ff", "#e0d66b", "#7fd8d0"];
  const $ = (id) => document.getElementById(id);
  const state = { gpus: new Map(), rows: new Map(), history: new Map(), tenants: [], since: 0, seen: new Set(), records: [], at: 0, selected: null, order: [] };

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") element.textContent = value; else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const draw = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const text = (element, value) => { if (element.textContent !== value) element.textContent = value; };
  const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1).replace(/\.0$/, "")} GiB`;
  const clock = (ms) => new Date(ms).toISOString().slice(11, 19) + "Z";
  const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
  const money = (d) => d.pricePerHourMicros === undefined ? "" : `${(d.pricePerHourMicros / 1e6).toFixed(2)} ${d.currency}`;
  const tenantOf = (name) => name || "no tenant";
  const letter = (tenant) => { const at = state.tenants.indexOf(tenant); return at < 0 || at > 25 ? "?" : String.fromCharCode(65 + at); };
  const colour = (tenant) => COLOURS[Math.max(0, state.tenants.indexOf(tenant)) % COLOURS.length];

  const ask = async (path, options = {}) => {
    const answer = await fetch(path, { cache: "no-store", ...options });
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(body.error || `the page's server answers ${answer.status}`);
    return body;
  };

  // === GPUs

  const inWords = (g) => {
    const health = g.health === "Healthy" ? (g.closed || "healthy") : `${g.health} ${g.reason || ""}`.trim();
    const slices = g.slices.map((s) => `${tenantOf(s.tenant)} ${s.owner} ${gib(s.memoryBytes)} ${s.smPercent} % SM`);
    const used = g.usedBytes === undefined ? "use not read" : `${gib(g.usedBytes)} in use`;
    return [`${g.node} GPU ${g.index} ${g.uuid}${g.simulated ? " (simulated)" : ""}, ${g.product}, ${health}`,
      `${gib(sum(g.slices, (s) => s.memoryBytes))} of ${gib(g.memoryBytes)} and ${sum(g.slices, (s) => s.smPercent)} % of the SMs promised, ${used}`,
      ...(slices.length ? slices : ["nothing is promised on it"])];
  };

  const fill = (element, g) => {
    element.className = `gpu ${g.health}${g.closed ? " closed" : ""}`;
    element.setAttribute("aria-label", inWords(g).join("; "));
    const bar = make("div", { class: "bar", "aria-hidden": "true" });
    for (const s of g.slices) {
      const part = make("span", { text: letter(s.tenant), title: `${s.owner} ${gib(s.memoryBytes)}` });
      part.style.width = `${Math.max(2, 100 * s.memoryBytes / g.memoryBytes)}%`;
      part.style.background = colour(s.tenant);
      bar.append(part);
    }
    const used = make("div", { class: "used", "aria-hidden": "true" });
    used.style.width = `${Math.min(100, 100 * (g.usedBytes || 0) / g.memoryBytes)}%`;
    const mark = g.health === "Healthy" ? (g.closed ? "closed" : "") : g.health;
    const what = make("div", { class: "what", "aria-hidden": "true" }, make("span", { text: `GPU ${g.index}` }),
      make("span", { text: mark || `${Math.round(100 * sum(g.slices, (s) => s.memoryBytes) / g.memoryBytes)} %` }));
    element.replaceChildren(what, bar, used);
  };

  const gpus = (all) => {
    const tenants = [...new Set(all.flatMap((g) => g.slices.map((s) => s.tenant)))].sort();
    const recolour = tenants.join("\n") !== state.tenants.join("\n");
    state.tenants = tenants;
    if (recolour) {
      $("legend").replaceChildren(...tenants.map((t) => {
        const chip = make("span", { class: "chip", "aria-hidden": "true", text: letter(t) });
        chip.style.background = colour(t);
        return make("li", {}, chip, ` ${tenantOf(t)}`);
      }));
    }
    const order = all.map((g) => g.uuid), moved = order.join() !== state.order.join();
    state.order = order;
    for (const g of all) {
      const known = state.gpus.get(g.uuid), { ageMs, ...shown } = g, now = JSON.stringify(shown);
      const element = known?.element || make("div", { role: "option", id: `gpu-${g.uuid}`, "aria-selected": "false" });
      if (!known) element.addEventListener("click", () => select(g.uuid));
      if (!known || recolour || known.now !== now) fill(element, g);
      state.gpus.set(g.uuid, { element, now, gpu: g });
    }
    for (const uuid of [...state.gpus.keys()]) if (!order.includes(uuid)) state.gpus.delete(uuid);
    if (moved) {
      const list = [];
      let node = null;
      for (const g of all) {
        if (g.node !== node) list.push(make("p", { class: "node", role: "presentation", text: g.node }));
        node = g.node;
        list.push(state.gpus.get(g.uuid).element);
      }
      $("map").replaceChildren(...(list.length ? list : [make("p", { text: "no GPU" })]));
    }
    if (state.selected) text($("gpu"), state.gpus.has(state.selected) ? inWords(state.gpus.get(state.selected).gpu).join("\n") : "");
  };

  const select = (uuid) => {
    state.gpus.get(state.selected)?.element.setAttribute("aria-selected", "false");
    state.selected = uuid;
    const found = state.gpus.get(uuid);
    if (!found) return;
    found.element.setAttribute("aria-selected", "true");
    found.element.scrollIntoView({ block: "nearest" });
    $("map").setAttribute("aria-activedescendant", found.element.id);
    text($("gpu"), inWords(found.gpu).join("\n"));
  };

  $("map").addEventListener("keydown", (event) => {
    const columns = getComputedStyle($("map")).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !state.order.length) return;
    event.preventDefault();
    const at = state.order.indexOf(state.selected), to = at < 0 ? 0 : at + step;
    select(state.order[Math.min(state.order.length - 1, Math.max(0, to))]);
  });

  // === Deployments and tenants

  const over = (points) => {
    const [w, h] = [176, 35], top = Math.max(1, ...points.map((p) => Math.max(p.wanted, p.ready, p.most || 0)));
    const x = (n) => points.length < 2 ? w : n * w / (points.length - 1), y = (v) => h - 1 - v * (h - 3) / top;
    const svg = draw("svg", { class: "over", viewBox: `0 0 ${w} ${h}`, role: "img", preserveAspectRatio: "none" });
    const [first, last] = [points[0], points[points.length - 1]];
    svg.setAttribute("aria-label", `wanted ${first.wanted} then ${last.wanted}, Ready ${first.ready} then ${last.ready}, in ${points.length} s`);
    const line = (of) => points.map((p, n) => `${x(n).toFixed(1)},${y(of(p)).toFixed(1)}`).join(" ");
    svg.append(draw("polygon", { class: "ready", points: `0,${h} ${points.length < 2 ? `0,${y(last.ready)} ` : ""}${line((p) => p.ready)} ${w},${h}` }));
    svg.append(draw("polyline", { class: "wanted", points: `${points.length < 2 ? `0,${y(last.wanted)} ` : ""}${line((p) => p.wanted)}` }));
    if (last.most !== undefined) svg.append(draw("line", { class: "most", x1: 0, x2: w, y1: y(last.most), y2: y(last.most) }));
    return svg;
  };

  const deployments = (all) => {
    const names = new Set();
    for (const d of all) {
      const name = `${d.namespace}/${d.name}`, points = state.history.get(name) || [];
      names.add(name);
      points.push({ wanted: d.wanted, ready: d.ready, most: d.most });
      if (points.length > POINTS) points.shift();
      state.history.set(name, points);
      let row = state.rows.get(name);
      if (!row) {
        const cell = (label, kind = "") => make("td", { "data-label": label, class: kind });
        row = { name: make("td", { class: "first" }), ready: cell("Ready"), state: cell("State"), over: cell("", "over"), load: cell("Requests/s", "number"), waiting: cell("Waiting", "number"), cost: cell("Cost/h", "number") };
        row.strong = make("strong"); row.message = make("div", { class: "message" });
        row.name.append(row.strong, row.message);
        row.tr = make("tr", {}, row.name, row.ready, row.state, row.over, row.load, row.waiting, row.cost);
        state.rows.set(name, row);
      }
      text(row.strong, name);
      text(row.message, d.well ? "" : d.message);
      text(row.ready, `${d.ready}/${d.wanted}`);
      text(row.state, d.state);
      row.state.className = d.well ? "good" : "bad";
      text(row.load, d.arrivalsMilli === undefined ? "" : (d.arrivalsMilli / 1000).toFixed(1));
      text(row.waiting, d.requests === undefined ? "" : String(d.requests.queued + d.requests.held));
      text(row.cost, money(d));
      const last = points.slice(-2), still = points.length > 2 && JSON.stringify(last[0]) === JSON.stringify(last[1]) && points.length % 10;
      if (!still) row.over.replaceChildren(over(points));
    }
    for (const name of [...state.rows.keys()]) if (!names.has(name)) { state.rows.delete(name); state.history.delete(name); }
    const wanted = [...state.rows.values()].map((row) => row.tr), body = $("rows");
    if (wanted.length !== body.children.length || wanted.some((tr, n) => body.children[n] !== tr)) body.replaceChildren(...wanted);
  };

  const tenants = (all) => {
    const usage = (u) => `${u.class} ${u.heldMilli / 1000} of ${u.nominalMilli / 1000}${u.borrowedMilli ? `, ${u.borrowedMilli / 1000} borrowed` : ""}${u.pendingMilli ? `, ${u.pendingMilli / 1000} pending` : ""}`;
    const lines = all.map((t) => `${t.name}: ${t.usage.map(usage).join("; ") || "no GPU class in its quota"}${t.waiting ? `; ${t.waiting} wait` : ""}`);
    const list = $("tenants");
    if ([...list.children].map((li) => li.textContent).join("\n") !== lines.join("\n")) list.replaceChildren(...lines.map((line) => make("li", { text: line })));
  };

  // === Decisions

  const matches = (record) => `${record.object.namespace}/${record.object.name} ${record.kind} ${record.message}`.toLowerCase().includes($("only").value.toLowerCase());
  const entry = (record) => make("li", {}, make("time", { text: clock(record.time) }), ` ${record.kind} `, make("strong", { text: `${record.object.namespace}/${record.object.name}` }), ` ${record.message}`);
  const listed = () => $("log").replaceChildren(...state.records.filter(matches).slice(0, LINES).map(entry));
  const decisions = async () => {
    try {
      const { decisions: records } = await ask(`decisions.json?since=${state.since}`);
      const fresh = records.filter((r) => !state.seen.has(r.id)).reverse();
      if (!fresh.length && state.since) return;
      for (const r of fresh) { state.seen.add(r.id); state.since = Math.max(state.since, r.time); }
      state.records = [...fresh, ...state.records].slice(0, 10 * LINES);
      listed();
    } catch (error) {
      if (!state.records.length) $("log").replaceChildren(make("li", { text: error.message }));
    }
  };
  $("only").addEventListener("input", listed);

  // === What if

  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    text($("planned"), "planning");
    try {
      const answer = await ask("plan", { method: "POST", headers: { "content-type": "application/json", "x-stowage-dashboard": "1" },
        body: JSON.stringify({ manifests: $("manifests").value, delete: $("delete").checked }) });
      text($("planned"), answer.text);
    } catch (error) { text($("planned"), error.message); }
  });

  // === The loop

  const show = (all) => {
    gpus(all.gpus);
    deployments(all.deployments);
    tenants(all.tenants);
    const nodes = new Set(all.gpus.map((g) => g.node)).size, simulated = all.gpus.some((g) => g.simulated) ? ", simulated" : "";
    const promised = sum(all.gpus, (g) => sum(g.slices, (s) => s.memoryBytes)), total = sum(all.gpus, (g) => g.memoryBytes);
    text($("summary"), `${all.atMs ? clock(all.atMs) : ""} · ${nodes} nodes, ${all.gpus.length} GPUs${simulated} · ${gib(promised)} of ${gib(total)} promised`);
    const missing = [...(all.missing || []), ...(all.paused ? [`planning is paused: ${all.paused}`] : [])];
    $("missing").hidden = !missing.length;
    if ($("missing").textContent !== missing.join("")) $("missing").replaceChildren(...missing.map((line) => make("li", { text: line })));
  };
  let since = null;
  const turn = async () => {
    try {
      show(await ask("overview.json"));
      since = null;
      $("trouble").hidden = true;
      await decisions();
    } catch (error) {
      since ??= Date.now();
      $("trouble").hidden = false;
      text($("trouble"), `No answer since ${clock(since)}; shown is the last one. ${error.message}`);
    }
    setTimeout(turn, document.hidden ? 10 * PERIOD : PERIOD);
  };
  turn();
})();

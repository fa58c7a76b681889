// The page of `kubectl stowage dashboard`. Asks its own server once a second, changes only what is different, and writes what it
// shows as text, never as markup: names and messages come from the cluster's users.
"use strict";
(() => {
  const PERIOD = 1000, PATIENCE = 10_000, WINDOW = 600_000, REDRAW = 10_000, LINES = 200, DENSE = 256, STEP = 2, COLOURS = 8;
  const $ = (id) => document.getElementById(id);
  const state = { gpus: new Map(), order: [], nodes: new Map(), selected: null, tenants: [], rows: new Map(), records: [], since: 0, latest: new Set() };

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") element.textContent = value; else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const texts = new WeakMap();
  const text = (element, value) => {
    if (texts.get(element) === value) return;
    texts.set(element, value);
    element.textContent = value;
  };
  const lines = (list, wanted) => {
    if (list.children.length !== wanted.length || wanted.some((line, n) => list.children[n].textContent !== line)) {
      list.replaceChildren(...wanted.map((line) => make("li", { text: line })));
    }
  };
  const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1).replace(/\.0$/, "")} GiB`;
  const percent = (part, whole) => part > 0 && part < whole / 100 ? "<1 %" : `${whole ? Math.round(100 * part / whole) : 0} %`;
  const clock = (ms) => new Date(ms).toISOString().slice(11, 19) + "Z";
  const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
  const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const money = (micros, currency) => `${(micros / 1e6).toFixed(2)} ${currency}`;

  const ask = async (path, options = {}) => {
    const gone = "The command that serves this page does not answer. Run `kubectl stowage dashboard` again and open the address that it prints.";
    const failed = (error) => { throw new Error(error.name === "TimeoutError" ? `No answer within ${PATIENCE / 1000} s.` : gone); };
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE), ...options }).catch(failed);
    if (answer.status === 404) throw new Error(gone);
    const body = await answer.json().catch((error) => answer.ok ? failed(error) : {});
    if (!answer.ok) throw new Error(body.error || `The page's server answers ${answer.status}.`);
    return body;
  };

  // === Tenants

  const tenantOf = (name) => name || "no tenant";
  const letter = (tenant) => {
    const at = state.tenants.indexOf(tenant);
    return !tenant ? "–" : at < 0 || at > 51 ? "?" : String.fromCharCode(at < 26 ? 65 + at : 71 + at);
  };
  // A class of the style.
  const colour = (tenant) => tenant ? `t${Math.max(0, state.tenants.indexOf(tenant)) % COLOURS}` : "t";
  const chip = (tenant) => make("span", { class: `chip ${colour(tenant)}`, "aria-hidden": "true", text: letter(tenant) });

  // True when letters and colours changed.
  const legend = (all) => {
    const names = new Set();
    for (const g of all.gpus) for (const s of g.slices) names.add(s.tenant);
    const holding = [...names].sort();
    const known = [...new Set([...all.tenants.map((t) => t.name), ...holding.filter((name) => name)])].sort();
    const changed = known.join("\n") !== state.tenants.join("\n");
    state.tenants = known;
    if (changed || holding.join("\n") !== state.holding) {
      $("legend").replaceChildren(...holding.map((t) => make("li", {}, chip(t), ` ${tenantOf(t)}`)));
      state.holding = holding.join("\n");
    }
    return changed;
  };

  const quotas = (all) => {
    const kept = JSON.stringify(all);
    if (kept === state.quotas) return;
    state.quotas = kept;
    const usage = (u) => {
      const words = [`${u.class} ${u.heldMilli / 1000} of ${u.nominalMilli / 1000}`];
      if (u.borrowedMilli) words.push(`${u.borrowedMilli / 1000} borrowed`);
      if (u.pendingMilli) words.push(`${u.pendingMilli / 1000} pending`);
      const bar = make("meter", { "aria-hidden": "true", max: Math.max(u.nominalMilli, u.heldMilli, 1), value: u.heldMilli });
      return make("div", {}, make("span", { text: words.join(", ") }), bar);
    };
    const one = (t) => make("li", {}, make("strong", { text: t.name }),
      ...(t.usage.length ? t.usage.map(usage) : [make("span", { text: "no GPU class in its quota" })]),
      ...(t.waiting ? [make("span", { class: "bad", text: `${count(t.waiting, "deployment")} held back by quota` })] : []));
    $("tenants").replaceChildren(...(all.length ? all.map(one) : [make("li", { text: "none" })]));
  };

  // === GPUs

  const promised = (g) => sum(g.slices, (s) => s.memoryBytes);
  const mark = (g) => g.health !== "Healthy" ? g.health : g.closed ? "closed" : percent(promised(g), g.memoryBytes);
  const health = (g) => g.health === "Healthy" ? (g.closed || "healthy") : `${g.health}${g.reason ? `: ${g.reason}` : ""}`;
  const use = (g) => {
    const age = g.ageMs === undefined ? "" : ` ${Math.round(g.ageMs / 1000)} s ago`;
    const sms = g.usedSmPercent === undefined ? "" : ` and ${g.usedSmPercent} % of the SMs`;
    return g.usedBytes === undefined ? "use not read" : `${gib(g.usedBytes)}${sms} in use${age}`;
  };
  const promise = (g) => `${gib(promised(g))} of ${gib(g.memoryBytes)} and ${sum(g.slices, (s) => s.smPercent)} % of the SMs promised`;
  const slice = (s) => `${s.owner} (${tenantOf(s.tenant)}): ${gib(s.memoryBytes)}, ${s.smPercent} % of the SMs`;
  const inWords = (g) => [`GPU ${g.index} ${mark(g)}`, `node ${g.node}`, health(g), promise(g),
    g.usedBytes === undefined ? "use not read" : `${gib(g.usedBytes)} in use`, ...g.slices.map(slice)].join("; ");

  const sameSlices = (a, b) => a.length === b.length && a.every((s, n) =>
    s.owner === b[n].owner && s.memoryBytes === b[n].memoryBytes && s.smPercent === b[n].smPercent && s.tenant === b[n].tenant);
  const sameGpu = (a, b) => a.health === b.health && a.closed === b.closed && a.reason === b.reason && a.index === b.index
    && a.memoryBytes === b.memoryBytes && sameSlices(a.slices, b.slices);

  const CELL = make("div", { role: "option", "aria-selected": "false" }, make("div", { class: "what" }, make("b"), " ", make("i")), make("div", { class: "bar" }), make("div"));
  const cell = (g) => {
    const element = CELL.cloneNode(true), [what, bar, used] = element.children, [number, sign] = what.children;
    element.id = `gpu-${g.uuid}`;
    return { element, number, sign, bar, used };
  };

  const fill = (known, g) => {
    known.element.className = `gpu ${g.health}${g.closed ? " closed" : ""}`;
    text(known.number, String(g.index));
    text(known.sign, mark(g));
    known.bar.replaceChildren(...g.slices.map((s) => {
      const share = Math.max(2, 100 * s.memoryBytes / g.memoryBytes), part = make("span");
      // A narrower one has no room for it.
      if (share >= state.room) part.dataset.letter = letter(s.tenant);
      part.className = colour(s.tenant);
      part.style.width = `${share}%`;
      return part;
    }));
  };

  const fillUse = (known, g) => {
    // In steps that can be seen.
    const share = g.usedBytes === undefined ? "" : `${Math.min(100, STEP * Math.ceil(100 * g.usedBytes / g.memoryBytes / STEP))}% 100%`;
    if (share !== known.share) {
      known.used.className = share ? "use" : "use unread";
      known.used.style.backgroundSize = known.share = share;
    }
    known.element.setAttribute("aria-label", inWords(g));
  };

  const gpus = (all, recoloured) => {
    const room = all.length > DENSE ? 25 : 10, recolour = recoloured || room !== state.room;
    state.room = room;
    for (const g of all) {
      let known = state.gpus.get(g.uuid);
      const old = known?.gpu;
      if (!known) state.gpus.set(g.uuid, known = cell(g));
      known.gpu = g;
      const changed = !old || recolour || !sameGpu(old, g);
      if (changed) fill(known, g);
      if (changed || old.usedBytes !== g.usedBytes || old.node !== g.node) fillUse(known, g);
    }
    const order = all.map((g) => g.uuid), places = all.map((g) => `${g.node} ${g.uuid}`).join();
    if (places !== state.places) arrange(all, new Set(order));
    Object.assign(state, { order, places });
    for (const { first, small } of state.nodes.values()) {
      const g = state.gpus.get(first).gpu;
      small.className = g.closed ? "closed" : "";
      text(small, g.closed || g.product.replace(/^NVIDIA /, ""));
    }
    detail();
  };

  const arrange = (all, present) => {
    for (const uuid of state.gpus.keys()) if (!present.has(uuid)) state.gpus.delete(uuid);
    state.nodes.clear();
    for (const g of all) {
      let node = state.nodes.get(g.node);
      if (!node) {
        node = { first: g.uuid, cells: make("div", { class: "cells" }), small: make("small") };
        const name = make("div", { class: "name", "aria-hidden": "true" }, g.node, node.small);
        node.element = make("div", { class: "node", role: "group", "aria-label": `node ${g.node}` }, name, node.cells);
        state.nodes.set(g.node, node);
      }
      node.cells.append(state.gpus.get(g.uuid).element);
    }
    $("map").classList.toggle("dense", all.length > DENSE);
    $("map").replaceChildren(...[...state.nodes.values()].map((node) => node.element));
    $("map").hidden = !all.length;
    if (!present.has(state.selected)) select(null);
  };

  const detail = () => {
    const g = state.gpus.get(state.selected)?.gpu;
    $("gpu").hidden = !g;
    if (!g) return;
    const facts = [`${health(g)} · ${promise(g)} · ${use(g)}`, `${g.product} ${g.uuid}${g.simulated ? " (simulated)" : ""}`];
    const slices = g.slices.length ? g.slices.map((s) => make("li", {}, chip(s.tenant), ` ${slice(s)}`)) : [make("li", { text: "nothing is promised on it" })];
    $("gpu").replaceChildren(make("p", {}, make("strong", { text: `${g.node} GPU ${g.index}` }), ` ${facts[0]}`),
      make("p", { class: "faint", text: facts[1] }), make("ul", { "aria-label": "Slices" }, ...slices));
  };

  const select = (uuid) => {
    state.gpus.get(state.selected)?.element.setAttribute("aria-selected", "false");
    const found = state.gpus.get(uuid);
    state.selected = found ? uuid : null;
    detail();
    if (!found) { $("map").removeAttribute("aria-activedescendant"); return; }
    found.element.setAttribute("aria-selected", "true");
    found.element.scrollIntoView({ block: "nearest" });
    $("map").setAttribute("aria-activedescendant", found.element.id);
  };

  // The GPU above or below, wherever the width of the page has put it.
  const beside = (at, step) => {
    const place = (n) => state.gpus.get(state.order[n]).element.getBoundingClientRect(), from = place(at);
    let best = at, row = null, distance = Infinity;
    for (let n = at + step; n >= 0 && n < state.order.length; n += step) {
      const here = place(n);
      if (Math.abs(here.top - from.top) < 2) continue;
      row ??= here.top;
      if (Math.abs(here.top - row) >= 2) break;
      if (Math.abs(here.left - from.left) < distance) { best = n; distance = Math.abs(here.left - from.left); }
    }
    return best;
  };

  $("map").addEventListener("keydown", (event) => {
    const last = state.order.length - 1, at = state.order.indexOf(state.selected);
    const to = { ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: () => beside(at, 1), ArrowUp: () => beside(at, -1), Home: () => 0, End: () => last }[event.key];
    if (event.key === "Escape") select(null);
    if (!to || last < 0) return;
    event.preventDefault();
    select(state.order[at < 0 ? 0 : Math.min(last, Math.max(0, to()))]);
  });
  $("map").addEventListener("focus", () => { if (!state.selected && $("map").matches(":focus-visible")) select(state.order[0]); });
  $("map").addEventListener("click", (event) => {
    const uuid = event.target.closest(".gpu")?.id.slice("gpu-".length);
    if (uuid) select(uuid === state.selected ? null : uuid);
  });

  // === Deployments

  const OPENED = Date.now();
  const graph = () => {
    const draw = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    const svg = draw("svg", { class: "over", viewBox: "0 0 100 30", role: "img", preserveAspectRatio: "none" });
    const [ready, most, wanted] = ["ready", "most", "wanted"].map((kind) => draw("path", { class: kind }));
    svg.append(ready, most, wanted);
    return { svg, ready, most, wanted };
  };

  // `points`: what was seen, and since when; a value holds until the next point.
  const drawOver = (row, now) => {
    const { points, graph: { svg, ready, most, wanted } } = row, from = Math.max(OPENED, now - WINDOW), last = points[points.length - 1];
    while (points.length > 1 && points[1].at <= from) points.shift();
    const top = Math.max(1, ...points.map((p) => Math.max(p.wanted, p.ready, p.most || 0)));
    const x = (at) => (100 * Math.max(0, at - from) / Math.max(1, now - from)).toFixed(1), y = (n) => (28 - 26 * n / top).toFixed(1);
    const steps = (of) => points.map((p, n) => `${n ? "" : `M0 ${y(of(p))}`}H${x(p.at)}V${y(of(p))}`).join("") + "H100";
    ready.setAttribute("d", `${steps((p) => p.ready)}V28H0Z`);
    wanted.setAttribute("d", steps((p) => p.wanted));
    most.setAttribute("d", last.most === undefined ? "" : `M0 ${y(last.most)}H100`);
    const range = (of) => { const all = points.map(of), [low, high] = [Math.min(...all), Math.max(...all)]; return low === high ? `${low}` : `${low} to ${high}`; };
    svg.setAttribute("aria-label", `in ${Math.round((now - from) / 1000)} s wanted ${range((p) => p.wanted)}, Ready ${range((p) => p.ready)}${last.most === undefined ? "" : `, at most ${last.most}`}`);
    row.drawn = now;
  };

  const newRow = () => {
    const data = (label, kind = "") => make("td", { role: "cell", "data-label": label, class: kind });
    const row = { name: make("span"), message: make("div", { class: "message" }), state: data("", "state"), ready: data("Ready"), over: data("", "over"),
      load: data("Requests/s", "number"), waiting: data("Waiting", "number"), cost: data("Cost/h", "number"), points: [], graph: graph(), drawn: 0 };
    row.over.removeAttribute("data-label");
    row.state.removeAttribute("data-label");
    row.over.append(row.graph.svg);
    row.tr = make("tr", { role: "row" }, make("th", { role: "rowheader", scope: "row", class: "first" }, row.name, row.message), row.state, row.ready, row.over, row.load, row.waiting, row.cost);
    return row;
  };

  const deployments = (all) => {
    const now = Date.now(), rows = new Map();
    for (const d of all) {
      const name = `${d.namespace}/${d.name}`, row = state.rows.get(name) || newRow(), last = row.points[row.points.length - 1];
      rows.set(name, row);
      text(row.name, name);
      text(row.message, d.well ? "" : d.message);
      text(row.state, d.state);
      row.state.className = d.well ? "state good" : "state bad";
      text(row.ready, `${d.ready}/${d.wanted}`);
      text(row.load, d.arrivalsMilli === undefined ? "" : (d.arrivalsMilli / 1000).toFixed(1));
      text(row.waiting, d.requests === undefined ? "" : String(d.requests.queued + d.requests.held));
      text(row.cost, d.pricePerHourMicros === undefined ? "" : money(d.pricePerHourMicros, d.currency));
      const changed = !last || last.wanted !== d.wanted || last.ready !== d.ready || last.most !== d.most;
      if (changed) row.points.push({ at: now, wanted: d.wanted, ready: d.ready, most: d.most });
      if (changed || now - row.drawn > REDRAW) drawOver(row, now);
    }
    state.rows = rows;
    const wanted = [...rows.values()].map((row) => row.tr), body = $("rows");
    if (wanted.length !== body.children.length || wanted.some((tr, n) => body.children[n] !== tr)) body.replaceChildren(...wanted);
    body.parentElement.hidden = $("key").hidden = !all.length;
  };

  // === Decisions

  const matches = (record) => `${record.object.namespace}/${record.object.name} ${record.kind} ${record.action} ${record.message}`.toLowerCase().includes($("only").value.toLowerCase());
  const entry = (record) => make("li", {}, make("time", { text: clock(record.time), datetime: new Date(record.time).toISOString(), title: new Date(record.time).toISOString() }), " ",
    make("span", { text: `${record.kind} · ${record.action}` }), " ", make("strong", { text: `${record.object.namespace}/${record.object.name}` }), " ", make("span", { class: "why", text: record.message }));
  // Draws all of them, or puts fresh ones on top.
  const listed = (fresh) => {
    const list = $("log"), add = (fresh || state.records).filter(matches).slice(0, LINES).map(entry);
    if (fresh && !list.querySelector(".none")) list.prepend(...add); else list.replaceChildren(...add);
    while (list.children.length > LINES) list.lastChild.remove();
    if (!list.children.length) list.append(make("li", { class: "none", text: state.records.length ? "no decision contains this" : "no decision yet" }));
    text($("shown"), $("only").value ? `${state.records.filter(matches).length} of ${state.records.length}` : "");
  };
  const decisions = (records) => {
    // Those of the last millisecond come again.
    const fresh = records.filter((r) => !state.latest.has(r.id)).reverse();
    if (!fresh.length && state.listed) return;
    state.since = Math.max(state.since, ...fresh.map((r) => r.time));
    state.latest = new Set(records.filter((r) => r.time === state.since).map((r) => r.id));
    state.records = [...fresh, ...state.records].slice(0, 10 * LINES);
    listed(state.listed ? fresh : null);
    state.listed = true;
  };
  const noDecisions = (why) => { if (!state.records.length) $("log").replaceChildren(make("li", { class: "none", text: why })); };
  $("only").addEventListener("input", () => listed(null));

  // === What if

  let asked = 0;
  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const mine = ++asked;
    text($("verdict"), "planning");
    $("planned").hidden = true;
    const [verdict, good, plan] = await ask("plan", { method: "POST", headers: { "content-type": "application/json", "x-stowage-dashboard": "1" }, signal: undefined,
      body: JSON.stringify({ manifests: $("manifests").value, delete: $("delete").checked }) })
      .then((answer) => [answer.fits ? "It fits." : "It does not fit.", answer.fits, answer.text], (error) => ["No plan.", false, error.message]);
    if (mine !== asked) return;
    $("verdict").className = good ? "good" : "bad";
    text($("verdict"), verdict);
    text($("planned"), plan);
    $("planned").hidden = false;
  });

  // === The loop

  const figures = (all) => {
    const { gpus, deployments } = all, read = gpus.filter((g) => g.usedBytes !== undefined), nodes = new Set(gpus.map((g) => g.node)).size;
    const bad = gpus.filter((g) => g.health !== "Healthy").length, notWell = deployments.filter((d) => !d.well).length;
    const total = sum(gpus, (g) => g.memoryBytes), taken = sum(gpus, promised), used = sum(read, (g) => g.usedBytes);
    const shown = [["GPUs", String(gpus.length), `${count(nodes, "node")}${gpus.some((g) => g.simulated) ? ", simulated" : ""}${bad ? `, ${bad} not healthy` : ""}`],
      ["Memory promised", percent(taken, total), `${gib(taken)} of ${gib(total)}`],
      ["Memory in use", read.length ? percent(used, sum(read, (g) => g.memoryBytes)) : "–", read.length ? `${gib(used)}${read.length < gpus.length ? ` on ${read.length} GPUs that report` : ""}` : "not read"],
      ["Replicas Ready", `${sum(deployments, (d) => d.ready)} of ${sum(deployments, (d) => d.wanted)}`, `${count(deployments.length, "deployment")}${notWell ? `, ${notWell} not on target` : ""}`]];
    const prices = new Map();
    for (const d of deployments) if (d.pricePerHourMicros !== undefined) prices.set(d.currency, (prices.get(d.currency) || 0) + d.pricePerHourMicros);
    for (const [currency, micros] of prices) shown.push(["Cost per hour", money(micros, currency), "where GPUs have a price"]);
    const list = $("figures");
    while (list.children.length > shown.length) list.lastChild.remove();
    shown.forEach((words, n) => {
      const tile = list.children[n] || list.appendChild(make("div", {}, make("dt"), make("dd", { class: "much" }), make("dd", { class: "more" })));
      words.forEach((word, part) => text(tile.children[part], word));
    });
  };

  const show = (all) => {
    gpus(all.gpus, legend(all));
    deployments(all.deployments);
    quotas(all.tenants);
    figures(all);
    text($("summary"), all.atMs ? `state of ${clock(all.atMs)}` : "");
    const missing = [...(all.missing || []), ...(all.paused ? [`planning is paused: ${all.paused}`] : [])];
    $("missing").hidden = !missing.length;
    lines($("missing"), missing);
  };

  let failing = null, timer = null;
  const trouble = (why) => {
    failing = why ? failing ?? Date.now() : null;
    $("trouble").hidden = !why;
    text($("trouble"), why ? `No answer since ${clock(failing)}; what is shown is older. ${why}` : "");
    document.title = why ? "No answer · Stowage" : "Stowage";
  };
  const turn = async () => {
    timer = null;
    try {
      const stream = ask(`decisions.json?since=${state.since}`).then(({ decisions: records }) => () => decisions(records), (error) => () => noDecisions(error.message));
      const [all, drawDecisions] = [await ask("overview.json"), await stream];
      // Together: a frame costs more than what changes in it.
      show(all);
      drawDecisions();
      trouble(null);
    } catch (error) { trouble(error.message); }
    timer = setTimeout(turn, document.hidden ? 10 * PERIOD : PERIOD);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden && timer) { clearTimeout(timer); turn(); } });
  turn();
})();

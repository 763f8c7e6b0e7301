// The parts of the page, each drawn from the state.

const TABLE_MAX = 64;
const TROUBLE = ["culprit", "silent", "late", "stuck"];
const isOver = (state) => ["done", "stopped", "failed", "lost"].includes(state.phase);

function showHead(state) {
  const about = state.summary;
  say(byId("name"), about.name);
  const [word, tone] = PHASES[state.phase];
  say(byId("phase"), word);
  byId("phase").dataset.tone = tone;
  document.title = `${word} · ${about.name} · scpeft`;
  const parts = [];
  if (about.adapters.length) parts.push(about.adapters.map(kindName).join(" + "));
  if (about.architecture) parts.push(parts.length ? `on ${kindName(about.architecture)}` : kindName(about.architecture));
  let text = parts.join(" ");
  if (about.task) text += `${text ? " · " : ""}${TASKS[about.task] || about.task}`;
  if (about.train_cells) text += ` · ${count(about.train_cells)} training cells`;
  if (about.classes) text += ` · ${count(about.classes)} classes`;
  say(byId("about"), text || about.run_dir);
  const foot = [about.run_dir];
  if (about.version) foot.push(`scpeft ${about.version}`);
  if (about.seed !== null) foot.push(`seed ${about.seed}`);
  if (about.command) foot.push(about.command);
  say(byId("foot"), foot.join(" · "));
}

const LOST = {
  rank: null, host: null, cause: null, last_lines: [], title: "Nobody wrote down how this run ended",
  meaning: "it was started without scpeft-launch, or its launcher was killed. The logs below may tell more, and --resume continues from the newest checkpoint",
};

function showFailure(state) {
  const failure = state.phase === "lost" ? LOST : state.failure;
  byId("failure").hidden = !failure;
  if (!failure) return;
  const who = failure.title ? failure.title : failure.rank === null ? "The run failed" : `Rank ${failure.rank}${failure.host ? ` on ${failure.host}` : ""} failed first`;
  say(byId("failure-title"), who);
  const meaning = failure.meaning ? failure.meaning[0].toUpperCase() + failure.meaning.slice(1) : "";
  const cause = failure.cause ? ` Likely cause: ${failure.cause.replaceAll("`", "")}.` : "";
  const next = state.next_start ? ` It starts again at ${moment(state.next_start, state.time)}.` : "";
  say(byId("failure-text"), `${meaning}.${cause}${next}`);
  const lines = byId("failure-lines");
  lines.hidden = !failure.last_lines.length;
  say(lines, failure.last_lines.join("\n"));
  byId("failure-log").hidden = failure.rank === null;
}

function showProgress(state) {
  const { step, planned_steps: planned, epoch, elapsed_seconds: gone, eta_seconds: left } = state.progress;
  const share = state.phase === "done" ? 1 : planned ? Math.min(step / planned, 1) : null;
  say(byId("share"), share === null ? "" : percent(share));
  const bar = byId("bar");
  byId("bar-done").style.width = `${100 * (share || 0)}%`;
  bar.dataset.tone = { done: "good", failed: "bad", lost: "bad" }[state.phase] || "busy";
  if (share === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", String(Math.floor(100 * share)));
  const facts = [["Step", planned ? `${count(step)} of ${count(planned)}` : count(step)]];
  if (step) facts.push(["Epoch", count(epoch + 1)]);
  if (gone !== null) facts.push([PHASES[state.phase][1] === "busy" ? "Running for" : "Took", duration(gone)]);
  if (left !== null && left > 0) {
    facts.push(["About", `${duration(left)} left`], ["Ends about", moment(state.time + left, state.time).slice(0, -3)]);
  }
  if (state.restarts) facts.push(["Started again", `${state.restarts} ×`]);
  byId("steps").replaceChildren(...facts.map(([name, value]) => make("span", {}, `${name} `, make("b", {}, value))));
}

function tile(name, value, note, tone) {
  return make("div", { "data-tone": tone || "" }, make("dt", {}, name), make("dd", {}, value), make("dd", {}, note || " "));
}

function lastOf(state, source, name) {
  const curve = state.curves.find((one) => one.source === source && one.name === name);
  return curve && curve.steps.length ? curve.last : null;
}

function showTiles(state) {
  const about = state.summary;
  const tiles = [];
  if (about.best_value !== null) {
    tiles.push(tile(`Best ${metricName(about.selecting_metric)}`, number(about.best_value), `after step ${count(about.best_step)}`));
  } else {
    tiles.push(tile("Best score", "–", "no evaluation yet"));
  }
  const valid = lastOf(state, "valid", "loss");
  tiles.push(tile("Training loss", number(lastOf(state, "train", "loss")), valid === null ? "" : `${number(valid)} on validation cells`));
  const over = isOver(state);
  tiles.push(tile("Cells per second", count(state.progress.cells_per_second), over ? "at the end" : "all ranks together"));
  const saved = state.checkpoints.find((one) => one.complete);
  if (saved) {
    const age = state.time - saved.time;
    tiles.push(tile("Last checkpoint", `step ${count(saved.step)}`, over ? moment(saved.time, state.time) : `${duration(age)} ago`));
  } else {
    tiles.push(tile("Last checkpoint", "–", "none yet"));
  }
  const bad = state.ranks.filter((rank) => TROUBLE.includes(rank.health));
  const work = state.ranks.filter((rank) => rank.health === "ok").length;
  if (over || !state.ranks.length) tiles.push(tile("Ranks", count(state.ranks.length || about.world_size), bad.length ? `rank ${bad[0].rank} failed first` : over ? "none at work" : "", bad.length ? "bad" : ""));
  else tiles.push(tile("Ranks at work", `${count(work)} of ${count(state.ranks.length)}`, bad.length ? `look at rank ${bad[0].rank}` : about.device || "", bad.length ? "bad" : ""));
  byId("tiles").replaceChildren(...tiles);
}

const charts = new Map();

/** The chart of this name, made in `home` when it is not there yet. */
function chart(home, title, options) {
  if (!charts.has(title)) {
    const made = new Chart(title, options);
    charts.set(title, made);
    home.append(made.element);
  }
  return charts.get(title);
}

function named(curve, name) {
  return { ...curve, name };
}

function showCurves(state) {
  const home = byId("charts");
  const curves = state.curves.filter((curve) => curve.steps.length);
  const losses = curves.filter((curve) => curve.name === "loss")
    .map((curve) => named(curve, curve.source === "train" ? "training" : "validation"));
  const scores = curves.filter((curve) => curve.source !== "train" && curve.name !== "loss");
  const shares = scores.filter((curve) => curve.values.every((value) => value >= -1 && value <= 1));
  home.querySelector(".empty")?.remove();
  if (!losses.length && !shares.length) {
    home.append(make("p", { class: "empty" }, state.live ? "Curves appear with the first logged step." : "No step was logged."));
  }
  if (losses.length) chart(home, "Loss", { log: true, hint: "How wrong the model is; it should fall, on validation cells too." }).show(losses);
  if (shares.length) {
    const known = shares.map((curve) => METRICS[curve.name]).filter((entry) => entry && entry[1]).map(([name, meaning]) => `${name}: ${meaning}`);
    chart(home, "Scores on validation cells", { hint: known.length ? `${known.join("; ")}. 1 is best.` : "" })
      .show(shares.map((curve) => named(curve, metricName(curve.name))));
  }
  const rest = curves.filter((curve) => curve.name !== "loss" && !shares.includes(curve));
  byId("more-curves").hidden = !rest.length;
  for (const curve of rest) {
    const title = metricName(curve.name) + (curve.source === "train" ? "" : ` (${curve.source})`);
    chart(byId("small-charts"), title, { small: true }).show([named(curve, "last")]);
  }
}

function showTime(state) {
  const total = state.sections.reduce((sum, one) => sum + one.seconds, 0);
  const list = state.sections.map((one) => ({ ...one, share: one.seconds / total }));
  const words = list.map((one) => `${SECTIONS[one.section]} ${percent(one.share)}`);
  byId("time-bar").hidden = !total;
  byId("time-bar").setAttribute("aria-label", words.join(", "));
  byId("time-bar").replaceChildren(...list.map((one) => {
    const part = make("i", { class: `s-${one.section}`, title: `${SECTIONS[one.section]} ${percent(one.share)}` });
    part.style.flexGrow = String(one.share);
    return part;
  }));
  byId("time-list").replaceChildren(...(total ? list.map((one) =>
    make("li", {}, make("i", { class: `s-${one.section}`, "aria-hidden": "true" }), SECTIONS[one.section], make("b", {}, percent(one.share))))
    : [make("li", { class: "muted" }, "Nothing has been measured yet.")]));
}

function rankCells(rank, behind) {
  const doing = rank.section === null ? "–" : rank.end ? `was ${SECTIONS[rank.section].toLowerCase()}` : SECTIONS[rank.section];
  const lasting = !rank.end && rank.section_age_seconds !== null && rank.section && rank.section_age_seconds >= 3 ? ` for ${duration(rank.section_age_seconds)}` : "";
  const end = rank.end && rank.end.code !== 0 ? ` (${rank.end.signal ? `signal ${rank.end.signal}` : `exit ${rank.end.code}`})` : "";
  const memory = bytes(rank.memory_bytes) + (rank.device_memory_bytes ? ` + ${bytes(rank.device_memory_bytes)} GPU` : "");
  return [
    ["Rank", `Rank ${rank.rank}`, ""], ["State", HEALTH[rank.health] + end, "state wide-cell"],
    ["Host", rank.host || "–", ""], ["Device", rank.device || "–", ""],
    ["Step", rank.section === null ? "–" : count(rank.step), behind ? "number slow" : "number"], ["Doing", doing + lasting, ""],
    ["Heard", rank.age_seconds === null ? "–" : `${duration(rank.age_seconds)} ago`, "number"],
    ["Memory", memory, "number"],
    ["Work", rank.skew === null ? "–" : `${rank.skew.toFixed(2)} ×`, rank.skew !== null && rank.skew > 1.15 ? "number slow" : "number"],
  ];
}

function showRanks(state) {
  const ranks = state.ranks;
  const order = (rank) => { const at = TROUBLE.indexOf(rank.health); return at < 0 ? TROUBLE.length : at; };
  const sorted = [...ranks].sort((a, b) => order(a) - order(b) || (ranks.length > TABLE_MAX ? (b.skew || 0) - (a.skew || 0) : 0) || a.rank - b.rank);
  const shown = sorted.slice(0, TABLE_MAX);
  const furthest = Math.max(0, ...ranks.map((rank) => rank.step));
  const body = byId("ranks").tBodies[0];
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((rank, index) => {
    const row = body.rows[index] || body.insertRow();
    row.dataset.health = rank.health;
    rankCells(rank, rank.step + 1 < furthest).forEach(([label, text, kind], column) => {
      const cell = row.cells[column] || row.insertCell();
      cell.className = kind;
      if (column > 1) cell.dataset.label = label;
      say(cell, text);
    });
  });
  byId("ranks").hidden = !ranks.length;
  showMap(ranks);
  const bad = ranks.filter((rank) => TROUBLE.includes(rank.health)).length;
  const hosts = new Set(ranks.map((rank) => rank.host).filter(Boolean)).size;
  say(byId("ranks-short"), ranks.length ? `${count(ranks.length)} on ${hosts === 1 ? "1 host" : `${count(hosts)} hosts`}${bad ? `, ${count(bad)} to look at` : ""}` : "");
  const notes = [];
  if (!ranks.length) notes.push("Nothing is known of the ranks: the run was not started by scpeft-launch, or before it kept them.");
  if (ranks.length > TABLE_MAX) notes.push(`The ${TABLE_MAX} that need looking at first; a square stands for each rank, in order.`);
  if (ranks.length > 1) notes.push("Work: time on its own share, against the median rank. The largest keeps the others waiting.");
  say(byId("ranks-note"), notes.join(" "));
}

function showMap(ranks) {
  const map = byId("map");
  map.hidden = ranks.length <= TABLE_MAX;
  if (map.hidden) return;
  const numbers = {};
  for (const rank of ranks) numbers[rank.health] = (numbers[rank.health] || 0) + 1;
  map.setAttribute("aria-label", Object.entries(numbers).map(([health, n]) => `${n} ${HEALTH[health]}`).join(", "));
  while (map.children.length > ranks.length) map.lastChild.remove();
  ranks.forEach((rank, index) => {
    const square = map.children[index] || map.appendChild(make("i", {}));
    if (square.dataset.health !== rank.health) square.dataset.health = rank.health;
    const title = `rank ${rank.rank}, ${rank.host}: ${HEALTH[rank.health]}`;
    if (square.title !== title) square.title = title;
  });
}

/** Draws a part anew only when what it shows has changed. */
const drawn = new Map();
function changed(part, data) {
  const key = JSON.stringify(data);
  if (drawn.get(part) === key) return false;
  drawn.set(part, key);
  return true;
}

function showEvents(state) {
  if (!changed("events", state.events)) return;
  const rows = state.events.map((event) => make("li", { "data-tone": event.tone },
    make("time", { dateTime: new Date(1000 * event.time).toISOString() }, moment(event.time, state.time)),
    make("span", {}, event.text.replaceAll("`", ""))));
  byId("events").replaceChildren(...(rows.length ? rows : [make("li", { class: "muted" }, "Nothing yet.")]));
}

function showCheckpoints(state) {
  if (!changed("checkpoints", state.checkpoints)) return;
  const rows = state.checkpoints.map((one) => {
    const tags = [];
    if (one.is_best) tags.push(make("span", { class: "tag good" }, "best"));
    if (one.is_latest) tags.push(make("span", { class: "tag accent" }, "newest"));
    if (!one.complete) tags.push(make("span", { class: "tag bad" }, "incomplete"));
    const score = one.score ? `${metricName(one.score[0])} ${number(one.score[1])}` : "–";
    return make("tr", {}, make("td", { class: "number" }, count(one.step)), make("td", {}, score),
      make("td", { class: "number" }, bytes(one.bytes)), make("td", {}, one.time ? moment(one.time, state.time) : "–"), make("td", {}, ...tags));
  });
  byId("checkpoints").hidden = !rows.length;
  byId("checkpoints").tBodies[0].replaceChildren(...rows);
  say(byId("checkpoints-note"), rows.length ? "" : "None yet. The first follows the first evaluation, or checkpoint.every_steps.");
}

function showPlan(state) {
  const { plan, summary, ranks } = state;
  if (!changed("plan", [plan, summary.trainable_parameters, summary.peak_memory_bytes, ranks.map((rank) => rank.memory_bytes)])) return;
  const rows = [];
  const seen = Math.max(0, ...summary.peak_memory_bytes, ...ranks.map((rank) => rank.memory_bytes));
  const row = (name, planned, actual, kind) => rows.push(make("tr", {}, make("td", { class: kind || "" }, name), make("td", { class: "number" }, planned), make("td", { class: "number" }, actual)));
  if (plan) {
    const trains = plan.parameters ? plan.parameters.adapters + plan.parameters.heads + plan.parameters.backbone : null;
    row("Memory, largest rank", bytes(plan.memory_bytes), bytes(seen));
    if (plan.memory) {
      const parts = { activations: "activations", frozen_blocks: "frozen layers", frozen_rest: "other frozen tensors", trainable: "what trains", loader: "cells ahead" };
      for (const [key, name] of Object.entries(parts)) if (plan.memory[key]) row(name, bytes(plan.memory[key]), "", "part");
    }
    row("Parameters that train", count(trains), count(summary.trainable_parameters));
    row("Ranks", count(plan.ranks), count(ranks.length || summary.world_size));
    if (plan.step) row("Sent in a step", bytes(plan.step.all_reduce_bytes + plan.step.gathered_bytes), "–");
  } else if (seen) {
    row("Memory, largest rank", "–", bytes(seen));
    row("Parameters that train", "–", count(summary.trainable_parameters));
  }
  byId("plan").hidden = !rows.length;
  byId("plan").tBodies[0].replaceChildren(...rows);
  say(byId("plan-note"), plan ? "" : "No plan is known; scpeft-train plan --json makes one.");
}

function showSettings(state) {
  const all = byId("defaults").checked;
  if (!changed("settings", [all, state.settings])) return;
  const parts = [];
  let section = null;
  let list = null;
  for (const setting of state.settings) {
    const standard = setting.origin === "default";
    if (standard && !all) continue;
    if (setting.section !== section || !list) {
      section = setting.section;
      list = make("dl", {});
      parts.push(make("h3", {}, section), list);
    }
    list.append(make("dt", { class: standard ? "default" : "" }, setting.key),
      make("dd", { class: standard ? "value default" : "value" }, setting.value === null ? "unset" : setting.value),
      make("dd", { class: "origin muted" }, setting.origin));
  }
  const none = state.settings.length ? "Everything is at its default." : "The resolved configuration appears when the first rank has read it.";
  byId("settings").replaceChildren(...(parts.length ? parts : [make("p", { class: "muted" }, none)]));
}

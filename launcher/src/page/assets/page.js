// Asks for the state every second, and for what the buttons stand for.

const PERIOD = 1000;
const HIDDEN_PERIOD = 10000;
const LOG_PERIOD = 2000;
const PATIENCE = 5000;

let last = null;
let lost = null;
let logRank = null;

function get(path, options) {
  return fetch(path, { cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(PATIENCE), ...options });
}

function notice(text, tone) {
  const place = byId("notice");
  place.hidden = !text;
  place.dataset.tone = tone || "";
  say(place, text || "");
}

function show(state) {
  showHead(state);
  showFailure(state);
  showProgress(state);
  showTiles(state);
  showCurves(state);
  showRanks(state);
  showTime(state);
  showEvents(state);
  showCheckpoints(state);
  showPlan(state);
  showSettings(state);
  byId("save").hidden = byId("drain").hidden = !state.controls || isOver(state);
  byId("save").disabled = byId("drain").disabled = state.phase === "draining";
  byId("log-rank").max = String(Math.max(0, state.ranks.length - 1));
  if (logRank === null) {
    logRank = state.failure && state.failure.rank !== null ? state.failure.rank : 0;
    byId("log-rank").value = String(logRank);
    pollLog();
  }
}

async function poll() {
  try {
    const answer = await get("/api/state");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    last = await answer.json();
    if (lost !== null) notice("");
    lost = null;
    show(last);
  } catch (error) {
    lost = lost || Date.now();
    const over = last && isOver(last);
    const dir = last ? last.summary.run_dir : "RUN";
    notice(over ? `The run has ended and its launcher with it; this is its last state. Later: scpeft-launch view ${dir}`
      : `No answer for ${duration((Date.now() - lost) / 1000)}; this is the last state that was seen. When the launcher is gone: scpeft-launch view ${dir}`,
    over ? "" : "bad");
  }
  setTimeout(poll, document.hidden ? HIDDEN_PERIOD : PERIOD);
}

async function pollLog() {
  const place = byId("log");
  const rank = logRank;
  try {
    const answer = await get(`/api/log?rank=${rank}`);
    const text = (await answer.text()).trimEnd();
    if (rank !== logRank) return;
    const follows = place.scrollTop + place.clientHeight >= place.scrollHeight - 8;
    say(place, text || "The rank has not written anything yet.");
    if (follows) place.scrollTop = place.scrollHeight;
  } catch (error) {
    // The notice about the state says that nobody answers.
  }
}

function chooseLog(rank) {
  if (!Number.isInteger(rank) || rank < 0) return;
  logRank = rank;
  byId("log-rank").value = String(rank);
  pollLog().then(() => { byId("log").scrollTop = byId("log").scrollHeight; });
}

/** The token: out of the link once, then kept for this tab, and out of sight. */
function takeToken() {
  const found = /^#token=([0-9a-f]+)$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem("token", found[1]);
  history.replaceState(null, "", location.pathname);
}

const ASKS = {
  save: { title: "Save now?", text: "All ranks write a checkpoint after the present step and go on.", yes: "Save now" },
  drain: { title: "Save and stop?", text: "All ranks write a checkpoint after the present step, and the run ends. Resuming it continues from there.", yes: "Save and stop" },
};

function ask(what) {
  const dialog = byId("dialog");
  const token = sessionStorage.getItem("token");
  const { title, text, yes } = ASKS[what];
  say(byId("dialog-title"), title);
  say(byId("dialog-text"), token ? text : `${text} The token is in the link that scpeft-launch printed, and in the file page-token of the run directory.`);
  say(byId("dialog-yes"), yes);
  byId("dialog-field").hidden = Boolean(token);
  byId("token").value = "";
  dialog.returnValue = "no";
  dialog.onclose = () => {
    if (dialog.returnValue !== "yes") return;
    const given = byId("token").value.trim();
    if (given) sessionStorage.setItem("token", given);
    send(what);
  };
  dialog.showModal();
}

async function send(what) {
  const token = sessionStorage.getItem("token") || "";
  try {
    const answer = await get(`/api/${what}`, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    const said = await answer.json();
    if (answer.status === 401 || answer.status === 403) sessionStorage.removeItem("token");
    notice(answer.ok ? `Done: ${said.said}.` : `Refused: ${said.error}.`, answer.ok ? "" : "bad");
    if (answer.ok) setTimeout(() => { if (lost === null) notice(""); }, 8000);
  } catch (error) {
    notice("Nobody answered; nothing was asked for.", "bad");
  }
}

/** Light or dark: as the system has it, until the button says otherwise. */
function theme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = localStorage.getItem("theme");
  if (kept) root.dataset.theme = kept;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => say(byId("theme"), isDark() ? "Light" : "Dark");
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    label();
  });
  system.addEventListener("change", label);
  label();
}

takeToken();
addEventListener("hashchange", takeToken);
theme();
byId("save").addEventListener("click", () => ask("save"));
byId("drain").addEventListener("click", () => ask("drain"));
byId("defaults").addEventListener("change", () => last && showSettings(last));
byId("log-rank").addEventListener("change", () => chooseLog(byId("log-rank").valueAsNumber));
byId("failure-log").addEventListener("click", () => {
  chooseLog(last.failure.rank);
  byId("log").scrollIntoView({ block: "center" });
  byId("log").focus();
});
setInterval(() => { if (!document.hidden && logRank !== null && lost === null) pollLog(); }, LOG_PERIOD);
poll();

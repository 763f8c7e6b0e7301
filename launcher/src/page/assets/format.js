"use strict";
// Words and numbers.

const whole = new Intl.NumberFormat("en");

function count(value) {
  return value === null || value === undefined ? "–" : whole.format(Math.round(value));
}

/** A number with about four significant digits. */
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return whole.format(Math.round(value));
  if (size >= 100) return value.toFixed(1);
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function bytes(value) {
  if (!value) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

function percent(share) {
  const value = 100 * share;
  return `${value < 10 && value > 0 ? value.toFixed(1) : Math.round(value)} %`;
}

/** The time of day of today, with the date otherwise. */
function moment(unix, now) {
  const at = new Date(1000 * unix);
  const clock = at.toLocaleTimeString("en-GB");
  const today = new Date(1000 * now).toDateString() === at.toDateString();
  return today ? clock : `${at.toLocaleDateString("en-CA")} ${clock.slice(0, 5)}`;
}

const PHASES = {
  starting: ["Starting", "busy"], running: ["Running", "busy"], training: ["Training", "busy"],
  evaluating: ["Evaluating", "busy"], saving: ["Saving", "busy"],
  draining: ["Saving before it stops", "warn"], pausing: ["Failed, starts again soon", "warn"],
  done: ["Done", "good"], stopped: ["Stopped on request", "warn"], failed: ["Failed", "bad"],
  lost: ["Not running", "bad"],
};
const SECTIONS = {
  setup: "Starting", data: "Waiting for cells", forward: "Computing",
  collective: "Exchanging between ranks", optimizer: "Updating", eval: "Evaluating",
  checkpoint: "Saving", done: "Finished",
};
const HEALTH = {
  waiting: "not heard of yet", ok: "at work", stuck: "no progress", late: "late", silent: "silent",
  ended: "ended", failed: "ended with the run", culprit: "failed first", unknown: "end unknown",
};
const TASKS = {
  identification: "cell-type identification", "masked-expression": "masked expression",
  "batch-correction": "batch correction", perturbation: "perturbation",
};
const KINDS = {
  lora: "LoRA", encoder: "encoder adapter", token: "token adapter", hybrid: "hybrid adapter",
  prefix: "prefix", mlp: "MLP adapter", hra: "HRA", oft: "OFT", ia3: "IA3", head: "head", full: "all parameters",
  scgpt: "scGPT", geneformer: "Geneformer", scbert: "scBERT", scfoundation: "scFoundation",
};
const METRICS = {
  loss: ["loss", ""],
  accuracy: ["accuracy", "the share of cells whose type is right"],
  balanced_accuracy: ["balanced accuracy", "the mean over cell types of the share that is right"],
  macro_f1: ["macro F1", "precision and recall in one number, each cell type counting the same"],
  cells_per_second: ["cells per second", ""], step_seconds: ["seconds per step", ""],
  data_seconds: ["waiting for cells (s)", ""], collective_seconds: ["exchanging (s)", ""],
  lr: ["learning rate", ""], grad_norm: ["gradient norm", ""],
  padding_ratio: ["share of padding", ""],
};

function kindName(kind) {
  return KINDS[kind] || kind;
}

function metricName(name) {
  return METRICS[name] ? METRICS[name][0] : name.replaceAll("_", " ");
}

/** An element with properties and children; text is never read as HTML. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") element.className = value;
    else if (name.startsWith("data-") || name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const byId = (id) => document.getElementById(id);

/** Writes a text only when it changes, so that a selection or a screen reader is not disturbed. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

//! The catalogue of Prometheus metrics: name, type, unit and help in one table, from which the
//! exporter registers and the documentation and dashboards are checked.

/// How a metric behaves over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// One metric of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Full name, with the `scpeft_` prefix and the base unit as suffix.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Label names; values come from bounded sets only.
    pub labels: &'static [&'static str],
    /// One sentence for the exposition's HELP line.
    pub help: &'static str,
}

macro_rules! catalogue {
    ($($ident:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $ident: Metric = Metric {
            name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help,
        };)*
        /// Every metric that a rank may export.
        pub const CATALOGUE: &[Metric] = &[$($ident),*];
    };
}

catalogue! {
    RUN_INFO = "scpeft_run_info", Gauge, ["run", "backbone", "adapter", "task"], "Constant 1; its labels say what runs.";
    STEP = "scpeft_step", Gauge, [], "Optimizer steps done.";
    EPOCH = "scpeft_epoch", Gauge, [], "Epochs completed.";
    PLANNED_STEPS = "scpeft_planned_steps", Gauge, [], "Optimizer steps that the run will take if nothing stops it early.";
    LOSS = "scpeft_loss", Gauge, ["split"], "Loss of the last step (train) or evaluation (valid), reduced over ranks.";
    EVAL_METRIC = "scpeft_eval_metric", Gauge, ["name"], "Metrics of the last evaluation, reduced over ranks.";
    BEST_METRIC = "scpeft_best_metric", Gauge, ["name"], "Best value so far of the metric that selects the model.";
    LEARNING_RATE = "scpeft_learning_rate", Gauge, [], "Learning rate of the last step.";
    GRAD_NORM = "scpeft_grad_norm", Gauge, [], "Global gradient norm of the last step, before clipping.";
    TRAINABLE_PARAMETERS = "scpeft_trainable_parameters", Gauge, [], "Trainable parameters: adapters and heads.";
    WORLD_SIZE = "scpeft_world_size", Gauge, [], "Ranks in the run.";
    SKIPPED_STEPS = "scpeft_skipped_steps_total", Counter, ["reason"], "Steps whose update was skipped on all ranks.";
    LAST_CHECKPOINT = "scpeft_last_checkpoint_timestamp_seconds", Gauge, [], "Unix time of the last complete checkpoint.";
    CHECKPOINT_BYTES = "scpeft_checkpoint_bytes", Gauge, [], "Size of the last complete checkpoint.";
    CHECKPOINT_STALL = "scpeft_checkpoint_stall_seconds", Histogram, [], "Time that a checkpoint held up the loop: waiting for the one before, and copying.";
    CHECKPOINT_WRITE = "scpeft_checkpoint_write_seconds", Histogram, [], "Time that a checkpoint took to be written and checked, while the loop went on.";
    CHECKPOINT_FAILURES = "scpeft_checkpoint_failures_total", Counter, [], "Checkpoints that could not be saved.";
    STEP_SECONDS = "scpeft_step_seconds", Histogram, [], "Wall time of an optimizer step.";
    SECTION_SECONDS = "scpeft_section_seconds_total", Counter, ["section"], "Wall time by section of the loop: data, compute, collective, optimizer, eval, checkpoint.";
    CELLS = "scpeft_cells_total", Counter, [], "Cells trained on by this rank.";
    TOKENS = "scpeft_tokens_total", Counter, [], "Gene tokens, padding excluded, trained on by this rank.";
    PADDING_RATIO = "scpeft_padding_ratio", Gauge, [], "Share of padding among the tokens of this rank's last step.";
    LOADER_READY = "scpeft_loader_ready_micro_batches", Gauge, [], "Micro-batches of this rank that were ready when its last step began.";
    LOADER_READ_BYTES = "scpeft_loader_read_bytes_total", Counter, [], "Bytes of the corpus that this rank read from its store.";
    LOADER_REQUESTS = "scpeft_loader_requests_total", Counter, [], "Reads or requests that this rank sent to the store of the corpus.";
    LOADER_RETRIES = "scpeft_loader_retries_total", Counter, [], "Requests to the store of the corpus that had to be sent again.";
    LOADER_SKIPPED_CELLS = "scpeft_loader_skipped_cells", Gauge, [], "Damaged cells that this rank met and left out.";
    COLLECTIVE_BYTES = "scpeft_collective_bytes_total", Counter, ["op"], "Payload bytes handed to collectives by this rank.";
    COLLECTIVE_SECONDS = "scpeft_collective_seconds", Histogram, ["op"], "Time of a collective, waiting for slower ranks included.";
    STRAGGLER_SCORE = "scpeft_straggler_score_ratio", Gauge, [], "Median over ranks of the time outside collectives, divided by this rank's: below 1 for a rank that others wait for.";
    HEARTBEAT = "scpeft_heartbeat_timestamp_seconds", Gauge, [], "Unix time at which this rank last finished a step.";
}

/// Metrics of the process, which the exporter takes from the operating system when it is scraped.
pub const PROCESS: &[&str] = &[
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_prometheus_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in CATALOGUE {
            assert!(seen.insert(metric.name), "{} is defined twice", metric.name);
            assert!(metric.name.starts_with("scpeft_"), "{}", metric.name);
            assert_eq!(
                metric.kind == Kind::Counter,
                metric.name.ends_with("_total"),
                "{}: counters, and only they, end in _total",
                metric.name
            );
            assert!(
                !metric.name.contains("_ms") && metric.help.ends_with('.'),
                "{}",
                metric.name
            );
        }
    }
}

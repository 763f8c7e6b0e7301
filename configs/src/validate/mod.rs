//! Checks that types alone cannot make: ranges, and values that must fit each other.
//!
//! Values that were refused by their type are not checked again, so that one mistake is one error.

mod adapter;
mod architecture;
mod sampler;

use std::fmt::Display;
use std::net::IpAddr;

use crate::error::ConfigError;
use crate::resolve::Reader;
use crate::schema::{
    ClassWeights, Config, EmbeddingNorm, MvcStyle, Sampler, Schedule, Select, Shard, Storage,
    TaskKind, TaskSection, Trainable, Vocab,
};

/// More threads than any machine a rank runs on has cores.
const THREADS_MAX: usize = 1024;

/// Notes every mistake of `config` in `reader`.
pub(crate) fn validate(config: &Config, reader: &mut Reader) {
    let mut check = Check { reader };
    required(config, &mut check);
    columns(config, &mut check);
    run_and_data(config, &mut check);
    backbone(config, &mut check);
    architecture::architecture(config, &mut check);
    adapter::adapter(config, &mut check);
    task(config, &mut check);
    train(config, &mut check);
    rest(config, &mut check);
}

struct Check<'a> {
    reader: &'a mut Reader,
}

impl Check<'_> {
    /// `value` must satisfy `holds`; `expected` says in words what that is.
    fn range(&mut self, key: &str, value: impl Display, holds: bool, expected: &str) {
        if holds || self.reader.refused.contains(key) {
            return;
        }
        self.reader.errors.push(ConfigError::Range {
            at: self.reader.at(key),
            key: key.to_owned(),
            expected: expected.to_owned(),
            found: value.to_string(),
        });
    }

    fn at_least(&mut self, key: &str, value: u64, least: u64) {
        self.range(key, value, value >= least, &format!(">= {least}"));
    }

    fn positive(&mut self, key: &str, value: f64) {
        self.range(
            key,
            value,
            value.is_finite() && value > 0.0,
            "a finite number > 0",
        );
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        self.range(
            key,
            value,
            value.is_finite() && value >= 0.0,
            "a finite number >= 0",
        );
    }

    fn below_one(&mut self, key: &str, value: f64) {
        self.range(key, value, (0.0..1.0).contains(&value), ">= 0 and < 1");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.range(key, value, !value.is_empty(), "a non-empty string");
    }

    /// `key` does not go together with something else, unless one of `others` is itself refused.
    fn conflict(&mut self, key: &str, problem: impl Into<String>, help: impl Into<String>) {
        if self.reader.refused.contains(key) {
            return;
        }
        self.reader.errors.push(ConfigError::Conflict {
            at: self.reader.at(key),
            key: key.to_owned(),
            problem: problem.into(),
            help: help.into(),
        });
    }

    fn require(&mut self, key: &str, why: &str, help: &str) {
        if !self.reader.is_given(key) {
            self.reader.errors.push(ConfigError::Required {
                key: key.to_owned(),
                why: why.to_owned(),
                help: help.to_owned(),
            });
        }
    }

    fn refused(&self, key: &str) -> bool {
        self.reader.refused.contains(key)
    }
}

fn required(config: &Config, check: &mut Check<'_>) {
    check.require(
        "run.dir",
        "the run needs a directory for its log and checkpoints",
        "add `dir = \"runs/my-run\"` under `[run]`",
    );
    check.require(
        "data.corpus",
        "the run needs cells",
        "add `corpus = \"DIR\"` under `[data]`; `scpeft-data import` makes such a directory",
    );
    if config.task.kind == TaskKind::Identification && !check.refused("task.kind") {
        check.require(
            "data.label",
            "identification learns the values of an obs column",
            "add `label = \"COLUMN\"` under `[data]`, or set `task.kind = \"masked-expression\"`",
        );
    }
}

/// Keys that name an obs column which another key needs.
fn columns(config: &Config, check: &mut Check<'_>) {
    let data = &config.data;
    for (key, column) in [("data.label", &data.label), ("data.batch", &data.batch)] {
        if let Some(column) = column {
            check.text(key, column);
        }
    }
    let correction = config.task.kind == TaskKind::BatchCorrection && !check.refused("task.kind");
    let per_domain =
        config.backbone.norm == EmbeddingNorm::Domain && !check.refused("backbone.norm");
    if correction || per_domain {
        let why = if correction {
            "batch correction must know the batch of each cell"
        } else {
            "`backbone.norm = \"domain\"` normalises each batch on its own"
        };
        check.require("data.batch", why, "add `batch = \"COLUMN\"` under `[data]`");
    }
    if per_domain {
        check.require(
            "train.micro_batch_cells",
            "`backbone.norm = \"domain\"` makes global batches of micro-batches of one batch each, \
             whose size must not depend on the number of ranks",
            "add `micro_batch_cells = 8` under `[train]`",
        );
    }
    if data.batch.is_some() && !correction && !per_domain && !check.refused("data.batch") {
        check.conflict(
            "data.batch",
            "`data.batch` has no effect here: it is for `task.kind = \"batch-correction\"` and \
             `backbone.norm = \"domain\"`",
            "remove it",
        );
    }
    sampler::check(config, per_domain, check);
    if data.length_buckets && (per_domain || data.sampler == Sampler::Stratified) {
        check.conflict(
            "data.length_buckets",
            "batches of one length cannot at the same time hold one batch alone or keep proportions",
            "set `data.length_buckets = false`",
        );
    }
}

fn run_and_data(config: &Config, check: &mut Check<'_>) {
    let (run, data) = (&config.run, &config.data);
    if check.reader.is_given("run.dir") {
        let dir = run.dir.to_string_lossy();
        check.text("run.dir", &dir);
        if !dir.is_empty() && run.name.is_empty() && !check.reader.is_given("run.name") {
            check.conflict(
                "run.dir",
                format!("`run.dir` is `{dir}`, whose last part gives the run no name"),
                "set `run.name`, or choose a directory with a name",
            );
        }
    }
    if check.reader.is_given("run.name") {
        check.text("run.name", &run.name);
    }
    check.range(
        "run.seed",
        run.seed,
        i64::try_from(run.seed).is_ok(),
        "<= 2^63-1",
    );
    if check.reader.is_given("data.corpus") {
        check.text("data.corpus", &data.corpus.to_string_lossy());
    }
    check.text("data.split_column", &data.split_column);
    let splits = [
        ("data.train", &data.train),
        ("data.valid", &data.valid),
        ("data.test", &data.test),
    ];
    for (index, (key, value)) in splits.iter().enumerate() {
        check.text(key, value);
        if let Some((other, _)) = splits[..index].iter().find(|(_, name)| name == value) {
            check.conflict(
                key,
                format!("`{key}` and `{other}` are both `{value}`"),
                "the splits must be different values of the split column",
            );
        }
    }
    check.at_least("data.max_len", data.max_len as u64, 2);
    check.below_one("data.mask_ratio", data.mask_ratio);
    if let Some(total) = data.normalize_total {
        check.positive("data.normalize_total", total);
    }
    check.at_least("data.shuffle_window", data.shuffle_window as u64, 1);
    // A typo in a thread count must not take the machine down.
    check.range(
        "data.loader_threads",
        data.loader_threads,
        (1..=THREADS_MAX).contains(&data.loader_threads),
        &format!("1 to {THREADS_MAX}"),
    );
    check.range(
        "run.threads",
        run.threads,
        run.threads <= THREADS_MAX,
        &format!("0 to {THREADS_MAX}"),
    );
    check.at_least("data.prefetch_steps", data.prefetch_steps as u64, 1);
}

fn backbone(config: &Config, check: &mut Check<'_>) {
    let backbone = &config.backbone;
    let unsure = check.refused("backbone.path") || check.refused("backbone.init");
    match (&backbone.path, backbone.init) {
        (Some(_), Some(_)) => check.conflict(
            "backbone.init",
            "`backbone.path` and `backbone.init` exclude each other",
            "remove `init` to load the weights, or `path` to start from random ones",
        ),
        (None, None) if !unsure => check.require(
            "backbone.path",
            "the run needs a backbone",
            "add `path = \"DIR\"` under `[backbone]` for pretrained weights, or `init = \"random\"`",
        ),
        (Some(path), None) => {
            check.text("backbone.path", &path.to_string_lossy());
            published(config, check);
        }
        _ => {}
    }
    check.below_one("backbone.dropout", backbone.dropout);
    if let Some(rate) = backbone.attention_dropout {
        check.below_one("backbone.attention_dropout", rate);
    }
    let shape = &backbone.shape;
    for (key, value, least) in [
        ("backbone.shape.d_model", shape.d_model, 1),
        ("backbone.shape.n_heads", shape.n_heads, 1),
        ("backbone.shape.d_hid", shape.d_hid, 1),
        ("backbone.shape.n_layers", shape.n_layers, 1),
        ("backbone.shape.n_layers_cls", shape.n_layers_cls, 1),
        ("backbone.shape.n_bins", shape.n_bins, 2),
    ] {
        check.at_least(key, value as u64, least);
    }
    let (width, heads) = (shape.d_model, shape.n_heads);
    if heads > 0 && width % heads != 0 && !check.refused("backbone.shape.n_heads") {
        check.conflict(
            "backbone.shape.d_model",
            format!("`backbone.shape.d_model` ({width}) is not a multiple of `n_heads` ({heads})"),
            format!("the next multiple is {}", width.next_multiple_of(heads)),
        );
    }
}

/// Keys that have no meaning when the backbone brings its own shape and vocabulary.
fn published(config: &Config, check: &mut Check<'_>) {
    if config.backbone.vocab != Vocab::Corpus {
        check.conflict(
            "backbone.vocab",
            "`backbone.vocab` has no effect with `backbone.path`, which holds a vocab.json",
            "remove it",
        );
    }
    let given: Vec<String> = check
        .reader
        .places
        .keys()
        .filter(|key| key.starts_with("backbone.shape."))
        .map(|key| (*key).to_owned())
        .collect();
    if let Some(first) = given.first() {
        check.conflict(
            first,
            "`[backbone.shape]` has no effect with `backbone.path`, whose args.json gives the sizes",
            "remove the section",
        );
    }
}

fn task(config: &Config, check: &mut Check<'_>) {
    let (task, adapter) = (&config.task, &config.adapter);
    let unsure = check.refused("adapter.kind") || check.refused("task.trainable");
    match (task.trainable, adapter.kind.attached().is_empty()) {
        _ if unsure => {}
        (Trainable::Adapter, true) => check.conflict(
            "task.trainable",
            "`task.trainable` is `adapter`, but `adapter.kind` is `none`: nothing would be adapted",
            "set `adapter.kind = \"lora\"` or `\"encoder\"`, or `task.trainable = \"head\"` or `\"all\"`",
        ),
        (Trainable::Head | Trainable::All, false) => check.conflict(
            "adapter.kind",
            format!(
                "`adapter.kind` is `{}`, but `task.trainable` is `{}`, which trains no adapter",
                adapter.kind, task.trainable
            ),
            "set `adapter.kind = \"none\"`, or `task.trainable = \"adapter\"`",
        ),
        _ => {}
    }
    if task.trainable == Trainable::All
        && config.backbone.shard != Shard::None
        && !check.refused("task.trainable")
    {
        check.conflict(
            "backbone.shard",
            format!(
                "`backbone.shard` is `{}`, but `task.trainable` is `all`: no layer is frozen, and only frozen layers are shared",
                config.backbone.shard
            ),
            "set `backbone.shard = \"none\"`, or train adapters (`task.trainable = \"adapter\"`)",
        );
    }
    if task.trainable == Trainable::All
        && config.backbone.storage != Storage::Full
        && !check.refused("task.trainable")
    {
        check.conflict(
            "backbone.storage",
            format!(
                "`backbone.storage` is `{}`, but `task.trainable` is `all`: no layer is frozen, and only frozen layers are packed",
                config.backbone.storage
            ),
            "set `backbone.storage = \"full\"`, or train adapters (`task.trainable = \"adapter\"`)",
        );
    }
    for (key, weight) in [
        ("task.ecs_weight", task.ecs_weight),
        ("task.cce_weight", task.cce_weight),
        ("task.dab_weight", task.dab_weight),
    ] {
        check.not_negative(key, weight);
    }
    check.range(
        "task.ecs_threshold",
        task.ecs_threshold,
        (0.0..=1.0).contains(&task.ecs_threshold),
        "0 to 1",
    );
    if check.refused("task.kind") {
        return;
    }
    match task.kind {
        TaskKind::MaskedExpression | TaskKind::BatchCorrection => expression(config, check),
        TaskKind::Identification => identification(config, check),
    }
    let unchanged = TaskSection::default().dab_weight;
    if task.kind != TaskKind::BatchCorrection && task.dab_weight.to_bits() != unchanged.to_bits() {
        check.conflict(
            "task.dab_weight",
            format!("`task.dab_weight` has no effect on `{}`", task.kind),
            "remove it, or set `task.kind = \"batch-correction\"`",
        );
    }
}

fn expression(config: &Config, check: &mut Check<'_>) {
    let task = &config.task;
    if config.data.mask_ratio == 0.0 {
        check.conflict(
            "data.mask_ratio",
            "`data.mask_ratio` is 0, but masked expression learns from masked values",
            "set `data.mask_ratio`, for example to 0.4",
        );
    }
    if task.class_weights != ClassWeights::None {
        check.conflict(
            "task.class_weights",
            "`task.class_weights` has no effect without classes",
            "remove it, or set `task.kind = \"identification\"`",
        );
    }
    if matches!(
        config.train.select,
        Select::MacroF1 | Select::BalancedAccuracy
    ) {
        check.conflict(
            "train.select",
            format!(
                "`train.select` is `{}`, which needs classes",
                config.train.select
            ),
            "set `train.select = \"loss\"`",
        );
    }
    let query = matches!(task.mvc_style, MvcStyle::ConcatQuery | MvcStyle::SumQuery);
    if task.cce_weight > 0.0 && config.backbone.dropout == 0.0 {
        check.conflict(
            "task.cce_weight",
            "`task.cce_weight` contrasts two passes that differ by dropout, and `backbone.dropout` is 0",
            "raise `backbone.dropout`, or remove it",
        );
    }
    if task.ecs_weight > 0.0 && config.train.micro_batch_cells == Some(1) {
        check.conflict(
            "task.ecs_weight",
            "`task.ecs_weight` compares the cells of a micro-batch, and `train.micro_batch_cells` is 1",
            "raise `train.micro_batch_cells`, or remove it",
        );
    }
    if task.mvc_style != MvcStyle::InnerProduct && !task.mvc {
        check.conflict(
            "task.mvc_style",
            "`task.mvc_style` has no effect without `task.mvc`",
            "set `task.mvc = true`",
        );
    } else if query && (task.explicit_zero || task.kind == TaskKind::BatchCorrection) {
        check.conflict(
            "task.mvc_style",
            format!(
                "`{}` models no zero probabilities and takes no batches",
                task.mvc_style
            ),
            "use an inner-product style",
        );
    }
}

fn identification(config: &Config, check: &mut Check<'_>) {
    let task = &config.task;
    let masks = config.data.mask_ratio > 0.0 && config.data.mask_ratio < 1.0;
    for (key, given) in [
        ("task.mvc", task.mvc),
        ("task.explicit_zero", task.explicit_zero),
        ("task.ecs_weight", task.ecs_weight > 0.0),
        ("task.cce_weight", task.cce_weight > 0.0),
        ("task.mvc_style", task.mvc_style != MvcStyle::InnerProduct),
        // Masked values would be hidden from the classifier, in prediction too.
        ("data.mask_ratio", masks),
    ] {
        if given {
            check.conflict(
                key,
                format!("`{key}` belongs to masked expression and has no effect on identification"),
                "remove it, or set `task.kind = \"masked-expression\"`",
            );
        }
    }
}

fn train(config: &Config, check: &mut Check<'_>) {
    let train = &config.train;
    check.at_least("train.epochs", train.epochs, 1);
    if let Some(steps) = train.max_steps {
        check.at_least("train.max_steps", steps, 1);
    }
    check.at_least("train.batch_cells", train.batch_cells as u64, 1);
    if let Some(micro) = train.micro_batch_cells {
        check.at_least("train.micro_batch_cells", micro as u64, 1);
        if micro > 0
            && train.batch_cells > 0
            && !train.batch_cells.is_multiple_of(micro)
            && !check.refused("train.batch_cells")
        {
            check.conflict(
                "train.micro_batch_cells",
                format!(
                    "`train.micro_batch_cells` ({micro}) does not divide `train.batch_cells` ({})",
                    train.batch_cells
                ),
                "choose a divisor",
            );
        }
    }
    if let Some(tokens) = train.micro_batch_tokens {
        check.at_least(
            "train.micro_batch_tokens",
            tokens as u64,
            config.data.max_len as u64,
        );
        let other = if train.micro_batch_cells.is_some() {
            Some("train.micro_batch_cells")
        } else if config.task.cce_weight > 0.0 {
            Some("task.cce_weight")
        } else {
            None
        };
        if let Some(other) = other {
            check.conflict(
                "train.micro_batch_tokens",
                format!("`train.micro_batch_tokens` does not go together with `{other}`"),
                "remove one of them",
            );
        }
    }
    check.positive("train.lr", train.lr);
    check.below_one("train.beta1", train.beta1);
    check.below_one("train.beta2", train.beta2);
    check.positive("train.eps", train.eps);
    check.not_negative("train.weight_decay", train.weight_decay);
    let gamma = train.step_gamma;
    check.range(
        "train.step_gamma",
        gamma,
        gamma > 0.0 && gamma <= 1.0,
        "> 0 and <= 1",
    );
    let ratio = train.min_lr_ratio;
    check.range(
        "train.min_lr_ratio",
        ratio,
        (0.0..=1.0).contains(&ratio),
        ">= 0 and <= 1",
    );
    if train.decay_steps > 0 && train.schedule != Schedule::Wsd && !check.refused("train.schedule")
    {
        check.conflict(
            "train.decay_steps",
            format!(
                "`train.decay_steps` has no effect on the `{}` schedule",
                train.schedule
            ),
            "remove it, or set `train.schedule = \"wsd\"`",
        );
    }
    check.not_negative("train.clip_norm", train.clip_norm);
    check.below_one("train.ema_decay", train.ema_decay);
    if !train.ema_evaluate && train.ema_decay == 0.0 {
        check.conflict(
            "train.ema_evaluate",
            "`train.ema_evaluate` has no effect without `train.ema_decay`",
            "remove it, or set `train.ema_decay`",
        );
    }
    check.at_least("train.non_finite_limit", train.non_finite_limit, 1);
}

fn rest(config: &Config, check: &mut Check<'_>) {
    check.at_least(
        "checkpoint.keep_last",
        config.checkpoint.keep_last as u64,
        1,
    );
    check.at_least(
        "checkpoint.keep_best",
        config.checkpoint.keep_best as u64,
        1,
    );
    check.at_least("checkpoint.max_failures", config.checkpoint.max_failures, 1);
    if let Some(mirror) = &config.checkpoint.mirror {
        check.range(
            "checkpoint.mirror",
            mirror,
            mirror.contains("://"),
            "an address such as `s3://bucket/path`",
        );
    }
    check.at_least("log.every_steps", config.log.every_steps, 1);
    let traced = config.log.trace_steps;
    check.range("log.trace_steps", traced, traced <= 1000, "at most 1000");
    let bind = &config.metrics.bind;
    check.range(
        "metrics.bind",
        bind,
        bind.parse::<IpAddr>().is_ok(),
        "an IP address",
    );
}

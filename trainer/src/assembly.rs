//! Putting corpus, backbone, adapters and task together.

mod trained;

use std::rc::Rc;
use std::sync::Arc;

use scpeft_checkpoint::LoadReport;
use scpeft_checkpoint::published::Weights;
use scpeft_collective::Topology;
use scpeft_config::{Config, Shard, Trainable};
use scpeft_data::{Corpus, Loader, Selection};
use scpeft_model::backbone::{Architecture, Model, Purpose};
use scpeft_model::device::{self, DeviceChoice};
use scpeft_model::exec::ExecutorKind;
use scpeft_model::params::Slot;
use scpeft_model::shard::Gather;
use scpeft_model::{Layout, Params, Role, Storage, TensorSpec};
use serde_json::{Value, json};
use tch::Device;

use crate::backbone::{Backbone, load};
use crate::determinism;
use crate::failure::{Failure, Result};
use crate::feed::{Feed, Share};
use crate::settings;
use crate::step::tail_len;
use crate::task::{self, Batches, Staging, Task};

/// A model bound to its tensors, with what feeds it.
pub struct Assembly {
    /// How micro-batches become tensors.
    pub staging: Staging,
    /// Threads that libtorch uses in this process.
    pub threads: usize,
    /// Ranks of the run.
    pub ranks: usize,
    /// Corpus and tokeniser.
    pub feed: Feed,
    /// What the model is trained for.
    pub task: Box<dyn Task>,
    /// All tensors.
    pub params: Params,
    /// The bound model.
    pub model: Box<dyn Model>,
    /// The backbone it was built on. Frozen tensors may be views of its mapped file: it is dropped
    /// after them, and its directory is never taken out.
    pub backbone: Backbone,
    /// How the backbone's weights were loaded; `None` for random weights.
    pub report: Option<LoadReport>,
    splits: Option<Splits>,
}

struct Splits {
    train: Selection,
    valid: Selection,
    unlabelled: u64,
}

/// A run before any tensor of its model exists.
pub(crate) struct Draft {
    /// Corpus and tokeniser.
    pub(crate) feed: Feed,
    /// What the model is trained for.
    pub(crate) task: Box<dyn Task>,
    /// The backbone it is built on; its weights are opened and not read.
    pub(crate) backbone: Backbone,
    batches: Option<Arc<Batches>>,
    splits: Splits,
}

impl Draft {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// Whatever is wrong with corpus, labels or backbone.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let corpus = Arc::new(Corpus::open(&config.data.corpus)?);
        let backbone = Backbone::for_training(config, &corpus)?;
        let feed = Feed::open(config, corpus, &backbone)?;
        let (train, left_out) = feed.labelled_split(config, &config.data.train)?;
        let (valid, also_left_out) = feed.labelled_split(config, &config.data.valid)?;
        let labels = feed.label_info(&train, &valid)?;
        let batches = feed.batches(config, &train, &valid)?.map(Arc::new);
        let task = task::build(
            config,
            &labels,
            batches.as_deref(),
            backbone.classifier_layers,
            backbone.mask_value(),
        )?;
        let splits = Splits {
            train,
            valid,
            unlabelled: left_out + also_left_out,
        };
        Ok(Self {
            feed,
            task,
            backbone,
            batches,
            splits,
        })
    }

    /// The model.
    pub(crate) fn architecture(&self, config: &Config) -> Box<dyn Architecture> {
        architecture(
            config,
            &self.backbone,
            self.task.as_ref(),
            self.batches.as_deref(),
        )
    }

    /// The loader of the training cells of one rank.
    ///
    /// # Errors
    /// Batch sizes that the ranks do not divide.
    pub(crate) fn train_loader(&self, config: &Config, share: Share) -> Result<Loader> {
        self.feed
            .train_loader(config, self.splits.train.clone(), share)
    }
}

/// The loaders of a training run.
pub struct SplitLoaders {
    /// Shuffled training cells.
    pub train: Loader,
    /// Validation cells.
    pub valid: Loader,
}

impl Assembly {
    /// Everything that training needs, except loaders and optimizer; blocks sharded by `gather`.
    /// Issues no collective.
    ///
    /// # Errors
    /// Whatever is wrong with corpus, labels, weights or device.
    pub fn for_training(
        config: &Config,
        topology: &Topology,
        gather: Option<Rc<dyn Gather>>,
    ) -> Result<Self> {
        let (device, threads) = start_libtorch(config, topology)?;
        let Draft {
            feed,
            task,
            batches,
            backbone,
            splits,
        } = Draft::open(config)?;
        let told = batches.as_deref();
        let (params, model, report) =
            build_model(config, &backbone, task.as_ref(), told, device, gather)?;
        Ok(Self {
            staging: Staging {
                device,
                pad_id: feed.pad_id(),
                batches,
            },
            threads,
            ranks: topology.world_size,
            feed,
            task,
            params,
            model,
            backbone,
            report,
            splits: Some(splits),
        })
    }

    /// Loaders over the training and validation cells.
    ///
    /// # Errors
    /// Batch sizes that the ranks do not divide.
    pub fn loaders(&mut self, config: &Config, topology: &Topology) -> Result<SplitLoaders> {
        let share = Share {
            rank: topology.rank,
            world_size: topology.world_size,
        };
        let splits = self
            .splits
            .as_ref()
            .expect("for_training selects the splits");
        let train = self
            .feed
            .train_loader(config, splits.train.clone(), share)?;
        if train.batches_per_epoch() == 0 {
            return Err(Failure::config(format!(
                "`train.drop_last` leaves no batch: {} training cells, `train.batch_cells` is {}\n\
                 help: lower `train.batch_cells`, or set `train.drop_last = false`",
                train.cells(),
                config.train.batch_cells
            )));
        }
        Ok(SplitLoaders {
            train,
            valid: self
                .feed
                .evaluation_loader(config, splits.valid.clone(), share)?,
        })
    }

    /// Backbone, adapter and task, for the run's record.
    pub fn describe(&self, config: &Config) -> Value {
        json!({
            "architecture": config.backbone.architecture,
            "backbone": self.backbone.origin,
            "backbone_fingerprint": self.backbone.fingerprint,
            "adapter": config.adapter.kind,
            "task": config.task.kind,
            "trainable": config.task.trainable,
            "classes": self.task.classes(),
        })
    }

    /// The device as users name it: `cpu`, `cuda(0)`.
    pub fn device_name(&self) -> String {
        format!("{:?}", self.staging.device).to_lowercase()
    }

    /// What a user should see before the first step.
    pub fn summary(&self, config: &Config, topology: &Topology, loaders: &SplitLoaders) -> String {
        let (trainable, total) = (self.params.trainable_count(), self.params.total_count());
        let mut lines = vec![format!(
            "{} on {} x {} thread(s) x {} rank(s); {} trainable of {} parameters ({:.2} %)",
            config.backbone.architecture,
            self.device_name(),
            self.threads,
            topology.world_size,
            grouped(trainable as u64),
            grouped(total as u64),
            100.0 * trainable as f64 / total as f64,
        )];
        let overlap = &self.feed.overlap;
        lines.push(format!(
            "corpus: {} training and {} validation cells, {} of {} genes have a token (by {})",
            grouped(loaders.train.cells()),
            grouped(loaders.valid.cells()),
            grouped(overlap.matched as u64),
            grouped(overlap.corpus_genes as u64),
            overlap.key.name(),
        ));
        lines.extend(self.backbone.coverage(overlap));
        let unlabelled = self.splits.as_ref().map_or(0, |s| s.unlabelled);
        if unlabelled > 0 {
            lines.push(format!(
                "{} cells without a label are left out",
                grouped(unlabelled)
            ));
        }
        let dropout = settings::dropout(config, self.staging.device);
        lines.push(format!(
            "{}{}, dropout {} and {} on attention{}",
            config.run.precision,
            if settings::executor(config) == ExecutorKind::Recompute {
                ", layers recomputed in the backward pass"
            } else {
                ""
            },
            dropout.residual,
            dropout.attention,
            if config.backbone.attention_dropout.is_none() && dropout.attention < dropout.residual {
                " (the CPU's fused kernel has none; see `backbone.attention_dropout`)"
            } else {
                ""
            }
        ));
        if let Some(store) = self.params.store() {
            let usage = store.usage();
            let shared = match config.backbone.shard {
                Shard::None => "kept".to_owned(),
                group => format!("shared by the ranks of a {group}"),
            };
            let form = match settings::storage(config) {
                Storage::Full => "",
                Storage::Int8 => ", in 8 bits",
            };
            let used = match config.backbone.shard {
                Shard::None => usage.unpacked_bytes,
                _ => 2 * usage.block_bytes + usage.unpacked_bytes,
            };
            lines.push(format!(
                "frozen layers are {shared}{form}: {} of {} bytes stay on rank 0, {} more at most while they are used",
                grouped(usage.resident_bytes as u64),
                grouped(usage.total_bytes as u64),
                grouped(used as u64),
            ));
        }
        lines.push(match &self.report {
            Some(report) => report.to_string(),
            None => "backbone starts from random weights".to_owned(),
        });
        lines.push(self.trainable_table());
        lines.join("\n")
    }

    /// The tensors that train, with shapes, and the totals of what does and what does not.
    fn trainable_table(&self) -> String {
        const SHOWN: usize = 40;
        let slots = self.params.slots();
        let width = slots
            .iter()
            .take(SHOWN)
            .map(|s| s.name.len())
            .max()
            .unwrap_or(0);
        let mut lines = vec!["trainable tensors:".to_owned()];
        for slot in slots.iter().take(SHOWN) {
            lines.push(format!("  {:width$}  {:?}", slot.name, slot.shape));
        }
        if slots.len() > SHOWN {
            let rest: usize = slots[SHOWN..].iter().map(Slot::numel).sum();
            lines.push(format!(
                "  and {} more of {} parameters (`scpeft-train parameters` lists all)",
                slots.len() - SHOWN,
                grouped(rest as u64)
            ));
        }
        lines.join("\n")
    }

    /// Every tensor with shape, number of parameters, and whether it trains; and the totals.
    pub fn parameter_table(&self) -> String {
        let rows: Vec<[String; 4]> = self
            .params
            .iter()
            .map(|(name, tensor, role, trains)| {
                let trains = match (role, trains) {
                    (Role::Buffer, _) => "statistic",
                    (Role::Constant, _) => "constant",
                    (_, true) => "yes",
                    (_, false) => "no",
                };
                let shape = format!("{:?}", tensor.size());
                let count = grouped(tensor.numel() as u64);
                [name.to_owned(), shape, count, trains.to_owned()]
            })
            .collect();
        let header = ["tensor", "shape", "parameters", "trainable"].map(str::to_owned);
        let width = |i: usize| {
            let all = std::iter::once(&header).chain(&rows);
            all.map(|row| row[i].len()).max().unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2)];
        let line = |row: &[String; 4]| {
            format!(
                "{:w0$}  {:w1$}  {:>w2$}  {}",
                row[0],
                row[1],
                row[2],
                row[3],
                w0 = widths[0],
                w1 = widths[1],
                w2 = widths[2]
            )
        };
        let mut lines = vec![line(&header)];
        lines.extend(rows.iter().map(line));
        let (trainable, total) = (self.params.trainable_count(), self.params.total_count());
        lines.push(format!(
            "{} of {} parameters train ({:.3} %)",
            grouped(trainable as u64),
            grouped(total as u64),
            100.0 * trainable as f64 / total as f64
        ));
        lines.join("\n")
    }
}

/// Device and threads of this process; before the first tensor.
fn start_libtorch(config: &Config, topology: &Topology) -> Result<(Device, usize)> {
    let choice = match config.run.device {
        scpeft_config::DeviceChoice::Auto => DeviceChoice::Auto,
        scpeft_config::DeviceChoice::Cpu => DeviceChoice::Cpu,
        scpeft_config::DeviceChoice::Cuda => DeviceChoice::Cuda,
    };
    let usable = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = match config.run.threads {
        0 => topology.cores.unwrap_or_else(usable),
        n => n,
    };
    device::set_threads(threads);
    let device = device::select(choice, topology.local_rank)?;
    if config.run.deterministic {
        determinism::require(device)?;
    }
    Ok((device, threads))
}

fn build_model(
    config: &Config,
    backbone: &Backbone,
    task: &dyn Task,
    batches: Option<&Batches>,
    device: Device,
    gather: Option<Rc<dyn Gather>>,
) -> Result<(Params, Box<dyn Model>, Option<LoadReport>)> {
    let architecture = architecture(config, backbone, task, batches);
    let d_model = backbone.shape.d_model as usize;
    let layout = Layout {
        seed: config.run.seed,
        device,
        tail: tail_len(task, architecture.norm(), d_model),
        precision: settings::precision(config),
        storage: settings::storage(config),
    };
    let specs = architecture.specs()?;
    let rule = FreezeRule::new(config, architecture.as_ref(), task)?;
    let report = match &backbone.weights {
        Some(weights) => Some(compare(weights.as_ref(), &specs)?),
        None => None,
    };
    let loads = |name: &str| {
        report
            .as_ref()
            .is_some_and(|r| r.loaded.iter().any(|n| n == name))
    };
    let mut failed = None;
    let params = Params::build_sharded(
        &specs,
        |spec| {
            let weights = backbone.weights.as_ref().filter(|_| loads(&spec.name));
            let tensor = match weights {
                Some(weights) => load(weights.as_ref(), &spec.name),
                None => Ok(None),
            };
            // The model crate knows nothing of files: their errors pass around it.
            Ok(tensor.unwrap_or_else(|failure| {
                failed.get_or_insert(failure);
                None
            }))
        },
        |spec| rule.trains(spec),
        layout,
        gather,
    )?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let model = architecture.bind_model(&params, settings::executor(config))?;
    Ok((params, model, report))
}

/// The model that a configuration describes.
fn architecture(
    config: &Config,
    backbone: &Backbone,
    task: &dyn Task,
    batches: Option<&Batches>,
) -> Box<dyn Architecture> {
    let known = batches.map_or(0, |b| b.names().len());
    backbone.architecture(config, task.heads(), known)
}

/// Which tensors of the model the weights hold. A head may be missing or of another shape (it then
/// starts fresh), the encoder may not.
fn compare(weights: &dyn Weights, specs: &[TensorSpec]) -> Result<LoadReport> {
    let shapes: Vec<(&TensorSpec, Vec<usize>)> = specs
        .iter()
        // Statistics of single batches belong to the batches of the corpus they were seen in.
        .filter(|s| s.role != Role::Adapter && !s.name.starts_with("dsbn."))
        .map(|s| (s, s.shape.iter().map(|&n| n as usize).collect()))
        .collect();
    let model = shapes
        .iter()
        .map(|(s, shape)| (s.name.as_str(), shape.as_slice()));
    let report = LoadReport::compare(model, weights.shapes());
    let what = format!("backbone `{}`", weights.dir().display());
    report.require_complete(&what, |name| {
        shapes
            .iter()
            .any(|(s, _)| s.name == name && matches!(s.role, Role::Backbone | Role::Constant))
    })?;
    Ok(report)
}

/// Which tensors of a run train.
pub(crate) struct FreezeRule<'a> {
    trainable: Trainable,
    architecture: &'a dyn Architecture,
    purpose: Purpose,
    unfrozen: Vec<String>,
}

impl<'a> FreezeRule<'a> {
    /// The rule of a configuration and a task.
    ///
    /// # Errors
    /// When adapters do not fit the backbone.
    pub(crate) fn new(
        config: &Config,
        architecture: &'a dyn Architecture,
        task: &dyn Task,
    ) -> Result<Self> {
        Ok(Self {
            trainable: config.task.trainable,
            purpose: task.purpose(),
            unfrozen: architecture.unfreezes()?,
            architecture,
        })
    }

    /// Whether a tensor trains.
    pub(crate) fn trains(&self, spec: &TensorSpec) -> bool {
        let (architecture, purpose) = (self.architecture, self.purpose);
        match (spec.role, self.trainable) {
            _ if !spec.may_train() => false,
            (_, Trainable::All) => true,
            (role, Trainable::Head) => {
                role == Role::Head && architecture.trains_beside(purpose, &spec.name)
            }
            (_, Trainable::Adapter) => architecture.adapts(purpose, spec, &self.unfrozen),
        }
    }
}

/// A digit group every three digits.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(
            [0, 999, 1000, 51_340_819].map(grouped),
            ["0", "999", "1,000", "51,340,819"]
        );
    }
}

//! A model that trained, or a backbone as it is, on the cells of a corpus. The trained tensors are
//! still to be restored.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use scpeft_checkpoint::peft::ScpeftRecord;
use scpeft_collective::Topology;
use scpeft_config::{Config, EmbeddingNorm, TaskKind};
use scpeft_data::Corpus;
use scpeft_model::shard::Gather;
use tch::Device;

use super::{Assembly, build_model, start_libtorch};
use crate::backbone::Backbone;
use crate::failure::Result;
use crate::feed::Feed;
use crate::settings;
use crate::task::{self, Batches, Identification, IdentificationOptions, LabelInfo, Staging, Task};

/// Device, cells and backbone, before there is a task.
struct Ground {
    device: Device,
    threads: usize,
    ranks: usize,
    feed: Feed,
    backbone: Backbone,
}

impl Ground {
    fn open(
        config: &Config,
        topology: &Topology,
        backbone: impl FnOnce(&Corpus) -> Result<Backbone>,
    ) -> Result<Self> {
        let (device, threads) = start_libtorch(config, topology)?;
        let corpus = Arc::new(Corpus::open(&config.data.corpus)?);
        let backbone = backbone(&corpus)?;
        let feed = Feed::open(config, corpus, &backbone)?;
        Ok(Self {
            device,
            threads,
            ranks: topology.world_size,
            feed,
            backbone,
        })
    }

    /// The model with the heads of `task`, told of `known` batches; cells are looked up in `batches`.
    fn build(
        self,
        config: &Config,
        task: Box<dyn Task>,
        known: Option<&Batches>,
        batches: Option<Arc<Batches>>,
        gather: Option<Rc<dyn Gather>>,
    ) -> Result<Assembly> {
        let (params, model, report) = build_model(
            config,
            &self.backbone,
            task.as_ref(),
            known,
            self.device,
            gather,
        )?;
        Ok(Assembly {
            staging: Staging {
                device: self.device,
                pad_id: self.feed.pad_id(),
                batches,
            },
            threads: self.threads,
            ranks: self.ranks,
            feed: self.feed,
            task,
            params,
            model,
            backbone: self.backbone,
            report,
            splits: None,
        })
    }
}

/// A classifier of the classes that `record` names.
fn classifier(
    config: &Config,
    backbone: &Backbone,
    record: &ScpeftRecord,
    categories: &[String],
) -> Identification {
    let options = IdentificationOptions {
        label: config.data.label.clone().unwrap_or_default(),
        class_weights: config.task.class_weights,
        classifier_layers: backbone.classifier_layers,
        select: config.train.select,
    };
    Identification::for_prediction(options, record.categories.clone(), categories)
}

impl Assembly {
    /// A classifier of the trained classes, on the backbone that the run recorded. Issues no
    /// collective.
    ///
    /// # Errors
    /// Whatever is wrong with corpus, weights or device.
    pub fn for_prediction(
        config: &Config,
        topology: &Topology,
        gather: Option<Rc<dyn Gather>>,
        run_dir: &Path,
        record: &ScpeftRecord,
    ) -> Result<(Self, Identification)> {
        let ground = Ground::open(config, topology, |_| Backbone::of_run(config, run_dir))?;
        let categories = match &config.data.label {
            Some(label) => ground.feed.corpus.categories(label)?.to_vec(),
            None => Vec::new(),
        };
        let task = classifier(config, &ground.backbone, record, &categories);
        let batches = match settings::batch_column(config) {
            Some(column) => {
                let categories = ground.feed.corpus.categories(column)?;
                let known = record.batches.clone();
                Some(Arc::new(Batches::named(column, known, categories)))
            }
            None => None,
        };
        let boxed = Box::new(task.clone());
        let known = batches.clone();
        let assembly = ground.build(config, boxed, known.as_deref(), batches, gather)?;
        Ok((assembly, task))
    }

    /// The model of a run of any task, to encode cells. Only a domain-specific norm needs to know
    /// the batch of a cell; without one, `config` forgets the column. Issues no collective.
    ///
    /// # Errors
    /// Whatever is wrong with corpus, weights or device.
    pub(crate) fn for_embedding(
        config: &mut Config,
        topology: &Topology,
        gather: Option<Rc<dyn Gather>>,
        run_dir: &Path,
        record: &ScpeftRecord,
    ) -> Result<Self> {
        config.data.label = None;
        config.data.mask_ratio = 0.0;
        let trained = config.clone();
        if config.backbone.norm != EmbeddingNorm::Domain {
            config.data.batch = None;
        }
        let ground = Ground::open(config, topology, |_| Backbone::of_run(config, run_dir))?;
        let batches = match settings::domain_column(config) {
            Some(column) => {
                let categories = ground.feed.corpus.categories(column)?;
                let known = record.batches.clone();
                Some(Arc::new(Batches::named(column, known, categories)))
            }
            None => None,
        };
        let known = settings::batch_column(&trained)
            .map(|column| Batches::named(column, record.batches.clone(), &[]));
        let task: Box<dyn Task> = match trained.task.kind {
            TaskKind::Identification => {
                Box::new(classifier(&trained, &ground.backbone, record, &[]))
            }
            TaskKind::MaskedExpression | TaskKind::BatchCorrection => task::build(
                &trained,
                &LabelInfo::default(),
                known.as_ref(),
                ground.backbone.classifier_layers,
                ground.backbone.mask_value(),
            )?,
        };
        ground.build(&trained, task, known.as_ref(), batches, gather)
    }

    /// The backbone that `config` names, without adapters, to encode cells. Issues no collective.
    ///
    /// # Errors
    /// Whatever is wrong with corpus, weights or device.
    pub(crate) fn of_backbone(
        config: &Config,
        topology: &Topology,
        gather: Option<Rc<dyn Gather>>,
    ) -> Result<Self> {
        let ground = Ground::open(config, topology, |corpus| {
            Backbone::for_training(config, corpus)
        })?;
        let task = task::build(
            config,
            &LabelInfo::default(),
            None,
            ground.backbone.classifier_layers,
            ground.backbone.mask_value(),
        )?;
        ground.build(config, task, None, None, gather)
    }
}

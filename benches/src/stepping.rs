//! A model with optimizer and task, ready for whole steps of the trainer.

use std::rc::Rc;
use std::time::Instant;

use scpeft_collective::Collective;
use scpeft_data::StepBatches;
use scpeft_model::backbone::{Architecture, Model};
use scpeft_model::exec::{Dropout, ExecutorKind};
use scpeft_model::shard::Gather;
use scpeft_model::{Layout, Params, Precision, Role, TensorSpec, device};
use scpeft_trainer::Watch;
use scpeft_trainer::optim::{Adam, AdamOptions, Schedule, Shape as Curve};
use scpeft_trainer::step::{Asked, StepReport, Stepper, tail_len};
use scpeft_trainer::task::{Identification, Staging, Task as _};
use tch::Device;

use crate::full_size::task;
use crate::usage::cpu_seconds;

/// Adam without weight decay.
pub const ADAM: AdamOptions = AdamOptions {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    decoupled: false,
};

/// What is stepped, and how.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// The model, with the heads of [`task`].
    pub architecture: &'a dyn Architecture,
    /// How blocks are run.
    pub executor: ExecutorKind,
    /// Number formats.
    pub precision: Precision,
    /// Who holds the frozen blocks together.
    pub gather: Option<Rc<dyn Gather>>,
    /// Rates of dropout.
    pub dropout: Dropout,
    /// The optimizer.
    pub adam: AdamOptions,
    /// Threads of libtorch.
    pub threads: usize,
}

impl<'a> Recipe<'a> {
    /// The plain executor in f32 with whole blocks, Adam, and dropout on residual branches alone.
    pub fn new(architecture: &'a dyn Architecture, dropout: f64, threads: usize) -> Self {
        Self {
            architecture,
            executor: ExecutorKind::Plain,
            precision: Precision::F32,
            gather: None,
            dropout: Dropout {
                residual: dropout,
                attention: 0.0,
            },
            adam: ADAM,
            threads,
        }
    }
}

/// One step, as it was measured.
#[derive(Debug)]
pub struct Timed {
    /// Seconds from begin to end.
    pub wall_s: f64,
    /// Seconds of processor time.
    pub cpu_s: f64,
    /// What the step did.
    pub report: StepReport,
}

/// A model that trains in steps.
#[derive(Debug)]
pub struct Training {
    params: Params,
    model: Box<dyn Model>,
    task: Identification,
    adam: Adam,
    staging: Staging,
    watch: Watch,
    dropout: Dropout,
    frozen_block_bytes: usize,
}

impl Training {
    /// Builds the model from random weights.
    ///
    /// # Collective
    /// Must be called by all ranks.
    pub fn new(world: &dyn Collective, recipe: &Recipe<'_>) -> Self {
        device::set_threads(recipe.threads);
        let (task, architecture) = (task(), recipe.architecture);
        let shape = architecture.shape();
        let layout = Layout {
            tail: tail_len(&task, architecture.norm(), shape.d_model as usize),
            precision: recipe.precision,
            ..Layout::cpu(0)
        };
        let unfrozen = architecture.unfreezes().expect("a valid blueprint");
        let specs = architecture.specs().expect("a valid blueprint");
        let trains = |s: &TensorSpec| architecture.adapts(task.purpose(), s, &unfrozen);
        let frozen = || specs.iter().filter(|s| !trains(s));
        assert!(
            frozen().filter(|s| s.role == Role::Backbone).count() > 50,
            "the backbone is frozen"
        );
        let frozen_block_bytes = frozen()
            .filter(|s| s.block.is_some())
            .map(|s| s.numel() * s.kind(recipe.precision).elt_size_in_bytes())
            .sum();
        let gather = recipe.gather.clone();
        let params = Params::build_sharded(&specs, |_| Ok(None), trains, layout, gather);
        let params = params.expect("memory");
        let model = architecture.bind_model(&params, recipe.executor);
        Self {
            model: model.expect("a bound model"),
            adam: Adam::new(recipe.adam, params.flat()).expect("memory"),
            params,
            task,
            staging: Staging {
                device: Device::Cpu,
                pad_id: shape.pad_id as i32,
                batches: None,
            },
            watch: Watch::unattended(world).expect("a page of memory"),
            dropout: recipe.dropout,
            frozen_block_bytes,
        }
    }

    /// Tensors of the model.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Bytes of all frozen tensors of blocks, over all ranks once.
    pub fn frozen_block_bytes(&self) -> usize {
        self.frozen_block_bytes
    }

    /// Takes a step with each of the batches, in step with the other ranks; the first warms up and is
    /// left out.
    ///
    /// # Collective
    /// Must be called by all ranks, with as many batches.
    pub fn steps(&mut self, world: &dyn Collective, batches: &[StepBatches]) -> Vec<Timed> {
        let mut stepper = Stepper {
            model: self.model.as_ref(),
            params: &mut self.params,
            task: &self.task,
            adam: &mut self.adam,
            schedule: Schedule {
                lr: 1e-4,
                warmup_steps: 0,
                shape: Curve::Constant,
                steps_per_epoch: 1000,
                planned_steps: 1000,
            },
            dropout: self.dropout,
            clip_norm: 1.0,
            seed: 0,
            staging: &self.staging,
            watch: &self.watch,
        };
        let step = |(number, batch): (usize, &StepBatches)| {
            world.barrier().expect("a barrier");
            let (begun, used) = (Instant::now(), cpu_seconds());
            let report = stepper.step(world, number as u64, batch, Asked::default());
            let report = report.expect("a step");
            assert!(report.loss.is_finite() && report.skipped.is_none());
            Timed {
                wall_s: begun.elapsed().as_secs_f64(),
                cpu_s: cpu_seconds() - used,
                report,
            }
        };
        let mut timed: Vec<Timed> = batches.iter().enumerate().map(step).collect();
        timed.remove(0);
        timed
    }
}

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::heads::BoundHead;
use super::{Blueprint, NORM, POSITIONS, TOKENS};
use crate::backbone::performer::PerformerBlocks;
use crate::backbone::{Encoded, Inputs, Model};
use crate::exec::{
    BlockContext, Dropout, Executor, ExecutorKind, Pass, Stack, join_backward, join_forward,
    run_in_order,
};
use crate::ops::{LayerNorm, cast, full};
use crate::params::Params;
use crate::{Error, Result};

/// The bound model.
#[derive(Debug)]
pub struct Scbert {
    tokens: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    compute: Kind,
    /// Format of the sum of both embeddings.
    full: Kind,
    blocks: Rc<PerformerBlocks>,
    executor: Box<dyn Executor>,
    head: BoundHead,
}

impl Scbert {
    /// Binds a model to its tensors.
    ///
    /// # Errors
    /// When `params` was not built from the blueprint's specs, or is sharded and `executor` keeps
    /// what it needs of blocks.
    pub fn bind(blueprint: &Blueprint, params: &Params, executor: ExecutorKind) -> Result<Self> {
        executor.require_recompute(params)?;
        let mut adapters = blueprint.block_adapters()?;
        adapters.bind(params)?;
        adapters.constrain()?;
        let blocks = PerformerBlocks::bind(params, blueprint.performer(), adapters)?;
        Ok(Self {
            tokens: params.get(TOKENS)?,
            positions: params.get(POSITIONS)?,
            norm: LayerNorm::bind(params, NORM)?,
            compute: params.precision().compute(),
            full: params.precision().full(),
            blocks: Rc::new(blocks),
            executor: executor.build(),
            head: BoundHead::bind(params, blueprint.head)?,
        })
    }

    /// Logits of the bin of each place, `[B, N, V]`.
    ///
    /// # Errors
    /// The model has another head, or libtorch fails.
    pub fn predict_tokens(&self, encoded: &Encoded) -> Result<Tensor> {
        self.head.predict_tokens(&encoded.hidden)
    }

    /// The mean of each gene's state over its features, `[B, N - 1]`: what the authors find the
    /// nearest cells by without training.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn mapping(&self, encoded: &Encoded) -> Result<Tensor> {
        let genes = self.positions.size()[0] - 1;
        let states = full(&encoded.hidden)?.f_narrow(1, 0, genes)?;
        Ok(states.f_mean_dim(2, false, None::<Kind>)?)
    }

    /// States after the embedding and after each block, in evaluation mode, those after a prefix
    /// with its places, and the normalised states of the last: L + 2 times `[B, N (+ T), D]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn hidden_states(&self, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let embedded = self.embed(inputs, Pass::EVALUATION)?;
        let context = context(inputs, Pass::EVALUATION);
        let mut states = Vec::with_capacity(self.blocks.n_blocks() + 2);
        let stack: &dyn Stack = self.blocks.as_ref();
        let last = run_in_order(stack, embedded, &context, |_, hidden| {
            states.push(hidden.shallow_clone());
        })?;
        let normed = self.norm.forward(&last)?;
        states.extend([last, normed]);
        Ok(states)
    }

    /// Embedded tokens `[B, N, D]`.
    fn embed(&self, inputs: &Inputs, pass: Pass) -> Result<Tensor> {
        let (_, seq) = inputs.gene_ids.size2()?;
        let places = self.positions.size()[0];
        if seq != places {
            return Err(Error::Setting {
                setting: "backbone.vocab",
                problem: format!(
                    "a cell has {seq} tokens, this scBERT reads {places}: all genes of its panel \
                     and one more"
                ),
            });
        }
        self.require_known(&inputs.gene_ids)?;
        self.embed_places(&inputs.gene_ids, &self.positions, inputs, pass)
    }

    /// Refuses ids that have no row in the embedding.
    fn require_known(&self, ids: &Tensor) -> Result<()> {
        let rows = self.tokens.size()[0];
        let [least, most] = [ids.f_min()?, ids.f_max()?].map(|x| x.f_int64_value(&[]));
        let (least, most) = (least?, most?);
        if least >= 0 && most < rows {
            return Ok(());
        }
        Err(Error::Setting {
            setting: "backbone.vocab",
            problem: format!(
                "tokens from {least} to {most} in a cell, this scBERT has those from 0 to {}",
                rows - 1
            ),
        })
    }

    fn embed_places(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        inputs: &Inputs,
        pass: Pass,
    ) -> Result<Tensor> {
        let words = Tensor::f_embedding(&self.tokens, ids, -1, false, false)?;
        // Added in the double precision of the positions, then rounded, as the reference does.
        let x = cast(&words, Kind::Double)?.f_add(positions)?;
        let x = cast(&cast(&x, self.full)?, self.compute)?;
        let adapters = &self.blocks.adapters;
        let x = adapters.embedding(adapters.value_embedding(x)?, inputs.treatment.as_ref())?;
        pass.drop_embedding(x)
    }

    /// Whether the embedding wants a gradient: asked of the very code, on one place.
    fn embedding_trains(&self) -> Result<bool> {
        let device = self.tokens.device();
        let ids = Tensor::f_zeros([1, 1], (Kind::Int64, device))?;
        let mut probe = Inputs::new(
            ids.shallow_clone(),
            Tensor::f_zeros([1, 1], (Kind::Float, device))?,
            None,
        );
        if let Some(width) = self.blocks.adapters.treatment_width() {
            probe.treatment = Some(Tensor::f_zeros([1, width], (Kind::Float, device))?);
        }
        let positions = self.positions.f_narrow(0, 0, 1)?;
        let pass = Pass::training(Dropout::OFF, 0);
        Ok(self
            .embed_places(&ids, &positions, &probe, pass)?
            .requires_grad())
    }

    /// The cell embedding `[B, D]`: the mean over genes of states `[B, N (+ T), D]`.
    fn embed_cell(&self, states: &Tensor) -> Result<Tensor> {
        let genes = self.positions.size()[0] - 1;
        let own = match self.blocks.adapters.prefix() {
            Some((_, length)) => crate::backbone::post_norm::strip_prefix(states, 1, length)?,
            None => states.shallow_clone(),
        };
        let genes = full(&own.f_narrow(1, 0, genes)?)?;
        Ok(genes.f_mean_dim(1, false, None::<Kind>)?)
    }
}

/// What the blocks share.
fn context(inputs: &Inputs, pass: Pass) -> BlockContext {
    BlockContext {
        keep: None,
        keep_prefixed: None,
        treatment: inputs.treatment.as_ref().map(Tensor::shallow_clone),
        pass,
    }
}

impl Model for Scbert {
    fn encode(&self, inputs: &Inputs, pass: Pass) -> Result<Encoded> {
        let embedded = self.embed(inputs, pass)?;
        let genes = embedded.shallow_clone();
        let stack: Rc<dyn Stack> = Rc::clone(&self.blocks) as Rc<dyn Stack>;
        let run = self.executor.run(&stack, embedded, context(inputs, pass))?;
        let hidden = self.norm.forward(&run.hidden)?;
        let cell = self.embed_cell(&hidden)?;
        Ok(Encoded {
            hidden,
            genes,
            cell,
            tape: run.tape,
            observed: None,
        })
    }

    fn classify(&self, encoded: &Encoded, _pass: Pass) -> Result<Tensor> {
        self.head.classify(&encoded.hidden)
    }

    fn constrain(&self) -> Result<()> {
        self.blocks.adapters.constrain()
    }

    fn redraw(&self, seed: u64, draw: u64) -> Result<()> {
        tch::no_grad(|| self.blocks.redraw(seed, draw))
    }

    fn is_sharded(&self) -> bool {
        self.blocks.is_sharded()
    }

    fn join_forward(&self) -> Result<()> {
        join_forward(self.blocks.as_ref())
    }

    fn join_backward(&self) -> Result<()> {
        join_backward(self.blocks.as_ref(), self.embedding_trains()?)
    }
}

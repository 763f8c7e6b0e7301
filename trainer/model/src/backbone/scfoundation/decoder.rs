//! The decoder: Performer blocks over all genes, expressed or not.

use std::rc::Rc;

use tch::Tensor;

use super::Scfoundation;
use crate::Result;
use crate::adapter::{AdapterSet, Names};
use crate::backbone::performer::{
    ATTENTION, KeyMax, PART, PROJECTIONS, PerformerBlocks, PerformerShape,
};
use crate::backbone::{Encoded, Inputs, absent};
use crate::exec::{BlockContext, Executor, ExecutorKind, Pass, Stack, Tape};
use crate::ops::{LayerNorm, Linear, cast, full};
use crate::params::{Params, Role, TensorSpec};

const EMBED: &str = "decoder_embed";
/// The norm behind the blocks, and the one behind that.
const NORMS: [&str; 2] = ["decoder.norm", "norm"];
const OUTPUT: &str = "to_final";
const NAMES: Names = Names {
    blocks: "decoder.performer.net.layers",
    attention: ATTENTION,
    projections: Some(PROJECTIONS),
    token: None,
    prefix: None,
};

/// Dimensions of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderShape {
    /// Blocks.
    pub n_layers: usize,
    /// Width.
    pub d_model: i64,
    /// Attention heads.
    pub n_heads: i64,
    /// Width of a head.
    pub d_head: i64,
    /// Width of the feed-forward half.
    pub d_hid: i64,
    /// The keys that share their maximum: those of a cell, or of the micro-batch as in the reference.
    pub key_max: KeyMax,
    /// Whether there is a layer that reconstructs expression.
    pub reconstructs: bool,
}

impl DecoderShape {
    fn blocks(self) -> PerformerShape {
        PerformerShape {
            names: NAMES,
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            d_head: self.d_head,
            d_hid: self.d_hid,
            features: PerformerShape::default_features(self.d_head),
            qkv_bias: true,
            key_max: self.key_max,
            part: PART,
        }
    }
}

pub(super) fn specs(shape: DecoderShape, encoder_width: i64) -> Vec<TensorSpec> {
    let (d, role) = (shape.d_model, Role::Backbone);
    let mut specs = Linear::specs(EMBED, encoder_width, d, true, role);
    specs.extend(
        PerformerBlocks::specs(&shape.blocks())
            .into_iter()
            .map(|mut spec| {
                // Blocks that may be shared by ranks are those of the encoder.
                spec.block = None;
                spec
            }),
    );
    specs.extend(
        NORMS
            .iter()
            .flat_map(|norm| LayerNorm::specs(norm, d, role)),
    );
    if shape.reconstructs {
        specs.extend(Linear::specs(OUTPUT, d, 1, true, role));
    }
    specs
}

/// The bound decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    embed: Linear,
    blocks: Rc<PerformerBlocks>,
    norms: [LayerNorm; 2],
    output: Option<Linear>,
    executor: Box<dyn Executor>,
}

/// What the decoder makes of a micro-batch.
#[derive(Debug)]
pub struct Decoded {
    /// Embeddings of the genes and of the depths T and S, `[B, G + 2, D']`, in full precision.
    pub genes: Tensor,
    /// To be run backward before that of the encoder: see [`Encoded::tape`].
    pub tape: Option<Tape>,
}

impl Decoder {
    pub(super) fn bind(
        params: &Params,
        shape: DecoderShape,
        executor: ExecutorKind,
    ) -> Result<Self> {
        let adapters = AdapterSet::default();
        Ok(Self {
            embed: Linear::bind(params, EMBED, true)?,
            blocks: Rc::new(PerformerBlocks::bind_whole(
                params,
                shape.blocks(),
                adapters,
            )?),
            norms: [
                LayerNorm::bind(params, NORMS[0])?,
                LayerNorm::bind(params, NORMS[1])?,
            ],
            output: if shape.reconstructs {
                Some(Linear::bind(params, OUTPUT, true)?)
            } else {
                None
            },
            executor: executor.build(),
        })
    }

    /// `all`: every gene, `[B, G + 2, D]`; returns `[B, G + 2, D']`.
    fn forward(&self, all: &Tensor, pass: Pass) -> Result<Decoded> {
        let stack: Rc<dyn Stack> = Rc::clone(&self.blocks) as Rc<dyn Stack>;
        let context = BlockContext {
            keep: None,
            keep_prefixed: None,
            treatment: None,
            pass,
        };
        let run = self
            .executor
            .run(&stack, self.embed.forward(all)?, context)?;
        let [behind, last] = &self.norms;
        Ok(Decoded {
            genes: full(&last.forward(&behind.forward(&run.hidden)?)?)?,
            tape: run.tape,
        })
    }
}

impl Scfoundation {
    /// Embeddings of all genes, expressed or not, from the encoder's output on `inputs`. The reference's
    /// decoder sees the places of genes twice where they are expressed, and so does this one.
    ///
    /// # Errors
    /// The model has no decoder, or libtorch fails.
    pub fn decode(&self, encoded: &Encoded, inputs: &Inputs, pass: Pass) -> Result<Decoded> {
        let Some(decoder) = &self.decoder else {
            return Err(absent("decoder"));
        };
        let (batch, seq, d_model) = encoded.hidden.size3()?;
        let kind = encoded.hidden.f_kind()?;
        let [rows, _] = self.positions.size2().map(|(rows, width)| [rows, width])?;
        // A gene that is not expressed is a zero; padding goes to the last row, which is cut off.
        let zero = cast(&self.values.zero()?, kind)?;
        let zeros = zero.f_expand([batch, rows, d_model], false)?;
        let places = inputs
            .gene_ids
            .f_to_kind(tch::Kind::Int64)?
            .f_unsqueeze(-1)?;
        let places = places.f_expand([batch, seq, d_model], false)?;
        let all = zeros.f_scatter(1, &places, &encoded.hidden)?;
        let all = all.f_narrow(1, 0, rows - 1)?;
        let genes = cast(&self.positions.f_narrow(0, 0, rows - 1)?, kind)?;
        decoder.forward(&all.f_add(&genes)?, pass)
    }

    /// The expression of all genes and the depths, `[B, G + 2]`.
    ///
    /// # Errors
    /// The model has no such layer, or libtorch fails.
    pub fn reconstruct(&self, decoded: &Decoded) -> Result<Tensor> {
        let output = self
            .decoder
            .as_ref()
            .and_then(|decoder| decoder.output.as_ref());
        match output {
            Some(output) => Ok(output.forward(&decoded.genes)?.f_squeeze_dim(-1)?),
            None => Err(absent("reconstruction")),
        }
    }
}

//! The heads that scGPT's objectives need, as settings and bound.

use tch::Tensor;

use super::{Encoded, Inputs};
use crate::backbone::absent;
use crate::head::{
    AffineDecoder, AffineOptions, BatchDiscriminator, BatchEncoder, ClassificationHead, Expression,
    ExpressionDecoder, MvcDecoder, MvcOptions, MvcStyle,
};
use crate::params::{Params, TensorSpec};
use crate::{Error, Result};

const DECODER: &str = "decoder";

/// Cell-type classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classifier {
    /// Number of cell types.
    pub classes: i64,
    /// Layers, output included (`n_layers_cls`).
    pub layers: usize,
}

/// Masked value prediction from the cell embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mvc {
    /// How gene and cell embedding meet.
    pub style: MvcStyle,
}

/// Batches that decoders are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLabels {
    /// Number of batches.
    pub batches: i64,
}

/// Which heads the model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heads {
    /// Cell types from the cell embedding.
    pub classifier: Option<Classifier>,
    /// Masked expression from the cell embedding.
    pub mvc: Option<Mvc>,
    /// Decoders also model the probability of zero expression.
    pub explicit_zero: bool,
    /// Decoders are told the batch of a cell.
    pub batch_labels: Option<BatchLabels>,
    /// The adversarial discriminator of that many batches.
    pub discriminator: Option<BatchLabels>,
    /// The affine decoder of the perturbation generator, in place of the expression decoder.
    pub affine: Option<AffineOptions>,
}

impl Heads {
    /// # Errors
    /// Heads that exclude one another.
    pub fn validate(&self) -> Result<()> {
        if let Some(options) = self.mvc_options() {
            options.validate()?;
        }
        if self.affine.is_some() && self.batch_labels.is_some() {
            return Err(Error::Setting {
                setting: "data.batch",
                problem: "the affine decoder takes no batch embedding".into(),
            });
        }
        Ok(())
    }

    fn mvc_options(&self) -> Option<MvcOptions> {
        self.mvc.map(|mvc| MvcOptions {
            style: mvc.style,
            explicit_zero: self.explicit_zero,
            batch_labels: self.batch_labels.is_some(),
        })
    }

    /// Tensors of all heads.
    pub fn specs(&self, d_model: i64) -> Vec<TensorSpec> {
        let mut specs = match self.affine {
            Some(options) => AffineDecoder::specs(DECODER, d_model, options),
            None => ExpressionDecoder::specs(
                DECODER,
                d_model,
                self.explicit_zero,
                self.batch_labels.is_some(),
            ),
        };
        if let Some(Classifier { classes, layers }) = self.classifier {
            specs.extend(ClassificationHead::specs(d_model, layers, classes));
        }
        if let Some(options) = self.mvc_options() {
            specs.extend(MvcDecoder::specs(d_model, options));
        }
        if let Some(labels) = self.batch_labels {
            specs.extend(BatchEncoder::specs(d_model, labels.batches));
        }
        if let Some(labels) = self.discriminator {
            specs.extend(BatchDiscriminator::specs(d_model, labels.batches));
        }
        specs
    }
}

#[derive(Debug)]
enum Decoder {
    Expression(ExpressionDecoder),
    Affine(AffineDecoder),
}

/// The bound heads.
#[derive(Debug)]
pub struct HeadSet {
    decoder: Decoder,
    classifier: Option<ClassificationHead>,
    mvc: Option<MvcDecoder>,
    batch: Option<BatchEncoder>,
    discriminator: Option<BatchDiscriminator>,
}

impl HeadSet {
    pub(super) fn bind(params: &Params, heads: Heads) -> Result<Self> {
        let decoder = match heads.affine {
            Some(options) => Decoder::Affine(AffineDecoder::bind(params, DECODER, options)?),
            None => Decoder::Expression(ExpressionDecoder::bind(
                params,
                DECODER,
                heads.explicit_zero,
            )?),
        };
        Ok(Self {
            decoder,
            classifier: heads
                .classifier
                .map(|c| ClassificationHead::bind(params, c.layers))
                .transpose()?,
            mvc: heads
                .mvc_options()
                .map(|options| MvcDecoder::bind(params, options))
                .transpose()?,
            batch: heads
                .batch_labels
                .map(|_| BatchEncoder::bind(params))
                .transpose()?,
            discriminator: heads
                .discriminator
                .map(|_| BatchDiscriminator::bind(params))
                .transpose()?,
        })
    }

    /// Expression from token states, `[B, S]`.
    ///
    /// # Errors
    /// The decoder is told of batches and `inputs` names none.
    pub fn expression(&self, encoded: &Encoded, inputs: &Inputs) -> Result<Expression> {
        match &self.decoder {
            Decoder::Affine(decoder) => decoder.forward(&encoded.hidden, &inputs.values),
            Decoder::Expression(decoder) => {
                decoder.forward(&encoded.hidden, self.batch_embedding(inputs)?.as_ref())
            }
        }
    }

    /// Expression from the cell embedding, `[B, S]`.
    ///
    /// # Errors
    /// The model has no such head, or it is told of batches and `inputs` names none.
    pub fn mvc(&self, encoded: &Encoded, inputs: &Inputs) -> Result<Expression> {
        let head = self.mvc.as_ref().ok_or_else(|| absent("MVC"))?;
        match self.batch_embedding(inputs)? {
            None => head.forward(&encoded.cell, &encoded.genes),
            Some(batch) => {
                let cell = Tensor::f_cat(&[&encoded.cell, &batch], 1)?;
                head.forward(&cell, &encoded.genes)
            }
        }
    }

    /// Logits of the cell types `[B, classes]`.
    ///
    /// # Errors
    /// The model has no such head.
    pub fn classify(&self, encoded: &Encoded) -> Result<Tensor> {
        let head = self.classifier.as_ref();
        head.ok_or_else(|| absent("classification"))?
            .forward(&encoded.cell)
    }

    /// Logits of the batches `[B, batches]`, behind a gradient reversal.
    ///
    /// # Errors
    /// The model has no such head.
    pub fn discriminate(&self, encoded: &Encoded) -> Result<Tensor> {
        let head = self.discriminator.as_ref();
        head.ok_or_else(|| absent("batch discriminator"))?
            .forward(&encoded.cell)
    }

    fn batch_embedding(&self, inputs: &Inputs) -> Result<Option<Tensor>> {
        let Some(encoder) = &self.batch else {
            return Ok(None);
        };
        let labels = inputs.batch_labels.as_ref().ok_or(Error::MissingInput {
            what: "the batch of each cell",
        })?;
        encoder.forward(labels).map(Some)
    }
}

//! Batch norm over embedded tokens, of all cells or of one domain (batch label) at a time.
//!
//! The reference updates running statistics inside the forward pass. Here a training pass returns
//! what it saw as [`Observed`], and whoever collected the observations of all ranks calls
//! [`EmbeddingNorm::update`]: running statistics then depend neither on which rank saw a cell nor on
//! whether a block was run twice.

use tch::{Kind, Tensor};

use crate::exec::Pass;
use crate::ops::{cast, full};
use crate::params::{Params, Role, TensorSpec};
use crate::{Error, Init, Result};

/// Epsilon of the batch norms (scGPT).
const EPS: f64 = 6.1e-5;
/// Weight of a new observation in the running statistics.
const MOMENTUM: f64 = 0.1;

/// Which norm stands between embedding and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormStyle {
    /// None.
    #[default]
    None,
    /// One batch norm with weight and bias (`bn`).
    Batch,
    /// One batch norm without weight and bias per domain (`dsbn`); every micro-batch must hold
    /// cells of one domain.
    Domain {
        /// Number of domains.
        domains: usize,
    },
}

impl NormStyle {
    /// Number of separate statistics.
    pub fn domains(self) -> usize {
        match self {
            Self::None => 0,
            Self::Batch => 1,
            Self::Domain { domains } => domains,
        }
    }
}

/// What a training pass saw.
#[derive(Debug)]
pub struct Observed {
    /// Whose statistics they are.
    pub domain: usize,
    /// Mean `[D]` over cells and tokens, padding included.
    pub mean: Tensor,
    /// Unbiased variance `[D]`.
    pub variance: Tensor,
}

#[derive(Debug)]
struct Statistics {
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
}

/// The bound norm.
#[derive(Debug)]
pub struct EmbeddingNorm {
    statistics: Vec<Statistics>,
    affine: Option<(Tensor, Tensor)>,
    per_domain: bool,
}

fn prefix(style: NormStyle, domain: usize) -> String {
    match style {
        NormStyle::Domain { .. } => format!("dsbn.bns.{domain}"),
        NormStyle::None | NormStyle::Batch => "bn".to_owned(),
    }
}

impl EmbeddingNorm {
    /// Tensors of the norm: running statistics, and weight and bias of the plain one.
    pub fn specs(style: NormStyle, d_model: i64) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        if style == NormStyle::Batch {
            for (name, init) in [("bn.weight", Init::Ones), ("bn.bias", Init::Zeros)] {
                let spec = TensorSpec::new(name.into(), &[d_model], init, Role::Head);
                specs.push(spec.in_full_precision());
            }
        }
        for domain in 0..style.domains() {
            let prefix = prefix(style, domain);
            let buffer = |name: &str, shape: &[i64], init| {
                TensorSpec::new(format!("{prefix}.{name}"), shape, init, Role::Buffer)
            };
            specs.push(buffer("running_mean", &[d_model], Init::Zeros));
            specs.push(buffer("running_var", &[d_model], Init::Ones));
            specs.push(buffer("num_batches_tracked", &[], Init::Zeros));
        }
        specs
    }

    /// Binds to the tensors of [`EmbeddingNorm::specs`]; `None` when there is no norm.
    ///
    /// # Errors
    /// When `params` lacks one of them.
    pub fn bind(params: &Params, style: NormStyle) -> Result<Option<Self>> {
        if style == NormStyle::None {
            return Ok(None);
        }
        let statistics = (0..style.domains())
            .map(|domain| {
                let prefix = prefix(style, domain);
                Ok(Statistics {
                    mean: params.get(&format!("{prefix}.running_mean"))?,
                    variance: params.get(&format!("{prefix}.running_var"))?,
                    batches: params.get(&format!("{prefix}.num_batches_tracked"))?,
                })
            })
            .collect::<Result<_>>()?;
        let affine = match style {
            NormStyle::Batch => Some((params.get("bn.weight")?, params.get("bn.bias")?)),
            NormStyle::None | NormStyle::Domain { .. } => None,
        };
        Ok(Some(Self {
            statistics,
            affine,
            per_domain: matches!(style, NormStyle::Domain { .. }),
        }))
    }

    /// Normalises embedded tokens, padding included: with the statistics of the micro-batch in
    /// training, with the running ones of the domain in evaluation.
    ///
    /// # Shapes
    /// `x`: `[B, S, D]`; `domain`: of all its cells; returns `[B, S, D]` and, in training, what
    /// was seen.
    ///
    /// # Errors
    /// The norm is per domain and `domain` is missing or not known.
    pub fn forward(
        &self,
        x: &Tensor,
        domain: Option<usize>,
        pass: Pass,
    ) -> Result<(Tensor, Option<Observed>)> {
        let domain = match (self.per_domain, domain) {
            (false, _) => 0,
            (true, Some(domain)) => domain,
            (true, None) => {
                return Err(Error::MissingInput {
                    what: "the domain of its cells, for the domain-specific batch norm",
                });
            }
        };
        let running = self.statistics.get(domain).ok_or_else(|| Error::Setting {
            setting: "data.batch",
            problem: format!(
                "cells of domain {domain}, the domain-specific batch norm has {}",
                self.statistics.len()
            ),
        })?;
        // [B, D, S]: for this layout libtorch sums a channel in double precision.
        let channels = full(x)?.f_transpose(1, 2)?.f_contiguous()?;
        // One token alone has no variance to learn from.
        let observed = if pass.training && channels.size()[0] * channels.size()[2] > 1 {
            let seen = channels.f_detach()?;
            Some(Observed {
                domain,
                mean: seen.f_mean_dim([0i64, 2].as_slice(), false, None::<Kind>)?,
                variance: seen.f_var_dim([0i64, 2].as_slice(), true, false)?,
            })
        } else {
            None
        };
        let (weight, bias) = match &self.affine {
            Some((weight, bias)) => (Some(weight), Some(bias)),
            None => (None, None),
        };
        let (mean, variance) = if pass.training {
            (None, None)
        } else {
            (Some(&running.mean), Some(&running.variance))
        };
        let y = Tensor::f_batch_norm(
            &channels,
            weight,
            bias,
            mean,
            variance,
            pass.training,
            MOMENTUM,
            EPS,
            true,
        )?;
        let y = y.f_transpose(1, 2)?.f_contiguous()?;
        Ok((cast(&y, x.f_kind()?)?, observed))
    }

    /// Moves the running statistics of `domain` by `count` observations whose means and variances
    /// sum to `mean_sum` and `variance_sum` (each `[D]`). One observation moves them as torch does;
    /// several weigh the same, in whatever order they were seen.
    ///
    /// # Errors
    /// No such domain.
    pub fn update(
        &self,
        domain: usize,
        count: u64,
        mean_sum: &Tensor,
        variance_sum: &Tensor,
    ) -> Result<()> {
        let running = self.statistics.get(domain).ok_or_else(|| {
            Error::Internal(format!(
                "running statistics of domain {domain} do not exist"
            ))
        })?;
        if count == 0 {
            return Ok(());
        }
        let kept = (1.0 - MOMENTUM).powi(i32::try_from(count).unwrap_or(i32::MAX));
        let share = (1.0 - kept) / count as f64;
        for (statistic, sum) in [(&running.mean, mean_sum), (&running.variance, variance_sum)] {
            let mut statistic = statistic.shallow_clone();
            let _ = statistic.f_mul_scalar_(kept)?;
            let _ = statistic.f_add_(&sum.f_mul_scalar(share)?)?;
        }
        let _ = running
            .batches
            .shallow_clone()
            .f_add_scalar_(count as f64)?;
        Ok(())
    }

    /// Number of separate statistics.
    pub fn domains(&self) -> usize {
        self.statistics.len()
    }
}

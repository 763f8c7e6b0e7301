//! From the configuration's words to the model's settings.

use scpeft_config::{
    AdapterKind, CellStyle, Config, EmbeddingNorm, LayerRule, Layers, MvcStyle, Precision, Shard,
    Target, TaskKind,
};
use scpeft_model::Storage;
use scpeft_model::adapter::{
    AdapterOptions, EncoderOptions, HraOptions, LayerSelection, LoraOptions, MlpOptions,
    OftOptions, Placement, PrefixOptions, Projection, TokenOptions,
};
use scpeft_model::backbone::scgpt::{self, Pooled};
use scpeft_model::exec::{Dropout, ExecutorKind};
use scpeft_model::head;
use scpeft_model::norm::NormStyle;
use tch::Device;

/// The adapters of a run, in the order in which they act.
pub(crate) fn adapters(config: &Config) -> Vec<AdapterOptions> {
    let attached = config.adapter.kind.attached();
    attached
        .iter()
        .filter_map(|&k| adapter(config, k))
        .collect()
}

fn adapter(config: &Config, kind: AdapterKind) -> Option<AdapterOptions> {
    let a = &config.adapter;
    let layers = selection(&a.layers);
    Some(match kind {
        // `hybrid` stands for two that `attached` names.
        AdapterKind::None | AdapterKind::Hybrid => return None,
        AdapterKind::Encoder => AdapterOptions::Encoder(EncoderOptions {
            layers,
            mlp_ratio: a.mlp_ratio,
            skip_connect: a.skip_connect,
            placement: match a.placement {
                scpeft_config::Placement::AfterNorm => Placement::AfterNorm,
                scpeft_config::Placement::Context => Placement::Context,
                scpeft_config::Placement::AttentionOutput => Placement::AttentionOutput,
            },
            zero_init: a.zero_init,
        }),
        AdapterKind::Mlp => AdapterOptions::Mlp(MlpOptions {
            layers: a.mlp_layers.as_ref().map_or(layers, selection),
            mlp_ratio: a.mlp_ratio,
            scale: a.mlp_scale,
            zero_init: a.zero_init,
        }),
        AdapterKind::Token => AdapterOptions::Token(TokenOptions {
            mlp_ratio: a.mlp_ratio,
            zero_init: a.zero_init,
        }),
        AdapterKind::Prefix => AdapterOptions::Prefix(PrefixOptions {
            layers,
            token_nums: a.token_nums as i64,
        }),
        AdapterKind::Lora => AdapterOptions::Lora(LoraOptions {
            layers,
            r: a.r as i64,
            lora_alpha: a.lora_alpha,
            targets: a.targets.iter().map(|&t| projection(t)).collect(),
            train_qkv_bias: a.train_qkv_bias,
        }),
        AdapterKind::Hra => AdapterOptions::Hra(HraOptions {
            layers,
            r: a.r as i64,
        }),
        AdapterKind::Oft => AdapterOptions::Oft(OftOptions { layers }),
    })
}

fn selection(layers: &Layers) -> LayerSelection {
    match layers {
        Layers::Rule(LayerRule::FirstHalf) => LayerSelection::FirstHalf,
        Layers::Rule(LayerRule::All) => LayerSelection::All,
        Layers::List(list) => LayerSelection::Listed(list.clone()),
    }
}

fn projection(target: Target) -> Projection {
    match target {
        Target::Q => Projection::Query,
        Target::K => Projection::Key,
        Target::V => Projection::Value,
    }
}

/// The head that predicts expression from the cell embedding.
pub(crate) fn mvc(config: &Config) -> Option<scgpt::Mvc> {
    let style = match config.task.mvc_style {
        MvcStyle::InnerProduct => head::MvcStyle::InnerProduct,
        MvcStyle::InnerProductDetached => head::MvcStyle::InnerProductDetached,
        MvcStyle::ConcatQuery => head::MvcStyle::ConcatQuery,
        MvcStyle::SumQuery => head::MvcStyle::SumQuery,
    };
    config.task.mvc.then_some(scgpt::Mvc { style })
}

/// What goes into the blocks; `values` is the backbone's, `batches` the number of batches known.
pub(crate) fn inputs(
    config: &Config,
    values: scgpt::ValueStyle,
    batches: usize,
) -> scgpt::InputOptions {
    scgpt::InputOptions {
        values,
        norm: match config.backbone.norm {
            EmbeddingNorm::None => NormStyle::None,
            EmbeddingNorm::Batch => NormStyle::Batch,
            EmbeddingNorm::Domain => NormStyle::Domain { domains: batches },
        },
        perturbation_pad: None,
        cell: match config.backbone.cell_style {
            // Pools of features are scFoundation's, and refused for scGPT.
            CellStyle::Cls
            | CellStyle::MaxPool
            | CellStyle::MaxPoolPadded
            | CellStyle::AllPool
            | CellStyle::AllPoolPadded => scgpt::CellStyle::Cls,
            CellStyle::AveragePool => scgpt::CellStyle::AveragePool(Pooled::Tokens),
            CellStyle::WeightedPool => scgpt::CellStyle::WeightedPool(Pooled::Tokens),
            CellStyle::AveragePoolPadded => scgpt::CellStyle::AveragePool(Pooled::Everything),
            CellStyle::WeightedPoolPadded => scgpt::CellStyle::WeightedPool(Pooled::Everything),
        },
    }
}

/// The obs column with the batch of a cell, when the model is told of it.
pub(crate) fn batch_column(config: &Config) -> Option<&str> {
    let told = config.task.kind == TaskKind::BatchCorrection;
    let used = told || config.backbone.norm == EmbeddingNorm::Domain;
    config.data.batch.as_deref().filter(|_| used)
}

/// The obs column whose values a micro-batch must not mix.
pub(crate) fn domain_column(config: &Config) -> Option<&str> {
    let used = config.backbone.norm == EmbeddingNorm::Domain;
    config.data.batch.as_deref().filter(|_| used)
}

/// Number formats.
pub(crate) fn precision(config: &Config) -> scpeft_model::Precision {
    match config.run.precision {
        Precision::F32 => scpeft_model::Precision::F32,
        Precision::Bf16 => scpeft_model::Precision::Bf16,
    }
}

/// How frozen layers are kept.
pub(crate) fn storage(config: &Config) -> Storage {
    match config.backbone.storage {
        scpeft_config::Storage::Full => Storage::Full,
        scpeft_config::Storage::Int8 => Storage::Int8,
    }
}

/// How blocks are run.
pub(crate) fn executor(config: &Config) -> ExecutorKind {
    let whole = config.backbone.shard == Shard::None && storage(config) == Storage::Full;
    if config.run.recompute || !whole {
        ExecutorKind::Recompute
    } else {
        ExecutorKind::Plain
    }
}

/// Dropout rates on a device: unless it is set, attention has the backbone's rate where the fused
/// kernel draws it (CUDA), and none where dropout would cost the fused kernel (CPU).
pub(crate) fn dropout(config: &Config, device: Device) -> Dropout {
    let residual = config.backbone.dropout;
    let fused = if device.is_cuda() { residual } else { 0.0 };
    Dropout {
        residual,
        attention: config.backbone.attention_dropout.unwrap_or(fused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_dropout_follows_the_backbone_where_the_kernel_is_fused() {
        let mut config = Config::default();
        config.backbone.dropout = 0.3;
        assert!(dropout(&config, Device::Cpu).attention.abs() < 1e-12);
        assert!((dropout(&config, Device::Cuda(0)).attention - 0.3).abs() < 1e-12);
        config.backbone.attention_dropout = Some(0.1);
        assert!((dropout(&config, Device::Cpu).attention - 0.1).abs() < 1e-12);
    }

    #[test]
    fn hybrid_is_encoder_and_token() {
        let mut config = Config::default();
        config.adapter.kind = scpeft_config::AdapterKinds::one(AdapterKind::Hybrid);
        let found = adapters(&config);
        assert!(matches!(
            found.as_slice(),
            [AdapterOptions::Encoder(_), AdapterOptions::Token(_)]
        ));
    }
}

//! Names of the reference's tensors, of both variants, and the names that our model gives them.

/// Which code of the reference wrote a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The library.
    Library,
    /// The scripts of the paper.
    Paper,
    /// Either: both name these adapters alike.
    Either,
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Library => "library",
            Self::Paper => "paper",
            Self::Either => "library or paper, which name these adapters alike",
        })
    }
}

/// Kinds of adapters that a file can hold, in the order in which they are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    Lora,
    Hra,
    Oft,
    Encoder,
    Mlp,
    Prefix,
    Token,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Hra => "hra",
            Self::Oft => "oft",
            Self::Encoder => "encoder",
            Self::Mlp => "mlp",
            Self::Prefix => "prefix",
            Self::Token => "token",
        }
    }
}

/// What a tensor is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Embeddings, value encoder and blocks as published.
    Backbone,
    /// An adapter: its kind and layer, and the variant whose name it has.
    Adapter {
        part: Part,
        layer: Option<usize>,
        variant: Variant,
    },
    /// A head.
    Head,
    /// Normalisation over batches, running statistics included.
    Normalisation,
}

/// Modules that are heads, by the first part of their tensors' names.
const HEADS: [&str; 6] = [
    "cls_decoder",
    "decoder",
    "mvc_decoder",
    "grad_reverse_discriminator",
    "batch_encoder",
    "pert_encoder",
];
const NORMALISATIONS: [&str; 2] = ["dsbn", "bn"];
/// Tensors of a block as published.
const IN_BLOCK: [&str; 12] = [
    "self_attn.in_proj_weight",
    "self_attn.in_proj_bias",
    "self_attn.out_proj.weight",
    "self_attn.out_proj.bias",
    "linear1.weight",
    "linear1.bias",
    "linear2.weight",
    "linear2.bias",
    "norm1.weight",
    "norm1.bias",
    "norm2.weight",
    "norm2.bias",
];
/// Tensors outside the blocks as published, of all styles of input.
const OUTSIDE: [&str; 12] = [
    "encoder.embedding.weight",
    "encoder.enc_norm.weight",
    "encoder.enc_norm.bias",
    "value_encoder.linear1.weight",
    "value_encoder.linear1.bias",
    "value_encoder.linear2.weight",
    "value_encoder.linear2.bias",
    "value_encoder.norm.weight",
    "value_encoder.norm.bias",
    "value_encoder.embedding.weight",
    "value_encoder.enc_norm.weight",
    "value_encoder.enc_norm.bias",
];

/// Our name of a tensor of the reference and what it is part of; `None` for names that neither
/// variant gives.
pub(super) fn translate(name: &str) -> Option<(String, Group)> {
    // Newer upstream wraps attention once more.
    let name = name.replace("self_attn._impl.", "self_attn.");
    if let Some(rest) = name.strip_prefix("transformer_encoder.layers.") {
        let (index, rest) = rest.split_once('.')?;
        let layer: usize = index.parse().ok()?;
        if layer.to_string() != index {
            return None;
        }
        let (ours, group) = in_layer(layer, rest)?;
        return Some((format!("transformer_encoder.layers.{layer}.{ours}"), group));
    }
    if let Some(rest) = name.strip_prefix("value_encoder.") {
        let adapter = |module: &str, fc: &str, variant| {
            let leaf = bottleneck(rest, module, fc)?;
            let group = adapter(Part::Token, None, variant);
            Some((format!("value_encoder.adapter.{leaf}"), group))
        };
        let found = adapter("adapter.", "fc", Variant::Library)
            .or_else(|| adapter("Space_Adapter.", "D_fc", Variant::Paper));
        if found.is_some() {
            return found;
        }
    }
    if OUTSIDE.contains(&name.as_str()) {
        return Some((name, Group::Backbone));
    }
    let module = name.split('.').next()?;
    if HEADS.contains(&module) {
        Some((name, Group::Head))
    } else if NORMALISATIONS.contains(&module) {
        Some((name, Group::Normalisation))
    } else {
        None
    }
}

fn adapter(part: Part, layer: Option<usize>, variant: Variant) -> Group {
    Group::Adapter {
        part,
        layer,
        variant,
    }
}

/// `fc1.weight` and its like, out of `<module><fc>1.weight`.
fn bottleneck(rest: &str, module: &str, fc: &str) -> Option<String> {
    let leaf = rest.strip_prefix(module)?.strip_prefix(fc)?;
    ["1.weight", "1.bias", "2.weight", "2.bias"]
        .contains(&leaf)
        .then(|| format!("fc{leaf}"))
}

/// Our name inside a block.
fn in_layer(layer: usize, rest: &str) -> Option<(String, Group)> {
    let of = |part, variant| adapter(part, Some(layer), variant);
    for (module, fc, ours, part, variant) in [
        (
            "space_adapter.",
            "fc",
            "space_adapter",
            Part::Encoder,
            Variant::Library,
        ),
        (
            "Space_Adapter.",
            "D_fc",
            "space_adapter",
            Part::Encoder,
            Variant::Paper,
        ),
        (
            "MLP_Adapter.",
            "D_fc",
            "mlp_adapter",
            Part::Mlp,
            Variant::Paper,
        ),
    ] {
        if let Some(leaf) = bottleneck(rest, module, fc) {
            return Some((format!("{ours}.{leaf}"), of(part, variant)));
        }
    }
    let (ours, group) = match rest {
        "adapter_embeddings" => (rest, of(Part::Prefix, Variant::Library)),
        "prompt_embeddings" => ("adapter_embeddings", of(Part::Prefix, Variant::Paper)),
        "self_attn.Wqkv.lora_A" | "self_attn.Wqkv.lora_B" => {
            (rest, of(Part::Lora, Variant::Either))
        }
        "self_attn.Wqkv.hra_u" => (rest, of(Part::Hra, Variant::Paper)),
        "self_attn.Wqkv.R" => (rest, of(Part::Oft, Variant::Paper)),
        "self_attn.Wqkv.weight" | "self_attn.Wqkv.OFT.weight" => {
            ("self_attn.in_proj_weight", Group::Backbone)
        }
        "self_attn.Wqkv.bias" | "self_attn.Wqkv.OFT.bias" => {
            ("self_attn.in_proj_bias", Group::Backbone)
        }
        _ if IN_BLOCK.contains(&rest) => (rest, Group::Backbone),
        _ => return None,
    };
    Some((ours.to_owned(), group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_variants_get_our_names() {
        let layer = "transformer_encoder.layers.3";
        for (name, ours) in [
            ("space_adapter.fc1.weight", "space_adapter.fc1.weight"),
            ("Space_Adapter.D_fc2.bias", "space_adapter.fc2.bias"),
            ("MLP_Adapter.D_fc1.weight", "mlp_adapter.fc1.weight"),
            ("adapter_embeddings", "adapter_embeddings"),
            ("prompt_embeddings", "adapter_embeddings"),
            ("self_attn.Wqkv.lora_A", "self_attn.Wqkv.lora_A"),
            ("self_attn.Wqkv.hra_u", "self_attn.Wqkv.hra_u"),
            ("self_attn.Wqkv.R", "self_attn.Wqkv.R"),
            ("self_attn.Wqkv.OFT.weight", "self_attn.in_proj_weight"),
            ("self_attn.Wqkv.bias", "self_attn.in_proj_bias"),
            ("self_attn._impl.out_proj.bias", "self_attn.out_proj.bias"),
        ] {
            let (found, _) = translate(&format!("{layer}.{name}")).unwrap();
            assert_eq!(found, format!("{layer}.{ours}"));
        }
        let (token, group) = translate("value_encoder.Space_Adapter.D_fc1.bias").unwrap();
        assert_eq!(token, "value_encoder.adapter.fc1.bias");
        assert_eq!(group, adapter(Part::Token, None, Variant::Paper));
        assert_eq!(
            translate("dsbn.bns.0.running_mean").unwrap().1,
            Group::Normalisation
        );
        assert_eq!(translate("pert_encoder.weight").unwrap().1, Group::Head);
    }

    #[test]
    fn other_names_are_not_guessed_at() {
        for name in [
            "transformer_encoder.layers.0.space_adapter.fc3.weight",
            "transformer_encoder.layers.00.linear1.weight",
            "transformer_encoder.layers.+1.linear1.weight",
            "transformer_encoder.layers.0.linear1.weight.extra",
            "transformer_encoder.layers.x.linear1.weight",
            "value_encoder.adapter.fc1",
            "flag_encoder.weight",
            "cls_decoder_extra.weight",
        ] {
            assert_eq!(translate(name), None, "{name}");
        }
    }
}

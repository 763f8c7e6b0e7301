//! Fine-tuned scBERT files of the scPEFT reference: bare state dicts of the whole model. Bottlenecks of
//! layers are in them under two names each, because the reference registers them twice; both are read,
//! and both are written.

use indexmap::IndexMap;

use super::{ScbertDirectory, is_scbert};
use crate::error::{Error, Result};
use crate::peft::AdapterSettings;
use crate::peft::settings::{Placement, mlp_ratio};
use crate::tensor::{HostTensor, TensorFile};

const LAYERS: &str = "performer.net.layers.";
/// Our module of a bottleneck in a layer, and the reference's.
const IN_LAYERS: [(&str, &str); 2] = [
    ("space_adapter", "Encoder_Space"),
    ("mlp_adapter", "Encoder_MLP"),
];
/// Where the reference registers these.
const TWICE: [&str; 2] = ["performer.", "performer.net."];
const TOKEN: (&str, &str) = ("token_emb.adapter.fc", "Space_Adapter.D_fc");
const PREFIX: &str = "performer.net.prompt_embeddings.prompt_embeddings";

/// Our name of a tensor of the reference.
pub fn our_name(theirs: &str) -> String {
    for (module, other) in IN_LAYERS {
        for before in TWICE {
            let rest = theirs.strip_prefix(before);
            let rest = rest.and_then(|r| r.strip_prefix(other)?.strip_prefix('.'));
            if let Some((layer, leaf)) = rest.and_then(|r| r.split_once('.')) {
                let leaf = leaf.replace("fn.D_fc", "fc");
                return format!("{LAYERS}{layer}.{module}.{leaf}");
            }
        }
    }
    theirs.replace(TOKEN.1, TOKEN.0)
}

/// The reference's names of a tensor of ours: two for bottlenecks of layers.
pub fn reference_names(ours: &str) -> Vec<String> {
    let in_layer = ours.strip_prefix(LAYERS).and_then(|r| r.split_once('.'));
    if let Some((layer, rest)) = in_layer {
        for (module, other) in IN_LAYERS {
            let leaf = rest.strip_prefix(module).and_then(|r| r.strip_prefix('.'));
            if let Some(leaf) = leaf {
                let leaf = leaf.replace("fc", "fn.D_fc");
                return TWICE
                    .map(|before| format!("{before}{other}.{layer}.{leaf}"))
                    .to_vec();
            }
        }
    }
    vec![ours.replace(TOKEN.0, TOKEN.1)]
}

/// The whole model of an adapter in the reference's names: tensors of the backbone, and in their place
/// or beside them those of the adapter.
pub fn whole<'a>(
    backbone: &'a ScbertDirectory,
    adapter: impl IntoIterator<Item = (String, HostTensor<'a>)>,
) -> IndexMap<String, HostTensor<'a>> {
    let own = backbone.weights().tensors();
    let mut all: IndexMap<String, HostTensor<'a>> = own
        .filter(|(name, _)| !name.starts_with("to_out."))
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect();
    for (name, tensor) in adapter {
        for theirs in reference_names(&name) {
            all.insert(theirs, tensor.clone());
        }
    }
    all
}

/// What a fine-tuned file has beside its backbone.
#[derive(Debug)]
pub struct Tuned<'a> {
    /// The adapters.
    pub adapters: Vec<AdapterSettings>,
    /// Tensors of adapters and head under our names.
    pub tensors: IndexMap<String, HostTensor<'a>>,
}

/// Takes adapters and head out of a fine-tuned file.
///
/// # Errors
/// When the file is no scBERT, two names of a tensor have different values, a tensor of the backbone is
/// missing or was trained too, an adapter lacks a part, or LoRA is among them.
pub fn extract<'a>(file: &'a TensorFile, backbone: &ScbertDirectory) -> Result<Tuned<'a>> {
    let fail = |reason: String, help| {
        Err(Error::Content {
            path: file.path().to_owned(),
            reason,
            help: Some(help),
        })
    };
    if !is_scbert(file) {
        return fail(
            "it holds no scBERT".to_owned(),
            "name the backbone that the file was trained from with `--backbone`",
        );
    }
    let mut found: IndexMap<String, HostTensor<'a>> = IndexMap::new();
    for (theirs, tensor) in file.tensors() {
        let name = our_name(theirs);
        if name.contains(".lora_") {
            return fail(
                format!("`{theirs}` is a factor of LoRA"),
                "the reference trains the weights that LoRA updates as well, and files do not say \
                 whether the update is in them already: such files cannot be taken apart",
            );
        }
        if let Some(other) = found.get(&name)
            && *other != tensor
        {
            return Err(Error::Ambiguous {
                path: file.path().to_owned(),
                first: reference_names(&name).swap_remove(0),
                second: theirs.to_owned(),
                name,
            });
        }
        found.insert(name, tensor);
    }
    let wanted = backbone.config().wanted_shapes();
    let redrawn = |name: &str| name.ends_with("projection_matrix");
    for (name, _) in &wanted {
        let own = backbone.weights().file().get(name)?;
        let same = found
            .get(name)
            .map(|tensor| tensor.to_f32().ok() == own.to_f32().ok());
        if same != Some(true) && !redrawn(name) {
            return fail(
                format!("`{name}` is not that of `{}`", backbone.dir.display()),
                "name the very backbone that the file was trained from; a file that trained more \
                 than adapters and head is a model of its own: `convert FILE OUT --panel TEXT`",
            );
        }
    }
    let of_backbone =
        |name: &str| wanted.iter().any(|(own, _)| own == name) || name == super::COUNTER;
    found.retain(|name, _| !of_backbone(name));
    Ok(Tuned {
        adapters: adapters(file, &found, backbone)?,
        tensors: found,
    })
}

/// The adapters that tensors belong to.
fn adapters(
    file: &TensorFile,
    found: &IndexMap<String, HostTensor<'_>>,
    backbone: &ScbertDirectory,
) -> Result<Vec<AdapterSettings>> {
    let (d_model, n_layers) = (backbone.config().d_model, backbone.config().n_layers);
    let mut adapters = Vec::new();
    let width = |name: &str| found.get(name).map(|tensor| tensor.shape[0]);
    for (module, _) in IN_LAYERS {
        let of_layer = |layer: &usize| width(&format!("{LAYERS}{layer}.{module}.fc1.weight"));
        let layers: Vec<usize> = (0..n_layers).filter(|l| of_layer(l).is_some()).collect();
        let Some(width) = layers.first().and_then(of_layer) else {
            continue;
        };
        let mlp_ratio = mlp_ratio(width, d_model);
        adapters.push(if module == "space_adapter" {
            AdapterSettings::Encoder {
                layers,
                mlp_ratio,
                skip_connect: true,
                placement: Placement::AfterNorm,
            }
        } else {
            AdapterSettings::Mlp {
                layers,
                mlp_ratio,
                scale: 1.0,
            }
        });
    }
    if let Some(width) = width(&format!("{}1.weight", TOKEN.0)) {
        adapters.push(AdapterSettings::Token {
            mlp_ratio: mlp_ratio(width, d_model),
            skip_connect: true,
        });
    }
    if let Some(tensor) = found.get(PREFIX) {
        let &[_, token_nums, _] = &tensor.shape[..] else {
            let reason = format!("`{PREFIX}` is {:?}, expected [1, T, D]", tensor.shape);
            return Err(Error::content(file.path(), reason));
        };
        adapters.push(AdapterSettings::Prefix {
            layers: (0..n_layers).collect(),
            token_nums,
        });
    }
    Ok(adapters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        let both = reference_names("performer.net.layers.3.space_adapter.fc1.weight");
        assert_eq!(
            both,
            [
                "performer.Encoder_Space.3.fn.D_fc1.weight",
                "performer.net.Encoder_Space.3.fn.D_fc1.weight"
            ]
        );
        for theirs in [
            "performer.Encoder_MLP.0.norm.bias",
            "performer.net.Encoder_MLP.11.fn.D_fc2.bias",
            "Space_Adapter.D_fc1.weight",
            "performer.net.prompt_embeddings.prompt_embeddings",
            "performer.net.layers.0.0.fn.to_q.lora_A",
            "to_out.fc1.weight",
        ] {
            assert!(
                reference_names(&our_name(theirs)).contains(&theirs.to_owned()),
                "{theirs}"
            );
        }
    }
}

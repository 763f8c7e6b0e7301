//! Tensors of a list of adapters between the model's layout and that of the file: LoRA factors are
//! stored as PEFT has them, whatever else is in the file; all other tensors are stored as they are.

use indexmap::IndexMap;

use super::AdapterSettings;
use crate::error::{Error, Result};
use crate::lora::PackedLayout;
use crate::tensor::HostTensor;

/// The model's tensors as they are stored in a file with these adapters.
///
/// # Errors
/// When LoRA factors belong to no entry of the list, or have another shape than it says.
pub fn to_file_layout<'a>(
    adapters: &[AdapterSettings],
    tensors: impl IntoIterator<Item = (String, HostTensor<'a>)>,
) -> Result<Vec<(String, HostTensor<'a>)>> {
    let mut stored = Vec::new();
    for (name, tensor) in tensors {
        match layout_of(adapters, &name)? {
            Layout::Packed(layout) => stored.extend(layout.to_peft([(name, tensor)])?),
            Layout::Separate => stored.push((separate_to_file(&name), tensor)),
            Layout::AsItIs => stored.push((name, tensor)),
        }
    }
    Ok(stored)
}

/// The inverse of [`to_file_layout`].
///
/// # Errors
/// As there, and when an update mixes query, key and value.
pub fn from_file_layout<'a>(
    adapters: &[AdapterSettings],
    tensors: impl IntoIterator<Item = (String, HostTensor<'a>)>,
) -> Result<IndexMap<String, HostTensor<'a>>> {
    let mut ours = IndexMap::new();
    for (name, tensor) in tensors {
        match layout_of(adapters, &name)? {
            Layout::Packed(layout) => ours.extend(layout.from_peft([(name, tensor)])?),
            Layout::Separate => drop(ours.insert(separate_from_file(&name), tensor)),
            Layout::AsItIs => drop(ours.insert(name, tensor)),
        }
    }
    Ok(ours)
}

/// How a tensor is stored.
enum Layout {
    /// Under its own name.
    AsItIs,
    /// As a part of the packed projection of a layer with LoRA.
    Packed(PackedLayout),
    /// As a part of a module of its own with LoRA.
    Separate,
}

const FACTORS: [&str; 2] = [".lora_A", ".lora_B"];

/// PEFT's name of a tensor of an adapted module: factors are weights of modules, and the bias belongs
/// to the layer that it wraps.
fn separate_to_file(name: &str) -> String {
    if FACTORS.iter().any(|end| name.ends_with(end)) {
        return format!("{name}.weight");
    }
    match name.strip_suffix(".bias") {
        Some(module) => format!("{module}.base_layer.bias"),
        None => name.to_owned(),
    }
}

fn separate_from_file(name: &str) -> String {
    let factor = name.strip_suffix(".weight");
    if let Some(factor) = factor.filter(|n| FACTORS.iter().any(|end| n.ends_with(end))) {
        return factor.to_owned();
    }
    match name.strip_suffix(".base_layer.bias") {
        Some(module) => format!("{module}.bias"),
        None => name.to_owned(),
    }
}

/// How a tensor is stored, given the adapter of the layer that it belongs to.
fn layout_of(adapters: &[AdapterSettings], name: &str) -> Result<Layout> {
    let of_factor = [".lora_A", ".lora_B", ".lora_A.weight", ".lora_B.weight"]
        .iter()
        .any(|end| name.ends_with(end));
    let layer = layer_of(name);
    let carries = |adapter: &&AdapterSettings| {
        layer.is_some_and(|layer| adapter.layers().is_some_and(|list| list.contains(&layer)))
    };
    for adapter in adapters.iter().filter(carries) {
        if let Some(modules) = adapter.separate_modules() {
            let of_module = |module: &str| {
                [".lora_", ".bias", ".base_layer."]
                    .iter()
                    .any(|rest| name.contains(&format!(".{module}{rest}")))
            };
            if modules.iter().any(|module| of_module(module)) {
                return Ok(Layout::Separate);
            }
        } else if let Some(layout) = adapter.packed_layout() {
            let of_bias = name.ends_with(".in_proj_bias") || name.ends_with(".base_layer.bias");
            if of_factor || of_bias {
                return Ok(Layout::Packed(layout));
            }
        }
    }
    if of_factor {
        return Err(Error::Lora {
            name: name.to_owned(),
            reason: "no LoRA of the settings has this layer".to_owned(),
        });
    }
    Ok(Layout::AsItIs)
}

/// The index in `….layers.{i}.…`, `….layer.{i}.…` or, where nothing stands between,
/// `….transformer_encoder.{i}.…`.
fn layer_of(name: &str) -> Option<usize> {
    let rest = ["layers.", "layer.", "transformer_encoder."]
        .iter()
        .find_map(|stem| Some(name.split_once(stem)?.1))?;
    rest.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::{Placement, Target};

    fn lora(layers: &[usize], r: usize, targets: &[Target]) -> AdapterSettings {
        AdapterSettings::Lora {
            layers: layers.to_vec(),
            r,
            lora_alpha: 1.0,
            targets: targets.to_vec(),
            train_qkv_bias: true,
            separate: false,
            naming: crate::peft::Naming::Bert,
        }
    }

    fn numbers(shape: &[usize], from: usize) -> HostTensor<'static> {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (from..from + count).map(|x| x as f32).collect();
        HostTensor::from_f32(shape.to_vec(), &values)
    }

    #[test]
    fn each_layer_is_packed_by_its_own_entry_and_reads_back() {
        let adapters = [
            lora(&[0], 2, &[Target::Q, Target::V]),
            lora(&[3], 1, &[Target::K]),
            AdapterSettings::Encoder {
                layers: vec![0],
                mlp_ratio: 0.5,
                skip_connect: true,
                placement: Placement::AfterNorm,
            },
        ];
        let d = 3;
        let named = |layer: usize, end: &str| format!("t.layers.{layer}.self_attn.{end}");
        let ours: IndexMap<String, HostTensor<'_>> = [
            (named(0, "Wqkv.lora_A"), numbers(&[4, d], 1)),
            (named(0, "Wqkv.lora_B"), numbers(&[2 * d, 2], 20)),
            (named(0, "in_proj_bias"), numbers(&[3 * d], 40)),
            (named(1, "in_proj_bias"), numbers(&[3 * d], 60)),
            (named(3, "Wqkv.lora_A"), numbers(&[1, d], 80)),
            (named(3, "Wqkv.lora_B"), numbers(&[d, 1], 90)),
            (
                "t.layers.0.space_adapter.fc1.weight".to_owned(),
                numbers(&[1, d], 99),
            ),
        ]
        .into();
        let stored = to_file_layout(&adapters, ours.clone()).unwrap();
        let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "t.layers.0.self_attn.Wqkv.lora_A.weight",
                "t.layers.0.self_attn.Wqkv.lora_B.weight",
                "t.layers.0.self_attn.Wqkv.base_layer.bias",
                "t.layers.1.self_attn.in_proj_bias",
                "t.layers.3.self_attn.Wqkv.lora_A.weight",
                "t.layers.3.self_attn.Wqkv.lora_B.weight",
                "t.layers.0.space_adapter.fc1.weight",
            ]
        );
        assert_eq!(stored[1].1.shape, [3 * d, 4]);
        assert_eq!(stored[5].1.shape, [3 * d, 1]);
        assert_eq!(from_file_layout(&adapters, stored).unwrap(), ours);
    }

    #[test]
    fn factors_of_a_layer_without_lora_are_refused() {
        let adapters = [lora(&[0], 1, &[Target::Q])];
        let tensors = [(
            "t.layers.1.self_attn.Wqkv.lora_A".to_owned(),
            numbers(&[1, 2], 0),
        )];
        let error = to_file_layout(&adapters, tensors).unwrap_err();
        assert!(
            matches!(&error, Error::Lora { name, .. } if name.contains("layers.1")),
            "{error:?}"
        );
    }

    #[test]
    fn modules_of_their_own_are_stored_as_peft_names_them_and_read_back() {
        let adapters = [AdapterSettings::Lora {
            layers: vec![1],
            r: 2,
            lora_alpha: 4.0,
            targets: vec![Target::Q, Target::V],
            train_qkv_bias: true,
            separate: true,
            naming: crate::peft::Naming::Bert,
        }];
        let named = |end: &str| format!("bert.encoder.layer.1.attention.self.{end}");
        let ends = [
            "query.lora_A",
            "query.lora_B",
            "query.bias",
            "key.bias",
            "value.lora_A",
            "value.lora_B",
            "value.bias",
        ];
        let ours: IndexMap<String, HostTensor<'_>> = ends
            .iter()
            .enumerate()
            .map(|(i, end)| (named(end), numbers(&[2, 3], 10 * i)))
            .collect();
        let stored = to_file_layout(&adapters, ours.clone()).unwrap();
        let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "query.lora_A.weight",
            "query.lora_B.weight",
            "query.base_layer.bias",
            "key.bias",
            "value.lora_A.weight",
            "value.lora_B.weight",
            "value.base_layer.bias",
        ];
        assert_eq!(names, expected.map(named));
        assert_eq!(from_file_layout(&adapters, stored).unwrap(), ours);
        let config = crate::peft::AdapterConfig::of_adapters(
            adapters.to_vec(),
            vec!["classifier".to_owned()],
            crate::peft::ScpeftRecord::default(),
        )
        .unwrap();
        assert_eq!((config.r, config.lora_alpha), (Some(2), Some(4.0)));
        assert_eq!(
            config.target_modules,
            Some(vec!["query".to_owned(), "value".to_owned()])
        );
        let other = to_file_layout(
            &adapters,
            [(
                "bert.encoder.layer.0.attention.self.query.lora_A".to_owned(),
                numbers(&[1], 0),
            )],
        );
        assert!(matches!(other, Err(Error::Lora { .. })), "{other:?}");
    }
}

//! Small models of the reference: a published directory, and fine-tuned files in both variants.

use std::path::{Path, PathBuf};

use scpeft_checkpoint::published::scgpt::{ScgptArgs, Vocabulary};
use scpeft_checkpoint::{HostTensor, ScgptDirectory};

use super::torch_save::TorchSave;

/// Width.
pub(crate) const D: usize = 8;
/// Layers.
pub(crate) const LAYERS: usize = 3;
const TOKENS: [&str; 5] = ["G1", "G2", "G3", "<pad>", "<cls>"];
const D_HID: usize = 6;

/// Numbers that depend on the name alone, none of them 0, below 1.
pub(crate) fn tensor(name: &str, shape: &[usize]) -> HostTensor<'static> {
    let seed = name.bytes().fold(17_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let count: u32 = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count)
        .map(|i| {
            let mixed = (seed ^ i.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b) >> 8;
            mixed as f32 / (1 << 24) as f32 - 0.5 + 1e-3
        })
        .collect();
    HostTensor::from_f32(shape.to_vec(), &values)
}

/// The values of a tensor, each changed.
pub(crate) fn map(
    tensor: &HostTensor<'_>,
    change: impl Fn(usize, f32) -> f32,
) -> HostTensor<'static> {
    let values: Vec<f32> = tensor
        .to_f32()
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(i, x)| change(i, x))
        .collect();
    HostTensor::from_f32(tensor.shape.clone(), &values)
}

/// The name of a tensor of a block.
pub(crate) fn block(layer: usize, name: &str) -> String {
    format!("transformer_encoder.layers.{layer}.{name}")
}

/// Named tensors in order, to be changed and saved.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) tensors: Vec<(String, HostTensor<'static>)>,
    /// Second names: name, of which tensor.
    pub(crate) aliases: Vec<(String, String)>,
}

impl Model {
    /// A bare backbone with its decoder, by the names of ordinary attention.
    pub(crate) fn backbone() -> Self {
        let mut shapes = vec![
            ("encoder.embedding.weight".to_owned(), vec![TOKENS.len(), D]),
            ("encoder.enc_norm.weight".to_owned(), vec![D]),
            ("encoder.enc_norm.bias".to_owned(), vec![D]),
            ("value_encoder.linear1.weight".to_owned(), vec![D, 1]),
            ("value_encoder.linear1.bias".to_owned(), vec![D]),
            ("value_encoder.linear2.weight".to_owned(), vec![D, D]),
            ("value_encoder.linear2.bias".to_owned(), vec![D]),
            ("value_encoder.norm.weight".to_owned(), vec![D]),
            ("value_encoder.norm.bias".to_owned(), vec![D]),
        ];
        for layer in 0..LAYERS {
            for (name, shape) in [
                ("self_attn.in_proj_weight", vec![3 * D, D]),
                ("self_attn.in_proj_bias", vec![3 * D]),
                ("self_attn.out_proj.weight", vec![D, D]),
                ("self_attn.out_proj.bias", vec![D]),
                ("linear1.weight", vec![D_HID, D]),
                ("linear1.bias", vec![D_HID]),
                ("linear2.weight", vec![D, D_HID]),
                ("linear2.bias", vec![D]),
                ("norm1.weight", vec![D]),
                ("norm1.bias", vec![D]),
                ("norm2.weight", vec![D]),
                ("norm2.bias", vec![D]),
            ] {
                shapes.push((block(layer, name), shape));
            }
        }
        shapes.push(("decoder.fc.0.weight".to_owned(), vec![D, D]));
        shapes.push(("decoder.fc.0.bias".to_owned(), vec![D]));
        let tensors = shapes
            .into_iter()
            .map(|(name, shape)| {
                let values = tensor(&name, &shape);
                (name, values)
            })
            .collect();
        Self {
            tensors,
            aliases: Vec::new(),
        }
    }

    /// A fine-tuned model with a head for two classes.
    pub(crate) fn fine_tuned() -> Self {
        Self::backbone()
            .with("cls_decoder.out_layer.weight", &[2, D])
            .with("cls_decoder.out_layer.bias", &[2])
    }

    /// Adds a tensor.
    pub(crate) fn with(mut self, name: &str, shape: &[usize]) -> Self {
        self.tensors.push((name.to_owned(), tensor(name, shape)));
        self
    }

    /// Adds a bottleneck `<module>1` and `<module>2`.
    pub(crate) fn with_bottleneck(self, module: &str, h: usize) -> Self {
        self.with(&format!("{module}1.weight"), &[h, D])
            .with(&format!("{module}1.bias"), &[h])
            .with(&format!("{module}2.weight"), &[D, h])
            .with(&format!("{module}2.bias"), &[D])
    }

    /// Adds LoRA of query and value, names the projection as LoRA layers do, and keeps the names of
    /// ordinary attention as second ones.
    pub(crate) fn with_lora(self, layer: usize, r: usize) -> Self {
        self.wrapped(layer, "Wqkv.")
            .with(&block(layer, "self_attn.Wqkv.lora_A"), &[2 * r, D])
            .with(&block(layer, "self_attn.Wqkv.lora_B"), &[2 * D, r])
    }

    /// Names the projection of a layer `self_attn.<module>weight|bias`, the usual names second.
    pub(crate) fn wrapped(mut self, layer: usize, module: &str) -> Self {
        for end in ["weight", "bias"] {
            let usual = block(layer, &format!("self_attn.in_proj_{end}"));
            let wrapped = block(layer, &format!("self_attn.{module}{end}"));
            self.tensor_mut(&usual).0.clone_from(&wrapped);
            self.aliases.push((usual, wrapped));
        }
        self
    }

    pub(crate) fn get(&self, name: &str) -> &HostTensor<'static> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("no tensor `{name}`")).1
    }

    fn tensor_mut(&mut self, name: &str) -> &mut (String, HostTensor<'static>) {
        let found = self.tensors.iter_mut().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    /// Changes the values of a tensor.
    pub(crate) fn changed(mut self, name: &str, change: impl Fn(usize, f32) -> f32) -> Self {
        let entry = self.tensor_mut(name);
        entry.1 = map(&entry.1, change);
        self
    }

    /// Removes a tensor.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.get(name);
        self.tensors.retain(|(known, _)| known != name);
        self
    }

    /// Adds LoRA's update to the projection of a layer, as an evaluation leaves it.
    pub(crate) fn merged(self, layer: usize, r: usize, alpha: f32) -> Self {
        let a = self
            .get(&block(layer, "self_attn.Wqkv.lora_A"))
            .to_f32()
            .unwrap();
        let b = self
            .get(&block(layer, "self_attn.Wqkv.lora_B"))
            .to_f32()
            .unwrap();
        self.changed(&block(layer, "self_attn.Wqkv.weight"), |index, x| {
            let (row, column) = (index / D, index % D);
            // Query rows take the first block of factors, value rows the second, key rows none.
            let j = match row / D {
                0 => 0,
                2 => 1,
                _ => return x,
            };
            let sum: f32 = (0..r)
                .map(|k| b[(j * D + row % D) * r + k] * a[(j * r + k) * D + column])
                .sum();
            x + alpha / r as f32 * sum
        })
    }

    /// As `torch.save` writes the state dict.
    pub(crate) fn torch(&self) -> TorchSave {
        let saved = self
            .tensors
            .iter()
            .fold(TorchSave::default(), |save, (name, tensor)| {
                save.tensor(name, tensor)
            });
        self.aliases
            .iter()
            .fold(saved, |save, (name, of)| save.alias(name, of))
    }

    /// Writes `torch.save`'s file.
    pub(crate) fn save(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.torch().build()).unwrap();
        path.to_owned()
    }

    /// Writes a published directory.
    pub(crate) fn publish(&self, dir: &Path) -> PathBuf {
        let json = format!(
            r#"{{"embsize": {D}, "nheads": 2, "d_hid": {D_HID}, "nlayers": {LAYERS}, "n_bins": 51}}"#
        );
        let args: ScgptArgs = serde_json::from_str(&json).unwrap();
        let tokens = TOKENS.map(str::to_owned).to_vec();
        let vocabulary = Vocabulary::new(tokens, Path::new("vocab.json")).unwrap();
        ScgptDirectory::write(dir, &args, &vocabulary, &self.tensors).unwrap();
        dir.to_owned()
    }
}

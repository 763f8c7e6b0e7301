//! Comparing a fine-tuned file with its backbone: what is equal up to rounding, and whether LoRA's
//! update was added to the projection.

use std::borrow::Cow;

use super::Survey;
use crate::error::{Error, Result};
use crate::lora::PackedLayout;
use crate::peft::AdapterSettings;
use crate::published::scgpt::ScgptDirectory;
use crate::tensor::{Dtype, HostTensor};

/// Largest difference of equal tensors, as a share of their largest value. LoRA's update is added
/// and subtracted again around every evaluation, which leaves some 1e-7 of rounding each time.
const EQUAL: f64 = 1e-5;
/// Largest error of an added update, as a share of its largest value: TensorFloat-32, which GPUs
/// multiply with by default there, keeps 10 bits.
const UPDATE_ERROR: f64 = 5e-3;

/// Tensors of the backbone in a file that are not the backbone's.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// LoRA layers whose projection holds the update.
    pub(super) merged: Vec<usize>,
    /// LoRA layers whose projection bias was trained.
    pub(super) biases: Vec<usize>,
    /// Tensors of the value encoder.
    pub(super) value_encoder: Vec<String>,
    /// All others.
    pub(super) others: Vec<String>,
}

/// Compares every backbone tensor that both have.
///
/// # Errors
/// When LoRA's update was added with another scale than assumed.
pub(super) fn differences(
    survey: &Survey<'_>,
    backbone: &ScgptDirectory,
    adapters: &[AdapterSettings],
) -> Result<Differences> {
    let mut found = Differences::default();
    for name in survey.names_of(|group| group == super::Group::Backbone) {
        let (Some(ours), Some(theirs)) = (survey.tensor(name), backbone.get(name)) else {
            continue;
        };
        if equal(&ours, &theirs) {
            continue;
        }
        let lora = lora_of(adapters, name);
        if name.starts_with("value_encoder.") {
            found.value_encoder.push(name.to_owned());
        } else if let (Some(lora), true) = (&lora, name.ends_with(".in_proj_bias")) {
            found.biases.push(lora.layer);
        } else if let (Some(lora), true) = (&lora, name.ends_with(".in_proj_weight")) {
            match lora.update(survey)?.explains(&ours, &theirs) {
                Explained::Yes => found.merged.push(lora.layer),
                Explained::AtScale(scale) => {
                    return Err(Error::LoraScale {
                        path: survey.file.path().to_owned(),
                        name: name.to_owned(),
                        found: scale * lora.layout.r as f64,
                        assumed: lora.alpha,
                    });
                }
                Explained::No => found.others.push(name.to_owned()),
            }
        } else {
            found.others.push(name.to_owned());
        }
    }
    Ok(found)
}

/// Whether two tensors are the same, byte by byte or, for floating types, up to rounding.
pub(super) fn equal(left: &HostTensor<'_>, right: &HostTensor<'_>) -> bool {
    if left.shape != right.shape {
        return false;
    }
    if left.dtype == right.dtype && left.data == right.data {
        return true;
    }
    // Counters have no rounding: other bytes are another number.
    let (Some(left), Some(right)) = (values(left), values(right)) else {
        return false;
    };
    let largest = |values: &[f32]| values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let most = EQUAL * f64::from(largest(&left).max(largest(&right)));
    // An infinite value would make everything else equal.
    most.is_finite()
        && left
            .iter()
            .zip(right.iter())
            .all(|(x, y)| (f64::from(*x) - f64::from(*y)).abs() <= most)
}

/// The values of a floating type, in place where bytes and type allow it: an embedding need not be
/// copied.
fn values<'a>(tensor: &'a HostTensor<'_>) -> Option<Cow<'a, [f32]>> {
    if tensor.dtype == Dtype::F32
        && let Ok(values) = bytemuck::try_cast_slice(&tensor.data)
    {
        return Some(Cow::Borrowed(values));
    }
    tensor.to_f32().ok().map(Cow::Owned)
}

/// The LoRA of one layer.
#[derive(Debug)]
struct LayerLora {
    layer: usize,
    alpha: f64,
    layout: PackedLayout,
    prefix: String,
}

/// The LoRA of the layer whose attention a tensor belongs to.
fn lora_of(adapters: &[AdapterSettings], name: &str) -> Option<LayerLora> {
    let (prefix, _) = name.split_once(".self_attn.in_proj_")?;
    let layer: usize = prefix.rsplit_once('.')?.1.parse().ok()?;
    adapters.iter().find_map(|adapter| match adapter {
        AdapterSettings::Lora {
            layers, lora_alpha, ..
        } if layers.contains(&layer) => Some(LayerLora {
            layer,
            alpha: *lora_alpha,
            layout: adapter.packed_layout()?,
            prefix: format!("{prefix}.self_attn.Wqkv"),
        }),
        _ => None,
    })
}

impl LayerLora {
    /// The update of the packed weight, without its scale.
    fn update(&self, survey: &Survey<'_>) -> Result<Update> {
        let factor = |end: &str| {
            let name = format!("{}.{end}", self.prefix);
            let tensor = survey.tensor(&name).ok_or_else(|| Error::NoTensor {
                path: survey.file.path().to_owned(),
                name,
            })?;
            tensor.to_f32()
        };
        let (a, b) = (factor("lora_A")?, factor("lora_B")?);
        let (r, d) = (self.layout.r, survey.d_model);
        let mut delta = vec![0.0_f64; 3 * d * d];
        let parts = (0..3).filter(|&part| self.layout.enabled[part]);
        for (j, part) in parts.enumerate() {
            for row in 0..d {
                let to = &mut delta[(part * d + row) * d..][..d];
                for k in 0..r {
                    let weight = f64::from(b[(j * d + row) * r + k]);
                    let from = &a[(j * r + k) * d..][..d];
                    for (sum, &x) in to.iter_mut().zip(from) {
                        *sum += weight * f64::from(x);
                    }
                }
            }
        }
        Ok(Update {
            scale: self.alpha / r as f64,
            delta,
        })
    }
}

/// `dW` of a packed weight `[3D, D]` and its scale.
#[derive(Debug)]
struct Update {
    scale: f64,
    delta: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Explained {
    /// The difference is the update.
    Yes,
    /// The difference is the update at another scale.
    AtScale(f64),
    /// The difference is another.
    No,
}

impl Update {
    /// Whether `ours` is `theirs` with the update added.
    fn explains(&self, ours: &HostTensor<'_>, theirs: &HostTensor<'_>) -> Explained {
        let (Some(ours), Some(theirs)) = (values(ours), values(theirs)) else {
            return Explained::No;
        };
        let differences: Vec<f64> = ours
            .iter()
            .zip(theirs.iter())
            .map(|(x, y)| f64::from(*x) - f64::from(*y))
            .collect();
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let weight = largest(&mut ours.iter().map(|x| f64::from(x.abs())));
        let update = largest(&mut self.delta.iter().map(|x| x.abs()));
        let fits = |scale: f64| {
            let most = EQUAL * weight + UPDATE_ERROR * scale.abs() * update;
            most.is_finite()
                && differences
                    .iter()
                    .zip(&self.delta)
                    .all(|(found, delta)| (found - scale * delta).abs() <= most)
        };
        if fits(self.scale) {
            return Explained::Yes;
        }
        let squares: f64 = self.delta.iter().map(|x| x * x).sum();
        let products: f64 = differences
            .iter()
            .zip(&self.delta)
            .map(|(x, y)| x * y)
            .sum();
        let scale = products / squares;
        if scale.is_finite() && scale > 0.0 && fits(scale) {
            return Explained::AtScale(scale);
        }
        Explained::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_equal_and_training_or_damage_is_not() {
        let of = |values: &[f32]| HostTensor::from_f32(vec![values.len()], values);
        let base = of(&[2.0, -0.5, 0.0]);
        assert!(equal(&base, &of(&[2.000_01, -0.5, 0.000_01])));
        assert!(!equal(&base, &of(&[2.0, -0.5, 0.000_1])));
        assert!(!equal(&base, &of(&[2.0, -0.5, f32::NAN])));
        assert!(!equal(
            &of(&[f32::INFINITY, 1.0]),
            &of(&[f32::INFINITY, 2.0])
        ));
        assert!(equal(&of(&[0.0]), &of(&[-0.0])));
        let turned = HostTensor {
            shape: vec![1, 3],
            ..base.clone()
        };
        assert!(!equal(&base, &turned));
    }

    #[test]
    fn an_added_update_is_told_from_its_multiple_and_from_other_changes() {
        let base: Vec<f32> = (0..12).map(|x| x as f32 * 0.1 - 0.5).collect();
        let delta: Vec<f64> = (0..12).map(|x| f64::from(x % 5) - 2.0).collect();
        let update = Update {
            scale: 0.125,
            delta: delta.clone(),
        };
        let with = |scale: f64, noise: f64| {
            let values: Vec<f32> = (0..12)
                .map(|i| (f64::from(base[i]) + scale * delta[i] + noise * (i % 2) as f64) as f32)
                .collect();
            HostTensor::from_f32(vec![6, 2], &values)
        };
        let theirs = with(0.0, 0.0);
        let explained = |ours| update.explains(&ours, &theirs);
        assert_eq!(explained(with(0.125, 0.0)), Explained::Yes);
        assert_eq!(explained(with(0.125, 1e-4)), Explained::Yes);
        let Explained::AtScale(scale) = explained(with(0.25, 0.0)) else {
            panic!("twice the update was not recognised");
        };
        assert!((scale - 0.25).abs() < 1e-6, "{scale}");
        assert_eq!(explained(with(0.125, 0.05)), Explained::No);
        assert_eq!(explained(with(-0.125, 0.0)), Explained::No);
    }
}

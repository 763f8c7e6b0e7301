//! LoRA on the packed query, key and value projection: our layout and PEFT's.
//!
//! Ours (loralib's `MergedLinear`) has one pair of factors per enabled part, stacked:
//! `lora_A [r*n, D]`, `lora_B [n*D, r]`, and the update of the j-th enabled part is
//! `alpha/r * B[jD:(j+1)D] A[jr:(j+1)r]`. PEFT sees one linear layer of 3D rows: `lora_A.weight`
//! is the same matrix, `lora_B.weight [3D, r*n]` holds the blocks of B in the rows of their part
//! and the columns of their factors, zero elsewhere. With rank `r*n` and alpha `alpha*n` the scale
//! is the same, so both give the same update of the weight.

use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};

/// The module of the packed projection, as PEFT targets it.
pub const MODULE: &str = "Wqkv";

/// The shape of packed LoRA factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedLayout {
    /// Whether query, key and value are updated.
    pub enabled: [bool; 3],
    /// Rank of each part.
    pub r: usize,
}

impl PackedLayout {
    /// The number of enabled parts, n.
    pub fn parts(&self) -> usize {
        self.enabled.iter().filter(|&&on| on).count()
    }

    /// The rank that PEFT is told: `r * n`.
    pub fn peft_r(&self) -> usize {
        self.r * self.parts()
    }

    /// The alpha that PEFT is told: `alpha * n`, so that `alpha / r` stays.
    pub fn peft_alpha(&self, alpha: f64) -> f64 {
        alpha * self.parts() as f64
    }

    /// Rows of the projection's parts that are enabled, in order.
    fn enabled_parts(&self) -> impl Iterator<Item = usize> {
        self.enabled
            .into_iter()
            .enumerate()
            .filter_map(|(part, on)| on.then_some(part))
    }

    /// Our `lora_B [n*D, r]` as PEFT's `lora_B.weight [3D, r*n]`.
    ///
    /// # Errors
    /// When the shape is not `[n*D, r]`.
    pub fn spread(&self, name: &str, lora_b: &HostTensor<'_>) -> Result<HostTensor<'static>> {
        let (n, r, columns) = (self.parts(), self.r, self.peft_r());
        let d = match lora_b.shape[..] {
            [rows, width] if n > 0 && width == r && rows % n == 0 => rows / n,
            _ => return Err(shape_error(name, &lora_b.shape, &format!("[{n} * D, {r}]"))),
        };
        let values = single(name, lora_b)?;
        let mut out = vec![0.0; 3 * d * columns];
        for (j, part) in self.enabled_parts().enumerate() {
            for row in 0..d {
                let to = (part * d + row) * columns + j * r;
                let from = (j * d + row) * r;
                out[to..to + r].copy_from_slice(&values[from..from + r]);
            }
        }
        Ok(HostTensor::from_f32(vec![3 * d, columns], &out))
    }

    /// PEFT's `lora_B.weight [3D, r*n]` as our `lora_B [n*D, r]`.
    ///
    /// # Errors
    /// When the shape differs, or a value outside the blocks is not zero: such an update mixes
    /// parts and has no packed form.
    pub fn gather(&self, name: &str, weight: &HostTensor<'_>) -> Result<HostTensor<'static>> {
        let (n, r, columns) = (self.parts(), self.r, self.peft_r());
        let d = match weight.shape[..] {
            [rows, width] if n > 0 && width == columns && rows % 3 == 0 => rows / 3,
            _ => {
                return Err(shape_error(
                    name,
                    &weight.shape,
                    &format!("[3 * D, {columns}]"),
                ));
            }
        };
        let values = single(name, weight)?;
        let mut out = vec![0.0; n * d * r];
        let block_of: Vec<Option<usize>> = (0..3)
            .map(|part| self.enabled_parts().position(|enabled| enabled == part))
            .collect();
        for (index, &value) in values.iter().enumerate() {
            let (row, column) = (index / columns, index % columns);
            match block_of[row / d] {
                Some(j) if column / r == j => {
                    out[(j * d + row % d) * r + column % r] = value;
                }
                _ if value == 0.0 => {}
                _ => {
                    return Err(Error::Lora {
                        name: name.to_owned(),
                        reason: format!(
                            "row {row}, column {column} of lora_B is {value}, but must be 0: the \
                             update mixes query, key and value and has no packed form\nhelp: \
                             merge this adapter into the backbone with PEFT instead"
                        ),
                    });
                }
            }
        }
        Ok(HostTensor::from_f32(vec![n * d, r], &out))
    }

    /// Renames and converts the tensors of a run to those of a PEFT file: `…Wqkv.lora_A` and
    /// `…Wqkv.lora_B` as above, the bias of an adapted projection to that of the wrapped layer.
    /// All others are unchanged.
    ///
    /// # Errors
    /// When a factor has the wrong shape.
    pub fn to_peft<'a>(
        &self,
        tensors: impl IntoIterator<Item = (String, HostTensor<'a>)>,
    ) -> Result<Vec<(String, HostTensor<'a>)>> {
        let convert = |(name, tensor): (String, HostTensor<'a>)| {
            if let Some(module) = name.strip_suffix(".lora_A") {
                self.check_a(module, &tensor)?;
                return Ok((format!("{module}.lora_A.weight"), tensor));
            }
            if let Some(module) = name.strip_suffix(".lora_B") {
                let spread = self.spread(module, &tensor)?;
                return Ok((format!("{module}.lora_B.weight"), spread));
            }
            if let Some(attention) = name.strip_suffix(".in_proj_bias") {
                return Ok((format!("{attention}.{MODULE}.base_layer.bias"), tensor));
            }
            Ok((name, tensor))
        };
        tensors.into_iter().map(convert).collect()
    }

    /// The inverse of [`to_peft`](Self::to_peft).
    ///
    /// # Errors
    /// When a factor has the wrong shape or values outside its blocks.
    pub fn from_peft<'a>(
        &self,
        tensors: impl IntoIterator<Item = (String, HostTensor<'a>)>,
    ) -> Result<IndexMap<String, HostTensor<'a>>> {
        let bias = format!(".{MODULE}.base_layer.bias");
        let convert = |(name, tensor): (String, HostTensor<'a>)| {
            if let Some(module) = name.strip_suffix(".lora_A.weight") {
                self.check_a(module, &tensor)?;
                return Ok((format!("{module}.lora_A"), tensor));
            }
            if let Some(module) = name.strip_suffix(".lora_B.weight") {
                return Ok((format!("{module}.lora_B"), self.gather(module, &tensor)?));
            }
            if let Some(attention) = name.strip_suffix(&bias) {
                return Ok((format!("{attention}.in_proj_bias"), tensor));
            }
            Ok((name, tensor))
        };
        tensors.into_iter().map(convert).collect()
    }

    fn check_a(&self, name: &str, lora_a: &HostTensor<'_>) -> Result<()> {
        match lora_a.shape[..] {
            [rows, _] if rows == self.peft_r() => Ok(()),
            _ => Err(shape_error(
                name,
                &lora_a.shape,
                &format!("[{}, D]", self.peft_r()),
            )),
        }
    }
}

fn single(name: &str, tensor: &HostTensor<'_>) -> Result<Vec<f32>> {
    if tensor.dtype != Dtype::F32 {
        let reason = format!("lora_B is {}, expected F32", tensor.dtype);
        return Err(Error::Lora {
            name: name.to_owned(),
            reason,
        });
    }
    tensor.to_f32()
}

fn shape_error(name: &str, found: &[usize], expected: &str) -> Error {
    Error::Lora {
        name: name.to_owned(),
        reason: format!("a factor has shape {found:?}, expected {expected}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `left [m, k] @ right [k, n]`.
    fn matmul(left: &[f32], right: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).map(|x| left[i * k + x] * right[x * n + j]).sum();
            }
        }
        out
    }

    /// The update by its definition in the packed layout, without the scale.
    fn packed_delta(layout: &PackedLayout, d: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
        let r = layout.r;
        let mut delta = vec![0.0; 3 * d * d];
        let mut j = 0;
        for part in 0..3 {
            if layout.enabled[part] {
                let block = matmul(
                    &b[j * d * r..(j + 1) * d * r],
                    &a[j * r * d..(j + 1) * r * d],
                    d,
                    r,
                    d,
                );
                delta[part * d * d..(part + 1) * d * d].copy_from_slice(&block);
                j += 1;
            }
        }
        delta
    }

    fn layouts() -> impl Strategy<Value = PackedLayout> {
        (1_u8..8, 1_usize..4).prop_map(|(bits, r)| PackedLayout {
            enabled: [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0],
            r,
        })
    }

    proptest! {
        #[test]
        fn both_layouts_give_the_same_update_and_convert_exactly(
            layout in layouts(),
            d in 1_usize..6,
            seed in any::<u32>(),
        ) {
            let n = layout.parts();
            // Small whole numbers: every product and sum is exact in f32.
            let number = |i: usize| f32::from((seed.wrapping_add(i as u32 * 2_654_435) >> 7) as i8);
            let a: Vec<f32> = (0..layout.r * n * d).map(number).collect();
            let b: Vec<f32> = (0..n * d * layout.r).map(|i| number(i + 1000)).collect();
            let lora_b = HostTensor::from_f32(vec![n * d, layout.r], &b);
            let spread = layout.spread("x", &lora_b).unwrap();
            prop_assert_eq!(&spread.shape, &[3 * d, layout.peft_r()]);
            let fused = matmul(&spread.to_f32().unwrap(), &a, 3 * d, layout.peft_r(), d);
            prop_assert_eq!(fused, packed_delta(&layout, d, &a, &b));
            prop_assert_eq!(layout.gather("x", &spread).unwrap(), lora_b);
            let alpha = 1.5;
            let scale = layout.peft_alpha(alpha) / layout.peft_r() as f64;
            prop_assert!((scale - alpha / layout.r as f64).abs() < 1e-12, "{}", scale);
        }
    }

    #[test]
    fn values_outside_the_blocks_are_refused() {
        let layout = PackedLayout {
            enabled: [true, false, true],
            r: 1,
        };
        let mut values = vec![0.0; 6 * 2];
        values[2 * 2] = 0.5; // a key row
        let message = layout
            .gather("layer.Wqkv", &HostTensor::from_f32(vec![6, 2], &values))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`layer.Wqkv`: row 2, column 0 of lora_B is 0.5"),
            "{message}"
        );
        let mut values = vec![0.0; 6 * 2];
        values[1] = 0.5; // a query row in the columns of the value factors
        assert!(
            layout
                .gather("x", &HostTensor::from_f32(vec![6, 2], &values))
                .is_err()
        );
    }

    #[test]
    fn names_and_tensors_go_to_peft_and_back() {
        let layout = PackedLayout {
            enabled: [true, false, true],
            r: 2,
        };
        let ours: IndexMap<String, HostTensor<'_>> = [
            (
                "l.0.self_attn.Wqkv.lora_A",
                HostTensor::from_f32(vec![4, 1], &[1.0, 2.0, 3.0, 4.0]),
            ),
            (
                "l.0.self_attn.Wqkv.lora_B",
                HostTensor::from_f32(vec![2, 2], &[5.0, 6.0, 7.0, 8.0]),
            ),
            (
                "l.0.self_attn.in_proj_bias",
                HostTensor::from_f32(vec![3], &[0.0, 1.0, 2.0]),
            ),
            (
                "cls_decoder.out_layer.bias",
                HostTensor::from_f32(vec![1], &[9.0]),
            ),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into();
        let peft = layout.to_peft(ours.clone()).unwrap();
        let names: Vec<_> = peft.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "l.0.self_attn.Wqkv.lora_A.weight",
                "l.0.self_attn.Wqkv.lora_B.weight",
                "l.0.self_attn.Wqkv.base_layer.bias",
                "cls_decoder.out_layer.bias"
            ]
        );
        let expected = [5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0, 8.0];
        assert_eq!(peft[1].1.to_f32().unwrap(), expected);
        assert_eq!(layout.from_peft(peft).unwrap(), ours);
        let wrong = [(
            "x.lora_A".to_owned(),
            HostTensor::from_f32(vec![3, 1], &[0.0; 3]),
        )];
        assert!(
            layout
                .to_peft(wrong)
                .unwrap_err()
                .to_string()
                .contains("expected [4, D]")
        );
    }
}

//! A case of expected numbers.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// Tensors of a file by name, as f64, with their shapes.
pub(crate) struct Tensors(pub(crate) HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Tensors {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, tensor)| {
            let data = tensor.data();
            let values = match tensor.dtype() {
                Dtype::F32 => (data.chunks_exact(4))
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                Dtype::F64 => (data.chunks_exact(8))
                    .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                Dtype::I64 => (data.chunks_exact(8))
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                    .collect(),
                other => panic!("{name}: {other:?} has no test"),
            };
            (name, (tensor.shape().to_vec(), values))
        });
        Self(tensors.collect())
    }

    pub(crate) fn get(&self, name: &str) -> &[f64] {
        &self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("no tensor `{name}`"))
            .1
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.get(name).iter().map(|&x| x as f32).collect()
    }
}

/// A case, and which of its expected tensors were compared.
pub(crate) struct Golden {
    pub(crate) inputs: Tensors,
    pub(crate) expected: Tensors,
    pub(crate) compared: BTreeSet<String>,
}

impl Golden {
    pub(crate) fn read(dir: &Path) -> Self {
        Self {
            inputs: Tensors::read(&dir.join("inputs.safetensors")),
            expected: Tensors::read(&dir.join("expected.safetensors")),
            compared: BTreeSet::new(),
        }
    }

    pub(crate) fn close(&mut self, name: &str, found: &[f64], tolerance: f64) {
        let expected = self.expected.get(name);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let off = (found - expected).abs();
            assert!(
                off <= tolerance * expected.abs().max(1e-3),
                "{name}[{i}]: {found}, expected {expected}"
            );
        }
        self.compared.insert(name.to_owned());
    }

    pub(crate) fn all_compared(&self) {
        let missed: Vec<_> = (self.expected.0.keys())
            .filter(|name| !self.compared.contains(*name))
            .collect();
        assert!(missed.is_empty(), "not compared: {missed:?}");
    }
}

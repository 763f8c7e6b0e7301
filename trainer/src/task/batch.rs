use std::rc::Rc;
use std::sync::Arc;

use scpeft_data::MicroBatch;
use scpeft_model::backbone::Inputs;
use tch::{Device, Tensor};

use crate::failure::{Failure, Result};
use crate::perturbation::Responses;

use super::reference::Reference;

/// The batches (donors, assays, plates) that a model knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    column: String,
    names: Vec<String>,
    index_of_code: Vec<Option<usize>>,
}

impl Batches {
    /// The batches are the categories of `column` that training cells have, in order of their
    /// codes.
    ///
    /// # Errors
    /// A validation cell comes from a batch that no training cell comes from.
    pub fn for_training(
        column: &str,
        categories: &[String],
        train: &[u64],
        valid: &[u64],
    ) -> Result<Self> {
        let unseen: Vec<String> = (0..categories.len())
            .filter(|&c| train[c] == 0 && valid[c] > 0)
            .map(|c| format!("`{}` ({} cells)", categories[c], valid[c]))
            .collect();
        if !unseen.is_empty() {
            return Err(Failure::data(format!(
                "obs column `{column}`: validation cells come from batches unseen in training: {}\n\
                 help: a batch needs training cells of its own; import again with another `--split`",
                unseen.join(", ")
            )));
        }
        let known = (0..categories.len()).filter(|&c| train[c] > 0);
        let names = known.map(|c| categories[c].clone()).collect();
        Ok(Self::named(column, names, categories))
    }

    /// The batches `names` of a trained model, for a corpus whose column has these categories.
    pub fn named(column: &str, names: Vec<String>, categories: &[String]) -> Self {
        Self {
            column: column.to_owned(),
            index_of_code: categories
                .iter()
                .map(|name| names.iter().position(|n| n == name))
                .collect(),
            names,
        }
    }

    /// Names of the batches, in the order of the model's.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn index(&self, code: i64, cell: u64) -> Result<usize> {
        usize::try_from(code)
            .ok()
            .and_then(|code| self.index_of_code.get(code).copied().flatten())
            .ok_or_else(|| {
                Failure::data(format!(
                    "cell {cell}: its `{}` is missing or unseen in training (code {code})\n\
                     help: the model knows {}",
                    self.column,
                    self.names.join(", ")
                ))
            })
    }
}

/// How micro-batches become tensors of the model.
#[derive(Debug, Clone)]
pub struct Staging {
    /// Where the tensors go.
    pub device: Device,
    /// Id of `<pad>`.
    pub pad_id: i32,
    /// The batches, for models that are told of them.
    pub batches: Option<Arc<Batches>>,
    /// What cells were treated with, on the task of responses.
    pub responses: Option<Arc<Responses>>,
    /// The model without adapters, where outputs are compared with its own.
    pub reference: Option<Rc<Reference>>,
}

/// A micro-batch with its tensors on the device.
#[derive(Debug)]
pub struct DeviceBatch<'a> {
    /// The cells, labels and counts on the host.
    pub host: &'a MicroBatch,
    /// Input of the encoder.
    pub inputs: Inputs,
    /// What the model without adapters makes of the inputs, where outputs are compared with it: f32
    /// `[B, S]`, without a graph.
    pub reference: Option<Tensor>,
    device: Device,
}

impl Staging {
    /// A host tensor on the device. To a GPU it goes from pinned memory, so that the copy is queued and
    /// the host does not wait for it; libtorch keeps the pinned buffer until the copy is done.
    fn upload(&self, host: &Tensor) -> Result<Tensor> {
        if !self.device.is_cuda() {
            return Ok(host.f_to_device(self.device)?);
        }
        let pinned = host.f_pin_memory(self.device)?;
        let (non_blocking, copy) = (true, false);
        Ok(pinned.f_to_device_(self.device, pinned.f_kind()?, non_blocking, copy)?)
    }

    /// Copies a micro-batch to the device.
    ///
    /// # Errors
    /// A cell comes from a batch that the model does not know, or libtorch fails.
    pub fn stage<'a>(&self, host: &'a MicroBatch) -> Result<DeviceBatch<'a>> {
        let shape = [host.rows as i64, host.len as i64];
        let gene_ids = self.upload(&Tensor::f_from_slice(&host.gene_ids)?.f_view(shape)?)?;
        let values = self.upload(&Tensor::f_from_slice(&host.values)?.f_view(shape)?)?;
        let padding = if host.tokens < host.rows * host.len {
            Some(gene_ids.f_eq(i64::from(self.pad_id))?)
        } else {
            None
        };
        let mut inputs = Inputs::new(gene_ids, values, padding);
        if let Some(batches) = &self.batches {
            let indices = host
                .batch_labels
                .iter()
                .zip(&host.cells)
                .map(|(&code, &cell)| Ok(batches.index(code, cell)? as i64))
                .collect::<Result<Vec<i64>>>()?;
            // Loaders of such models never mix batches within a micro-batch.
            inputs.domain = indices.first().map(|&index| index as usize);
            inputs.batch_labels = Some(Tensor::f_from_slice(&indices)?.f_to_device(self.device)?);
        }
        if let Some(responses) = &self.responses {
            inputs.treatment = self.treatment(responses, host)?;
        }
        let reference = match (&self.reference, &self.responses) {
            (Some(reference), Some(responses)) => {
                Some(reference.of_batch(responses, host, &inputs)?)
            }
            _ => None,
        };
        Ok(DeviceBatch {
            host,
            inputs,
            reference,
            device: self.device,
        })
    }

    /// What each cell was treated with: f32 `[B, W]`; `None` when the model is not told.
    fn treatment(&self, responses: &Responses, host: &MicroBatch) -> Result<Option<Tensor>> {
        let Some(treatments) = &responses.treatments else {
            return Ok(None);
        };
        let mut flat = Vec::with_capacity(host.rows * treatments.width);
        for &cell in &host.cells {
            flat.extend_from_slice(responses.treatment(cell)?);
        }
        let shape = [host.rows as i64, treatments.width as i64];
        let flat = Tensor::f_from_slice(&flat)?.f_view(shape)?;
        Ok(Some(self.upload(&flat)?))
    }
}

impl DeviceBatch<'_> {
    /// Unmasked expression bins, f32 `[B, S]`.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub fn targets(&self) -> Result<Tensor> {
        let shape = [self.host.rows as i64, self.host.len as i64];
        Ok(Tensor::f_from_slice(&self.host.targets)?
            .f_view(shape)?
            .f_to_device(self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["a", "never", "b"].map(String::from).to_vec()
    }

    #[test]
    fn batches_are_those_of_training_cells() {
        let batches = Batches::for_training("donor", &names(), &[3, 0, 2], &[1, 0, 0]).unwrap();
        assert_eq!(batches.names(), ["a", "b"]);
        assert_eq!(batches.index(2, 0).unwrap(), 1);
        let message = batches.index(1, 17).unwrap_err().message;
        assert!(
            message.contains("cell 17") && message.contains("a, b"),
            "{message}"
        );
        assert!(batches.index(-1, 0).is_err() && batches.index(3, 0).is_err());
    }

    #[test]
    fn a_batch_of_validation_cells_alone_is_refused_by_name() {
        let error = Batches::for_training("donor", &names(), &[3, 0, 2], &[1, 4, 0]).unwrap_err();
        assert_eq!(error.code, scpeft_protocol::exit::DATA);
        assert!(
            error.message.contains("`never` (4 cells)"),
            "{}",
            error.message
        );
    }
}

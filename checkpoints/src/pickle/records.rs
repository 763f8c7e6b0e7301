//! Taking the result apart: the tensors of a state dict.

use std::collections::HashSet;
use std::rc::Rc;

use super::machine::Machine;
use super::object::{Id, Object};
use super::{Records, Result, TENSORS_MAX, limit, malformed};

impl Machine<'_> {
    pub(super) fn state_dict(&self, root: Id) -> Result<Records> {
        let Object::Dict(entries) = self.object(root) else {
            return malformed(format!(
                "it holds {}, not a dict of tensors",
                self.object(root).kind()
            ));
        };
        let mut entries = entries;
        for wanted in ["model_state_dict", "state_dict"] {
            let nested = entries.iter().find_map(|&(key, value)| {
                let named = matches!(self.object(key), Object::Text(text) if **text == *wanted);
                match self.object(value) {
                    Object::Dict(inner) if named => Some(inner),
                    _ => None,
                }
            });
            if let Some(inner) = nested {
                entries = inner;
                break;
            }
        }
        let mut records = Records::default();
        if self.holds_models(entries) {
            self.models(entries, &mut records)?;
        } else {
            self.add_tensors("", entries, &mut records)?;
        }
        if records.tensors.is_empty() {
            return malformed(format!(
                "its dict holds no tensors, only [{}]",
                records
                    .others
                    .iter()
                    .take(10)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        Ok(records)
    }

    /// Adds the tensors of a dictionary, with a prefix to their names.
    pub(super) fn add_tensors(
        &self,
        prefix: &str,
        entries: &[(Id, Id)],
        records: &mut Records,
    ) -> Result<()> {
        let mut names = HashSet::new();
        for &(key, value) in entries {
            let name = self.text_of(key)?;
            match self.object(value) {
                Object::Tensor(tensor) => {
                    let name = format!("{prefix}{name}");
                    records.tensors.push((name, Rc::clone(tensor)));
                }
                other => (records.others).push(format!("{prefix}{name} ({})", other.kind())),
            }
            if records.tensors.len() > TENSORS_MAX {
                return limit(format!("it has more than {TENSORS_MAX} tensors"));
            }
            // Checked here, not by the caller, because repetition is what memo entries make cheap.
            if !names.insert(name) {
                return malformed("a key of its dict appears twice");
            }
        }
        Ok(())
    }
}

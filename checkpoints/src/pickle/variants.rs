//! Taking the result apart: several models in one file, each with its settings.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::machine::Machine;
use super::object::{Id, Object};
use super::{Records, Result, limit, malformed};

const TENSORS: &str = "state_dict";
const SETTINGS: &str = "config";
/// Most values of all settings of a file, and how deep they may be nested: shared lists could
/// otherwise multiply.
const VALUES_MAX: usize = 1 << 14;
const DEPTH_MAX: usize = 16;

impl Machine<'_> {
    /// Whether a dictionary is one of models: it has no tensor of its own, and a value with a state
    /// dict.
    pub(super) fn holds_models(&self, entries: &[(Id, Id)]) -> bool {
        let values = || entries.iter().map(|&(_, value)| value);
        let of_tensor = |value| matches!(self.object(value), Object::Tensor(_));
        let of_model = |value| self.entry(value, TENSORS).is_some();
        !values().any(of_tensor) && values().any(of_model)
    }

    /// Adds tensors and settings of every model.
    pub(super) fn models(&self, entries: &[(Id, Id)], records: &mut Records) -> Result<()> {
        let (mut names, mut left) = (HashSet::new(), VALUES_MAX);
        for &(key, value) in entries {
            let name = self.text_of(key)?;
            let tensors = self.entry(value, TENSORS).map(|id| self.object(id));
            if let Some(Object::Dict(tensors)) = tensors {
                self.add_tensors(&format!("{name}/"), tensors, records)?;
            } else {
                let kind = self.object(value).kind();
                records.others.push(format!("{name} ({kind})"));
            }
            if let Some(settings) = self.entry(value, SETTINGS) {
                let settings = self.plain(settings, DEPTH_MAX, &mut left)?;
                records
                    .settings
                    .push((format!("{name}/{SETTINGS}"), settings));
            }
            if !names.insert(name) {
                return malformed("a key of its dict appears twice");
            }
        }
        Ok(())
    }

    /// The value of a dictionary under a name.
    fn entry(&self, dict: Id, name: &str) -> Option<Id> {
        let Object::Dict(entries) = self.object(dict) else {
            return None;
        };
        let mut entries = entries.iter();
        entries.find_map(|&(key, value)| {
            let named = matches!(self.object(key), Object::Text(text) if **text == *name);
            named.then_some(value)
        })
    }

    /// A value as JSON; what JSON has not is null.
    fn plain(&self, id: Id, depth: usize, left: &mut usize) -> Result<Value> {
        let Some(deeper) = depth.checked_sub(1) else {
            return limit(format!(
                "its settings are nested more than {DEPTH_MAX} deep"
            ));
        };
        *left = match left.checked_sub(1) {
            Some(left) => left,
            None => return limit(format!("its settings have more than {VALUES_MAX} values")),
        };
        Ok(match self.object(id) {
            Object::Bool(value) => Value::from(*value),
            Object::Int(value) => Value::from(*value),
            Object::Float(value) => Value::from(*value),
            Object::Text(_) => Value::from(&*self.text_of(id)?),
            Object::Tuple(items) | Object::List(items) => {
                let items = items.iter().map(|&item| self.plain(item, deeper, left));
                Value::Array(items.collect::<Result<_>>()?)
            }
            Object::Dict(entries) => {
                let mut map = Map::new();
                for &(key, value) in entries {
                    let name = match self.object(key) {
                        Object::Int(number) => number.to_string(),
                        _ => self.text_of(key)?.to_string(),
                    };
                    map.insert(name, self.plain(value, deeper, left)?);
                }
                Value::Object(map)
            }
            _ => Value::Null,
        })
    }
}

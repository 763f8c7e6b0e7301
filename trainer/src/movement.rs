//! Whether everything that should train does: the check after the first updates that catches an
//! adapter which no gradient reaches.

use scpeft_model::{Params, Role};
use tch::Tensor;

use crate::failure::{Failure, Result};

/// Updates before the verdict. A factor behind one that starts at zero (LoRA's `A` behind `B`) has
/// no gradient in the first update, and behind a zero head none in the second.
const UPDATES: u64 = 3;
/// Names in a message.
const SHOWN: usize = 8;

/// What the first updates did to a trainable tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tracked {
    name: String,
    is_adapter: bool,
    /// A gradient other than zero was seen.
    gradient: bool,
    /// Its values have changed.
    moved: bool,
}

/// What is known after an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Too early to say.
    Open,
    /// Everything trains, or this is to be said.
    Given(Option<String>),
}

/// Watches the first updates of a run.
#[derive(Debug)]
pub(crate) struct Movement {
    start: Tensor,
    tensors: Vec<Tracked>,
    updates: u64,
}

impl Movement {
    /// Remembers where the trainable tensors start.
    ///
    /// # Errors
    /// Only if libtorch fails.
    pub(crate) fn new(params: &Params) -> Result<Self> {
        let adapters: Vec<&str> = params
            .iter()
            .filter(|(_, _, role, trainable)| *trainable && *role == Role::Adapter)
            .map(|(name, ..)| name)
            .collect();
        let tracked = |name: &str| Tracked {
            name: name.to_owned(),
            is_adapter: adapters.contains(&name),
            gradient: false,
            moved: false,
        };
        Ok(Self {
            start: params.flat().f_zeros_like()?.f_add(params.flat())?,
            tensors: params.slots().iter().map(|s| tracked(&s.name)).collect(),
            updates: 0,
        })
    }

    /// Looks at the gradient that was just applied; after enough updates returns the verdict: a
    /// warning, or nothing to complain of. Steps that were skipped or had a learning rate of 0 are
    /// no updates.
    ///
    /// # Errors
    /// When no adapter tensor, or no tensor at all, has had a gradient.
    pub(crate) fn observe(&mut self, params: &Params) -> Result<Verdict> {
        self.updates += 1;
        let judge = self.updates == UPDATES;
        for (slot, tracked) in params.slots().iter().zip(&mut self.tensors) {
            let part = |flat: &Tensor| flat.f_narrow(0, slot.offset as i64, slot.numel() as i64);
            if !tracked.gradient {
                tracked.gradient = any(&part(params.grad())?)?;
            }
            if judge {
                tracked.moved = any(&part(params.flat())?.f_sub(&part(&self.start)?)?)?;
            }
        }
        if judge {
            return verdict(&self.tensors).map(Verdict::Given);
        }
        Ok(Verdict::Open)
    }
}

/// Whether an element is not zero.
fn any(values: &Tensor) -> Result<bool> {
    Ok(values.numel() > 0 && values.f_ne(0.0)?.f_any()?.f_double_value(&[])? != 0.0)
}

fn verdict(tensors: &[Tracked]) -> Result<Option<String>> {
    let none = |group: &[&Tracked]| !group.is_empty() && group.iter().all(|t| !t.gradient);
    let everything: Vec<&Tracked> = tensors.iter().collect();
    let adapters: Vec<&Tracked> = tensors.iter().filter(|t| t.is_adapter).collect();
    for (group, what) in [(&everything, "trainable"), (&adapters, "adapter")] {
        if none(group) {
            return Err(Failure::config(format!(
                "none of the {} {what} tensors had a gradient in the first {UPDATES} updates: nothing there would be learned\n\
                 help: check `adapter.layers` and `task`; `scpeft-train parameters` lists what trains",
                group.len()
            )));
        }
    }
    let mut said = Vec::new();
    let mut list = |found: Vec<&str>, why: &str| {
        if !found.is_empty() {
            let shown = found[..found.len().min(SHOWN)].join(", ");
            let more = match found.len().saturating_sub(SHOWN) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            said.push(format!("{why}: {shown}{more}"));
        }
    };
    let names = |keep: fn(&Tracked) -> bool| -> Vec<&str> {
        let kept = tensors.iter().filter(|t| keep(t));
        kept.map(|t| t.name.as_str()).collect()
    };
    list(
        names(|t| !t.gradient),
        "no gradient reached these tensors in the first updates, and they train only if later batches use them",
    );
    list(
        names(|t| t.gradient && !t.moved),
        "these tensors had a gradient but did not move, because the learning rate is too small for their values",
    );
    Ok((!said.is_empty()).then(|| said.join("\n")))
}

#[cfg(test)]
mod tests {
    use scpeft_model::{Init, Layout, TensorSpec};

    use super::*;

    fn tracked(name: &str, is_adapter: bool, gradient: bool, moved: bool) -> Tracked {
        Tracked {
            name: name.to_owned(),
            is_adapter,
            gradient,
            moved,
        }
    }

    #[test]
    fn an_adapter_without_any_gradient_ends_the_run_and_a_single_tensor_is_named() {
        let head = tracked("head", false, true, true);
        let dead = [
            tracked("a", true, false, false),
            tracked("b", true, false, false),
            head.clone(),
        ];
        let failure = verdict(&dead).unwrap_err();
        assert_eq!(failure.code, scpeft_protocol::exit::CONFIG);
        assert!(
            failure.message.contains("none of the 2 adapter tensors"),
            "{failure}"
        );
        let nothing = verdict(&[tracked("head", false, false, false)]).unwrap_err();
        assert!(
            nothing.message.contains("none of the 1 trainable"),
            "{nothing}"
        );
        // Weight decay moves tensors without a gradient: that is not training.
        let decayed = [
            tracked("a", true, false, true),
            tracked("b", true, true, true),
            head.clone(),
        ];
        let said = verdict(&decayed).unwrap().unwrap();
        assert!(
            said.starts_with("no gradient") && said.ends_with(": a"),
            "{said}"
        );
        let stuck = [tracked("a", true, true, false), head.clone()];
        let said = verdict(&stuck).unwrap().unwrap();
        assert!(
            said.contains("too small") && said.ends_with(": a"),
            "{said}"
        );
        assert_eq!(
            verdict(&[tracked("a", true, true, true), head]).unwrap(),
            None
        );
    }

    #[test]
    fn gradients_and_moves_are_seen_tensor_by_tensor() {
        let specs = ["a", "b", "c"]
            .map(|name| TensorSpec::new(name.into(), &[2], Init::Ones, Role::Adapter));
        let params = Params::build(&specs, |_| Ok(None), |_| true, Layout::cpu(1)).unwrap();
        let mut movement = Movement::new(&params).unwrap();
        let mut grad = params.grad().shallow_clone();
        let flat = params.flat().shallow_clone();
        // `a` has a gradient in the first update alone and moves; `b` has one and stays; `c` neither.
        let _ = grad.narrow(0, 0, 1).fill_(1.0);
        let _ = flat.narrow(0, 1, 1).fill_(2.0);
        assert_eq!(movement.observe(&params).unwrap(), Verdict::Open);
        let _ = grad.zero_();
        assert_eq!(movement.observe(&params).unwrap(), Verdict::Open);
        let _ = grad.narrow(0, 3, 1).fill_(1e-30);
        let Verdict::Given(Some(said)) = movement.observe(&params).unwrap() else {
            panic!("no warning");
        };
        let lines: Vec<&str> = said
            .lines()
            .map(|l| l.rsplit(": ").next().unwrap())
            .collect();
        assert_eq!(lines, ["c", "b"], "{said}");
    }
}

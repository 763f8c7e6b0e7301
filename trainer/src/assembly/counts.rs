//! How many parameters there are and which of them train, for users.

use scpeft_config::Config;
use scpeft_model::params::Slot;
use scpeft_model::{Params, Role};

use super::Assembly;
use crate::failure::{Failure, Result};

impl Assembly {
    /// The tensors that train, with shapes, and the totals of what does and what does not.
    pub(super) fn trainable_table(&self) -> String {
        const SHOWN: usize = 40;
        let slots = self.params.slots();
        let width = slots
            .iter()
            .take(SHOWN)
            .map(|s| s.name.len())
            .max()
            .unwrap_or(0);
        let mut lines = vec!["trainable tensors:".to_owned()];
        for slot in slots.iter().take(SHOWN) {
            lines.push(format!("  {:width$}  {:?}", slot.name, slot.shape));
        }
        if slots.len() > SHOWN {
            let rest: usize = slots[SHOWN..].iter().map(Slot::numel).sum();
            lines.push(format!(
                "  and {} more of {} parameters (`scpeft-train parameters` lists all)",
                slots.len() - SHOWN,
                grouped(rest as u64)
            ));
        }
        lines.join("\n")
    }

    /// Every tensor with shape, number of parameters, and whether it trains; and the totals.
    pub fn parameter_table(&self) -> String {
        let rows: Vec<[String; 4]> = self
            .params
            .iter()
            .map(|(name, tensor, role, trains)| {
                let trains = match (role, trains) {
                    (Role::Buffer, _) => "statistic",
                    (Role::Constant, _) => "constant",
                    (_, true) => "yes",
                    (_, false) => "no",
                };
                let shape = format!("{:?}", tensor.size());
                let count = grouped(tensor.numel() as u64);
                [name.to_owned(), shape, count, trains.to_owned()]
            })
            .collect();
        let header = ["tensor", "shape", "parameters", "trainable"].map(str::to_owned);
        let width = |i: usize| {
            let all = std::iter::once(&header).chain(&rows);
            all.map(|row| row[i].len()).max().unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2)];
        let line = |row: &[String; 4]| {
            format!(
                "{:w0$}  {:w1$}  {:>w2$}  {}",
                row[0],
                row[1],
                row[2],
                row[3],
                w0 = widths[0],
                w1 = widths[1],
                w2 = widths[2]
            )
        };
        let mut lines = vec![line(&header)];
        lines.extend(rows.iter().map(line));
        let (trainable, total) = (self.params.trainable_count(), self.params.total_count());
        lines.push(format!(
            "{} of {} parameters train ({:.3} %)",
            grouped(trainable as u64),
            grouped(total as u64),
            100.0 * trainable as f64 / total as f64
        ));
        lines.join("\n")
    }
}

/// Refuses a model of which more trains than the configuration allows.
pub(super) fn require_budget(config: &Config, params: &Params) -> Result<()> {
    let Some(most) = config.adapter.budget_percent else {
        return Ok(());
    };
    let (trainable, total) = (params.trainable_count(), params.total_count());
    let percent = 100.0 * trainable as f64 / total as f64;
    if percent <= most {
        return Ok(());
    }
    Err(Failure::config(format!(
        "{} of {} parameters train ({percent:.3} %), `adapter.budget_percent` is {most}\n\
         help: lower `adapter.drug.bottleneck` or the layers with an adapter, or raise the budget",
        grouped(trainable as u64),
        grouped(total as u64),
    )))
}

/// A digit group every three digits.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(
            [0, 999, 1000, 51_340_819].map(grouped),
            ["0", "999", "1,000", "51,340,819"]
        );
    }
}

//! Benches of the hot paths: `make bench`. Results with machine and command go to `reports/`.
//!
//! Here is what several of them share: a model of full size and its batches, a stepper with all that it
//! borrows, ranks, and what a process has used.

#![allow(
    clippy::missing_panics_doc,
    reason = "a bench that cannot measure has nothing better to do"
)]

pub mod full_size;
pub mod ranks;
pub mod stepping;
pub mod usage;

/// The value after an option of the command line.
pub fn value<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|a| a == name)?;
    args.get(at + 1).map(String::as_str)
}

/// The number after an option of the command line.
pub fn number(args: &[String], name: &str, default: usize) -> usize {
    value(args, name).map_or(default, |n| n.parse().expect("a whole number"))
}

/// The middle of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

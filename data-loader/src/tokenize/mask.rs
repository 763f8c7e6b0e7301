//! Random masking of values.

use crate::preprocess::Draws;

/// How values are masked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskOptions {
    /// Share of the values that are masked.
    pub ratio: f64,
    /// What stands in their place.
    pub mask_value: f32,
    /// Values at the head that are never masked: 1 spares the class token.
    pub spared: usize,
}

/// Masks floor(ratio * n) of the n values of an unpadded sequence that are not spared.
pub fn mask_values<D: Draws + ?Sized>(
    values: &mut [f32],
    options: MaskOptions,
    draws: &mut D,
    drawn: &mut Vec<u32>,
) {
    let spared = options.spared.min(values.len());
    let open = &mut values[spared..];
    let n = (open.len() as f64 * options.ratio).floor() as usize;
    if n == 0 {
        return;
    }
    draws.sample(open.len(), n, drawn);
    for &place in drawn.iter() {
        open[place as usize] = options.mask_value;
    }
}

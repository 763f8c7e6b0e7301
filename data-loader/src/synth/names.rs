//! The names of what cells are made of. None is the name of something real, except the control.

use super::cells::{DRUGS, LINES, Meta, PLATES, WELLS};
use crate::genes::GeneTable;

/// Doses in µM: plates come in threes, one of each.
const DOSES: [f64; 3] = [0.05, 0.5, 5.0];

/// A categorical column of the cells.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) categories: Vec<String>,
    pub(super) code: fn(&Meta) -> usize,
}

/// The categorical columns that every output has.
pub(super) fn columns() -> Vec<Column> {
    let named = |n: usize, name: fn(usize) -> String| (0..n).map(name).collect();
    vec![
        Column {
            name: "drug",
            categories: named(DRUGS, drug),
            code: |m| m.drug,
        },
        Column {
            name: "sample",
            categories: named(PLATES * WELLS, sample),
            code: |m| m.sample,
        },
        Column {
            name: "cell_line_id",
            categories: named(LINES, line),
            code: |m| m.line,
        },
        Column {
            name: "moa-fine",
            categories: named(MECHANISMS, mechanism),
            code: |m| mechanism_of(m.drug),
        },
        Column {
            name: "plate",
            categories: named(PLATES, plate),
            code: |m| m.plate,
        },
    ]
}

const MECHANISMS: usize = 24;

pub(super) fn drug(drug: usize) -> String {
    match drug {
        0 => "DMSO_TF".to_owned(),
        _ => format!("Compound {drug:03}"),
    }
}

pub(super) fn sample(sample: usize) -> String {
    format!("smp_{}", 1500 + sample)
}

/// The treatment of a sample and its dose.
pub(super) fn treatment(sample: usize) -> (usize, f64) {
    let drug = sample % WELLS % DRUGS;
    let dose = DOSES[sample / WELLS % DOSES.len()];
    (drug, if drug == 0 { 0.0 } else { dose })
}

pub(super) fn line(line: usize) -> String {
    format!("CVCL_{:04}", 101 + 7 * line)
}

pub(super) fn organ(line: usize) -> &'static str {
    ["Lung", "Bowel", "Breast", "Skin", "Pancreas"][line % 5]
}

pub(super) fn plate(plate: usize) -> String {
    format!("plate{}", plate + 1)
}

pub(super) fn mechanism_of(drug: usize) -> usize {
    if drug == 0 {
        0
    } else {
        1 + drug % (MECHANISMS - 1)
    }
}

pub(super) fn mechanism(mechanism: usize) -> String {
    match mechanism {
        0 => "unclear".to_owned(),
        _ => format!("mechanism {mechanism:02}"),
    }
}

pub(super) fn smiles(drug: usize) -> String {
    format!(
        "C1{}N(C)C1={}O",
        "C".repeat(1 + drug % 9),
        "C".repeat(1 + drug / 9)
    )
}

/// A number written as text, which some drugs lack, in two ways.
pub(super) fn pubchem(drug: usize) -> String {
    match drug % 31 {
        0 => String::new(),
        1 => "nan".to_owned(),
        _ => format!("{}.0", 1900 + 23 * drug),
    }
}

/// The genes of an output.
pub(super) fn gene_table(genes: usize) -> GeneTable {
    GeneTable {
        symbols: (1..=genes).map(|g| format!("SYN{g}")).collect(),
        ensembl: (1..=genes).map(|g| Some(format!("ENSG{g:011}"))).collect(),
    }
}

//! Preprocessing and tokenising give the reference numbers when they are fed the random numbers that
//! the reference drew. Cases `binning`, `tokenize_mask`, `preprocess`, `hvg`: every row and variant that
//! the fixtures hold is compared.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use scpeft_data::ValueKind;
use scpeft_data::hvg::{Batches, DenseCells, Flavor, HvgTable, highly_variable};
use scpeft_data::preprocess::{Binner, Draws, binning, filter_genes, log1p, normalize_total};
use scpeft_data::tokenize::mask::{MaskOptions, mask_values};
use scpeft_data::tokenize::{SequenceOptions, Sequencer, Tokens};
use scpeft_tests::{case, fixture};

/// Numbers the reference drew, in place of a generator.
#[derive(Default)]
struct Given {
    uniforms: Vec<f64>,
    /// One sample per call, in order.
    samples: std::collections::VecDeque<Vec<u32>>,
}

impl Draws for Given {
    fn uniform(&mut self, position: usize) -> f64 {
        self.uniforms[position]
    }

    fn sample(&mut self, n: usize, k: usize, out: &mut Vec<u32>) {
        *out = self
            .samples
            .pop_front()
            .expect("the reference drew as often");
        assert_eq!(out.len(), k, "sample size");
        assert!(out.iter().all(|&i| (i as usize) < n));
    }
}

/// The tensors of one file.
struct Tensors(Vec<u8>);

impl Tensors {
    fn open(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(ToString::to_string).collect()
    }

    fn get(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = tensor.data();
        let values = match tensor.dtype() {
            Dtype::F64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b))
                .collect(),
            Dtype::F32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f64::from(f32::from_le_bytes(*b)))
                .collect(),
            Dtype::I64 => data
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b) as f64)
                .collect(),
            Dtype::U8 | Dtype::BOOL => data.iter().map(|&b| f64::from(b)).collect(),
            other => panic!("{name}: {other:?}"),
        };
        (tensor.shape().to_vec(), values)
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.get(name).1
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.values(name).into_iter().map(|v| v as f32).collect()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.values(name).into_iter().map(|v| v as i64).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.names().iter().any(|n| n == name)
    }
}

#[test]
fn binning_is_exact() {
    let dir = fixture("scgpt", "binning");
    let (inputs, expected) = (
        Tensors::open(&dir, "inputs.safetensors"),
        Tensors::open(&dir, "expected.safetensors"),
    );
    let rows = case(&dir)["rows"].as_object().expect("rows").clone();
    assert!(!rows.is_empty());
    for (name, _) in rows {
        let bins: usize = name
            .rsplit_once(".bins")
            .expect("name ends in .binsN")
            .1
            .parse()
            .unwrap();
        let row = inputs.floats(&format!("{name}.row"));
        let rands = format!("{name}.rands");
        let uniforms = if inputs.has(&rands) {
            inputs.values(&rands)
        } else {
            Vec::new()
        };
        let mut draws = Given {
            uniforms,
            ..Given::default()
        };
        assert_eq!(
            binning(&row, bins, &mut draws),
            expected.integers(&format!("{name}.binned")),
            "{name}"
        );

        let nonzero: Vec<f32> = row.iter().copied().filter(|v| *v != 0.0).collect();
        let mut binner = Binner::new(bins);
        binner.bin(&nonzero, &mut draws, &mut vec![0.0; nonzero.len()]);
        let edges = format!("{name}.edges");
        if expected.has(&edges) {
            assert_eq!(binner.edges(), expected.values(&edges), "{name}");
        } else {
            assert!(nonzero.is_empty() && binner.edges().is_empty(), "{name}");
        }
    }
}

#[test]
fn preprocessing_matches_the_reference() {
    let dir = fixture("scgpt", "preprocess");
    let (inputs, expected) = (
        Tensors::open(&dir, "inputs.safetensors"),
        Tensors::open(&dir, "expected.safetensors"),
    );
    let (shape, counts) = inputs.get("counts");
    let genes = shape[1];
    let totals: Vec<f64> = (0..genes)
        .map(|g| counts.iter().skip(g).step_by(genes).sum())
        .collect();
    let kept = filter_genes(&totals, 3.0);
    assert_eq!(
        kept.iter().map(|&g| i64::from(g)).collect::<Vec<_>>(),
        expected.integers("kept_genes")
    );

    let (mut normed, logged) = (expected.floats("X_normed"), expected.floats("X_log1p"));
    if normed == logged {
        // The reference takes the logarithm in place, so that both of its layers hold the result.
        normed = logged.iter().map(|v| v.exp_m1()).collect();
    }
    let (binned, edges) = (expected.integers("X_binned"), expected.values("bin_edges"));
    let mut uniforms = inputs.values("rands");
    let edge_count = edges.len() / shape[0];
    for (row, cell) in counts.chunks(genes).enumerate() {
        let span = row * kept.len()..(row + 1) * kept.len();
        let mut values: Vec<f32> = kept.iter().map(|&g| cell[g as usize] as f32).collect();
        let raw = values.clone();
        normalize_total(&mut values, 1e4);
        for (found, wanted) in values.iter().zip(&normed[span.clone()]) {
            assert!(
                (found - wanted).abs() <= 1e-5 * wanted.abs(),
                "row {row}: {found} {wanted}"
            );
        }
        let factor = raw
            .iter()
            .find(|v| **v != 0.0)
            .map(|_| raw.iter().sum::<f32>() / 1e4);
        log1p(&mut values);
        for (found, wanted) in values.iter().zip(&logged[span.clone()]) {
            assert!(
                (found - wanted).abs() <= 1e-5,
                "row {row}: {found} {wanted}"
            );
        }
        let nonzero: Vec<f32> = logged[span.clone()]
            .iter()
            .copied()
            .filter(|v| *v != 0.0)
            .collect();
        let rest = uniforms.split_off(nonzero.len());
        let mut draws = Given {
            uniforms,
            ..Given::default()
        };
        uniforms = rest;
        assert_eq!(
            binning(&logged[span.clone()], edge_count, &mut draws),
            binned[span.clone()],
            "row {row}"
        );
        let mut binner = Binner::new(edge_count);
        binner.bin(&nonzero, &mut draws, &mut vec![0.0; nonzero.len()]);
        let mut found = vec![0.0; edge_count - binner.edges().len()];
        found.extend_from_slice(binner.edges());
        assert_eq!(
            found,
            edges[row * edge_count..(row + 1) * edge_count],
            "row {row}"
        );

        // From counts, the path that training takes, the same bins come out.
        let counts: Vec<f32> = raw.iter().copied().filter(|v| *v != 0.0).collect();
        let mut bins = vec![0.0; counts.len()];
        binner.bin_counts(
            &counts,
            |c| (c / factor.unwrap_or(1.0)).ln_1p(),
            &mut draws,
            &mut bins,
        );
        let wanted: Vec<f32> = binned[span]
            .iter()
            .filter(|b| **b != 0)
            .map(|&b| b as f32)
            .collect();
        assert_eq!(bins, wanted, "row {row}");
    }
    assert!(
        uniforms.is_empty(),
        "all numbers that the reference drew are used"
    );
}

#[test]
fn tokenising_and_padding_are_exact() {
    let dir = fixture("scgpt", "tokenize_mask");
    let (inputs, expected) = (
        Tensors::open(&dir, "inputs.safetensors"),
        Tensors::open(&dir, "expected.safetensors"),
    );
    let case = case(&dir);
    let id = |token: &str| case["vocab"][token].as_i64().expect("special token") as i32;
    let genes: Vec<i32> = inputs
        .integers("gene_ids")
        .into_iter()
        .map(|g| g as i32)
        .collect();
    let binned = inputs.floats("binned");
    for (name, variant) in case["variants"].as_object().expect("variants") {
        let options = SequenceOptions {
            max_len: variant["max_len"].as_u64().unwrap() as usize,
            include_zero_genes: variant["include_zero_gene"].as_bool().unwrap(),
            cls_id: variant["append_cls"]
                .as_bool()
                .unwrap()
                .then(|| id("<cls>")),
        };
        let mut draws = Given::default();
        for sample in 0..variant["sampled_rows"].as_u64().unwrap() {
            let drawn = inputs.integers(&format!("{name}.sample{sample}"));
            draws
                .samples
                .push_back(drawn.into_iter().map(|i| i as u32).collect());
        }
        let mut tokens = Tokens::default();
        let mut sequencer = Sequencer::new(options);
        for row in binned.chunks(genes.len()) {
            sequencer.push(&genes, row, &mut draws, &mut tokens);
        }
        assert!(draws.samples.is_empty(), "{name}: all samples are used");
        let (shape, wanted_genes) = expected.get(&format!("{name}.genes"));
        let wanted_values = expected.floats(&format!("{name}.values"));
        let padding = expected.values(&format!("{name}.padding_mask"));
        assert_eq!(tokens.longest(), shape[1], "{name}");
        for row in 0..shape[0] {
            let span = tokens.range(row);
            let mut ids = tokens.ids[span.clone()].to_vec();
            let mut values = tokens.values[span].to_vec();
            ids.resize(shape[1], id("<pad>"));
            values.resize(shape[1], -2.0);
            let at = row * shape[1]..(row + 1) * shape[1];
            let wanted: Vec<i32> = wanted_genes[at.clone()].iter().map(|&g| g as i32).collect();
            assert_eq!(ids, wanted, "{name}, row {row}");
            assert_eq!(values, wanted_values[at.clone()], "{name}, row {row}");
            let pads: Vec<f64> = ids
                .iter()
                .map(|&i| f64::from(u8::from(i == id("<pad>"))))
                .collect();
            assert_eq!(pads, padding[at], "{name}, row {row}");
        }
    }
}

#[test]
fn masks_are_exact() {
    let dir = fixture("scgpt", "tokenize_mask");
    let (inputs, expected) = (
        Tensors::open(&dir, "inputs.safetensors"),
        Tensors::open(&dir, "expected.safetensors"),
    );
    let (shape, full) = expected.get("nonzero_full.values");
    let names: Vec<String> = expected
        .names()
        .into_iter()
        .filter(|n| n.starts_with("mask_"))
        .collect();
    assert!(!names.is_empty());
    for name in names {
        let mut parts = name.split('_').skip(1);
        let ratio: f64 = parts.next().unwrap().parse().unwrap();
        let spared = usize::from(parts.next() == Some("keepcls"));
        let wanted = expected.floats(&name);
        for row in 0..shape[0] {
            let at = row * shape[1]..(row + 1) * shape[1];
            let padded: Vec<f32> = full[at.clone()].iter().map(|&v| v as f32).collect();
            let len = padded
                .iter()
                .position(|v| *v == -2.0)
                .unwrap_or(padded.len());
            let mut values = padded[..len].to_vec();
            let picked = inputs.integers(&format!("{name}.picked{row}"));
            let mut draws = Given::default();
            draws
                .samples
                .push_back(picked.iter().map(|&p| p as u32 - spared as u32).collect());
            let options = MaskOptions {
                ratio,
                mask_value: -1.0,
                spared,
            };
            mask_values(&mut values, options, &mut draws, &mut Vec::new());
            assert_eq!(
                draws.samples.is_empty(),
                !picked.is_empty(),
                "{name}, row {row}"
            );
            values.resize(shape[1], -2.0);
            assert_eq!(values, wanted[at], "{name}, row {row}");
        }
    }
}

/// A column of the table by the name that the reference gives it.
fn hvg_column(table: &HvgTable, name: &str) -> Vec<f64> {
    match name {
        "means" => table.means.clone(),
        "variances" | "dispersions" => table.spread.clone(),
        "variances_norm" | "dispersions_norm" => table.normalised.clone(),
        "highly_variable_rank" => table.rank.clone(),
        "highly_variable_nbatches" => table.n_batches.iter().copied().map(f64::from).collect(),
        "selected" => table.selected.iter().copied().map(f64::from).collect(),
        other => panic!("the reference stores `{other}`, which is not compared"),
    }
}

/// What the reference leaves to chance for each gene: how the last bit of a logarithm is rounded, or
/// where a sort that is not stable puts equal values.
struct Chance {
    /// Genes of the same normalised spread, in the batch where they are most.
    equals: Vec<usize>,
    /// Batches in which it is as variable as the last one chosen.
    on_the_brink: Vec<usize>,
}

impl Chance {
    /// Looks at each batch by itself.
    fn of(counts: &[f32], genes: usize, codes: &[u32], flavor: Flavor, n_top: usize) -> Self {
        let mut chance = Self {
            equals: vec![0; genes],
            on_the_brink: vec![0; genes],
        };
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
        let batches: std::collections::BTreeSet<u32> = codes.iter().copied().collect();
        for batch in batches {
            let rows = || {
                counts
                    .chunks(genes)
                    .zip(codes)
                    .filter(|(_, c)| **c == batch)
            };
            let expressed = |gene: &usize| rows().any(|(row, _)| row[*gene] > 0.0);
            let kept: Vec<usize> = (0..genes).filter(expressed).collect();
            let values: Vec<f32> = rows()
                .flat_map(|(row, _)| kept.iter().map(|&gene| row[gene]))
                .collect();
            let cells = DenseCells::new(&values, kept.len(), ValueKind::Counts);
            let n_top = n_top.min(kept.len());
            let table = highly_variable(&cells, &Batches::whole(), flavor, n_top).unwrap();
            let mut sorted = table.normalised.clone();
            sorted.retain(|v| !v.is_nan());
            sorted.sort_by(|a, b| b.total_cmp(a));
            for (&gene, &value) in kept.iter().zip(&table.normalised) {
                let equal = sorted.iter().filter(|&&v| same(v, value)).count();
                chance.equals[gene] = chance.equals[gene].max(equal.saturating_sub(1));
                chance.on_the_brink[gene] += usize::from(same(value, sorted[n_top - 1]));
            }
        }
        chance
    }

    /// By how much the reference's value of a column may differ.
    fn allowance(&self, column: &str, gene: usize) -> f64 {
        match column {
            "highly_variable_rank" => self.equals[gene] as f64,
            "highly_variable_nbatches" => self.on_the_brink[gene] as f64,
            _ => 0.0,
        }
    }
}

#[test]
fn variable_genes_match_the_reference() {
    let dir = fixture("scgpt", "hvg");
    let (inputs, expected) = (
        Tensors::open(&dir, "inputs.safetensors"),
        Tensors::open(&dir, "expected.safetensors"),
    );
    let case = case(&dir);
    let n_top = case["n_top_genes"].as_u64().expect("n_top_genes") as usize;
    let rtol = case["tolerances"]["rtol"].as_f64().expect("rtol");
    let shape = inputs.get("counts").0;
    let counts = inputs.floats("counts");
    let cells = DenseCells::new(&counts, shape[1], ValueKind::Counts);
    let codes: Vec<u32> = inputs.integers("batch").iter().map(|&b| b as u32).collect();
    let names: Vec<String> = (0..=codes.iter().copied().max().unwrap_or(0))
        .map(|b| b.to_string())
        .collect();
    let by_batch = (Batches::new(&codes, &names), codes.as_slice());
    let whole = (Batches::whole(), &vec![0; codes.len()][..]);
    let mut tables = std::collections::BTreeMap::new();
    for (name, flavor, batches) in [
        ("seurat_v3", Flavor::SeuratV3, &whole),
        ("seurat_v3_batch", Flavor::SeuratV3, &by_batch),
        ("cell_ranger", Flavor::CellRanger, &whole),
        ("cell_ranger_batch", Flavor::CellRanger, &by_batch),
    ] {
        let (batches, codes) = batches;
        let table = highly_variable(&cells, batches, flavor, n_top).unwrap();
        let chance = Chance::of(&counts, shape[1], codes, flavor, n_top);
        tables.insert(name, (table, chance));
    }
    for stored in expected.names() {
        let (name, column) = stored.split_once('.').expect("case.column");
        let case = tables.get(name).unwrap_or_else(|| panic!("case `{name}`"));
        let (table, chance) = case;
        let found = hvg_column(table, column);
        let wanted = expected.values(&stored);
        assert_eq!(found.len(), wanted.len(), "{stored}");
        for (gene, (found, &wanted)) in found.iter().zip(&wanted).enumerate() {
            // What is not a number is stored as -1.
            let found = if found.is_nan() { -1.0 } else { *found };
            let exact = ["selected", "highly_variable_nbatches"].contains(&column);
            // A difference from the median can be as near to zero as rounding leaves it.
            let difference = column == "dispersions_norm";
            let scale = if difference {
                wanted.abs().max(1.0)
            } else {
                wanted.abs()
            };
            let rounding = rtol * scale;
            let allowed = chance.allowance(column, gene) + if exact { 0.0 } else { rounding };
            assert!(
                (found - wanted).abs() <= allowed,
                "{stored}, gene {gene}: {found} {wanted}"
            );
        }
    }
    for name in tables.keys() {
        assert!(expected.has(&format!("{name}.selected")), "{name}");
    }
}

//! A cell as bytes: one byte for most genes and for most counts.
//!
//! Gene indices ascend, so the first is stored as it is and each other one as its distance from the one
//! before, less one. A number below 255 is one byte; 255 announces a larger one as a little-endian
//! `u16`, and 65535 in its place announces a `u32`. Counts are stored in the same way, log-normalised
//! values as little-endian `f32`. The same bytes are what a [`PackedBlock`] keeps in memory: a window of
//! cells takes a quarter of the room, and a cell is unpacked into the cache of the core that wants it.

use super::ValueKind;

const ESCAPE: u8 = 255;
const WIDE_ESCAPE: u16 = u16::MAX;
/// Numbers looked at together: they are unpacked without a branch when none is escaped.
const RUN: usize = 32;

/// The genes and values of one cell, unpacked. Reused from cell to cell.
#[derive(Debug, Clone, Default)]
pub struct CellBuffer {
    /// Gene indices, ascending.
    pub genes: Vec<u32>,
    /// Values, as many.
    pub values: Vec<f32>,
}

impl CellBuffer {
    /// Forgets what it holds and keeps its room.
    pub fn clear(&mut self) {
        self.genes.clear();
        self.values.clear();
    }
}

/// Cells in memory as packed bytes, and what is wrong with those that cannot be used.
#[derive(Debug, Clone, Default)]
pub struct PackedBlock {
    gene_ends: Vec<usize>,
    value_ends: Vec<usize>,
    genes: Vec<u8>,
    values: Vec<u8>,
    faults: Vec<(u32, String)>,
}

impl PackedBlock {
    /// Number of cells, those with faults included.
    pub fn rows(&self) -> usize {
        self.gene_ends.len()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.genes.capacity()
            + self.values.capacity()
            + (self.gene_ends.capacity() + self.value_ends.capacity()) * size_of::<usize>()
    }

    /// What is wrong with a cell, if anything was found while it was read.
    pub fn fault(&self, row: usize) -> Option<&str> {
        let place = self.faults.binary_search_by_key(&(row as u32), |f| f.0);
        place.ok().map(|place| self.faults[place].1.as_str())
    }

    /// Unpacks a cell into `out`, in place of what it held.
    ///
    /// # Errors
    /// As [`PackedBlock::append_cell`].
    pub fn cell(
        &self,
        row: usize,
        n_genes: u32,
        kind: ValueKind,
        out: &mut CellBuffer,
    ) -> Result<(), String> {
        out.clear();
        self.append_cell(row, n_genes, kind, out)
    }

    /// Unpacks a cell behind what `out` holds: rows of a sparse matrix are made without another copy.
    ///
    /// # Errors
    /// What is wrong with it: a fault, or bytes that are no cell of a corpus with so many genes. What `out`
    /// held stays.
    pub fn append_cell(
        &self,
        row: usize,
        n_genes: u32,
        kind: ValueKind,
        out: &mut CellBuffer,
    ) -> Result<(), String> {
        if let Some(problem) = self.fault(row) {
            return Err(problem.to_owned());
        }
        let (genes, values) = self.packed(row);
        unpack(genes, values, n_genes, kind, out)
    }

    /// Adds a cell of another block.
    pub(crate) fn push_from(&mut self, other: &Self, row: usize) {
        let (genes, values) = other.packed(row);
        match other.fault(row) {
            Some(problem) => self.push_fault(problem.to_owned()),
            None => self.push_packed(genes, values),
        }
    }

    fn packed(&self, row: usize) -> (&[u8], &[u8]) {
        let start = |ends: &[usize]| if row == 0 { 0 } else { ends[row - 1] };
        (
            &self.genes[start(&self.gene_ends)..self.gene_ends[row]],
            &self.values[start(&self.value_ends)..self.value_ends[row]],
        )
    }

    pub(crate) fn push(&mut self, genes: &[u32], values: &[f32], kind: ValueKind) {
        pack_genes(genes, &mut self.genes);
        pack_values(values, kind, &mut self.values);
        self.end_row();
    }

    pub(crate) fn push_packed(&mut self, genes: &[u8], values: &[u8]) {
        self.genes.extend_from_slice(genes);
        self.values.extend_from_slice(values);
        self.end_row();
    }

    pub(crate) fn push_fault(&mut self, problem: String) {
        self.faults.push((self.rows() as u32, problem));
        self.end_row();
    }

    fn end_row(&mut self) {
        self.gene_ends.push(self.genes.len());
        self.value_ends.push(self.values.len());
    }

    pub(crate) fn reserve(&mut self, rows: usize) {
        self.gene_ends.reserve_exact(rows);
        self.value_ends.reserve_exact(rows);
    }

    /// Makes room for `rows` cells in all, from what those that are here take: growing step by step
    /// would copy them again and again.
    pub(crate) fn expect(&mut self, rows: usize) {
        let here = self.rows().max(1);
        for bytes in [&mut self.genes, &mut self.values] {
            let all = bytes.len() * rows / here;
            bytes.reserve_exact((all + all / 16).saturating_sub(bytes.len()));
        }
    }
}

/// Appends gene indices, which must be strictly ascending.
pub(crate) fn pack_genes(genes: &[u32], out: &mut Vec<u8>) {
    out.reserve(genes.len() + genes.len() / 64 + 8);
    let Some((&first, others)) = genes.split_first() else {
        return;
    };
    pack_run(1, |_| first, out);
    let (before, after) = (genes.chunks(RUN), others.chunks(RUN));
    for (before, after) in before.zip(after) {
        let gap = |place: usize| after[place] - before[place] - 1;
        pack_run(after.len(), gap, out);
    }
}

/// Appends values. Counts must be whole numbers.
pub(crate) fn pack_values(values: &[f32], kind: ValueKind, out: &mut Vec<u8>) {
    match kind {
        ValueKind::Counts => {
            out.reserve(values.len() + 8);
            for run in values.chunks(RUN) {
                pack_run(run.len(), |place| run[place] as u32, out);
            }
        }
        ValueKind::Lognorm => {
            out.reserve(values.len() * 4);
            for &value in values {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Appends at most [`RUN`] numbers, without a branch for each when none of them is escaped.
#[inline]
fn pack_run(n: usize, number: impl Fn(usize) -> u32, out: &mut Vec<u8>) {
    let mut bytes = [0; RUN];
    let mut wide = 0;
    for (place, byte) in bytes[..n].iter_mut().enumerate() {
        let number = number(place);
        wide |= u32::from(number >= u32::from(ESCAPE));
        *byte = number as u8;
    }
    if wide == 0 {
        out.extend_from_slice(&bytes[..n]);
    } else {
        pack_wide(n, number, out);
    }
}

/// As [`pack_run`], for numbers some of which are escaped: they meet in an array of their own, which has
/// room for all, because `out` would be asked for room again and again.
fn pack_wide(n: usize, number: impl Fn(usize) -> u32, out: &mut Vec<u8>) {
    const LONGEST: usize = 1 + size_of::<u16>() + size_of::<u32>();
    let mut bytes = [0; RUN * LONGEST];
    let mut end = 0;
    let mut put = |part: &[u8]| {
        bytes[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    };
    for place in 0..n {
        let number = number(place);
        match u16::try_from(number) {
            Ok(number) if number < u16::from(ESCAPE) => put(&[number as u8]),
            Ok(number) if number < WIDE_ESCAPE => {
                put(&[ESCAPE]);
                put(&number.to_le_bytes());
            }
            _ => {
                put(&[ESCAPE]);
                put(&WIDE_ESCAPE.to_le_bytes());
                put(&number.to_le_bytes());
            }
        }
    }
    out.extend_from_slice(&bytes[..end]);
}

/// Unpacks one cell behind what `out` holds.
///
/// # Errors
/// What is wrong, when the bytes are no cell of a corpus with so many genes. What `out` held stays.
pub(crate) fn unpack(
    genes: &[u8],
    values: &[u8],
    n_genes: u32,
    kind: ValueKind,
    out: &mut CellBuffer,
) -> Result<(), String> {
    let before = (out.genes.len(), out.values.len());
    let done = unpack_genes(genes, n_genes, &mut out.genes).and_then(|()| match kind {
        ValueKind::Counts => unpack_counts(values, &mut out.values),
        ValueKind::Lognorm => unpack_floats(values, &mut out.values),
    });
    let (genes, values) = (out.genes.len() - before.0, out.values.len() - before.1);
    let done = match done {
        Ok(()) if genes != values => Err(format!("lists {genes} genes but {values} values")),
        done => done,
    };
    if done.is_err() {
        out.genes.truncate(before.0);
        out.values.truncate(before.1);
    }
    done
}

#[inline]
fn has_escape(run: &[u8; RUN]) -> bool {
    run.iter()
        .fold(0, |found, &byte| found | u8::from(byte == ESCAPE))
        != 0
}

fn unpack_genes(bytes: &[u8], n_genes: u32, out: &mut Vec<u32>) -> Result<(), String> {
    // No sum below can run over: a run adds at most 32 times 256 to an index below 2^31.
    let limit = n_genes.min(1 << 31);
    out.reserve(bytes.len() + RUN);
    let (mut next, mut at) = (0_u32, 0);
    while at < bytes.len() {
        match bytes[at..].first_chunk::<RUN>() {
            Some(run) if !has_escape(run) => {
                let mut genes = [0; RUN];
                for (gene, &gap) in genes.iter_mut().zip(run) {
                    // One addition leads from gene to gene; the other waits for none before it.
                    next += u32::from(gap) + 1;
                    *gene = next - 1;
                }
                out.extend_from_slice(&genes);
                at += RUN;
            }
            _ => {
                // Up to the next escape at least, so that the fast way is tried again behind it.
                let stop = (at + RUN).min(bytes.len());
                while at < stop {
                    let (gap, length) = number_at(&bytes[at..])?;
                    let gene = u64::from(next) + u64::from(gap);
                    if gene >= u64::from(limit) {
                        return Err(beyond(gene, n_genes));
                    }
                    out.push(gene as u32);
                    next = gene as u32 + 1;
                    at += length;
                }
            }
        }
        if next > limit {
            return Err(beyond(u64::from(next) - 1, n_genes));
        }
    }
    Ok(())
}

fn beyond(gene: u64, n_genes: u32) -> String {
    format!("has gene index {gene}, but the gene table has {n_genes} genes")
}

fn unpack_counts(bytes: &[u8], out: &mut Vec<f32>) -> Result<(), String> {
    out.reserve(bytes.len() + RUN);
    let (mut at, mut zeros) = (0, false);
    while at < bytes.len() {
        match bytes[at..].first_chunk::<RUN>() {
            Some(run) if !has_escape(run) => {
                zeros |= run.iter().fold(0, |zero, &byte| zero | u8::from(byte == 0)) != 0;
                let mut counts = [0.0; RUN];
                for (count, &byte) in counts.iter_mut().zip(run) {
                    *count = f32::from(byte);
                }
                out.extend_from_slice(&counts);
                at += RUN;
            }
            _ => {
                let stop = (at + RUN).min(bytes.len());
                while at < stop {
                    let (count, length) = number_at(&bytes[at..])?;
                    zeros |= count == 0;
                    out.push(count as f32);
                    at += length;
                }
            }
        }
    }
    if zeros {
        return Err("has a value of 0, expected positive ones".into());
    }
    Ok(())
}

fn unpack_floats(bytes: &[u8], out: &mut Vec<f32>) -> Result<(), String> {
    let (floats, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(format!(
            "has {} bytes of values, expected a multiple of 4",
            bytes.len()
        ));
    }
    let before = out.len();
    out.extend(floats.iter().map(|&bytes| f32::from_le_bytes(bytes)));
    match out[before..]
        .iter()
        .find(|value| !(value.is_finite() && **value > 0.0))
    {
        Some(value) => Err(format!("has value `{value}`, expected finite and positive")),
        None => Ok(()),
    }
}

#[inline]
fn number_at(bytes: &[u8]) -> Result<(u32, usize), String> {
    let cut = || "breaks off inside of an escaped number".to_owned();
    match *bytes.first().ok_or_else(cut)? {
        ESCAPE => {
            let wide = *bytes[1..].first_chunk::<2>().ok_or_else(cut)?;
            match u16::from_le_bytes(wide) {
                WIDE_ESCAPE => {
                    let number = *bytes[3..].first_chunk::<4>().ok_or_else(cut)?;
                    Ok((u32::from_le_bytes(number), 7))
                }
                number => Ok((u32::from(number), 3)),
            }
        }
        number => Ok((u32::from(number), 1)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(genes: &[u32], values: &[f32], kind: ValueKind) -> PackedBlock {
        let mut block = PackedBlock::default();
        block.push(&[0], &[1.0], kind);
        block.push(genes, values, kind);
        block
    }

    proptest! {
        #[test]
        fn a_cell_comes_back(
            gaps in prop::collection::vec(prop_oneof![8 => 0_u32..200, 1 => 250_u32..260, 1 => 65_530_u32..70_000], 1..300),
            counts in prop::collection::vec(prop_oneof![8 => 1_u32..200, 1 => 250_u32..260, 1 => 65_530_u32..70_000], 300),
        ) {
            let mut next = 0;
            let genes: Vec<u32> = gaps.iter().map(|gap| { next += gap + 1; next - 1 }).collect();
            let mut out = CellBuffer::default();
            let last = genes[genes.len() - 1];
            for kind in [ValueKind::Counts, ValueKind::Lognorm] {
                let values: Vec<f32> = counts[..genes.len()].iter().map(|&c| c as f32).collect();
                let block = packed(&genes, &values, kind);
                block.cell(1, last + 1, kind, &mut out).unwrap();
                prop_assert_eq!(&out.genes, &genes);
                prop_assert_eq!(&out.values, &values);
                block.append_cell(0, last + 1, kind, &mut out).unwrap();
                prop_assert_eq!(&out.genes[..genes.len()], &genes[..]);
                prop_assert_eq!((&out.genes[genes.len()..], &out.values[genes.len()..]), (&[0][..], &[1.0][..]));
                prop_assert!(block.append_cell(1, last, kind, &mut out).is_err());
                prop_assert_eq!((out.genes.len(), out.values.len()), (genes.len() + 1, genes.len() + 1));
                let error = block.cell(1, last, kind, &mut out).unwrap_err();
                prop_assert!(error.contains("gene table"), "{}", error);
            }
        }

        #[test]
        fn any_bytes_give_a_cell_or_an_error(
            genes in prop::collection::vec(any::<u8>(), 0..200),
            values in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut out = CellBuffer::default();
            for kind in [ValueKind::Counts, ValueKind::Lognorm] {
                out.clear();
                if unpack(&genes, &values, 60_000, kind, &mut out).is_ok() {
                    prop_assert!(out.genes.is_sorted_by(|a, b| a < b));
                    prop_assert!(out.genes.iter().all(|&g| g < 60_000));
                    prop_assert!(out.values.iter().all(|v| v.is_finite() && *v > 0.0));
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut out = CellBuffer::default();
        let mut error = |genes: &[u8], values: &[u8], kind| {
            unpack(genes, values, 300, kind, &mut out).unwrap_err()
        };
        assert!(error(&[1, 2], &[1], ValueKind::Counts).contains("2 genes but 1 values"));
        assert!(error(&[255, 1], &[1], ValueKind::Counts).contains("breaks off"));
        assert!(error(&[1], &[0], ValueKind::Counts).contains("value of 0"));
        assert!(error(&[1], &[0, 0, 192, 127], ValueKind::Lognorm).contains("NaN"));
        assert!(error(&[1], &[0, 0, 192], ValueKind::Lognorm).contains("multiple of 4"));
    }
}

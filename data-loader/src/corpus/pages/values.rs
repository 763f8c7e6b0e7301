//! The items of a page, as numbers of the type that a cell wants.

use parquet::basic::Encoding;

use super::hybrid::{GROUP, Run, Runs, breaks_off, take, unpack, unpack_all, varint};

/// A type of numbers in files.
pub(super) trait Physical: Copy {
    /// From little-endian bytes, [`Physical::SIZE`] of them.
    fn read(bytes: &[u8]) -> Self;
    /// From the sum of differences, where the format has them; differences wrap around.
    fn from_sum(sum: i64) -> Option<Self>;
    /// Bytes of one.
    const SIZE: usize;
}

macro_rules! physical {
    ($type:ty, $sum:expr) => {
        impl Physical for $type {
            const SIZE: usize = size_of::<Self>();

            fn read(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }

            fn from_sum(sum: i64) -> Option<Self> {
                ($sum)(sum)
            }
        }
    };
}
physical!(i32, |sum| Some(sum as i32));
physical!(i64, Some);
physical!(f32, |_| None);

/// Reads the items of the pages of a column.
pub(in crate::corpus) trait Items<O>: Send {
    /// Keeps a dictionary of `n` items for the pages that follow.
    fn keep_dictionary(&mut self, bytes: &[u8], n: usize) -> Result<(), String>;

    /// Appends the `n` items of a page.
    fn read(
        &self,
        encoding: Encoding,
        bytes: &[u8],
        n: usize,
        out: &mut Vec<O>,
    ) -> Result<(), String>;
}

/// Items of type `P`, which `convert` makes to what is wanted: once for each entry of a dictionary.
pub(super) struct Converted<P, O, F: Fn(P) -> O> {
    convert: F,
    dictionary: Vec<O>,
    physical: std::marker::PhantomData<fn() -> P>,
}

impl<P: Physical, O: Copy, F: Fn(P) -> O> Converted<P, O, F> {
    pub(super) fn new(convert: F) -> Self {
        Self {
            convert,
            dictionary: Vec::new(),
            physical: std::marker::PhantomData,
        }
    }

    fn plain(&self, bytes: &[u8], n: usize, out: &mut Vec<O>) -> Result<(), String> {
        let bytes = n.checked_mul(P::SIZE).and_then(|size| bytes.get(..size));
        let items = bytes.ok_or_else(breaks_off)?.chunks_exact(P::SIZE);
        out.extend(items.map(|item| (self.convert)(P::read(item))));
        Ok(())
    }

    fn indices(&self, bytes: &[u8], n: usize, out: &mut Vec<O>) -> Result<(), String> {
        let mut bytes = bytes;
        let width = u32::from(take(&mut bytes, 1)?[0]);
        if width > 32 {
            return Err(format!("has dictionary indices of {width} bits"));
        }
        let mut runs = Runs::new(bytes, width, n);
        let size = self.dictionary.len();
        let beyond = |index: u32| format!("has dictionary index {index}, of {size} entries");
        while let Some(run) = runs.next()? {
            match run {
                Run::Repeat { value, n } => {
                    let item = self.dictionary.get(value as usize);
                    let item = *item.ok_or_else(|| beyond(value))?;
                    out.extend(std::iter::repeat_n(item, n));
                }
                Run::Packed { bytes, n } => unpack_all(bytes, width, n, |indices| {
                    // All are compared before any is used: two loops without a branch to leave them by.
                    let largest = indices.iter().fold(0, |most, &index| most.max(index));
                    if largest as usize >= size {
                        return Err(beyond(largest));
                    }
                    out.extend(indices.iter().map(|&index| self.dictionary[index as usize]));
                    Ok(())
                })?,
            }
        }
        Ok(())
    }

    /// Differences in blocks, each with its smallest one and a width for every part of it (Parquet
    /// format, "Encodings": DELTA_BINARY_PACKED).
    fn differences(&self, bytes: &[u8], n: usize, out: &mut Vec<O>) -> Result<(), String> {
        let mut bytes = bytes;
        let block = varint(&mut bytes)?;
        let parts = varint(&mut bytes)?;
        let stored = varint(&mut bytes)?;
        let mut sum = zigzag(varint(&mut bytes)?);
        let sizes = (1..=1 << 16).contains(&block) && parts > 0 && block.is_multiple_of(parts);
        if !sizes || !(block / parts).is_multiple_of(GROUP as u64) {
            return Err(format!(
                "has blocks of {block} differences in {parts} parts"
            ));
        }
        if stored != n as u64 {
            return Err(format!("has {stored} items in a page of {n}"));
        }
        let item = |sum: i64| P::from_sum(sum).map(&self.convert);
        let none = || "stores numbers with a fraction as differences".to_owned();
        if n > 0 {
            out.push(item(sum).ok_or_else(none)?);
        }
        let groups = (block / parts) as usize / GROUP;
        let mut left = n.saturating_sub(1);
        while left > 0 {
            let least = zigzag(varint(&mut bytes)?);
            let widths = take(&mut bytes, parts as usize)?;
            for &width in widths {
                if left == 0 {
                    break;
                }
                let part = take(&mut bytes, groups * GROUP / 8 * usize::from(width))?;
                for group in 0..groups {
                    let mut differences = [0; GROUP];
                    unpack_signed(width, part, group, &mut differences)?;
                    let here = left.min(GROUP);
                    for difference in &mut differences {
                        sum = sum.wrapping_add(difference.wrapping_add(least));
                        *difference = sum;
                    }
                    out.extend(differences[..here].iter().filter_map(|&sum| item(sum)));
                    left -= here;
                }
            }
        }
        Ok(())
    }
}

impl<P: Physical, O: Copy + Send, F: Fn(P) -> O + Send> Items<O> for Converted<P, O, F> {
    fn keep_dictionary(&mut self, bytes: &[u8], n: usize) -> Result<(), String> {
        let mut dictionary = Vec::new();
        self.plain(bytes, n, &mut dictionary)?;
        self.dictionary = dictionary;
        Ok(())
    }

    fn read(
        &self,
        encoding: Encoding,
        bytes: &[u8],
        n: usize,
        out: &mut Vec<O>,
    ) -> Result<(), String> {
        match encoding {
            Encoding::PLAIN => self.plain(bytes, n, out),
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => self.indices(bytes, n, out),
            Encoding::DELTA_BINARY_PACKED => self.differences(bytes, n, out),
            other => Err(format!("has a page with the encoding {other}")),
        }
    }
}

/// Unpacks the differences of one group of a part, unsigned as they are stored.
fn unpack_signed(
    width: u8,
    part: &[u8],
    group: usize,
    out: &mut [i64; GROUP],
) -> Result<(), String> {
    let step = GROUP / 8 * usize::from(width);
    let bytes = part.get(group * step..).unwrap_or_default();
    match width {
        0..=32 => {
            let mut numbers = [0; GROUP];
            unpack(u32::from(width), bytes, &mut numbers);
            for (out, number) in out.iter_mut().zip(numbers) {
                *out = i64::from(number);
            }
            Ok(())
        }
        33..=64 => {
            // Rare: only differences of ids that lie far apart are so wide.
            for (place, out) in out.iter_mut().enumerate() {
                let bit = place * usize::from(width);
                let mut word = [0; 16];
                let rest = bytes.get(bit / 8..).ok_or_else(breaks_off)?;
                let taken = rest.len().min(16);
                word[..taken].copy_from_slice(&rest[..taken]);
                let shifted = u128::from_le_bytes(word) >> (bit % 8);
                *out = (shifted & ((1 << width) - 1)) as i64;
            }
            Ok(())
        }
        _ => Err(format!("has differences of {width} bits")),
    }
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

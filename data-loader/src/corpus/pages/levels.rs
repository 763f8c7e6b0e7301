//! From the levels of a page of lists to where its rows begin.

use super::hybrid::{Run, Runs, breaks_off, unpack_all};

/// What the definition levels of a column of lists mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// The level of an item.
    pub(super) item: u32,
    /// The level of a list without items.
    pub(super) empty: u32,
}

impl Shape {
    fn width(self) -> u32 {
        u32::BITS - self.item.leading_zeros()
    }
}

/// The levels of a page, as it stores them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels<'a> {
    pub(super) repetition: &'a [u8],
    pub(super) definition: &'a [u8],
    /// Number of each.
    pub(super) entries: usize,
}

/// Appends where the rows that begin in a page begin, counted in items; the first item of the page is
/// item `first`. Returns the number of its items.
///
/// # Errors
/// When levels are missing or say something else than lists of items, or there are more than `most` rows
/// in all.
pub(super) fn rows(
    levels: Levels<'_>,
    shape: Shape,
    first: usize,
    most: usize,
    starts: &mut Vec<usize>,
) -> Result<usize, String> {
    if all_items(levels, shape)? {
        without_gaps(levels, first, most, starts)?;
        return Ok(levels.entries);
    }
    with_gaps(levels, shape, first, most, starts)
}

/// Whether every entry is an item: most pages say so in one run.
fn all_items(levels: Levels<'_>, shape: Shape) -> Result<bool, String> {
    let width = shape.width();
    let mut runs = Runs::new(levels.definition, width, levels.entries);
    while let Some(run) = runs.next()? {
        let same = match run {
            Run::Repeat { value, .. } => value == shape.item,
            Run::Packed { bytes, n } => {
                let mut same = true;
                unpack_all(bytes, width, n, |levels| {
                    same &= levels.iter().all(|&level| level == shape.item);
                    Ok::<_, String>(())
                })?;
                same
            }
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every entry is an item, so a row begins at the place of each 0 among the repetition levels.
fn without_gaps(
    levels: Levels<'_>,
    first: usize,
    most: usize,
    starts: &mut Vec<usize>,
) -> Result<(), String> {
    let mut at = 0;
    let mut runs = Runs::new(levels.repetition, 1, levels.entries);
    while let Some(run) = runs.next()? {
        let begun = starts.len();
        let n = match run {
            Run::Repeat { value: 0, n } => {
                if n > most.saturating_sub(starts.len()) {
                    return Err(too_many(most));
                }
                starts.extend(first + at..first + at + n);
                n
            }
            Run::Repeat { value: 1, n } => n,
            Run::Repeat { value, .. } => return Err(no_level(value)),
            Run::Packed { bytes, n } => {
                let ends = (first + at, first + at + n);
                for (byte, &bits) in bytes.iter().enumerate() {
                    let mut zeros = !bits;
                    while zeros != 0 {
                        let start = ends.0 + byte * 8 + zeros.trailing_zeros() as usize;
                        if start < ends.1 {
                            starts.push(start);
                        }
                        zeros &= zeros - 1;
                    }
                }
                n
            }
        };
        if starts.first().is_none_or(|&start| start > 0) {
            return Err(no_begin());
        }
        if starts.len() > most && starts.len() > begun {
            return Err(too_many(most));
        }
        at += n;
    }
    Ok(())
}

/// Entry by entry: some are empty lists.
fn with_gaps(
    levels: Levels<'_>,
    shape: Shape,
    first: usize,
    most: usize,
    starts: &mut Vec<usize>,
) -> Result<usize, String> {
    let repetition = expand(levels.repetition, 1, levels.entries)?;
    let definition = expand(levels.definition, shape.width(), levels.entries)?;
    let mut items = 0;
    for (&repetition, &definition) in repetition.iter().zip(&definition) {
        let (begins, item) = (repetition == 0, definition == shape.item);
        if repetition > 1 {
            return Err(no_level(repetition));
        }
        let empty = begins && definition == shape.empty;
        if !(item || empty) {
            return Err("has missing entries".into());
        }
        if begins {
            if starts.len() == most {
                return Err(too_many(most));
            }
            starts.push(first + items);
        } else if starts.is_empty() {
            return Err(no_begin());
        }
        items += usize::from(item);
    }
    Ok(items)
}

fn expand(bytes: &[u8], width: u32, entries: usize) -> Result<Vec<u32>, String> {
    let mut levels = Vec::new();
    let mut runs = Runs::new(bytes, width, entries);
    while let Some(run) = runs.next()? {
        match run {
            Run::Repeat { value, n } => levels.extend(std::iter::repeat_n(value, n)),
            Run::Packed { bytes, n } => unpack_all(bytes, width, n, |part| {
                levels.extend_from_slice(part);
                Ok::<_, String>(())
            })?,
        }
    }
    if levels.len() == entries {
        Ok(levels)
    } else {
        Err(breaks_off())
    }
}

fn no_level(level: u32) -> String {
    format!("has the repetition level {level}, expected 0 or 1")
}

fn no_begin() -> String {
    "does not begin with the first entry of a row".into()
}

fn too_many(most: usize) -> String {
    format!("has more than {most} rows")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { item: 3, empty: 1 };

    fn of(
        repetition: &[u8],
        definition: &[u8],
        entries: usize,
    ) -> Result<(usize, Vec<usize>), String> {
        let mut starts = Vec::new();
        let levels = Levels {
            repetition,
            definition,
            entries,
        };
        rows(levels, SHAPE, 0, 5, &mut starts).map(|items| (items, starts))
    }

    #[test]
    fn rows_begin_at_zeros() {
        // Definition: six times 3. Repetition: 0 1 1 0 0 1.
        assert_eq!(
            of(&[3, 0b0010_0110], &[12, 3], 6).unwrap(),
            (6, vec![0, 3, 4])
        );
        // As runs: 0, then four times 1.
        assert_eq!(of(&[2, 0, 8, 1], &[10, 3], 5).unwrap(), (5, vec![0]));
    }

    #[test]
    fn empty_lists_begin_and_end_at_once() {
        // Repetition 0 1 0 0 1, definition 3 3 1 3 3.
        let found = of(&[3, 0b0001_0010], &[4, 3, 2, 1, 4, 3], 5).unwrap();
        assert_eq!(found, (4, vec![0, 2, 2]));
    }

    #[test]
    fn nonsense_is_refused() {
        let error =
            |repetition: &[u8], definition: &[u8], n| of(repetition, definition, n).unwrap_err();
        assert!(
            error(&[4, 1], &[4, 3], 2).contains("begin"),
            "a row goes on from nowhere"
        );
        assert!(
            error(&[2, 0, 2, 0], &[4, 2], 2).contains("missing"),
            "an item is missing"
        );
        assert!(
            error(&[4, 0], &[4, 0], 2).contains("missing"),
            "a list is missing"
        );
        assert!(error(&[12, 0], &[12, 3], 6).contains("more than 5 rows"));
        assert!(error(&[12, 0], &[4, 1, 8, 3], 6).contains("more than 5 rows"));
        assert!(error(&[4, 0], &[12, 3], 6).contains("breaks off"));
        assert!(error(&[12, 2], &[12, 3], 6).contains("level 2"));
    }
}

//! Numbers of a fixed width in bits: bit-packed, and in the hybrid of runs and bit-packed groups that
//! Parquet uses for levels and for indices into a dictionary (Parquet format, "Encodings": RLE).

/// Numbers unpacked at a time.
pub(super) const GROUP: usize = 32;
/// An unaligned load of 8 bytes may begin at the last byte of a group of the widest numbers.
const ROOM: usize = GROUP * 4 + 8;

/// A stretch of equal numbers, or of packed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run<'a> {
    /// `n` times the same number.
    Repeat { value: u32, n: usize },
    /// `n` numbers, the lowest bits of the first byte first.
    Packed { bytes: &'a [u8], n: usize },
}

/// The runs in some bytes.
#[derive(Debug, Clone)]
pub(super) struct Runs<'a> {
    bytes: &'a [u8],
    width: u32,
    left: usize,
}

impl<'a> Runs<'a> {
    /// `n` numbers of `width` bits, 32 at most.
    pub(super) fn new(bytes: &'a [u8], width: u32, n: usize) -> Self {
        Self {
            bytes,
            width,
            left: n,
        }
    }

    /// The next run, no longer than what is left of the `n` numbers; `None` behind them.
    ///
    /// # Errors
    /// When the bytes end before the numbers do.
    pub(super) fn next(&mut self) -> Result<Option<Run<'a>>, String> {
        if self.left == 0 {
            return Ok(None);
        }
        let header = varint(&mut self.bytes)?;
        let count = usize::try_from(header >> 1).unwrap_or(usize::MAX);
        let run = if header & 1 == 0 {
            let bytes = take(&mut self.bytes, self.width.div_ceil(8) as usize)?;
            let mut value = [0; 4];
            value[..bytes.len()].copy_from_slice(bytes);
            Run::Repeat {
                value: u32::from_le_bytes(value),
                n: count.min(self.left),
            }
        } else {
            // Whole groups of 8; what pads the last one may be missing.
            let n = count.saturating_mul(8).min(self.left);
            let stored = count.saturating_mul(self.width as usize);
            let stored = stored.min(self.bytes.len());
            let bytes = take(&mut self.bytes, stored)?;
            if bytes.len() * 8 < n * self.width as usize {
                return Err(breaks_off());
            }
            Run::Packed { bytes, n }
        };
        match run {
            Run::Repeat { n, .. } | Run::Packed { n, .. } if n > 0 => self.left -= n,
            _ => return Err("has an empty run of numbers".into()),
        }
        Ok(Some(run))
    }
}

/// Hands packed numbers to `each`, [`GROUP`] at a time; the last ones are fewer.
pub(super) fn unpack_all<E>(
    bytes: &[u8],
    width: u32,
    n: usize,
    mut each: impl FnMut(&[u32]) -> Result<(), E>,
) -> Result<(), E> {
    let mut numbers = [0; GROUP];
    let step = GROUP / 8 * width as usize;
    let mut left = n;
    let mut at = 0;
    while left > 0 {
        unpack(width, bytes.get(at..).unwrap_or_default(), &mut numbers);
        let here = left.min(GROUP);
        each(&numbers[..here])?;
        left -= here;
        at += step;
    }
    Ok(())
}

/// Unpacks [`GROUP`] numbers of at most 32 bits; those beyond the bytes are 0.
pub(super) fn unpack(width: u32, bytes: &[u8], out: &mut [u32; GROUP]) {
    let mut padded = [0; ROOM];
    let taken = bytes.len().min(GROUP / 8 * width as usize);
    padded[..taken].copy_from_slice(&bytes[..taken]);
    macro_rules! of_width {
        ($($w:literal)*) => {
            match width {
                $($w => unpack_of::<$w>(&padded, out),)*
                _ => out.fill(0),
            }
        };
    }
    of_width!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);
}

/// With the width known, all places are, and the loop becomes a load, a shift and a mask for each number.
fn unpack_of<const WIDTH: usize>(bytes: &[u8; ROOM], out: &mut [u32; GROUP]) {
    let mask = (1_u64 << WIDTH) - 1;
    for (place, number) in out.iter_mut().enumerate() {
        let bit = place * WIDTH;
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[bit / 8..bit / 8 + 8]);
        *number = (u64::from_le_bytes(word) >> (bit % 8) & mask) as u32;
    }
}

/// Takes a number of 7 bits a byte off the front, the lowest ones first.
///
/// # Errors
/// When the bytes end inside of it, or it has more than 64 bits.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0;
    for place in 0..10 {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 127) << (7 * place);
        if byte < 128 {
            return Ok(number);
        }
    }
    Err("has a number of more than 64 bits".into())
}

/// Takes bytes off the front.
///
/// # Errors
/// When there are not so many.
pub(super) fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8], String> {
    let (front, rest) = bytes.split_at_checked(n).ok_or_else(breaks_off)?;
    *bytes = rest;
    Ok(front)
}

pub(super) fn breaks_off() -> String {
    "has a page that breaks off".into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packs numbers bit by bit.
    fn pack(numbers: &[u32], width: u32) -> Vec<u8> {
        let mut bytes = vec![0; (numbers.len() * width as usize).div_ceil(8)];
        for (place, number) in numbers.iter().enumerate() {
            for bit in 0..width as usize {
                let at = place * width as usize + bit;
                bytes[at / 8] |= ((number >> bit & 1) as u8) << (at % 8);
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn packed_numbers_come_back(width in 1_u32..33, numbers in prop::collection::vec(any::<u32>(), 1..200)) {
            let numbers: Vec<u32> = numbers.iter().map(|n| (u64::from(*n) & ((1 << width) - 1)) as u32).collect();
            let bytes = pack(&numbers, width);
            let mut found = Vec::new();
            unpack_all(&bytes, width, numbers.len(), |part| {
                found.extend_from_slice(part);
                Ok::<_, String>(())
            }).unwrap();
            prop_assert_eq!(found, numbers);
        }

        #[test]
        fn any_bytes_give_so_many_numbers_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..60), width in 0_u32..33, n in 0_usize..500) {
            let mut runs = Runs::new(&bytes, width, n);
            let mut found = 0;
            loop {
                match runs.next() {
                    Ok(Some(Run::Repeat { n, .. } | Run::Packed { n, .. })) => found += n,
                    Ok(None) => { prop_assert_eq!(found, n); break; }
                    Err(_) => break,
                }
            }
        }
    }

    #[test]
    fn runs_are_as_the_format_says() {
        // The example of the format's description: 0 to 7 with three bits.
        let bytes = [3, 0b1000_1000, 0b1100_0110, 0b1111_1010, 20, 5];
        let mut runs = Runs::new(&bytes, 3, 18);
        let packed = runs.next().unwrap().unwrap();
        let Run::Packed { bytes, n: 8 } = packed else {
            panic!("{packed:?}")
        };
        let mut numbers = [0; GROUP];
        unpack(3, bytes, &mut numbers);
        assert_eq!(numbers[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(runs.next().unwrap(), Some(Run::Repeat { value: 5, n: 10 }));
        assert_eq!(runs.next().unwrap(), None);
        assert!(Runs::new(&[20], 3, 18).next().is_err());
        assert!(Runs::new(&[0, 5], 3, 18).next().is_err());
    }
}

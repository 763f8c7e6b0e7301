//! Which cores the ranks of a host may use, and how they share them.

/// The processors that one process may run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuMask(Vec<u8>);

/// Processors that a mask can name: as many as the C library's own.
const PROCESSORS: usize = libc::CPU_SETSIZE as usize;
/// Bytes of a mask between ranks.
pub(crate) const MASK_BYTES: usize = PROCESSORS / 8;

impl CpuMask {
    /// The affinity mask of this process; that of a single processor where the system does not tell.
    pub fn of_this_process() -> Self {
        // SAFETY: a zeroed set is a valid, empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is as large as said and lives through the call.
        let status = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
        let allowed = |cpu: usize| {
            // SAFETY: `cpu` is below the size of the set.
            status == 0 && unsafe { libc::CPU_ISSET(cpu, &set) }
        };
        let cpus: Vec<usize> = (0..PROCESSORS).filter(|&cpu| allowed(cpu)).collect();
        Self::of(if cpus.is_empty() { &[0] } else { &cpus })
    }

    /// The mask of these processors.
    pub fn of(cpus: &[usize]) -> Self {
        let mut bytes = vec![0; MASK_BYTES];
        for &cpu in cpus.iter().filter(|&&cpu| cpu < PROCESSORS) {
            bytes[cpu / 8] |= 1 << (cpu % 8);
        }
        Self(bytes)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many processors it names.
    pub fn count(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    fn has(&self, cpu: usize) -> bool {
        self.0[cpu / 8] & (1 << (cpu % 8)) != 0
    }
}

/// The cores of a rank, from the masks of all ranks of its host: its own ones whole, those that it
/// shares in equal parts, rounded down; at least one.
pub fn share(masks: &[CpuMask], local_rank: usize) -> usize {
    let own = &masks[local_rank];
    let parts = (0..PROCESSORS).filter(|&cpu| own.has(cpu)).map(|cpu| {
        let users = masks.iter().filter(|mask| mask.has(cpu)).count();
        1.0 / users as f64
    });
    // A third three times must be one.
    let sum = parts.sum::<f64>() + 1e-9;
    (sum as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_divided_where_ranks_share_them_and_whole_where_they_do_not() {
        let all = CpuMask::of(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let unbound = vec![all.clone(), all.clone()];
        assert_eq!(share(&unbound, 0), 4);
        let three = vec![CpuMask::of(&[0, 1, 2]); 3];
        assert_eq!(share(&three, 2), 1);
        assert_eq!(share(&vec![CpuMask::of(&[0, 1]); 5], 4), 1);
        let bound = vec![CpuMask::of(&[0, 1, 2, 3]), CpuMask::of(&[4, 5, 6, 7])];
        assert_eq!([share(&bound, 0), share(&bound, 1)], [4, 4]);
        let mixed = vec![all, CpuMask::of(&[0, 1])];
        assert_eq!([share(&mixed, 0), share(&mixed, 1)], [7, 1]);
    }

    #[test]
    fn a_mask_survives_as_bytes_and_this_process_has_one() {
        let own = CpuMask::of_this_process();
        assert!(own.count() >= 1);
        assert_eq!(CpuMask::from_bytes(own.bytes()), own);
        assert_eq!(CpuMask::of(&[0, 9, 1023]).count(), 3);
    }
}

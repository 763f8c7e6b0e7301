//! How many ranks `mpirun` starts here without being told to oversubscribe.
//!
//! Open MPI counts physical cores that the process may run on, not hardware threads, so
//! `available_parallelism` is the wrong number on machines with SMT.

use std::collections::BTreeSet;
use std::path::Path;

/// Physical cores that this process may use; hardware threads where the kernel does not tell cores
/// apart; at least 1.
pub fn usable() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let Some(allowed) = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            parse_list(line.trim())
        })
    else {
        return threads;
    };
    physical(Path::new("/sys/devices/system/cpu"), &allowed).unwrap_or(threads)
}

/// Distinct (package, core) pairs among the `allowed` processors of a sysfs tree.
fn physical(sysfs: &Path, allowed: &[usize]) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for cpu in allowed {
        let topology = sysfs.join(format!("cpu{cpu}/topology"));
        let read = |name: &str| std::fs::read_to_string(topology.join(name)).ok();
        cores.insert((read("physical_package_id")?, read("core_id")?));
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Parses the kernel's list format: `0-3,8,10-11`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_format_is_understood() {
        assert_eq!(parse_list("0-3,8,10-11"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        assert_eq!(parse_list("0-x"), None);
        assert_eq!(parse_list(""), None);
    }

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        let sysfs = tempfile::tempdir().unwrap();
        for (cpu, package, core) in [(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1), (4, 1, 0)] {
            let topology = sysfs.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("physical_package_id"), format!("{package}\n")).unwrap();
            std::fs::write(topology.join("core_id"), format!("{core}\n")).unwrap();
        }
        assert_eq!(physical(sysfs.path(), &[0, 1, 2, 3]), Some(2));
        assert_eq!(physical(sysfs.path(), &[0, 2]), Some(1));
        assert_eq!(physical(sysfs.path(), &[0, 1, 2, 3, 4]), Some(3));
        assert_eq!(
            physical(sysfs.path(), &[9]),
            None,
            "a processor that is not described"
        );
        assert_eq!(physical(sysfs.path(), &[]), None);
    }

    #[test]
    fn this_machine_has_at_least_one_core_and_not_more_than_processors() {
        let configured = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
        let processors = parse_list(configured.trim()).unwrap().len();
        assert!(
            (1..=processors).contains(&usable()),
            "{} of {processors}",
            usable()
        );
    }
}

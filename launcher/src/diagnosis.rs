//! Why a rank failed, as far as its end and its last lines tell.

use scpeft_protocol::exit;
use scpeft_protocol::heartbeat::Bye;

/// What words in the last lines mean; the first that fits counts.
const SIGNS: &[(&[&str], &str)] = &[
    (
        &["CUDA out of memory", "CUDA error: out of memory"],
        "the GPU ran out of memory: lower `train.micro_batch_cells` or set `run.recompute`",
    ),
    (&["No space left on device"], "a disk is full"),
    (
        &["no CUDA", "no NVIDIA driver", "CUDA driver", "no GPU"],
        "a GPU that the run needs is missing or out of reach",
    ),
    (
        &[
            "bad_alloc",
            "Cannot allocate memory",
            "memory allocation of",
        ],
        "the machine ran out of memory",
    ),
];

/// The likely cause of a rank's end in a few words; `None` where nothing is known beyond the code.
pub fn likely_cause(bye: &Bye) -> Option<&'static str> {
    if bye.out_of_memory {
        return Some("the kernel killed it for want of memory");
    }
    let said = |signs: &[&str]| {
        bye.last_lines
            .iter()
            .any(|line| signs.iter().any(|sign| line.contains(sign)))
    };
    if let Some((_, cause)) = SIGNS.iter().find(|(signs, _)| said(signs)) {
        return Some(cause);
    }
    match (bye.signal, bye.code) {
        (Some(libc::SIGKILL), _) => {
            Some("killed from outside, or by the kernel for want of memory: `dmesg` tells")
        }
        (Some(libc::SIGSEGV | libc::SIGABRT | libc::SIGILL | libc::SIGFPE), _) => {
            Some("a defect of the program or of a library, please report it")
        }
        (Some(libc::SIGBUS), _) => Some("a file it had mapped was cut short, or a disk is full"),
        (None, exit::CONFIG) => Some("the configuration or the command line"),
        (None, exit::DATA) => Some("the corpus or an input file"),
        (None, exit::WEIGHTS) => Some("backbone or adapter files"),
        (None, exit::HANG) => Some("another rank, or the network between them"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(signal: Option<i32>, code: i32, line: &str) -> Option<&'static str> {
        likely_cause(&Bye {
            code,
            signal,
            last_lines: vec![line.into()],
            ..Bye::default()
        })
    }

    #[test]
    fn what_the_last_lines_say_comes_before_what_the_code_says() {
        let gpu = "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB";
        assert!(
            cause(None, 1, gpu)
                .unwrap()
                .contains("GPU ran out of memory")
        );
        assert!(
            cause(None, 3, "write: No space left on device")
                .unwrap()
                .contains("disk is full")
        );
        assert!(
            cause(Some(6), 134, "std::bad_alloc")
                .unwrap()
                .contains("out of memory")
        );
        assert!(cause(None, 3, "").unwrap().contains("corpus"));
        assert!(
            cause(Some(libc::SIGSEGV), 139, "")
                .unwrap()
                .contains("report")
        );
        assert_eq!(cause(None, 1, "something"), None);
    }

    #[test]
    fn a_kill_by_the_kernel_is_told_from_one_by_hand() {
        let mut bye = Bye {
            code: 137,
            signal: Some(libc::SIGKILL),
            ..Bye::default()
        };
        assert!(likely_cause(&bye).unwrap().contains("from outside"));
        bye.out_of_memory = true;
        assert!(likely_cause(&bye).unwrap().contains("the kernel killed it"));
    }
}

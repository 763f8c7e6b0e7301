//! Agreement of the ranks where one of them may fail alone.

use scpeft_collective::Collective;
use scpeft_protocol::exit;

use crate::failure::{Failure, Result};

/// Lets all ranks succeed or fail together: when any rank brings a failure, every rank returns
/// one, and rank 0's names the ranks that failed and why.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// When any rank brought one.
pub fn agree<T>(world: &dyn Collective, result: Result<T>) -> Result<T> {
    let mut failed = [if result.is_err() { 1.0 } else { 0.0 }];
    world.all_reduce_sum_f64(&mut failed)?;
    if failed[0] == 0.0 {
        return result;
    }
    let own = match &result {
        Ok(_) => Vec::new(),
        Err(failure) => [&failure.code.to_le_bytes()[..], failure.message.as_bytes()].concat(),
    };
    let gathered = world.gather(&own)?;
    let combined = match gathered {
        Some(all) => combine(&all),
        None => Failure::new(0, ""),
    };
    // Every rank ends with the same code, whatever its own part was.
    let code = world.broadcast(combined.code.to_le_bytes().to_vec())?;
    let code = code.try_into().map_or(exit::INTERNAL, i32::from_le_bytes);
    Err(Failure::new(code, combined.message))
}

/// One failure out of those of all ranks; the same message from all ranks is said once.
fn combine(all: &[Vec<u8>]) -> Failure {
    let failures: Vec<(usize, Failure)> = all
        .iter()
        .enumerate()
        .filter_map(|(rank, bytes)| {
            let (code, message) = bytes.split_first_chunk::<4>()?;
            let message = String::from_utf8_lossy(message).into_owned();
            Some((rank, Failure::new(i32::from_le_bytes(*code), message)))
        })
        .collect();
    let Some((_, first)) = failures.first() else {
        return Failure::new(exit::INTERNAL, "a rank failed without saying why");
    };
    if failures.len() == all.len() && failures.iter().all(|(_, f)| f == first) {
        return first.clone();
    }
    let lines: Vec<String> = failures
        .iter()
        .map(|(rank, f)| format!("rank {rank}: {}", f.message))
        .collect();
    Failure::new(first.code, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_collective::Single;

    fn encode(code: i32, message: &str) -> Vec<u8> {
        [&code.to_le_bytes()[..], message.as_bytes()].concat()
    }

    #[test]
    fn a_shared_failure_is_said_once_and_a_lone_one_names_its_rank() {
        assert_eq!(
            combine(&[encode(3, "x"), encode(3, "x")]),
            Failure::new(3, "x")
        );
        assert_eq!(
            combine(&[vec![], encode(4, "y")]),
            Failure::new(4, "rank 1: y")
        );
    }

    #[test]
    fn success_passes_through() {
        assert_eq!(agree(&Single, Ok(5)).unwrap(), 5);
        assert_eq!(
            agree::<u8>(&Single, Err(Failure::config("z"))),
            Err(Failure::config("z"))
        );
    }
}

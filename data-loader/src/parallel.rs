//! Work on numbered items by several threads, with results in the order of the items.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::unbounded;

use crate::{Error, Result};

/// Threads to use when nothing else is said: as many as the machine has for this process.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for each of 0..`items` on `threads` threads and hands the results to `consume` in order, on
/// the calling thread. At most two results a thread wait, so that memory is bounded.
pub(crate) fn in_order<T: Send>(
    threads: usize,
    items: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
    mut consume: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    if threads <= 1 {
        return (0..items).try_for_each(|item| consume(item, work(item)?));
    }
    let (jobs, queue) = unbounded::<usize>();
    let (results, done) = unbounded::<(usize, Result<T>)>();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items) {
            let (queue, results, work) = (queue.clone(), results.clone(), &work);
            scope.spawn(move || {
                for item in queue {
                    let result = catch_unwind(AssertUnwindSafe(|| work(item)))
                        .unwrap_or_else(|_| Err(Error::internal("a thread panicked")));
                    if results.send((item, result)).is_err() {
                        return;
                    }
                }
            });
        }
        // Moved in, so that the queue ends with the first error and the threads with it.
        let (jobs, done) = (jobs, done);
        let mut issued = 0;
        let mut ready = BTreeMap::new();
        for item in 0..items {
            while issued < items.min(item + 2 * threads) {
                // The queue has receivers as long as this function holds one.
                let _ = jobs.send(issued);
                issued += 1;
            }
            let result = loop {
                if let Some(result) = ready.remove(&item) {
                    break result;
                }
                let (finished, result) = done
                    .recv()
                    .map_err(|_| Error::internal("all threads are gone"))?;
                ready.insert(finished, result);
            };
            if let Err(error) = result.and_then(|result| consume(item, result)) {
                // What is queued is not worth doing any more.
                while queue.try_recv().is_ok() {}
                return Err(error);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for threads in [1, 2, 7] {
            let mut seen = Vec::new();
            let slow_first = |item: usize| {
                std::thread::sleep(std::time::Duration::from_millis(5 - (item as u64).min(5)));
                Ok(item * 3)
            };
            in_order(threads, 20, slow_first, |item, result| {
                seen.push((item, result));
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, (0..20).map(|i| (i, 3 * i)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_it_and_a_panic_is_an_error() {
        for threads in [2, 3] {
            let mut consumed = 0;
            let work = |item: usize| match item {
                5 => Err(Error::internal("five")),
                9 => panic!("nine"),
                _ => Ok(()),
            };
            let error = in_order(threads, 1000, work, |_, ()| {
                consumed += 1;
                Ok(())
            });
            assert!(error.unwrap_err().to_string().contains("five"));
            assert_eq!(consumed, 5);
            let error = in_order(
                threads,
                4,
                |_| -> Result<()> { panic!("now") },
                |_, ()| Ok(()),
            );
            assert!(error.unwrap_err().to_string().contains("panicked"));
        }
    }
}

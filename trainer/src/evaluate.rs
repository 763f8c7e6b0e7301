//! Evaluation over a split, reduced over ranks.

use scpeft_collective::Collective;
use scpeft_data::Loader;
use scpeft_model::backbone::Model;

use crate::failure::Result;
use crate::shard;
use crate::task::{Evaluation, Staging, Task};
use crate::watch::Watch;

/// Evaluates `model` on every cell of `loader`.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// When reading, tokenising or libtorch fails, or there was nothing to evaluate.
pub fn evaluate(
    world: &dyn Collective,
    model: &dyn Model,
    task: &dyn Task,
    loader: &Loader,
    staging: &Staging,
    watch: &Watch,
) -> Result<Evaluation> {
    let mut sums = vec![0.0; task.evaluation_len()];
    for step in loader.epoch(0, 0) {
        let micro_batches = step?.micro;
        let own = micro_batches.len();
        let passes = shard::passes(world, model, own)?;
        for micro in &micro_batches {
            let batch = staging.stage(micro)?;
            tch::no_grad(|| task.evaluate(model, &batch, &mut sums))?;
            watch.beat();
        }
        shard::join_evaluation(passes, model, own)?;
    }
    world.all_reduce_sum_f64(&mut sums)?;
    task.finish(&sums)
}

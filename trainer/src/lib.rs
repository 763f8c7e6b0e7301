//! The training loop: step, optimizer, schedule, evaluation, prediction, metrics.

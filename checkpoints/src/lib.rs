//! Weights on disk: published checkpoints, adapter files in the HF PEFT layout, atomic run checkpoints.

//! Backbones, adapters, heads and losses on libtorch.

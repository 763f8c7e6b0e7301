//! Sums over ranks: one narrow trait, and its single-process and MPI implementations.

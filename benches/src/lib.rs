//! Benches of the hot paths: `make bench`. Results with machine and command go to `reports/`.

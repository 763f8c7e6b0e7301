//! Starts the ranks of a run and relays what became of them.

//! From files of cells to token batches: corpus format, importers, sample order, tokenisers, batching, prefetch.

//! The typed TOML configuration of a run: schema, defaults, merge with origins, validation.

//! The typed TOML configuration of a run: schema, defaults, merge with origins, validation.
//!
//! The crate is pure: text and overrides come in as arguments, and only [`load`] reads a file.
//! Every key has a default, a file value or an override (`--set key=value`), in this order of
//! precedence, and [`Resolved`] remembers which one won. All mistakes are reported at once, each
//! with the file and line, what was expected and, for misspelt names, the nearest known one.
//!
//! ```
//! let text = r#"
//! [run]
//! dir = "runs/first"
//! [data]
//! corpus = "corpus"
//! label = "cell_type"
//! [backbone]
//! path = "scgpt-human"
//! [adapter]
//! kind = "lora"
//! "#;
//! let file = Some((std::path::Path::new("first.toml"), text));
//! let resolved = scpeft_config::resolve(file, &["train.lr=3e-4".to_owned()]).unwrap();
//! assert_eq!(resolved.config.train.lr, 3e-4);
//! assert_eq!(resolved.config.run.name, "first");
//! ```

mod error;
mod field;
mod render;
mod resolve;
mod schema;
mod validate;

pub use error::{At, ConfigError, ConfigErrors};
pub use resolve::{Origin, Resolved, load, manual, resolve};
pub use schema::{
    AdapterKind, AdapterKinds, AdapterSection, Architecture, BackboneSection, BinScale, CellLayer,
    CellStyle, CheckpointSection, ClassWeights, Config, Corrupt, DataSection, DeviceChoice,
    EmbeddingNorm, FreezeRule, GeneKey, Init, KeyMax, LayerRule, Layers, LogSection,
    MetricsSection, MvcStyle, Optimizer, Placement, Precision, RunSection, Sampler, Schedule,
    Select, Shape, Shard, SinkKind, Storage, Target, TargetDepth, TaskKind, TaskSection,
    TrainSection, Trainable, Transport, ValueStyle, Vocab, WatchdogSection,
};

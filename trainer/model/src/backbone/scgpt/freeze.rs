use crate::params::{Role, TensorSpec};

/// What a model is trained for, as far as the freeze rule goes (scPEFT): adapters always train, and
/// with them the heads, and for perturbations the value encoder, of the purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Cell-type identification, within and across species.
    Identification,
    /// Batch correction.
    BatchCorrection,
    /// Masked expression without labels, for the discovery of cell populations.
    Population,
    /// Response to perturbations.
    Perturbation,
}

impl Purpose {
    /// First parts of the names of what trains beside the adapters.
    pub fn trained(self) -> &'static [&'static str] {
        match self {
            Self::Identification => &["cls_decoder."],
            Self::BatchCorrection => &[
                "decoder.",
                "mvc_decoder.",
                "grad_reverse_discriminator.",
                "batch_encoder.",
            ],
            Self::Population => &["decoder.", "mvc_decoder."],
            Self::Perturbation => &["decoder.", "value_encoder.", "pert_encoder."],
        }
    }

    /// Whether the tensor called `name` trains beside the adapters.
    pub fn trains(self, name: &str) -> bool {
        self.trained().iter().any(|start| name.starts_with(start))
    }

    /// The freeze rule of adapter training; `unfrozen` are the names from
    /// [`super::Blueprint::unfreezes`].
    pub fn adapts(self, spec: &TensorSpec, unfrozen: &[String]) -> bool {
        match spec.role {
            Role::Buffer => false,
            Role::Adapter => true,
            Role::Backbone | Role::Head => self.trains(&spec.name) || unfrozen.contains(&spec.name),
        }
    }
}

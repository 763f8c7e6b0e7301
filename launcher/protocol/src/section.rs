//! The named sections of a run. A rank is always in exactly one of them.

macro_rules! sections {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal),* $(,)?) => {
        /// What a rank is doing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Section { $($(#[doc = $doc])+ $variant),* }

        impl Section {
            /// Every section.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in configuration, logs and messages.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

sections! {
    /// Everything before the first step: corpus, weights, resumption.
    Setup = "setup",
    /// Waiting for the loader.
    Data = "data",
    /// Forward and backward.
    Forward = "forward",
    /// Inside a collective, waiting for other ranks included.
    Collective = "collective",
    /// Clipping, update, and the log of the step.
    Optimizer = "optimizer",
    /// Evaluation.
    Eval = "eval",
    /// Saving, and the end of the run.
    Checkpoint = "checkpoint",
}

impl Section {
    /// The section at this place of [`Section::ALL`].
    pub fn at(index: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_found_at_its_own_place() {
        for &section in Section::ALL {
            assert_eq!(Section::at(section as u64), Some(section));
        }
        assert_eq!(Section::at(Section::ALL.len() as u64), None);
    }
}

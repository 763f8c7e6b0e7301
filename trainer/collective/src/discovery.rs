//! Which launcher started this process, and as one of how many ranks, from its environment alone.

use crate::{Error, Result};

/// How this process was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// On its own.
    Alone,
    /// As one of several ranks that MPI connects.
    Ranks {
        /// What started them, in words.
        by: &'static str,
        /// How many there are, where the environment says so.
        ranks: Option<usize>,
    },
}

/// Reads the environment: first what MPI launchers set, then what Slurm sets without MPI.
///
/// # Errors
/// When several processes were started that nothing connects: each would take itself for the whole run.
pub(crate) fn started(variable: impl Fn(&str) -> Option<String>) -> Result<Start> {
    let number = |name| variable(name).and_then(|text| text.parse::<usize>().ok());
    let tasks = number("SLURM_STEP_NUM_TASKS");
    let found = [
        (
            "Open MPI's mpirun",
            "OMPI_COMM_WORLD_RANK",
            number("OMPI_COMM_WORLD_SIZE"),
        ),
        ("a PMIx launcher", "PMIX_RANK", tasks),
        ("a PMI launcher", "PMI_RANK", number("PMI_SIZE")),
        ("Intel's mpirun", "MPI_LOCALRANKID", None),
    ];
    for (by, sign, ranks) in found {
        if variable(sign).is_some() {
            return Ok(Start::Ranks { by, ranks });
        }
    }
    // A batch script and an interactive shell are steps of one task, or no steps at all.
    match tasks {
        Some(ranks) if ranks > 1 => Err(Error::Unconnected { ranks }),
        _ => Ok(Start::Alone),
    }
}

/// Compares what the launcher started with what MPI connected.
///
/// # Errors
/// When they differ: then the launcher belongs to another MPI than this program.
pub(crate) fn agree(by: &'static str, started: Option<usize>, connected: usize) -> Result<()> {
    match started {
        Some(started) if started != connected => Err(Error::WrongWorld {
            by,
            started,
            connected,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &[(&str, &str)]) -> Result<Start> {
        started(|name| {
            let found = environment.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_launcher_is_known_by_its_variables() {
        let ranks = |by, ranks| Start::Ranks { by, ranks };
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("PMIX_RANK", "0"),
            // mpirun within an allocation: its daemons are the step's tasks, one a node.
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        assert_eq!(of(&mpirun).unwrap(), ranks("Open MPI's mpirun", Some(4)));
        let srun = [("PMIX_RANK", "1"), ("SLURM_STEP_NUM_TASKS", "8")];
        assert_eq!(of(&srun).unwrap(), ranks("a PMIx launcher", Some(8)));
        assert_eq!(
            of(&[("PMIX_RANK", "1")]).unwrap(),
            ranks("a PMIx launcher", None)
        );
        let pmi = [("PMI_RANK", "0"), ("PMI_SIZE", "2")];
        assert_eq!(of(&pmi).unwrap(), ranks("a PMI launcher", Some(2)));
        assert_eq!(
            of(&[("MPI_LOCALRANKID", "0")]).unwrap(),
            ranks("Intel's mpirun", None)
        );
    }

    #[test]
    fn a_process_of_an_allocation_is_alone_unless_it_has_siblings() {
        assert_eq!(of(&[]).unwrap(), Start::Alone);
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        assert_eq!(of(&batch).unwrap(), Start::Alone);
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "1")]).unwrap(), Start::Alone);
        let error = of(&[("SLURM_STEP_NUM_TASKS", "4")]).unwrap_err();
        assert!(matches!(error, Error::Unconnected { ranks: 4 }));
        assert!(error.to_string().contains("srun --mpi=pmix"), "{error}");
    }

    #[test]
    fn a_launcher_of_another_mpi_is_noticed() {
        assert!(agree("mpirun", Some(4), 4).is_ok());
        assert!(agree("mpirun", None, 1).is_ok());
        let text = agree("mpirun", Some(4), 1).unwrap_err().to_string();
        assert!(
            text.contains("mpirun started 4 ranks, MPI connects 1"),
            "{text}"
        );
    }
}

//! The sbatch script of a job.

use super::{Job, RESTARTS, RenderError, shell};
use clap::Args;
use std::fmt::Write as _;

/// What only Slurm needs to know.
#[derive(Debug, Clone, Args)]
pub struct Slurm {
    /// The job.
    #[command(flatten)]
    pub job: Job,

    /// The partition [default: the cluster's]
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,

    /// The account that is charged [default: the user's]
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
}

/// How the script waits for the launcher and what it makes of its exit code.
const WAIT: &str = r#"launcher=$!

# A request reaches this script alone; the launcher tells the ranks, which save and leave.
asked=
trap 'asked=1; kill -USR1 "$launcher" 2>/dev/null' USR1 TERM
while :; do
    wait "$launcher"
    status=$?
    if [ -z "$asked" ]; then break; fi
    asked=
done
"#;

const REQUEUE: &str = r#"
requeue() {
    # What ends this start must end this script too.
    trap - USR1 TERM
    echo "scpeft: exit code $status, queued again (start $((${SLURM_RESTART_COUNT:-0} + 2)))"
    scontrol requeue "$SLURM_JOB_ID" && exec sleep 60
    exit "$status"
}

# A request to stop is always followed by another start, lost communication by so many.
case $status in
    85) requeue ;;
"#;

/// Writes the script. Without a command, what follows the script on the command line of `sbatch` goes
/// to `scpeft-train`.
///
/// # Errors
/// When an option has a value that Slurm does not take.
pub fn render(slurm: &Slurm) -> Result<String, RenderError> {
    let job = &slurm.job;
    job.check()?;
    job.walltime_secs()?;
    for (option, name) in [
        ("--partition", &slurm.partition),
        ("--account", &slurm.account),
    ] {
        if let Some(name) = name {
            check_word(option, name)?;
        }
    }
    let mut text = header(slurm);
    text.push_str(
        "\nset -uo pipefail\n\n\
         # Since Slurm 22.05 a step does not take over the cores of the job by itself.\n\
         export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}\n\n",
    );
    let (mut command, trains) = job.program();
    let mut after = "";
    if command.is_empty() {
        command.push(crate::training::PROGRAM.to_owned());
    }
    if trains || job.command.is_empty() {
        // Starts anew where there is no checkpoint.
        after = " --resume";
    }
    let options = shell(&job.launch_options());
    let command = shell(&command);
    let _ = write!(
        text,
        "\"${{SCPEFT_LAUNCH:-scpeft-launch}}\" {options} -- {command} \"$@\"{after} &\n{WAIT}"
    );
    if !job.no_requeue {
        let _ = write!(
            text,
            "{REQUEUE}    75) if [ \"${{SLURM_RESTART_COUNT:-0}}\" -lt \
             \"${{SCPEFT_RESTARTS_MAX:-{RESTARTS}}}\" ]; then requeue; fi ;;\nesac\n"
        );
    }
    text.push_str("exit \"$status\"\n");
    Ok(text)
}

/// The first lines: what the script is, and the options for `sbatch`.
fn header(slurm: &Slurm) -> String {
    let job = &slurm.job;
    let mut text = String::from(
        "#!/usr/bin/env bash\n\
         # A run of scpeft that survives the time limit and preemption, for `sbatch`. Written by\n\
         # `scpeft-launch slurm --render`. Every option below can be given to sbatch instead; what\n\
         # follows the script is added to the command. Several nodes need the run directory, the\n\
         # corpus and the backbone on a shared file system.\n#\n",
    );
    let mut options = vec![
        format!("job-name={}", job.name),
        format!("nodes={}", job.nodes),
        format!("ntasks={}", job.ranks),
    ];
    if job.nodes > 1 {
        options.push(format!("ntasks-per-node={}", job.ranks_per_node()));
    }
    options.push(format!("cpus-per-task={}", job.cpus));
    if job.gpus > 0 {
        options.push(format!("gpus-per-task={}", job.gpus));
    }
    if let Some(memory) = job.memory_gib {
        options.push(format!(
            "mem={}G",
            u64::from(memory) * u64::from(job.ranks_per_node())
        ));
    }
    options.push(format!(
        "time={}",
        job.walltime.as_deref().unwrap_or("04:00:00")
    ));
    options.extend(
        slurm
            .partition
            .iter()
            .map(|name| format!("partition={name}")),
    );
    options.extend(slurm.account.iter().map(|name| format!("account={name}")));
    options.push("output=%x-%j.out".to_owned());
    options.push("open-mode=append".to_owned());
    options.push(
        if job.no_requeue {
            "no-requeue"
        } else {
            "requeue"
        }
        .to_owned(),
    );
    for option in options {
        let _ = writeln!(text, "#SBATCH --{option}");
    }
    // A minute more than the ranks have to save.
    let _ = writeln!(
        text,
        "# The notice before the end goes to this script (`B:`), which passes it on.\n\
         #SBATCH --signal=B:USR1@{}",
        job.grace_secs + 60
    );
    text
}

/// What a line of options for `sbatch` takes unquoted.
fn check_word(option: &'static str, word: &str) -> Result<(), RenderError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(plain) {
        return Ok(());
    }
    Err(RenderError::Value {
        option,
        found: word.to_owned(),
        expected: "letters, digits, `-`, `_`, `.` and `,`",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::job;

    fn slurm(command: &[&str]) -> Slurm {
        Slurm {
            job: job(command),
            partition: None,
            account: None,
        }
    }

    fn options(text: &str) -> Vec<&str> {
        text.lines()
            .filter_map(|line| line.strip_prefix("#SBATCH --"))
            .collect()
    }

    #[test]
    fn the_options_of_a_job_become_those_of_sbatch() {
        let mut asked = slurm(&["--config", "run.toml"]);
        asked.partition = Some("gpu,long".into());
        asked.account = Some("lab_7".into());
        let job = &mut asked.job;
        (job.ranks, job.nodes, job.cpus, job.gpus) = (8, 2, 6, 1);
        (job.memory_gib, job.walltime) = (Some(24), Some("2-00:00:00".into()));
        (job.grace_secs, job.max_restarts) = (300, Some(7));
        let text = render(&asked).unwrap();
        let expected = [
            "job-name=scpeft",
            "nodes=2",
            "ntasks=8",
            "ntasks-per-node=4",
            "cpus-per-task=6",
            "gpus-per-task=1",
            "mem=96G",
            "time=2-00:00:00",
            "partition=gpu,long",
            "account=lab_7",
            "output=%x-%j.out",
            "open-mode=append",
            "requeue",
            "signal=B:USR1@360",
        ];
        assert_eq!(options(&text), expected);
        let line = "\"${SCPEFT_LAUNCH:-scpeft-launch}\" --grace-secs 300 --max-restarts 7 -- \
                    scpeft-train --config run.toml \"$@\" --resume &\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("    85) requeue ;;\n    75) if [ "), "{text}");
    }

    #[test]
    fn without_requeue_the_exit_code_is_the_jobs() {
        let mut asked = slurm(&["--config", "run.toml", "--resume"]);
        asked.job.no_requeue = true;
        let text = render(&asked).unwrap();
        assert!(options(&text).contains(&"no-requeue"), "{text}");
        assert!(!text.contains("scontrol"), "{text}");
        assert!(text.ends_with("done\nexit \"$status\"\n"), "{text}");
        assert_eq!(text.matches("--resume").count(), 1, "{text}");
    }

    #[test]
    fn other_programs_are_not_resumed() {
        let text = render(&slurm(&["predict", "--run", "r"])).unwrap();
        assert!(
            text.contains(" -- scpeft-train predict --run r \"$@\" &\n"),
            "{text}"
        );
    }

    #[test]
    fn a_shell_reads_every_word_as_it_was_given() {
        let words = [
            "it's",
            "a b",
            "$(touch x)",
            "`id`",
            "",
            "\n#SBATCH --x",
            "*",
            "é",
            "a\\",
        ];
        let mut command = vec!["printf", "[%s]"];
        command.extend(words);
        let text = render(&slurm(&command)).unwrap();
        // The launcher is replaced by what runs everything behind `--`.
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join("fake");
        std::fs::write(
            &fake,
            "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n\"$@\"\n",
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&fake, mode).unwrap();
        std::fs::write(folder.path().join("job"), &text).unwrap();
        let out = std::process::Command::new("bash")
            .arg("job")
            .arg("more words")
            .current_dir(folder.path())
            .env("SCPEFT_LAUNCH", &fake)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let expected: Vec<String> = words
            .iter()
            .chain(&["more words"])
            .map(|w| format!("[{w}]"))
            .collect();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), expected.concat());
        assert!(!folder.path().join("x").exists());
    }

    #[test]
    fn a_name_cannot_add_a_line() {
        for name in ["a b", "", "-p", "x\n#SBATCH --uid=0", "$(id)"] {
            let mut asked = slurm(&[]);
            asked.partition = Some(name.into());
            let error = render(&asked).unwrap_err().to_string();
            assert!(error.starts_with("`--partition`: found `"), "{error}");
        }
    }

    #[test]
    fn the_example_is_what_is_written_without_any_option() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/slurm/train.sbatch");
        let example = std::fs::read_to_string(example).unwrap();
        assert_eq!(render(&slurm(&[])).unwrap(), example);
    }
}

//! What the run is expected to need, for the page: asked of `scpeft-train plan`, beside the run and
//! after it in everything, and kept in `plan.json`.

use super::files;
use crate::command::{Request, Surroundings, find_program};
use crate::training::values;
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// A plan that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_mins(5);
/// A longer answer is no plan.
const BYTES_MAX: u64 = 1 << 20;
/// How much less important than the ranks it is.
const NICENESS: i32 = 15;

/// The command line that plans a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planner {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Planner {
    /// That of a training run; `None` where its program is not found.
    pub fn of(request: &Request, around: &Surroundings) -> Option<Self> {
        let (program, given) = request.command.split_first()?;
        let mut arguments: Vec<OsString> = ["plan", "--json", "--world"].map(Into::into).into();
        arguments.push(request.ranks.to_string().into());
        if let Some(slots) = request.hosts.iter().map(|host| host.slots).max() {
            arguments.extend(["--ranks-per-node".into(), slots.to_string().into()]);
        }
        if let Some(config) = values(given, "--config").pop() {
            arguments.extend(["--config".into(), config.into()]);
        }
        for set in values(given, "--set") {
            arguments.extend(["--set".into(), set.into()]);
        }
        Some(Self {
            program: find_program(program, around).ok()?,
            arguments,
        })
    }

    /// Plans and keeps the plan. A run that cannot be planned has none.
    pub(super) async fn keep(self, run_dir: PathBuf) {
        let Ok(Some(plan)) = timeout(PATIENCE, self.plan()).await else {
            return;
        };
        // The ranks make the directory too.
        let _ = std::fs::create_dir_all(&run_dir);
        let _ = write(&run_dir, &plan);
    }

    async fn plan(&self) -> Option<String> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // SAFETY: nice and prctl are plain system calls, safe between fork and exec. The thread that
        // spawns is that of the page, which lives as long as somebody wants the plan.
        unsafe {
            command.pre_exec(|| {
                libc::nice(NICENESS);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().ok()?;
        let mut said = String::new();
        let mut stdout = child.stdout.take()?.take(BYTES_MAX);
        stdout.read_to_string(&mut said).await.ok()?;
        let status = child.wait().await.ok()?;
        let plan: Value = serde_json::from_str(&said).ok()?;
        (status.success() && plan.is_object()).then_some(said)
    }
}

fn write(run_dir: &Path, plan: &str) -> std::io::Result<()> {
    files::write(run_dir, files::PLAN, plan, 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Via;
    use crate::hosts::Host;
    use std::os::unix::fs::PermissionsExt as _;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    fn planner(folder: &Path, script: &str) -> Planner {
        let program = folder.join("scpeft-train");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let command = format!(
            "{} run --config=f.toml --resume --set a.b=1",
            program.display()
        );
        let host = |name: &str, slots| Host {
            name: name.into(),
            slots,
        };
        let request = Request {
            ranks: 6,
            hosts: vec![host("a", 2), host("b", 4)],
            via: Via::Mpirun,
            guard: None,
            mpirun: None,
            command: words(&command),
        };
        Planner::of(&request, &Surroundings::of_this_process()).unwrap()
    }

    #[test]
    fn a_plan_is_asked_for_with_the_settings_of_the_run_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let keep = |script: &str| {
            let run = folder.path().join("run");
            runtime.block_on(planner(folder.path(), script).keep(run.clone()));
            std::fs::read_to_string(run.join("plan.json")).ok()
        };
        for nothing in ["exit 2", "echo '{}'; exit 2", "echo nonsense", "echo 3"] {
            assert_eq!(keep(nothing), None, "{nothing}");
        }
        let kept = keep("echo \"{\\\"words\\\": \\\"$*\\\"}\"").unwrap();
        let expected = "plan --json --world 6 --ranks-per-node 4 --config f.toml --set a.b=1";
        assert_eq!(kept.trim(), format!("{{\"words\": \"{expected}\"}}"));
    }
}

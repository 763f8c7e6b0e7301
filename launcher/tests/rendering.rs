//! `scpeft-launch slurm|kubernetes --render`: what is written satisfies the schemas of Kubernetes and
//! of the operators, holds every word as it was given, and is refused where it would not.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also in its helpers, a panic is the report"
)]

use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn launch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scpeft-launch"))
        .args(arguments)
        .output()
        .unwrap()
}

fn rendered(arguments: &[&str]) -> String {
    let output = launch(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The objects of a text of manifests, or what the schemas have against it.
fn checked(manifests: &str) -> Result<Vec<Value>, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../.venv/bin/python");
    assert!(python.exists(), "no `.venv`: run `make setup-test` first");
    let mut child = Command::new(python)
        .arg(here.join("tests/manifests.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(manifests.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    Err(text(&output.stderr))
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .map(|o| o["kind"].as_str().unwrap())
        .collect()
}

const KUBERNETES: [&str; 4] = [
    "kubernetes",
    "--render",
    "--image",
    "registry.example.org/scpeft:0.1.0",
];

#[test]
fn manifests_of_every_kind_satisfy_the_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("f.toml");
    let toml = "[run]\ndir = \"/data/é\\u0007 \"\n[data]\ncorpus = \"c\"\nlabel = \"l: #\"\n\
                [backbone]\npath = \"b\"\n[adapter]\nkind = \"lora\"\n";
    std::fs::write(&config, toml).unwrap();
    let config = config.to_str().unwrap();
    let all = [
        "-n",
        "8",
        "--gpus",
        "1",
        "--cpus",
        "6",
        "--memory-gib",
        "24",
        "--walltime",
        "1-00:00:00",
        "--name",
        "lung-lora",
        "--namespace",
        "lab",
        "--claim",
        "lung",
        "--mount",
        "/mnt/lung",
        "--max-restarts",
        "7",
        "--no-requeue",
        "--config",
        config,
    ];
    for (kind, nodes, expected) in [
        ("mpijob", "1", &["ConfigMap", "MPIJob", "PodMonitor"][..]),
        ("mpijob", "4", &["ConfigMap", "MPIJob", "PodMonitor"]),
        ("indexed-job", "1", &["ConfigMap", "Job", "PodMonitor"]),
        (
            "indexed-job",
            "4",
            &["ConfigMap", "Service", "Job", "PodMonitor"],
        ),
    ] {
        let manifests =
            rendered(&[&KUBERNETES[..], &["--kind", kind, "--nodes", nodes], &all].concat());
        let objects = checked(&manifests).unwrap_or_else(|e| panic!("{e}\n{manifests}"));
        assert_eq!(kinds(&objects), expected, "{kind} on {nodes}");
        assert_eq!(objects[0]["data"]["run.toml"], toml);
        for object in &objects {
            assert_eq!(object["metadata"]["namespace"], "lab");
        }
    }
}

#[test]
fn pods_are_bounded_and_have_no_privileges() {
    for kind in ["mpijob", "indexed-job"] {
        let more = [
            "--kind",
            kind,
            "-n",
            "4",
            "--nodes",
            "2",
            "--grace-secs",
            "300",
            "--",
            "-x",
        ];
        let objects = checked(&rendered(&[&KUBERNETES[..], &more].concat())).unwrap();
        let mut pods = Vec::new();
        for object in &objects {
            pods.extend(object["spec"].get("template").cloned());
            let replicas = object["spec"]["mpiReplicaSpecs"].as_object();
            pods.extend(
                replicas
                    .into_iter()
                    .flat_map(|r| r.values())
                    .map(|r| r["template"].clone()),
            );
        }
        assert_eq!(pods.len(), if kind == "mpijob" { 2 } else { 1 });
        for pod in pods {
            let spec = &pod["spec"];
            assert_eq!(spec["terminationGracePeriodSeconds"], 360);
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
            assert_eq!(spec["automountServiceAccountToken"], false);
            let container = &spec["containers"][0];
            assert_eq!(
                container["securityContext"]["allowPrivilegeEscalation"],
                false
            );
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            assert_eq!(
                container["securityContext"]["capabilities"]["drop"][0],
                "ALL"
            );
            for limit in ["cpu", "memory"] {
                assert!(
                    !container["resources"]["limits"][limit].is_null(),
                    "{kind}: {limit}"
                );
            }
        }
    }
}

#[test]
fn words_reach_the_manifest_unchanged_but_for_kubernetes_dollars() {
    let words = [
        "a: b",
        "- c",
        "\"'\\",
        "*x",
        "${HOME} $(POD_IP)",
        "",
        "é\n\t#",
        "yes",
        "0x1",
        "|",
    ];
    let manifests = rendered(
        &[
            &KUBERNETES[..],
            &["--kind", "indexed-job", "--", "sh"],
            &words,
        ]
        .concat(),
    );
    let objects = checked(&manifests).unwrap();
    let args = &objects[0]["spec"]["template"]["spec"]["containers"][0]["args"];
    let args: Vec<&str> = args
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap())
        .collect();
    let expected: Vec<String> = words.iter().map(|w| w.replace('$', "$$")).collect();
    assert_eq!(args[args.len() - words.len()..], expected);
}

#[test]
fn what_the_schemas_do_not_know_is_refused_by_them() {
    let manifests = rendered(&[&KUBERNETES[..], &["--", "-x"]].concat());
    for (from, to, where_) in [
        ("backoffLimit:", "backofLimit:", "spec/runPolicy"),
        (
            "slotsPerWorker: 2",
            "slotsPerWorker: \"2\"",
            "spec/slotsPerWorker",
        ),
        ("runAsNonRoot: true", "runAsNonRoot: 1", "runAsNonRoot"),
        ("podMetricsEndpoints:", "endpoints:", "PodMonitor: spec"),
        ("interval: \"15s\"", "interval: \"15\"", "interval"),
        ("containerPort: 9464", "containerPort: x", "containerPort"),
    ] {
        assert!(manifests.contains(from), "{from}");
        let error = checked(&manifests.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(where_), "{from}: {error}");
    }
}

#[test]
fn scripts_for_slurm_are_shell_and_refusals_have_code_2() {
    let script = rendered(&[
        "slurm", "--render", "-n", "8", "--nodes", "2", "--", "--config", "a b.toml",
    ]);
    assert!(script.contains("#SBATCH --ntasks-per-node=4\n"), "{script}");
    assert!(
        script.contains("-- scpeft-train --config 'a b.toml' \"$@\" --resume &\n"),
        "{script}"
    );
    let mut bash = Command::new("bash")
        .args(["-n", "-s"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(bash.wait().unwrap().success());
    for (arguments, expected) in [
        (&["slurm", "--", "-x"][..], "--render"),
        (
            &["slurm", "--render", "-n", "3", "--nodes", "2"],
            "make `--ranks` a multiple",
        ),
        (
            &["slurm", "--render", "--walltime", "4h"],
            "expected a time such as",
        ),
        (&["slurm", "--render", "--name", "A"], "`--name`: found `A`"),
        (&["kubernetes", "--render", "--", "-x"], "--image"),
        (
            &["kubernetes", "--render", "--image", "i"],
            "no program to start",
        ),
        (
            &[
                "kubernetes",
                "--render",
                "--image",
                "i",
                "--config",
                "/nonexistent.toml",
            ],
            "/nonexistent.toml",
        ),
    ] {
        let output = launch(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(
            stderr.contains(expected) && output.stdout.is_empty(),
            "{arguments:?}: {stderr}"
        );
    }
}

//! The Dockerfile under `deploy/docker`: a linter accepts it, it holds to the rules that matter, and it
//! is the image that the Kubernetes manifests expect.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also in its helpers, a panic is the report"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn checkout(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(checkout(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The linter's complaints about a Dockerfile.
fn lint(text: &str) -> String {
    let hadolint = checkout(".venv/bin/hadolint");
    assert!(
        hadolint.exists(),
        "no `hadolint`: run `make setup-test` first"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("Dockerfile");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(hadolint)
        .arg("--no-color")
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.success(), output.stdout.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

/// Instructions with their arguments, continued lines joined.
fn instructions(text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text
        .lines()
        .filter(|l| !l.trim_start().starts_with('#'))
        .collect();
    lines
        .join("\n")
        .replace("\\\n", " ")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(word, rest)| {
            (
                word.to_owned(),
                rest.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect()
}

/// What the rules have against a Dockerfile.
fn faults(text: &str) -> Vec<String> {
    let all = instructions(text);
    let of = |wanted: &'static str| {
        all.iter()
            .filter(move |(word, _)| word == wanted)
            .map(|(_, rest)| rest.as_str())
    };
    let mut faults = Vec::new();
    for argument in of("ARG") {
        if let Some((name, image)) = argument.split_once('=')
            && name.ends_with("_IMAGE")
        {
            let tag = image.split_once(':').map_or("", |(_, tag)| tag);
            if tag.matches('.').count() == 0 || !tag.starts_with(|c: char| c.is_ascii_digit()) {
                faults.push(format!("`{image}` has no version"));
            }
        }
    }
    for image in of("FROM") {
        if !image.starts_with("${") {
            faults.push(format!("`{image}` cannot be pinned from outside"));
        }
    }
    for run in of("RUN") {
        let installs = run.contains("apt-get install") || run.contains("system.sh");
        if installs && !run.contains("rm -rf /var/lib/apt/lists/*") {
            faults.push("package lists are left behind".to_owned());
        }
    }
    let last = all.iter().rposition(|(word, _)| word == "FROM").unwrap();
    let user = all[last..].iter().rev().find(|(word, _)| word == "USER");
    match user.map(|(_, user)| user.split(':').next().unwrap_or_default().parse::<u32>()) {
        Some(Ok(id)) if id > 0 => {}
        _ => faults.push("the image does not run as an ordinary user with a number".to_owned()),
    }
    faults
}

#[test]
fn the_dockerfile_passes_the_linter_and_the_rules() {
    let text = read("deploy/docker/Dockerfile");
    assert_eq!(lint(&text), "");
    assert_eq!(faults(&text), [""; 0]);
    assert_eq!(text.matches("hadolint ignore").count(), 1);
}

#[test]
fn linter_and_rules_see_what_they_are_there_for() {
    let text = read("deploy/docker/Dockerfile");
    for (from, to, expected) in [
        ("debian:12.12-slim", "debian:latest", "has no version"),
        ("USER 1000:1000", "USER scpeft", "ordinary user"),
        ("USER 1000:1000\n", "", "ordinary user"),
        (
            "system.sh && rm -rf /var/lib/apt/lists/*",
            "system.sh",
            "package lists",
        ),
        (
            "FROM ${BASE_IMAGE}",
            "FROM debian:12.12-slim",
            "pinned from outside",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let found = faults(&text.replacen(from, to, 1));
        assert!(
            found.iter().any(|f| f.contains(expected)),
            "{from}: {found:?}"
        );
    }
    for (from, to, rule) in [
        ("FROM ${BASE_IMAGE}", "FROM debian:latest", "DL3007"),
        ("FROM ${BASE_IMAGE}", "FROM debian", "DL3006"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("--no-install-recommends", "", "DL3015"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
    ] {
        assert!(text.contains(from), "{from}");
        let found = lint(&text.replacen(from, to, 1));
        assert!(found.contains(rule), "{from}: {found}");
    }
}

#[test]
fn the_image_is_what_the_manifests_expect() {
    let image = read("deploy/docker/Dockerfile");
    let sshd = read("deploy/docker/sshd_config");
    for name in ["mpijob", "indexed-job"] {
        let manifest = read(&format!("deploy/kubernetes/{name}.yaml"));
        for expected in [
            "runAsUser: 1000\n",
            "/home/scpeft/.sshd_config",
            "/usr/sbin/sshd",
        ] {
            assert!(manifest.contains(expected), "{name}: {expected}");
        }
        assert!(manifest.contains("containerPort: 2222\n"), "{name}");
    }
    assert!(
        read("deploy/kubernetes/mpijob.yaml").contains("sshAuthMountPath: /home/scpeft/.ssh\n")
    );
    assert!(image.contains("useradd --uid 1000 "), "{image}");
    assert!(image.contains("COPY deploy/docker/sshd_config /home/scpeft/.sshd_config\n"));
    for line in [
        "Port 2222",
        "HostKey /home/scpeft/.ssh/id_rsa",
        "PasswordAuthentication no",
    ] {
        assert!(sshd.lines().any(|l| l == line), "{line}");
    }
    assert!(read("deploy/docker/ssh_config").contains("    Port 2222\n"));
}

#[test]
fn what_is_copied_exists_and_nothing_else_goes_into_the_build() {
    let ignored = read(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(
        lines.next(),
        Some("*"),
        "everything is left out that is not named"
    );
    let kept: Vec<&str> = lines.filter_map(|line| line.strip_prefix('!')).collect();
    for name in &kept {
        assert!(checkout(name).exists(), "{name}");
    }
    for (_, sources) in instructions(&read("deploy/docker/Dockerfile"))
        .iter()
        .filter(|(w, _)| w == "COPY")
    {
        let source = sources.split(' ').next().unwrap();
        if source == "." || source.starts_with("--from") {
            continue;
        }
        assert!(checkout(source).exists(), "{source}");
        assert!(
            kept.iter().any(|k| source.starts_with(k)),
            "`{source}` is in .dockerignore"
        );
    }
    let cargo = read("Cargo.toml");
    let members = cargo
        .split("members = [")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let root = member.split('/').next().unwrap();
        assert!(kept.contains(&root), "the workspace needs `{root}`");
    }
}

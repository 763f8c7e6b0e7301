//! Kubernetes manifests of a job: an MPIJob of the MPI operator, or a plain Indexed Job.
//!
//! Pods run as an ordinary user with a read-only root file system. A stop request (SIGTERM to a pod)
//! becomes SIGUSR1 for the ranks, which save and leave with 85 within the termination grace period.

mod pod;

use self::pod::{CONFIG_FOLDER, HOME, Part, SSH_PORT, container, pod};
use super::{Job, RESTARTS, RenderError, check_name, yaml};
use clap::{Args, ValueEnum};
use scpeft_protocol::exit;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// What fits into a ConfigMap, with room to spare.
const CONFIG_BYTES_MAX: usize = 512 * 1024;

/// Which kind of object runs the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// An MPIJob (kubeflow.org/v2beta1): needs the MPI operator, starts the ranks over ssh.
    Mpijob,
    /// An Indexed Job (batch/v1): needs nothing, several machines find each other over ssh.
    IndexedJob,
}

/// What only Kubernetes needs to know.
#[derive(Debug, Clone, Args)]
pub struct Kubernetes {
    /// The job.
    #[command(flatten)]
    pub job: Job,

    /// The kind of object that runs the job
    #[arg(long, value_enum, value_name = "KIND", default_value = "mpijob")]
    pub kind: Kind,

    /// The image, best with a digest
    #[arg(long, value_name = "IMAGE")]
    pub image: String,

    /// The namespace [default: that of kubectl]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// The persistent volume claim with corpus, backbone and run directory; all pods mount it
    #[arg(long, value_name = "NAME", default_value = "scpeft-data")]
    pub claim: String,

    /// Where the pods find it; also their current folder
    #[arg(long, value_name = "DIR", default_value = "/data")]
    pub mount: String,

    /// A configuration of this machine to take along; the ranks are started with it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Reads and checks the configuration to take along, if there is one, and writes the manifests.
///
/// # Errors
/// As [`render`]; when the configuration cannot be read or is wrong; when nothing trains with it.
pub fn with_config(asked: &Kubernetes) -> Result<String, RenderError> {
    let Some(file) = &asked.config else {
        return render(asked, None);
    };
    let refuse = |reason: String| RenderError::Config {
        file: file.clone(),
        reason,
    };
    if !asked.job.command.is_empty() && !asked.job.program().1 {
        return Err(refuse("the command does not train".into()));
    }
    scpeft_config::load(file, &[]).map_err(|error| refuse(error.to_string()))?;
    let text = std::fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    if text.len() > CONFIG_BYTES_MAX {
        return Err(refuse(format!("more than {CONFIG_BYTES_MAX} bytes")));
    }
    render(asked, Some(&text))
}

/// Writes the manifests. `config` is the text of the configuration to take along.
///
/// # Errors
/// When an option has a value that Kubernetes does not take, or there is nothing to run.
pub fn render(asked: &Kubernetes, config: Option<&str>) -> Result<String, RenderError> {
    let job = &asked.job;
    job.check()?;
    check(asked)?;
    if job.command.is_empty() && config.is_none() {
        return Err(RenderError::NoCommand);
    }
    let mut objects = Vec::new();
    if let Some(text) = config {
        let mut map = object(asked, "v1", "ConfigMap");
        map.insert("data".into(), json!({"run.toml": text}));
        objects.push(map);
    }
    match asked.kind {
        Kind::Mpijob => {
            let mut map = object(asked, "kubeflow.org/v2beta1", "MPIJob");
            map.insert("spec".into(), mpi_job(asked)?);
            objects.push(map);
        }
        Kind::IndexedJob => {
            if job.nodes > 1 {
                let mut map = object(asked, "v1", "Service");
                map.insert("spec".into(), service(asked));
                objects.push(map);
            }
            let mut map = object(asked, "batch/v1", "Job");
            map.insert("spec".into(), indexed_job(asked)?);
            objects.push(map);
        }
    }
    let mut map = object(asked, "monitoring.coreos.com/v1", "PodMonitor");
    map.insert("spec".into(), pod_monitor(asked));
    objects.push(map);
    let documents: Vec<String> = objects
        .into_iter()
        .map(|map| format!("---\n{}", yaml::document(&Value::Object(map))))
        .collect();
    Ok(format!("{}{}", heading(asked), documents.concat()))
}

fn heading(asked: &Kubernetes) -> String {
    let mut text = String::from(
        "# A run of scpeft, for `kubectl apply -f`. Written by `scpeft-launch kubernetes --render`.\n",
    );
    if asked.kind == Kind::IndexedJob && asked.job.nodes > 1 {
        let name = &asked.job.name;
        let _ = write!(
            text,
            "# It needs a key with which the pods reach each other:\n\
             #   ssh-keygen -q -t ed25519 -N '' -f key\n\
             #   kubectl create secret generic {name}-ssh --from-file=id_rsa=key \\\n\
             #     --from-file=id_rsa.pub=key.pub --from-file=authorized_keys=key.pub\n"
        );
    }
    text
}

fn check(asked: &Kubernetes) -> Result<(), RenderError> {
    if let Some(name) = &asked.namespace {
        check_name("--namespace", name)?;
    }
    check_name("--claim", &asked.claim)?;
    let graphic = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !graphic(&asked.image) || asked.image.starts_with('-') {
        return Err(RenderError::Value {
            option: "--image",
            found: asked.image.clone(),
            expected: "the name of an image, without blanks",
        });
    }
    let path = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let mount = &asked.mount;
    if mount.len() < 2
        || !mount.starts_with('/')
        || !mount.chars().all(path)
        || mount.contains("..")
    {
        return Err(RenderError::Value {
            option: "--mount",
            found: mount.clone(),
            expected: "an absolute folder of letters, digits, `-`, `_` and `.`",
        });
    }
    Ok(())
}

fn labels(asked: &Kubernetes) -> Value {
    json!({"app.kubernetes.io/name": "scpeft", "app.kubernetes.io/instance": asked.job.name})
}

/// An object of a kind, with its name.
fn object(asked: &Kubernetes, version: &str, kind: &str) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("name".into(), asked.job.name.clone().into());
    if let Some(namespace) = &asked.namespace {
        metadata.insert("namespace".into(), namespace.clone().into());
    }
    metadata.insert("labels".into(), labels(asked));
    let mut map = Map::new();
    map.insert("apiVersion".into(), version.into());
    map.insert("kind".into(), kind.into());
    map.insert("metadata".into(), metadata.into());
    map
}

fn mpi_job(asked: &Kubernetes) -> Result<Value, RenderError> {
    let job = &asked.job;
    let replica = |replicas: u32, part: Part, container: Value| {
        json!({
            "replicas": replicas,
            "restartPolicy": "Never",
            "template": {"metadata": {"labels": labels(asked)}, "spec": pod(asked, part, container)},
        })
    };
    let launcher = container(asked, Part::Launcher, launch_words(asked));
    let sshd = format!("{HOME}/.sshd_config");
    let words = ["/usr/sbin/sshd", "-De", "-f", &sshd].map(str::to_owned);
    let worker = container(asked, Part::Worker, words.to_vec());
    Ok(json!({
        "slotsPerWorker": job.ranks_per_node(),
        "launcherCreationPolicy": "WaitForWorkersReady",
        "sshAuthMountPath": format!("{HOME}/.ssh"),
        "mpiImplementation": "OpenMPI",
        "runPolicy": limits(job, "cleanPodPolicy", "Running".into())?,
        "mpiReplicaSpecs": {
            "Launcher": replica(1, Part::Launcher, launcher),
            "Worker": replica(job.nodes, Part::Worker, worker),
        },
    }))
}

/// How long a job may take and how often it is started, beside a first entry.
fn limits(job: &Job, key: &str, value: Value) -> Result<Map<String, Value>, RenderError> {
    let mut map = Map::new();
    map.insert(key.into(), value);
    let restarts = if job.no_requeue { 0 } else { RESTARTS };
    map.insert("backoffLimit".into(), restarts.into());
    if let Some(seconds) = job.walltime_secs()? {
        map.insert("activeDeadlineSeconds".into(), seconds.into());
    }
    Ok(map)
}

fn indexed_job(asked: &Kubernetes) -> Result<Value, RenderError> {
    let job = &asked.job;
    let words = if job.nodes == 1 {
        launch_words(asked)
    } else {
        let mut words = ["/bin/sh", "-c"].map(str::to_owned).to_vec();
        words.extend([literal(&rendezvous(job)), "sh".to_owned()]);
        words.extend(launch_words(asked));
        words
    };
    let container = container(asked, Part::Both, words);
    let mut spec = limits(job, "completionMode", "Indexed".into())?;
    spec.insert("completions".into(), job.nodes.into());
    spec.insert("parallelism".into(), job.nodes.into());
    if job.nodes > 1 {
        // The others only wait: the run is done when the launcher's pod is.
        let rule = json!([{"succeededIndexes": "0"}]);
        spec.insert("successPolicy".into(), json!({"rules": rule}));
    }
    let final_codes = [exit::CONFIG, exit::DATA, exit::WEIGHTS, exit::NON_FINITE];
    spec.insert(
        "podFailurePolicy".into(),
        json!({"rules": [
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": final_codes}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]}),
    );
    let template =
        json!({"metadata": {"labels": labels(asked)}, "spec": pod(asked, Part::Both, container)});
    spec.insert("template".into(), template);
    Ok(spec.into())
}

/// The program of a pod of several: index 0 waits until the others answer and starts the launcher.
fn rendezvous(job: &Job) -> String {
    let name = &job.name;
    let others: Vec<String> = (1..job.nodes)
        .map(|i| format!("{name}-{i}.{name}"))
        .collect();
    format!(
        "if [ \"$JOB_COMPLETION_INDEX\" != 0 ]; then\n  \
           exec /usr/sbin/sshd -De -f {HOME}/.sshd_config\n\
         fi\n\
         for host in {}; do\n  \
           tries=0\n  \
           until ssh -o ConnectTimeout=2 \"$host\" true 2>/dev/null; do\n    \
             tries=$((tries + 1))\n    \
             if [ $tries = 300 ]; then echo \"$host does not answer\" >&2; exit {}; fi\n    \
             sleep 1\n  \
           done\n\
         done\n\
         exec \"$@\"\n",
        others.join(" "),
        exit::HANG
    )
}

/// The words that start the launcher.
fn launch_words(asked: &Kubernetes) -> Vec<String> {
    let job = &asked.job;
    let mut words = vec![
        "scpeft-launch".to_owned(),
        "--ranks".into(),
        job.ranks.to_string(),
    ];
    let name = &job.name;
    match asked.kind {
        Kind::Mpijob => words.extend(["--hostfile".to_owned(), "/etc/mpi/hostfile".to_owned()]),
        Kind::IndexedJob if job.nodes > 1 => {
            let slots = job.ranks_per_node();
            let host = |i| format!("{name}-{i}.{name}:{slots}");
            let hosts: Vec<String> = (0..job.nodes).map(host).collect();
            words.extend(["--hosts".to_owned(), hosts.join(",")]);
        }
        Kind::IndexedJob => {}
    }
    if asked.kind == Kind::Mpijob || job.nodes > 1 {
        words.extend(["--advertise".to_owned(), POD_IP.to_owned()]);
    }
    words.extend(job.launch_options());
    words.push("--".to_owned());
    let (mut command, trains) = job.program();
    if asked.config.is_some() {
        if command.is_empty() {
            command.push(crate::training::PROGRAM.to_owned());
        }
        command.extend(["--config".to_owned(), format!("{CONFIG_FOLDER}/run.toml")]);
    }
    if trains || job.command.is_empty() {
        // Prometheus is in another pod; `--resume` starts anew where there is no checkpoint.
        command.extend(["--set", "metrics.bind=0.0.0.0", "--resume"].map(str::to_owned));
    }
    words.extend(command.iter().map(|word| literal(word)));
    words
}

/// What Kubernetes replaces by the address of the pod.
const POD_IP: &str = "$(POD_IP)";

/// A word of `command` or `args` in which Kubernetes shall replace nothing: it takes `$(NAME)` for a
/// variable and `$$` for a dollar.
fn literal(word: &str) -> String {
    word.replace('$', "$$")
}

/// Names for the pods of a job of several.
fn service(asked: &Kubernetes) -> Value {
    json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": labels(asked),
        "ports": [{"name": "ssh", "port": SSH_PORT}],
    })
}

/// Where Prometheus finds the ranks, with the labels `run` and `rank` that our rules need.
fn pod_monitor(asked: &Kubernetes) -> Value {
    let job = &asked.job;
    let per_pod = job.ranks_per_node();
    let (index, mut selector) = match asked.kind {
        Kind::Mpijob => (
            "__meta_kubernetes_pod_label_training_kubeflow_org_replica_index",
            json!({"training.kubeflow.org/job-role": "worker"}),
        ),
        Kind::IndexedJob => (
            "__meta_kubernetes_pod_annotation_batch_kubernetes_io_job_completion_index",
            json!({}),
        ),
    };
    if let (Some(all), Some(more)) = (labels(asked).as_object(), selector.as_object_mut()) {
        more.extend(all.clone());
    }
    let endpoint = |local: u32| {
        let mut rules = vec![json!({"targetLabel": "run", "replacement": job.name})];
        rules.extend((0..job.nodes).map(|node| {
            json!({
                "sourceLabels": [index],
                "regex": node.to_string(),
                "targetLabel": "rank",
                "replacement": (node * per_pod + local).to_string(),
            })
        }));
        json!({"port": format!("metrics-{local}"), "interval": "15s", "relabelings": rules})
    };
    let endpoints: Vec<Value> = (0..per_pod).map(endpoint).collect();
    json!({"selector": {"matchLabels": selector}, "podMetricsEndpoints": endpoints})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::job;

    fn asked(kind: Kind, command: &[&str]) -> Kubernetes {
        Kubernetes {
            job: job(command),
            kind,
            image: "registry.example.org/scpeft:0.1.0".into(),
            namespace: None,
            claim: "scpeft-data".into(),
            mount: "/data".into(),
            config: None,
        }
    }

    /// What `deploy/kubernetes` shows: two machines with a GPU for each of their two ranks.
    fn example(kind: Kind) -> Kubernetes {
        let mut asked = asked(kind, &["--config", "/data/run.toml"]);
        (asked.job.ranks, asked.job.nodes, asked.job.gpus) = (4, 2, 1);
        asked
    }

    #[test]
    fn the_examples_are_what_is_written() {
        for (kind, name) in [(Kind::Mpijob, "mpijob"), (Kind::IndexedJob, "indexed-job")] {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");
            let text = std::fs::read_to_string(format!("{folder}/{name}.yaml")).unwrap();
            assert_eq!(render(&example(kind), None).unwrap(), text, "{name}");
        }
    }

    #[test]
    fn the_launcher_of_an_mpi_job_takes_the_operators_hosts_and_tells_its_address() {
        let words = launch_words(&example(Kind::Mpijob)).join(" ");
        assert_eq!(
            words,
            "scpeft-launch --ranks 4 --hostfile /etc/mpi/hostfile --advertise $(POD_IP) \
             --grace-secs 120 -- scpeft-train --config /data/run.toml \
             --set metrics.bind=0.0.0.0 --resume"
        );
        let spec = mpi_job(&example(Kind::Mpijob)).unwrap();
        assert_eq!(
            (&spec["slotsPerWorker"], &spec["runPolicy"]["backoffLimit"]),
            (&2.into(), &5.into())
        );
        let worker = &spec["mpiReplicaSpecs"]["Worker"];
        assert_eq!(worker["replicas"], 2);
        let pod = &worker["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], 180);
        let limits = &pod["containers"][0]["resources"]["limits"];
        assert_eq!(
            *limits,
            json!({"cpu": 8, "memory": "16Gi", "nvidia.com/gpu": 2})
        );
    }

    #[test]
    fn a_job_of_one_machine_needs_neither_ssh_nor_names() {
        let mut asked = asked(Kind::IndexedJob, &["predict", "--run", "r"]);
        (asked.job.no_requeue, asked.job.walltime) = (true, Some("1-00:00:00".into()));
        let spec = indexed_job(&asked).unwrap();
        let container = &spec["template"]["spec"]["containers"][0];
        assert_eq!(container["command"], json!(["scpeft-launch"]));
        let words = [
            "--ranks",
            "2",
            "--grace-secs",
            "120",
            "--",
            "scpeft-train",
            "predict",
            "--run",
            "r",
        ];
        assert_eq!(container["args"], json!(words));
        assert_eq!(container["ports"].as_array().unwrap().len(), 2);
        assert!(container.get("lifecycle").is_none());
        assert_eq!(
            (&spec["backoffLimit"], &spec["activeDeadlineSeconds"]),
            (&0.into(), &86_400.into())
        );
        let text = render(&asked, None).unwrap();
        assert!(
            !text.contains("kind: Service") && !text.contains("ssh"),
            "{text}"
        );
    }

    #[test]
    fn pods_of_several_machines_find_each_other_and_only_the_first_counts() {
        let spec = indexed_job(&example(Kind::IndexedJob)).unwrap();
        let args = &spec["template"]["spec"]["containers"][0]["args"];
        assert!(
            args[1]
                .as_str()
                .unwrap()
                .contains("for host in scpeft-1.scpeft; do"),
            "{args}"
        );
        assert!(args[1].as_str().unwrap().contains("exec \"$$@\""), "{args}");
        assert_eq!(
            (&args[6], &args[7]),
            (
                &"--hosts".into(),
                &"scpeft-0.scpeft:2,scpeft-1.scpeft:2".into()
            )
        );
        assert_eq!(spec["successPolicy"]["rules"][0]["succeededIndexes"], "0");
        let rules = &spec["podFailurePolicy"]["rules"];
        assert_eq!(rules[0]["onExitCodes"]["values"], json!([2, 3, 4, 86]));
    }

    #[test]
    fn every_rank_is_scraped_under_its_own_number() {
        let spec = pod_monitor(&example(Kind::Mpijob));
        let rank = |local: usize, node: usize| {
            &spec["podMetricsEndpoints"][local]["relabelings"][1 + node]["replacement"]
        };
        assert_eq!(
            [rank(0, 0), rank(1, 0), rank(0, 1), rank(1, 1)],
            ["0", "1", "2", "3"]
        );
        assert_eq!(spec["podMetricsEndpoints"][1]["port"], "metrics-1");
    }

    #[test]
    fn kubernetes_replaces_nothing_in_what_the_user_wrote() {
        let asked = asked(Kind::IndexedJob, &["echo", "$(POD_IP)", "$HOME", "a$$b"]);
        let words = launch_words(&asked);
        assert_eq!(words[words.len() - 3..], ["$$(POD_IP)", "$$HOME", "a$$$$b"]);
    }

    #[test]
    fn a_configuration_goes_along_and_is_checked_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f.toml");
        let good = "[run]\ndir = \"/data/run\"\n[data]\ncorpus = \"c\"\nlabel = \"l\"\n\
                    [backbone]\npath = \"b\"\n[adapter]\nkind = \"lora\"\n";
        std::fs::write(&file, good).unwrap();
        let mut asked = asked(Kind::Mpijob, &[]);
        assert_eq!(render(&asked, None), Err(RenderError::NoCommand));
        asked.config = Some(file.clone());
        let text = with_config(&asked).unwrap();
        assert!(
            text.contains("  run.toml: |\n    [run]\n    dir = \"/data/run\"\n"),
            "{text}"
        );
        assert!(text.contains("- --config\n"), "{text}");
        assert!(text.contains("- /etc/scpeft/run.toml\n"), "{text}");
        asked.job.command = ["predict"].map(Into::into).to_vec();
        let error = with_config(&asked).unwrap_err().to_string();
        assert!(error.contains("the command does not train"), "{error}");
        asked.job.command.clear();
        std::fs::write(&file, good.replace("lora", "lara")).unwrap();
        let error = with_config(&asked).unwrap_err().to_string();
        assert!(
            error.contains("f.toml") && error.contains("lara"),
            "{error}"
        );
    }

    #[test]
    fn what_kubernetes_takes_for_no_name_is_refused() {
        let refused = |change: fn(&mut Kubernetes)| {
            let mut asked = asked(Kind::Mpijob, &["x"]);
            change(&mut asked);
            render(&asked, None).unwrap_err().to_string()
        };
        assert!(refused(|a| a.image = "a b".into()).starts_with("`--image`: found `a b`"));
        assert!(refused(|a| a.image = "a\nb".into()).starts_with("`--image`"));
        assert!(refused(|a| a.namespace = Some("N".into())).starts_with("`--namespace`"));
        assert!(refused(|a| a.claim = "a_b".into()).starts_with("`--claim`"));
        assert!(refused(|a| a.mount = "data".into()).starts_with("`--mount`"));
        assert!(refused(|a| a.mount = "/a/../b".into()).starts_with("`--mount`"));
        assert!(refused(|a| a.job.nodes = 3).starts_with("cannot spread `2` ranks over `3`"));
    }
}

//! The pods of a job: what they hold, how they end, what they may do.

use super::Kubernetes;
use serde_json::{Map, Value, json};

/// First port of the metrics, as `metrics.port` has it unless told otherwise.
const METRICS_PORT: u32 = 9464;
/// What the image's sshd listens on: an ordinary user cannot have port 22.
pub(super) const SSH_PORT: u32 = 2222;
/// Home folder of the user.
pub(super) const HOME: &str = "/home/scpeft";
/// Where a configuration from this machine lies in the pods.
pub(super) const CONFIG_FOLDER: &str = "/etc/scpeft";
/// What a pod needs beyond the time that the ranks have to save.
const GRACE_SPARE: u64 = 60;
/// User and group in the image.
const USER: u32 = 1000;

/// What a pod does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Starts the ranks of other pods.
    Launcher,
    /// Waits for the launcher's ssh.
    Worker,
    /// Runs ranks, and starts them where its index is 0.
    Both,
}

pub(super) fn container(asked: &Kubernetes, part: Part, words: Vec<String>) -> Value {
    let job = &asked.job;
    let per_pod = job.ranks_per_node();
    let mut words = words.into_iter();
    let mut map = Map::new();
    map.insert("name".into(), "scpeft".into());
    map.insert("image".into(), asked.image.clone().into());
    map.insert(
        "command".into(),
        words.next().into_iter().collect::<Vec<_>>().into(),
    );
    map.insert("args".into(), words.collect::<Vec<_>>().into());
    map.insert("workingDir".into(), asked.mount.clone().into());
    map.insert("env".into(), environment(asked, part));
    if part != Part::Launcher {
        let port =
            |rank| json!({"name": format!("metrics-{rank}"), "containerPort": METRICS_PORT + rank});
        let mut ports: Vec<Value> = (0..per_pod).map(port).collect();
        if part == Part::Worker || job.nodes > 1 {
            ports.push(json!({"name": "ssh", "containerPort": SSH_PORT}));
        }
        map.insert("ports".into(), ports.into());
    }
    if part == Part::Worker {
        map.insert(
            "readinessProbe".into(),
            json!({"tcpSocket": {"port": "ssh"}, "periodSeconds": 2}),
        );
    }
    if part == Part::Worker || (part == Part::Both && job.nodes > 1) {
        map.insert(
            "lifecycle".into(),
            json!({"preStop": {"exec": {"command": leave(part)}}}),
        );
    }
    map.insert("resources".into(), resources(asked, part));
    map.insert(
        "securityContext".into(),
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        }),
    );
    map.insert("volumeMounts".into(), mounts(asked, part));
    map.into()
}

/// What a pod that only listens does before it ends: its sshd would take the ranks along, so it asks
/// them to save (one rank that is asked stops all) and waits until they have left.
fn leave(part: Part) -> Vec<String> {
    let guard = match part {
        Part::Both => "[ \"$JOB_COMPLETION_INDEX\" = 0 ] && exit 0\n",
        _ => "",
    };
    let script = format!(
        "{guard}for comm in /proc/[0-9]*/comm; do\n  \
           if grep -qsx scpeft-train \"$comm\"; then\n    \
             pid=${{comm#/proc/}}\n    \
             kill -USR1 \"${{pid%/comm}}\"\n  \
           fi\n\
         done\n\
         while grep -qsxE 'orted|prted' /proc/[0-9]*/comm; do sleep 1; done\n"
    );
    ["/bin/sh".to_owned(), "-c".to_owned(), script].to_vec()
}

fn environment(asked: &Kubernetes, part: Part) -> Value {
    let mut list = vec![
        json!({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
        json!({"name": "HOME", "value": HOME}),
    ];
    if part == Part::Both && asked.job.nodes > 1 {
        let set = |name: &str, value: &str| json!({"name": name, "value": value});
        list.push(set("OMPI_MCA_orte_keep_fqdn_hostnames", "true"));
        list.push(set("OMPI_MCA_plm_rsh_args", "-o ConnectionAttempts=10"));
    }
    list.into()
}

fn resources(asked: &Kubernetes, part: Part) -> Value {
    let job = &asked.job;
    if part == Part::Launcher {
        return json!({"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}});
    }
    let all = |each: u32| u64::from(each) * u64::from(job.ranks_per_node());
    let mut amounts = Map::new();
    amounts.insert("cpu".into(), all(job.cpus).into());
    let memory = format!("{}Gi", all(job.memory_gib.unwrap_or(8)));
    amounts.insert("memory".into(), memory.into());
    if job.gpus > 0 {
        amounts.insert("nvidia.com/gpu".into(), all(job.gpus).into());
    }
    json!({"requests": amounts, "limits": amounts})
}

fn mounts(asked: &Kubernetes, part: Part) -> Value {
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let mut list = vec![
        mount("data", &asked.mount),
        mount("tmp", "/tmp"),
        mount("shm", "/dev/shm"),
    ];
    if asked.config.is_some() {
        list.push(mount("config", CONFIG_FOLDER));
    }
    if part == Part::Both && asked.job.nodes > 1 {
        list.push(mount("ssh", &format!("{HOME}/.ssh")));
    }
    list.into()
}

/// The specification of a pod around its container.
pub(super) fn pod(asked: &Kubernetes, part: Part, container: Value) -> Value {
    let job = &asked.job;
    let mut volumes = vec![
        json!({"name": "data", "persistentVolumeClaim": {"claimName": asked.claim}}),
        json!({"name": "tmp", "emptyDir": {}}),
        // Open MPI's shared memory; counted as memory of the pod.
        json!({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}),
    ];
    if asked.config.is_some() {
        volumes.push(json!({"name": "config", "configMap": {"name": job.name}}));
    }
    let mut spec = Map::new();
    if part == Part::Both {
        spec.insert("restartPolicy".into(), "Never".into());
        if job.nodes > 1 {
            spec.insert("subdomain".into(), job.name.clone().into());
            let secret = json!({"secretName": format!("{}-ssh", job.name), "defaultMode": 0o440});
            volumes.push(json!({"name": "ssh", "secret": secret}));
        }
    }
    spec.insert(
        "terminationGracePeriodSeconds".into(),
        (job.grace_secs + GRACE_SPARE).into(),
    );
    spec.insert("automountServiceAccountToken".into(), false.into());
    spec.insert(
        "securityContext".into(),
        json!({
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        }),
    );
    spec.insert("containers".into(), vec![container].into());
    spec.insert("volumes".into(), volumes.into());
    spec.into()
}

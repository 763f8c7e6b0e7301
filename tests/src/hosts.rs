//! Several hosts on this machine: a network namespace each, with a name of its own, on a common bridge.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Hosts that are taken down with the test.
#[derive(Debug)]
pub struct Hosts {
    bridge: String,
    /// First three numbers of the addresses; the bridge has 1 as the fourth, host `i` has 11 + `i`.
    net: String,
    count: usize,
    /// The script with which `mpirun` reaches them.
    agent: PathBuf,
}

impl Hosts {
    /// Sets up `count` hosts; what is needed for that goes into `folder`.
    ///
    /// # Panics
    /// When the system refuses: that takes root, or the capabilities to make namespaces and bridges.
    pub fn up(count: usize, folder: &Path) -> Self {
        let id = std::process::id() % 0xffff;
        let hosts = Self {
            bridge: format!("sc{id:x}"),
            net: format!("10.{}.{}", 64 + id / 256 % 64, id % 256),
            count,
            agent: folder.join("agent"),
        };
        let bridge = hosts.bridge.as_str();
        let gateway = format!("{}.1/24", hosts.net);
        ip(&["link", "add", bridge, "type", "bridge"]);
        ip(&["addr", "add", &gateway, "dev", bridge]);
        ip(&["link", "set", bridge, "up"]);
        for host in 0..count {
            let (name, outer) = (hosts.name(host), format!("{bridge}v{host}"));
            ip(&["netns", "add", &name]);
            ip(&[
                "link", "add", &outer, "type", "veth", "peer", "name", "e0", "netns", &name,
            ]);
            ip(&["link", "set", &outer, "master", bridge, "up"]);
            let address = format!("{}/24", hosts.address(host));
            ip(&["-n", &name, "addr", "add", &address, "dev", "e0"]);
            ip(&["-n", &name, "link", "set", "e0", "up"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
        }
        hosts.write_agent();
        hosts
    }

    /// Name of a host, which is also that of its namespace.
    pub fn name(&self, host: usize) -> String {
        format!("{}h{host}", self.bridge)
    }

    /// Address of a host.
    pub fn address(&self, host: usize) -> String {
        format!("{}.{}", self.net, 11 + host)
    }

    /// Address of this machine among them.
    pub fn gateway(&self) -> String {
        format!("{}.1", self.net)
    }

    /// Makes a command that leads to `mpirun` use them.
    pub fn join(&self, command: &mut Command) {
        let network = format!("{}.0/24", self.net);
        command
            .env("OMPI_MCA_plm_rsh_agent", &self.agent)
            .env("OMPI_MCA_btl", "tcp,self")
            .env("OMPI_MCA_btl_tcp_if_include", &network)
            .env("OMPI_MCA_oob_tcp_if_include", &network)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }

    /// Takes a host off the network. What runs there goes on.
    pub fn cut_off(&self, host: usize) {
        ip(&["-n", &self.name(host), "link", "set", "e0", "down"]);
    }

    /// Names of our programs that run on a host.
    pub fn programs(&self, host: usize) -> Vec<String> {
        let names = processes(&self.name(host))
            .into_iter()
            .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        let ours = names.filter(|name| name.starts_with("scpeft-"));
        ours.map(|name| name.trim().to_owned()).collect()
    }

    /// `agent HOST COMMAND…` in the place of ssh.
    fn write_agent(&self) {
        let cases: Vec<String> = (0..self.count)
            .map(|host| format!("{}) name={} ;;", self.address(host), self.name(host)))
            .collect();
        let script = format!(
            "#!/bin/sh\nhost=$1; shift\ncase $host in\n{}\n*) exit 255 ;;\nesac\n\
             exec ip netns exec $name unshare -u sh -c \"hostname $name; $*\"\n",
            cases.join("\n")
        );
        std::fs::write(&self.agent, script).expect("a script");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&self.agent, mode).expect("an executable script");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let quiet = |arguments: &[&str]| {
            let _ = Command::new("ip")
                .args(arguments)
                .stderr(Stdio::null())
                .status();
        };
        for host in 0..self.count {
            // The daemon of `mpirun` on a host that was cut off has not noticed.
            for pid in processes(&self.name(host)) {
                let _ = Command::new("kill")
                    .args(["-KILL", &pid])
                    .stderr(Stdio::null())
                    .status();
            }
            // The ends of its cable go with it.
            quiet(&["netns", "del", &self.name(host)]);
        }
        quiet(&["link", "del", &self.bridge]);
    }
}

/// Process ids in a namespace.
fn processes(name: &str) -> Vec<String> {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("ip; `make setup-test` installs it");
    assert!(
        output.status.success(),
        "ip {}: {}\nthis test makes network namespaces: run it as root, in a container with \
         --cap-add=NET_ADMIN --cap-add=SYS_ADMIN",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

//! What ranks tell each other before the first step: that sums are right, where each one runs, and
//! whether any two are in each other's way.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use scpeft_collective::nccl::Driver;
use scpeft_collective::{Collective, CpuMask, self_check};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::failure::{Failure, Result};
use crate::record::hostname;

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    host: String,
    device: String,
    /// What tells the device apart from others of the host; `None` for the CPU.
    uuid: Option<String>,
    /// Cores that are its to use.
    cores: usize,
    /// Threads of libtorch.
    threads: usize,
}

/// Checks a sum over all ranks and says how fast it was (rank 0).
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// On the ranks that receive a wrong sum, which should bring the job down: nothing can be agreed on.
pub(crate) fn check_transport(world: &dyn Collective) -> Result<()> {
    let measured = self_check(world)?;
    if let Some(measured) = measured.filter(|_| world.topology().is_root()) {
        tracing::info!("{measured}");
    }
    Ok(())
}

/// Says where the ranks run (rank 0, one line a host), refuses two of them on one device, and warns of a
/// rank that is bound to fewer cores than it has threads.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// On rank 0, when two ranks have the same device.
pub(crate) fn compare_places(
    world: &dyn Collective,
    device: Device,
    threads: Threads,
) -> Result<()> {
    let topology = world.topology();
    let mask = CpuMask::of_this_process();
    let place = Place {
        host: hostname(),
        device: format!("{device:?}").to_lowercase(),
        uuid: uuid(device, topology.rank),
        cores: topology.cores.unwrap_or(mask.count()),
        threads: threads.compute,
    };
    if let Some(warning) = starved(mask.count(), online(), place.cores, threads) {
        tracing::warn!("rank {}: {warning}", topology.rank);
    }
    if topology.world_size == 1 {
        return Ok(());
    }
    let own = serde_json::to_vec(&place).unwrap_or_default();
    let Some(all) = world.gather(&own)? else {
        return Ok(());
    };
    let places: Vec<Place> = all
        .iter()
        .filter_map(|bytes| serde_json::from_slice(bytes).ok())
        .collect();
    for line in describe(&places) {
        tracing::info!("{line}");
    }
    refuse_shared(&places)
}

/// Threads of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Threads {
    /// Of libtorch.
    pub(crate) compute: usize,
    /// Whether the user chose how many those are.
    pub(crate) chosen: bool,
    /// Of the loader.
    pub(crate) loader: usize,
}

/// The device's UUID; `None` for the CPU, and, with a warning, where the driver does not tell.
fn uuid(device: Device, rank: usize) -> Option<String> {
    let Device::Cuda(index) = device else {
        return None;
    };
    let found = Driver::load().and_then(|driver| driver.device_uuid(index));
    found
        .map_err(|error| {
            tracing::warn!("rank {rank}: {error}; ranks on the same device cannot be noticed");
        })
        .ok()
}

/// One line a host: its ranks, what they run on.
fn describe(places: &[Place]) -> Vec<String> {
    let mut hosts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (rank, place) in places.iter().enumerate() {
        hosts.entry(&place.host).or_default().push(rank);
    }
    let mut lines: Vec<(usize, String)> = hosts
        .into_iter()
        .map(|(host, ranks)| {
            let mut line = format!("host `{host}`:");
            for (i, &rank) in ranks.iter().enumerate() {
                let Place {
                    device,
                    uuid,
                    cores,
                    threads,
                    ..
                } = &places[rank];
                let comma = if i == 0 { "" } else { "," };
                let uuid = uuid.as_ref().map_or(String::new(), |id| format!(" {id}"));
                let _ = write!(
                    line,
                    "{comma} rank {rank} on {device}{uuid} ({threads} thread(s), {cores} core(s))"
                );
            }
            (ranks[0], line)
        })
        .collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Two ranks on one device would share its memory and time, and NCCL refuses them later with less to say.
fn refuse_shared(places: &[Place]) -> Result<()> {
    let mut users: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (rank, place) in places.iter().enumerate() {
        if let Some(uuid) = &place.uuid {
            users.entry((&place.host, uuid)).or_default().push(rank);
        }
    }
    let shared: Vec<String> = users
        .into_iter()
        .filter(|(_, ranks)| ranks.len() > 1)
        .map(|((host, uuid), ranks)| {
            let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
            format!(
                "ranks {} of host `{host}` are on one device: `{}`, {uuid}",
                names.join(", "),
                places[ranks[0]].device
            )
        })
        .collect();
    if shared.is_empty() {
        return Ok(());
    }
    Err(Failure::config(format!(
        "{}\nhelp: start no more ranks on a host than it has GPUs, show each rank a GPU of its own \
         (`CUDA_VISIBLE_DEVICES`, `srun --gpus-per-task=1`), or set `run.device = \"cpu\"`",
        shared.join("\n")
    )))
}

/// What to say of a rank that is bound to fewer cores than its threads need.
///
/// A rank that may use the whole machine is not bound: there the number of ranks decides, and nothing
/// is gained by unbinding. Threads that were chosen from the cores need one core, the loader another.
fn starved(allowed: usize, online: usize, cores: usize, threads: Threads) -> Option<String> {
    let Threads {
        compute,
        chosen,
        loader,
    } = threads;
    let needed = if chosen { compute } else { 1 } + loader;
    (allowed < online && cores < needed).then(|| {
        format!(
            "bound to {allowed} of {online} cores, {cores} of them its own, with {compute} thread(s) and \
             {loader} of the loader: the loader may starve\n\
             help: `mpirun --bind-to none` or `--map-by slot:PE={needed}`, `srun --cpu-bind=none` or \
             `--cpus-per-task={needed}`; or lower `run.threads`"
        )
    })
}

/// Processors of this machine that are in use.
fn online() -> usize {
    // SAFETY: sysconf takes no pointers.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_protocol::exit;

    fn place(host: &str, uuid: Option<&str>) -> Place {
        Place {
            host: host.into(),
            device: uuid.map_or("cpu".into(), |_| "cuda(0)".into()),
            uuid: uuid.map(str::to_owned),
            cores: 4,
            threads: 3,
        }
    }

    #[test]
    fn two_ranks_of_a_host_on_one_device_are_refused_by_name() {
        let places = [
            place("a", Some("GPU-1")),
            place("a", Some("GPU-2")),
            place("b", Some("GPU-1")),
            place("a", Some("GPU-1")),
        ];
        let failure = refuse_shared(&places).unwrap_err();
        assert_eq!(failure.code, exit::CONFIG);
        for word in [
            "ranks 0, 3 of host `a`",
            "`cuda(0)`, GPU-1",
            "help:",
            "CUDA_VISIBLE_DEVICES",
        ] {
            assert!(failure.message.contains(word), "{failure}");
        }
        assert!(!failure.message.contains("host `b`"), "{failure}");
        assert!(refuse_shared(&places[..3]).is_ok());
        assert!(refuse_shared(&[place("a", None), place("a", None)]).is_ok());
    }

    #[test]
    fn hosts_are_listed_in_the_order_of_their_first_rank() {
        let places = [
            place("z", Some("GPU-1")),
            place("a", None),
            place("z", Some("GPU-2")),
        ];
        assert_eq!(
            describe(&places),
            [
                "host `z`: rank 0 on cuda(0) GPU-1 (3 thread(s), 4 core(s)), \
                 rank 2 on cuda(0) GPU-2 (3 thread(s), 4 core(s))",
                "host `a`: rank 1 on cpu (3 thread(s), 4 core(s))"
            ]
        );
    }

    #[test]
    fn a_bound_rank_is_warned_when_its_threads_do_not_fit() {
        let threads = |compute, chosen| Threads {
            compute,
            chosen,
            loader: 1,
        };
        let warned = starved(1, 2, 1, threads(1, false)).unwrap();
        assert!(
            warned.contains("bound to 1 of 2 cores") && warned.contains("PE=2"),
            "{warned}"
        );
        // Not bound: it has the whole machine, shared or not.
        assert_eq!(starved(2, 2, 1, threads(1, false)), None);
        // Threads that follow the cores leave room enough for the loader.
        assert_eq!(starved(4, 8, 4, threads(4, false)), None);
        assert!(starved(4, 8, 4, threads(4, true)).is_some());
        assert_eq!(starved(4, 8, 4, threads(3, true)), None);
    }
}

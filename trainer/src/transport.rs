//! How gradients in the memory of a GPU are summed over ranks: by NCCL where every rank has it, else through
//! host memory and MPI. The CPU needs no choice.

use std::rc::Rc;

use scpeft_collective::nccl::{Driver, Nccl, NcclError, NcclWorld, Streams, libtorch_cuda};
use scpeft_collective::{Collective, Observer};
use scpeft_config::Transport;
use tch::Device;

use crate::consensus::agree;
use crate::failure::{Failure, Result};

/// What a rank needs for NCCL.
struct Parts {
    nccl: Rc<Nccl>,
    streams: Streams,
    index: usize,
}

/// The world with NCCL around `world`; `None` where sums go through `world` itself.
///
/// # Collective
/// Must be called by all ranks, with the same choice.
///
/// # Errors
/// NCCL was asked for and a rank cannot have it, or it fails to form.
pub(crate) fn on_devices(
    world: &dyn Collective,
    observer: Rc<dyn Observer>,
    choice: Transport,
    device: Device,
) -> Result<Option<NcclWorld<'_>>> {
    let alone = world.topology().world_size == 1;
    if choice == Transport::Mpi || (choice == Transport::Auto && alone) {
        return Ok(None);
    }
    // Whether the ranks have GPUs may differ: they find out together.
    let parts = parts(device);
    let mut missing = [if parts.is_err() { 1.0 } else { 0.0 }];
    world.all_reduce_sum_f64(&mut missing)?;
    let forced = choice == Transport::Nccl;
    if missing[0] > 0.0 && !forced {
        if let (Err(reason), Device::Cuda(_)) = (&parts, device) {
            tracing::warn!(
                "rank {}: gradients are summed through host memory and MPI: {reason}",
                world.topology().rank
            );
        }
        return Ok(None);
    }
    let Parts {
        nccl,
        streams,
        index,
    } = agree(world, parts)?;
    let version = nccl.version();
    let formed = NcclWorld::form(world, observer, nccl, streams, index);
    let formed = agree(world, formed.map_err(Failure::from))?;
    if world.topology().is_root() {
        tracing::info!("gradients are summed on the GPUs by NCCL {version}");
    }
    Ok(Some(formed))
}

/// Loads what is needed, and makes the rank's device the current one.
fn parts(device: Device) -> Result<Parts> {
    let Device::Cuda(index) = device else {
        return Err(Failure::config(
            "`run.transport = \"nccl\"` needs a CUDA device, and this rank computes on the CPU\n\
             help: set `run.transport = \"auto\"`, or `run.device = \"cuda\"` to see why there is none",
        ));
    };
    let load = || -> std::result::Result<Parts, NcclError> {
        let nccl = Rc::new(Nccl::load()?);
        Driver::load()?.make_current(index)?;
        Ok(Parts {
            nccl,
            streams: Streams::open(libtorch_cuda())?,
            index,
        })
    };
    load().map_err(|error| scpeft_collective::Error::from(error).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_collective::{Fake, Single};
    use scpeft_protocol::exit;

    struct Deaf;

    impl Observer for Deaf {
        fn begin(&self, _op: &'static str, _bytes: usize) {}
        fn end(&self) {}
    }

    fn choose(world: &dyn Collective, choice: Transport) -> Result<Option<NcclWorld<'_>>> {
        on_devices(world, Rc::new(Deaf), choice, Device::Cpu)
    }

    #[test]
    fn the_cpu_needs_no_nccl_and_cannot_be_given_one() {
        let many = Fake::new(2, 2);
        assert!(choose(&many, Transport::Auto).unwrap().is_none());
        assert!(choose(&many, Transport::Mpi).unwrap().is_none());
        assert!(choose(&Single, Transport::Auto).unwrap().is_none());
        let failure = choose(&Single, Transport::Nccl).unwrap_err();
        assert_eq!(failure.code, exit::CONFIG);
        assert!(failure.message.contains("needs a CUDA device"), "{failure}");
    }
}

//! GPUs: which device a rank has, and sums over ranks in its memory by NCCL.
//!
//! NCCL is loaded by name when it is wanted, so that one program serves hosts with and without it. Its
//! communicators are formed and used without blocking: every call is followed by asking what became of it,
//! with a deadline. Work is queued on the stream that libtorch uses, after the backward pass and before the
//! update, so that nothing has to be waited for on the host.

mod sys;
mod world;

use std::ffi::{OsStr, OsString, c_int, c_void};
use std::rc::Rc;
use std::time::{Duration, Instant};

pub use sys::{Driver, Element, Nccl, Stream, Streams};
pub use world::{DeviceSum, NcclWorld};

use sys::{Handle, ID_BYTES, IN_PROGRESS, SUCCESS};

/// Names a `libnccl` to use instead of the one that the loader finds.
pub const LIBRARY_VARIABLE: &str = "SCPEFT_NCCL_LIB";
/// The CUDA half of libtorch.
pub const LIBTORCH_CUDA: &str = "libtorch_cuda.so";
/// What ranks have for finding each other.
pub const FORMING: Duration = Duration::from_mins(5);
/// What a call has for being queued. The collective itself has the deadlines of the watchdog.
pub const QUEUEING: Duration = Duration::from_mins(1);

/// What went wrong on the side of the GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// A library cannot be loaded.
    #[error("`{name}` cannot be loaded: {reason}")]
    Library {
        /// Its name or path.
        name: String,
        /// What the loader says.
        reason: String,
    },
    /// No NCCL anywhere.
    #[error(
        "NCCL was not found, looked for {looked_for}\nhelp: install it (it comes with the CUDA build of torch), name it with `SCPEFT_NCCL_LIB=/path/libnccl.so.2`, or set `run.transport = \"mpi\"`"
    )]
    NotFound {
        /// Names and paths, and why each failed.
        looked_for: String,
    },
    /// A library lacks a function.
    #[error("`{name}` has no `{symbol}`: another or an older library")]
    Symbol {
        /// Its name or path.
        name: String,
        /// What was looked for.
        symbol: &'static str,
    },
    /// NCCL is older than its non-blocking communicators.
    #[error("`{name}` is NCCL {version}, 2.18 or newer is needed (21800)")]
    TooOld {
        /// Its name or path.
        name: String,
        /// Its version code.
        version: String,
    },
    /// NCCL failed, at once or in the background.
    #[error(
        "`{call}` failed: {text} (code {code})\nhelp: `NCCL_DEBUG=INFO` makes NCCL say more; `--resume` continues from the last checkpoint"
    )]
    Call {
        /// The function.
        call: &'static str,
        /// NCCL's code.
        code: i32,
        /// NCCL's words for it.
        text: String,
    },
    /// A call did not come to an end.
    #[error(
        "`{call}` was not done after {seconds} s; the communicator was aborted\nhelp: look for a rank that did not start; `NCCL_DEBUG=INFO` and `NCCL_SOCKET_IFNAME` help with networks"
    )]
    Deadline {
        /// The function.
        call: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// The communicator has failed before.
    #[error("the NCCL communicator was aborted after an earlier error")]
    Aborted,
    /// Something that must be the same everywhere is not.
    #[error("an NCCL id of {found} bytes, expected {ID_BYTES}")]
    Id {
        /// Bytes that came.
        found: usize,
    },
    /// A gather into memory of another size.
    #[error("{ranks} parts of {part} bytes do not make {whole} bytes")]
    Sizes {
        /// Bytes of a part.
        part: usize,
        /// Ranks.
        ranks: usize,
        /// Bytes that there are for all parts.
        whole: usize,
    },
    /// The CUDA driver or libtorch refuses.
    #[error("CUDA refuses `{call}`: error {code}")]
    Driver {
        /// The function.
        call: &'static str,
        /// Its error code.
        code: i32,
    },
}

/// Memory of a device, for a call that only queues work.
#[derive(Debug)]
pub struct DeviceSlice {
    address: *mut c_void,
    count: usize,
    element: Element,
}

impl DeviceSlice {
    /// `count` elements at an address of the communicator's device.
    ///
    /// # Safety
    /// The memory is that of `count` elements, on that device, and stays allocated until libtorch's stream
    /// has passed what is queued with it; nothing outside that stream touches it meanwhile.
    pub unsafe fn new(address: *mut c_void, count: usize, element: Element) -> Self {
        Self {
            address,
            count,
            element,
        }
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.count * self.element.bytes()
    }
}

impl Nccl {
    /// Loads the library that [`LIBRARY_VARIABLE`] names, or else the one that the loader finds: that of
    /// libtorch where it is loaded already.
    ///
    /// # Errors
    /// When there is none, or it is not one that can be used.
    pub fn load() -> Result<Self, NcclError> {
        match std::env::var_os(LIBRARY_VARIABLE) {
            Some(path) => Self::open(&path),
            None => Self::first_of(&["libnccl.so.2", "libnccl.so"].map(OsString::from)),
        }
    }

    /// The first library that is there.
    fn first_of(names: &[OsString]) -> Result<Self, NcclError> {
        let mut failures = Vec::new();
        for name in names {
            match Self::open(name) {
                Err(error @ NcclError::Library { .. }) => failures.push(error.to_string()),
                found => return found,
            }
        }
        Err(NcclError::NotFound {
            looked_for: failures.join("; "),
        })
    }
}

/// Ranks that sum in the memory of their devices, one device each.
#[derive(Debug)]
pub struct Communicator {
    nccl: Rc<Nccl>,
    /// `None` after an error.
    handle: Option<Handle>,
    queueing: Duration,
}

impl Communicator {
    /// Forms a communicator on the current device, with the ranks that bring the same id.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When NCCL fails, or ranks are missing at the end of `forming`.
    pub fn form(
        nccl: Rc<Nccl>,
        id: &[u8],
        rank: usize,
        ranks: usize,
        forming: Duration,
        queueing: Duration,
    ) -> Result<Self, NcclError> {
        let id = id
            .try_into()
            .map_err(|_| NcclError::Id { found: id.len() })?;
        let handle = nccl.begin(id, rank, ranks)?;
        let mut communicator = Self {
            nccl,
            handle: Some(handle),
            queueing,
        };
        communicator.settle("ncclCommInitRankConfig", IN_PROGRESS, forming)?;
        Ok(communicator)
    }

    /// Queues the sum over ranks of `memory`, in place.
    ///
    /// # Collective
    /// Must be called by all ranks with the same number of elements of the same type.
    ///
    /// # Errors
    /// When NCCL fails, now or since the last call. The communicator is aborted then.
    pub fn all_reduce(&mut self, memory: &DeviceSlice, stream: Stream) -> Result<(), NcclError> {
        let handle = self.usable()?;
        let &DeviceSlice {
            address,
            count,
            element,
        } = memory;
        // SAFETY: by the contract of `DeviceSlice::new`.
        let code = unsafe { handle.all_reduce(address, count, element, stream) };
        self.settle("ncclAllReduce", code, self.queueing)
    }

    /// Queues that every rank receives rank 0's `memory`.
    ///
    /// # Collective
    /// As [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    pub fn broadcast(&mut self, memory: &DeviceSlice, stream: Stream) -> Result<(), NcclError> {
        let handle = self.usable()?;
        let &DeviceSlice {
            address,
            count,
            element,
        } = memory;
        // SAFETY: by the contract of `DeviceSlice::new`.
        let code = unsafe { handle.broadcast(address, count, element, stream) };
        self.settle("ncclBroadcast", code, self.queueing)
    }

    /// Queues that `whole` receives the `part` of every rank, in rank order.
    ///
    /// # Collective
    /// As [`Communicator::all_reduce`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]; when `whole` is not as large as the parts of all ranks.
    pub fn all_gather(
        &mut self,
        part: &DeviceSlice,
        whole: &DeviceSlice,
        ranks: usize,
        stream: Stream,
    ) -> Result<(), NcclError> {
        if whole.bytes() != part.bytes() * ranks {
            return Err(NcclError::Sizes {
                part: part.bytes(),
                ranks,
                whole: whole.bytes(),
            });
        }
        let handle = self.usable()?;
        // SAFETY: by the contract of `DeviceSlice::new`; the sizes were just compared.
        let code = unsafe {
            handle.all_gather(
                part.address,
                whole.address,
                part.count,
                part.element,
                stream,
            )
        };
        self.settle("ncclAllGather", code, self.queueing)
    }

    /// The handle, unless something failed in the background since the last call.
    fn usable(&mut self) -> Result<&Handle, NcclError> {
        self.settle("a collective queued before", SUCCESS, Duration::ZERO)?;
        self.handle.as_ref().ok_or(NcclError::Aborted)
    }

    /// Follows a call that returned `code` to its end; aborts the communicator when it fails.
    fn settle(
        &mut self,
        call: &'static str,
        code: c_int,
        patience: Duration,
    ) -> Result<(), NcclError> {
        let result = self.wait(call, code, patience);
        if result.is_err() {
            // Dropping the handle aborts.
            self.handle = None;
        }
        result
    }

    fn wait(&self, call: &'static str, code: c_int, patience: Duration) -> Result<(), NcclError> {
        if code != SUCCESS && code != IN_PROGRESS {
            return Err(self.nccl.error(call, code));
        }
        let handle = self.handle.as_ref().ok_or(NcclError::Aborted)?;
        let begun = Instant::now();
        loop {
            match handle.state()? {
                SUCCESS => return Ok(()),
                IN_PROGRESS if begun.elapsed() < patience => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                IN_PROGRESS => {
                    return Err(NcclError::Deadline {
                        call,
                        seconds: patience.as_secs(),
                    });
                }
                code => return Err(self.nccl.error(call, code)),
            }
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        // In good order if that is quick; else the handle aborts. Other ranks may be gone.
        let ended = handle.finalize();
        self.handle = Some(handle);
        let finalized = self.wait("ncclCommFinalize", ended, Duration::from_secs(2));
        if let (Ok(()), Some(handle)) = (finalized, self.handle.take()) {
            handle.close();
        }
    }
}

/// The name of the CUDA half of libtorch, for [`Streams::open`].
pub fn libtorch_cuda() -> &'static OsStr {
    OsStr::new(LIBTORCH_CUDA)
}

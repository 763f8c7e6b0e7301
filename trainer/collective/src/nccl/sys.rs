//! The C side: the functions of NCCL, of the CUDA driver and of libtorch that are needed, looked up in their
//! libraries at run time. This is the only file of the GPU path that calls them, and nearly all of its
//! unsafe code; what it offers is safe but for the addresses of device memory.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr;
use std::rc::Rc;

use libloading::Library;

use super::NcclError;

/// Bytes of a device's UUID.
const UUID_BYTES: usize = 16;
/// Bytes of the id by which ranks find each other.
pub(super) const ID_BYTES: usize = 128;

/// What NCCL's functions return, as `nccl.h` numbers it.
pub(super) const SUCCESS: c_int = 0;
/// The call goes on in the background.
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;

/// The types that are sent, as `nccl.h` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Bytes.
    U8 = 1,
    /// 64-bit integers.
    I64 = 4,
    /// Single precision.
    F32 = 7,
}

impl Element {
    /// Its size.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I64 => 8,
            Self::F32 => 4,
        }
    }
}

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId {
    bytes: [c_char; ID_BYTES],
}

/// `ncclConfig_t` as of version 2.18: later versions take what follows from their own defaults, by `size`.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    ctas_min: c_int,
    ctas_max: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Calls return at once and are asked about afterwards; everything else is NCCL's choice.
    fn non_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            ctas_min: UNDEFINED,
            ctas_max: UNDEFINED,
            net_name: ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// `ncclComm_t`.
type Comm = *mut c_void;
/// `cudaStream_t`.
type CudaStream = *mut c_void;
type Transfer = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    Comm,
    CudaStream,
) -> c_int;

/// A CUDA stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(CudaStream);

/// NCCL.
#[derive(Debug)]
pub struct Nccl {
    name: String,
    version: c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    finalize: unsafe extern "C" fn(Comm) -> c_int,
    destroy: unsafe extern "C" fn(Comm) -> c_int,
    all_reduce: Transfer,
    broadcast: Transfer,
    all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, CudaStream) -> c_int,
    error_text: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: ManuallyDrop<Library>,
}

impl Nccl {
    /// Loads the library from a path or by a name that the loader finds.
    ///
    /// # Errors
    /// When it is not there, lacks a symbol, or is older than 2.18.
    pub fn open(name: &OsStr) -> Result<Self, NcclError> {
        let library = open(name)?;
        let version_of: unsafe extern "C" fn(*mut c_int) -> c_int =
            symbol(&library, name, "ncclGetVersion")?;
        let mut version = 0;
        // SAFETY: NCCL writes one int to `version`, which lives through the call.
        let code = unsafe { version_of(&raw mut version) };
        let nccl = Self {
            version,
            unique_id: symbol(&library, name, "ncclGetUniqueId")?,
            init: symbol(&library, name, "ncclCommInitRankConfig")?,
            async_error: symbol(&library, name, "ncclCommGetAsyncError")?,
            abort: symbol(&library, name, "ncclCommAbort")?,
            finalize: symbol(&library, name, "ncclCommFinalize")?,
            destroy: symbol(&library, name, "ncclCommDestroy")?,
            all_reduce: symbol(&library, name, "ncclAllReduce")?,
            broadcast: symbol(&library, name, "ncclBroadcast")?,
            all_gather: symbol(&library, name, "ncclAllGather")?,
            error_text: symbol(&library, name, "ncclGetErrorString")?,
            name: name.to_string_lossy().into_owned(),
            _library: library,
        };
        nccl.succeed("ncclGetVersion", code)?;
        if version < 21_800 {
            return Err(NcclError::TooOld {
                name: nccl.name,
                version: nccl.version.to_string(),
            });
        }
        Ok(nccl)
    }

    /// Its version, as `2.28.9`.
    pub fn version(&self) -> String {
        let v = self.version;
        format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }

    /// A new id by which the ranks of a communicator find each other.
    ///
    /// # Errors
    /// When NCCL cannot open a socket for it.
    pub fn unique_id(&self) -> Result<Vec<u8>, NcclError> {
        let mut id = UniqueId {
            bytes: [0; ID_BYTES],
        };
        // SAFETY: NCCL writes an id to `id`, which lives through the call.
        let code = unsafe { (self.unique_id)(&raw mut id) };
        self.succeed("ncclGetUniqueId", code)?;
        Ok(id.bytes.map(c_char::cast_unsigned).to_vec())
    }

    /// Starts to form a communicator; it is formed when [`Handle::state`] says so.
    pub(super) fn begin(
        self: &Rc<Self>,
        id: &[u8; ID_BYTES],
        rank: usize,
        ranks: usize,
    ) -> Result<Handle, NcclError> {
        let id = UniqueId {
            bytes: id.map(u8::cast_signed),
        };
        let mut comm = ptr::null_mut();
        let mut config = Config::non_blocking();
        // SAFETY: NCCL writes the handle to `comm` and reads `config`; both live through the call. It
        // copies what it keeps.
        let code = unsafe {
            (self.init)(
                &raw mut comm,
                ranks as c_int,
                id,
                rank as c_int,
                &raw mut config,
            )
        };
        let handle = Handle {
            nccl: Rc::clone(self),
            comm,
        };
        match code {
            SUCCESS | IN_PROGRESS => Ok(handle),
            code => Err(self.error("ncclCommInitRankConfig", code)),
        }
    }

    fn succeed(&self, call: &'static str, code: c_int) -> Result<(), NcclError> {
        match code {
            SUCCESS => Ok(()),
            code => Err(self.error(call, code)),
        }
    }

    pub(super) fn error(&self, call: &'static str, code: c_int) -> NcclError {
        // SAFETY: NCCL returns a static text for every code.
        let text = unsafe { (self.error_text)(code) };
        let text = if text.is_null() {
            String::new()
        } else {
            // SAFETY: a static text with its end.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into()
        };
        NcclError::Call { call, code, text }
    }
}

/// An `ncclComm_t`. It is destroyed by [`Handle::close`] or aborted when it is dropped.
#[derive(Debug)]
pub(super) struct Handle {
    nccl: Rc<Nccl>,
    comm: Comm,
}

impl Handle {
    /// The code of what goes on in the background: success, in progress, or why it failed.
    pub(super) fn state(&self) -> Result<c_int, NcclError> {
        let mut state = SUCCESS;
        // SAFETY: `comm` is a handle that NCCL gave out; it writes one int to `state`.
        let code = unsafe { (self.nccl.async_error)(self.comm, &raw mut state) };
        self.nccl.succeed("ncclCommGetAsyncError", code)?;
        Ok(state)
    }

    /// Queues a sum over ranks, in place; returns NCCL's code.
    ///
    /// # Safety
    /// As [`super::DeviceSlice::new`] says, of `address`, until the stream has passed the sum.
    pub(super) unsafe fn all_reduce(
        &self,
        address: *mut c_void,
        count: usize,
        element: Element,
        stream: Stream,
    ) -> c_int {
        // SAFETY: the handle is good, the memory by this function's contract.
        unsafe {
            (self.nccl.all_reduce)(
                address,
                address,
                count,
                element as c_int,
                SUM,
                self.comm,
                stream.0,
            )
        }
    }

    /// Queues a broadcast of rank 0's memory, in place; returns NCCL's code.
    ///
    /// # Safety
    /// As [`Handle::all_reduce`].
    pub(super) unsafe fn broadcast(
        &self,
        address: *mut c_void,
        count: usize,
        element: Element,
        stream: Stream,
    ) -> c_int {
        const ROOT: c_int = 0;
        // SAFETY: the handle is good, the memory by this function's contract.
        unsafe {
            (self.nccl.broadcast)(
                address,
                address,
                count,
                element as c_int,
                ROOT,
                self.comm,
                stream.0,
            )
        }
    }

    /// Queues a gather of `count` elements of every rank at `part` into `whole`; returns NCCL's code.
    ///
    /// # Safety
    /// As [`Handle::all_reduce`], of both addresses; `whole` has room for the parts of all ranks.
    pub(super) unsafe fn all_gather(
        &self,
        part: *const c_void,
        whole: *mut c_void,
        count: usize,
        element: Element,
        stream: Stream,
    ) -> c_int {
        // SAFETY: the handle is good, the memory by this function's contract.
        unsafe { (self.nccl.all_gather)(part, whole, count, element as c_int, self.comm, stream.0) }
    }

    /// Starts to end the communicator in good order; it may then be [`Handle::close`]d.
    pub(super) fn finalize(&self) -> c_int {
        // SAFETY: `comm` is a handle that NCCL gave out.
        unsafe { (self.nccl.finalize)(self.comm) }
    }

    /// Gives the finalized communicator back.
    pub(super) fn close(mut self) {
        // SAFETY: the handle is given back once: `drop` finds none.
        unsafe { (self.nccl.destroy)(self.comm) };
        self.comm = ptr::null_mut();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: the handle is given back once. Aborting also frees it, and ends kernels that wait
            // for other ranks.
            unsafe { (self.nccl.abort)(self.comm) };
        }
    }
}

/// The function of libtorch that tells its stream.
#[derive(Debug)]
pub struct Streams {
    current: unsafe extern "C" fn(i32, *mut CudaStream) -> i32,
    _library: ManuallyDrop<Library>,
}

impl Streams {
    /// Takes the function from the CUDA half of libtorch, which is loaded already where tensors are on a
    /// GPU.
    ///
    /// # Errors
    /// When the library or the function is not there.
    pub fn open(name: &OsStr) -> Result<Self, NcclError> {
        let library = open(name)?;
        Ok(Self {
            current: symbol(&library, name, "aoti_torch_get_current_cuda_stream")?,
            _library: library,
        })
    }

    /// The stream that libtorch queues its work on now, on this thread.
    ///
    /// # Errors
    /// When libtorch has no such device.
    pub fn current(&self, device: usize) -> Result<Stream, NcclError> {
        let mut stream = ptr::null_mut();
        let index = i32::try_from(device).unwrap_or(i32::MAX);
        // SAFETY: libtorch writes the handle of a stream to `stream`, which lives through the call.
        match unsafe { (self.current)(index, &raw mut stream) } {
            0 => Ok(Stream(stream)),
            code => Err(NcclError::Driver {
                call: "aoti_torch_get_current_cuda_stream",
                code,
            }),
        }
    }
}

/// The CUDA driver.
#[derive(Debug)]
pub struct Driver {
    get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    uuid: unsafe extern "C" fn(*mut [c_char; UUID_BYTES], c_int) -> c_int,
    retain: unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int,
    set_current: unsafe extern "C" fn(*mut c_void) -> c_int,
    _library: ManuallyDrop<Library>,
}

impl Driver {
    /// Loads `libcuda.so.1`, which comes with the kernel module, and starts it.
    ///
    /// # Errors
    /// When it is not there, lacks a symbol, or finds no device.
    pub fn load() -> Result<Self, NcclError> {
        Self::open(OsStr::new("libcuda.so.1"))
    }

    /// Loads the driver from a path or by a name that the loader finds.
    ///
    /// # Errors
    /// As [`Driver::load`].
    pub fn open(name: &OsStr) -> Result<Self, NcclError> {
        let library = open(name)?;
        let init: unsafe extern "C" fn(c_uint) -> c_int = symbol(&library, name, "cuInit")?;
        let driver = Self {
            get: symbol(&library, name, "cuDeviceGet")?,
            uuid: symbol(&library, name, "cuDeviceGetUuid_v2")?,
            retain: symbol(&library, name, "cuDevicePrimaryCtxRetain")?,
            set_current: symbol(&library, name, "cuCtxSetCurrent")?,
            _library: library,
        };
        // SAFETY: cuInit takes flags, which must be 0, and may be called again and again.
        check("cuInit", unsafe { init(0) })?;
        Ok(driver)
    }

    /// The UUID of a device, as `nvidia-smi -L` prints it. Devices are numbered as libtorch does:
    /// among those that `CUDA_VISIBLE_DEVICES` leaves.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn device_uuid(&self, index: usize) -> Result<String, NcclError> {
        let device = self.device(index)?;
        let mut bytes = [0; UUID_BYTES];
        // SAFETY: the driver writes 16 bytes to `bytes`, which lives through the call.
        check("cuDeviceGetUuid", unsafe {
            (self.uuid)(&raw mut bytes, device)
        })?;
        let hex = |part: &[c_char]| -> String {
            use std::fmt::Write as _;
            part.iter().fold(String::new(), |mut text, &byte| {
                let _ = write!(text, "{:02x}", byte.cast_unsigned());
                text
            })
        };
        let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|range| hex(&bytes[range]));
        Ok(format!("GPU-{}", parts.join("-")))
    }

    /// Makes a device the current one of this thread, in the context that libtorch uses too. NCCL forms
    /// communicators on the current device.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn make_current(&self, index: usize) -> Result<(), NcclError> {
        let device = self.device(index)?;
        let mut context = ptr::null_mut();
        // SAFETY: the driver writes a handle to `context`, which lives through the call. The context is
        // kept for the life of the process, as libtorch keeps it.
        check("cuDevicePrimaryCtxRetain", unsafe {
            (self.retain)(&raw mut context, device)
        })?;
        // SAFETY: a context that the driver just gave out.
        check("cuCtxSetCurrent", unsafe { (self.set_current)(context) })
    }

    fn device(&self, index: usize) -> Result<c_int, NcclError> {
        let mut device = 0;
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: the driver writes one int to `device`, which lives through the call.
        check("cuDeviceGet", unsafe { (self.get)(&raw mut device, index) })?;
        Ok(device)
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), NcclError> {
    match code {
        0 => Ok(()),
        code => Err(NcclError::Driver { call, code }),
    }
}

/// Loads a library for good: they leave threads behind, whose code must stay where it is.
fn open(name: &OsStr) -> Result<ManuallyDrop<Library>, NcclError> {
    // SAFETY: the initialisers of these libraries are those that libtorch runs too; they expect nothing
    // of the caller.
    let loaded = unsafe { Library::new(name) };
    loaded
        .map(ManuallyDrop::new)
        .map_err(|error| NcclError::Library {
            name: name.to_string_lossy().into_owned(),
            reason: error.to_string(),
        })
}

/// Looks a function up. `T` must be its C type.
fn symbol<T: Copy>(library: &Library, name: &OsStr, symbol: &'static str) -> Result<T, NcclError> {
    // SAFETY: every caller in this file gives the type that the library's header declares.
    let found = unsafe { library.get::<T>(symbol.as_bytes()) };
    found.map(|found| *found).map_err(|_| NcclError::Symbol {
        name: name.to_string_lossy().into_owned(),
        symbol,
    })
}

//! The binding against a library that looks like NCCL and writes down what is called: symbols, arguments, the
//! way through non-blocking calls, and what happens when they fail. What a GPU does is not tested here.

#![allow(clippy::unwrap_used)]

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use scpeft_collective::nccl::{
    Communicator, DeviceSlice, Driver, Element, Nccl, NcclError, NcclWorld, Stream, Streams,
};
use scpeft_collective::{Collective, Error, Fake, Observer};

const PATIENCE: Duration = Duration::from_secs(5);

/// The fake library, with what is to go wrong, in a folder of its own: each has its own state.
struct Library {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Library {
    fn new(faults: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libnccl.so.2");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nccl.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&path, &source])
            .args(faults.iter().map(|fault| format!("-D{fault}")))
            .status()
            .expect("cc");
        assert!(status.success());
        Self {
            path,
            _folder: folder,
        }
    }

    fn nccl(&self) -> Result<Rc<Nccl>, NcclError> {
        Nccl::open(self.path.as_os_str()).map(Rc::new)
    }

    fn stream(&self) -> Stream {
        let streams = Streams::open(self.path.as_os_str()).unwrap();
        streams.current(0).unwrap()
    }

    /// What was called so far.
    fn said(&self) -> String {
        // SAFETY: the library of this test, which is loaded already; the function is declared there.
        unsafe {
            let library = libloading::Library::new(&self.path).unwrap();
            let said: libloading::Symbol<'_, unsafe extern "C" fn() -> *const c_char> =
                library.get(b"fake_said").unwrap();
            CStr::from_ptr(said()).to_str().unwrap().trim().to_owned()
        }
    }

    fn form(&self, ranks: usize) -> Result<Communicator, NcclError> {
        let nccl = self.nccl()?;
        let id = nccl.unique_id()?;
        let short = Duration::from_millis(50);
        Communicator::form(nccl, &id, 1, ranks, short, PATIENCE)
    }
}

fn floats(values: &mut [f32]) -> DeviceSlice {
    // SAFETY: the fake device is host memory; the tests keep the values until the call is done.
    unsafe { DeviceSlice::new(values.as_mut_ptr().cast(), values.len(), Element::F32) }
}

fn words(values: &mut [i64]) -> DeviceSlice {
    let address = values.as_mut_ptr().cast::<c_void>();
    // SAFETY: as in `floats`.
    unsafe { DeviceSlice::new(address, values.len(), Element::I64) }
}

#[test]
fn sums_broadcasts_and_gathers_are_queued_on_the_stream_and_the_end_is_orderly() {
    let library = Library::new(&[]);
    assert_eq!(library.nccl().unwrap().version(), "2.28.9");
    let mut communicator = library.form(4).unwrap();
    let stream = library.stream();
    let (mut a, mut b) = ([1.0, 2.5], [3, -1, 7]);
    communicator.all_reduce(&floats(&mut a), stream).unwrap();
    communicator.all_reduce(&words(&mut b), stream).unwrap();
    assert_eq!((a, b), ([4.0, 10.0], [12, -4, 28]));
    communicator.broadcast(&words(&mut b), stream).unwrap();
    let mut whole = [0.0; 8];
    let (part, all) = (floats(&mut a), floats(&mut whole));
    communicator.all_gather(&part, &all, 4, stream).unwrap();
    assert_eq!(whole, [4.0, 10.0, 4.0, 10.0, 4.0, 10.0, 4.0, 10.0]);
    let wrong = communicator.all_gather(&part, &all, 3, stream).unwrap_err();
    assert!(matches!(
        wrong,
        NcclError::Sizes {
            part: 8,
            ranks: 3,
            whole: 32
        }
    ));
    drop(communicator);
    assert_eq!(
        library.said(),
        "id init(1 of 4, 21800) reduce(2 of 7) reduce(3 of 4) broadcast(3 of 4) gather(2 of 7) finalize destroy"
    );
}

#[test]
fn a_library_that_is_missing_old_or_incomplete_is_named() {
    let missing = Nccl::open("/nonexistent/libnccl.so.2".as_ref()).unwrap_err();
    assert!(
        missing.to_string().contains("/nonexistent/libnccl.so.2"),
        "{missing}"
    );
    let old = Library::new(&["OLD"]).nccl().unwrap_err();
    assert!(
        matches!(&old, NcclError::TooOld { version, .. } if version == "21400"),
        "{old}"
    );
    let incomplete = Library::new(&["NO_GATHER"]).nccl().unwrap_err();
    assert!(
        matches!(
            incomplete,
            NcclError::Symbol {
                symbol: "ncclAllGather",
                ..
            }
        ),
        "{incomplete}"
    );
    let short = Library::new(&[]).nccl().unwrap();
    let error = Communicator::form(short, &[0; 3], 0, 1, PATIENCE, PATIENCE).unwrap_err();
    assert_eq!(error, NcclError::Id { found: 3 });
}

#[test]
fn ranks_that_do_not_find_each_other_end_by_the_deadline_with_an_abort() {
    let library = Library::new(&["FORMS_AFTER=-1"]);
    let error = library.form(2).unwrap_err();
    assert!(
        matches!(
            error,
            NcclError::Deadline {
                call: "ncclCommInitRankConfig",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(library.said(), "id init(1 of 2, 21800) abort");
    let refused = Library::new(&["INIT_FAILS"]);
    let error = refused.form(2).unwrap_err().to_string();
    assert!(
        error.contains("system error (code 2)") && error.contains("NCCL_DEBUG"),
        "{error}"
    );
    assert_eq!(refused.said(), "id init(1 of 2, 21800)");
}

#[test]
fn an_error_in_the_background_aborts_and_nothing_is_queued_after_it() {
    let library = Library::new(&["FAILS_AFTER=1"]);
    let mut communicator = library.form(2).unwrap();
    let stream = library.stream();
    let mut values = [1.0];
    communicator
        .all_reduce(&floats(&mut values), stream)
        .unwrap();
    let error = communicator
        .all_reduce(&floats(&mut values), stream)
        .unwrap_err();
    assert!(
        error.to_string().contains("remote process exited (code 6)"),
        "{error}"
    );
    for _ in 0..2 {
        let again = communicator.all_reduce(&floats(&mut values), stream);
        assert_eq!(again.unwrap_err(), NcclError::Aborted);
    }
    drop(communicator);
    assert_eq!(
        library.said(),
        "id init(1 of 2, 21800) reduce(1 of 7) reduce(1 of 7) abort"
    );
}

#[derive(Default)]
struct Noted(std::cell::RefCell<Vec<(&'static str, usize)>>);

impl Observer for Noted {
    fn begin(&self, op: &'static str, bytes: usize) {
        self.0.borrow_mut().push((op, bytes));
    }

    fn end(&self) {}
}

#[test]
fn a_world_sums_on_devices_through_nccl_and_in_host_memory_as_before() {
    let library = Library::new(&["FAILS_AFTER=1"]);
    let host = Fake::new(3, 3);
    assert!(host.on_device().is_none());
    let noted = Rc::new(Noted::default());
    let streams = Streams::open(library.path.as_os_str()).unwrap();
    let nccl = library.nccl().unwrap();
    let observer: Rc<dyn Observer> = noted.clone();
    let world = NcclWorld::form(&host, observer, nccl, streams, 0).unwrap();
    let mut values = [2.0, 1.0];
    let devices = world.on_device().unwrap();
    devices.all_reduce_sum(&floats(&mut values)).unwrap();
    assert_eq!(values, [6.0, 3.0]);
    world.all_reduce_sum(&mut values).unwrap();
    assert_eq!(values, [6.0, 3.0], "the host's world adds nothing");
    let failed = devices.all_reduce_sum(&floats(&mut values)).unwrap_err();
    assert!(
        matches!(failed, Error::Nccl(NcclError::Call { code: 6, .. })),
        "{failed}"
    );
    assert_eq!(*noted.0.borrow(), [("nccl_all_reduce", 8); 2]);
    let wrong_device = Streams::open(library.path.as_os_str()).unwrap().current(3);
    assert!(matches!(
        wrong_device,
        Err(NcclError::Driver { code: 1, .. })
    ));
}

#[test]
fn the_driver_tells_a_devices_uuid_and_makes_it_current() {
    let library = Library::new(&[]);
    let driver = Driver::open(library.path.as_os_str()).unwrap();
    assert_eq!(
        driver.device_uuid(1).unwrap(),
        "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1"
    );
    driver.make_current(1).unwrap();
    assert_eq!(library.said(), "retain(1) current");
    let none = driver.device_uuid(2).unwrap_err();
    assert!(
        matches!(
            none,
            NcclError::Driver {
                call: "cuDeviceGet",
                code: 101
            }
        ),
        "{none}"
    );
    let missing = Driver::open("/nonexistent/libcuda.so.1".as_ref()).unwrap_err();
    assert!(matches!(missing, NcclError::Library { .. }), "{missing}");
}

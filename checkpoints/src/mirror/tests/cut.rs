//! A store that is cut off at any single operation: a writer that is killed there, or a store that goes
//! down. What was complete before is still there, and the next writer finishes the work.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};

use super::*;

/// Lets so many changes through, then fails whatever is asked.
#[derive(Debug)]
struct Cut {
    inner: Arc<InMemory>,
    left: AtomicUsize,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that is cut off")
    }
}

fn gone() -> object_store::Error {
    object_store::Error::Generic {
        store: "cut",
        source: "the store is gone".into(),
    }
}

impl Cut {
    fn change(&self) -> StoreResult<()> {
        let spend = |left: usize| left.checked_sub(1);
        let spent = self.left.fetch_update(SeqCst, SeqCst, spend);
        spent.map(|_| ()).map_err(|_| gone())
    }

    fn look(&self) -> StoreResult<()> {
        if self.left.load(SeqCst) == 0 {
            return Err(gone());
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Cut {
    async fn put_opts(
        &self,
        location: &Location,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.change()?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> StoreResult<GetResult> {
        self.look()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Location>>,
    ) -> BoxStream<'static, StoreResult<Location>> {
        match self.change() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match self.look() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Location,
        to: &Location,
        options: CopyOptions,
    ) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn cut_after(changes: usize, inner: &Arc<InMemory>) -> Mirror {
    let store = Cut {
        inner: inner.clone(),
        left: AtomicUsize::new(changes),
    };
    let client = Client {
        store: Box::new(store),
        folder: Location::from("runs/one"),
        lists: true,
    };
    Mirror(Remote::new("memory://runs/one", client, Duration::ZERO).unwrap())
}

/// A mirror with step 1, the best, and step 2; then step 2 is written again, and step 3 is newer and
/// better.
fn prepare(run: &CheckpointStore, inner: &Arc<InMemory>) {
    save(run, 1, Some(0.5), "one");
    run.mark_best(1).unwrap();
    let mirror = cut_after(usize::MAX, inner);
    mirror.sync(run, POLICY).unwrap();
    save(run, 2, None, "two");
    mirror.sync(run, POLICY).unwrap();
    save(run, 2, Some(0.1), "two again");
    save(run, 3, Some(0.9), "three");
    run.mark_best(3).unwrap();
}

#[test]
fn a_mirror_survives_a_cut_at_every_operation() {
    let mut cuts = 0;
    loop {
        let (_dir, run) = folder();
        let inner = Arc::new(InMemory::new());
        prepare(&run, &inner);
        let synced = cut_after(cuts, &inner).sync(&run, POLICY);
        let whole = cut_after(usize::MAX, &inner);

        let (_other, other) = folder();
        let fetched = whole.fetch_newer(&other).unwrap();
        let found = content(&other, fetched[0]);
        let expected = ["two", "three"][usize::from(fetched[0] == 3)];
        assert_eq!(found, expected, "cut after {cuts}");
        let best = whole.look().unwrap().best.as_deref().and_then(step_of);
        assert!(other.path(best.unwrap()).is_dir(), "cut after {cuts}");

        assert_eq!(whole.sync(&run, POLICY).unwrap(), Some(3));
        assert_eq!(steps(&whole), [3], "cut after {cuts}");
        assert!(whole.look().unwrap().remains.is_empty(), "cut after {cuts}");
        if synced.is_ok() {
            break;
        }
        cuts += 1;
    }
    // Two files, manifest, two pointers; step 1 and step 2 of three files each go.
    assert_eq!(cuts, 5 + 6);
}

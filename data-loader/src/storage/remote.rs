//! Files of an object store or a web server, by range requests.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Location;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use url::Url;

use super::retry::{Failure, Patience, Target, judge};
use super::{Listed, StoreOptions, Traffic, runtime, wrong_size};
use crate::{Error, Result};

/// Ranges so far apart are still fetched with one request.
const GAP: u64 = 1 << 20;
/// No request asks for more: longer ranges are fetched in parts.
const LONGEST: u64 = 16 << 20;
/// Requests of one fetch at a time.
const PARALLEL: usize = 8;

/// The URL that a path is the text of; `None` for a path of the file system.
pub(super) fn url(root: &Path) -> Result<Option<Url>> {
    match root.to_str() {
        Some(text) => scpeft_store::parse(text).map_err(Error::misuse),
        None => Ok(None),
    }
}

/// A folder of a store.
#[derive(Debug)]
pub(super) struct Remote {
    shared: Arc<Shared>,
    options: StoreOptions,
    /// Whether it can tell which files it has.
    lists: bool,
}

#[derive(Debug)]
struct Shared {
    store: Box<dyn ObjectStore>,
    folder: Location,
    traffic: Arc<Traffic>,
    /// The version of each file when it was first read.
    versions: Mutex<HashMap<String, String>>,
}

impl Remote {
    pub(super) fn new(url: &Url, options: &StoreOptions, traffic: Arc<Traffic>) -> Result<Self> {
        let client = scpeft_store::open(url, &options.settings).map_err(Error::misuse)?;
        Ok(Self {
            shared: Arc::new(Shared {
                store: client.store,
                folder: client.folder,
                traffic,
                versions: Mutex::default(),
            }),
            options: options.clone(),
            lists: client.lists,
        })
    }

    /// Runs a transfer on the runtime, with the patience that it has.
    fn wait<T, F>(&self, transfer: impl FnOnce(Arc<Shared>, Patience) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let patience = Patience::new(&self.options, &self.shared.traffic);
        runtime::wait(transfer(self.shared.clone(), patience))
    }

    pub(super) fn read(&self, path: &Path, name: &str) -> Result<Bytes> {
        let target = Target::new(path, "whole file");
        let missing = target.error("does not exist in the store");
        self.read_whole(target, name)?.ok_or(missing)
    }

    pub(super) fn read_if_there(&self, path: &Path, name: &str) -> Result<Option<Bytes>> {
        self.read_whole(Target::new(path, "whole file"), name)
    }

    /// A whole file, `None` when there is none. A bucket that does not exist is an error.
    fn read_whole(&self, target: Target, name: &str) -> Result<Option<Bytes>> {
        let name = name.to_owned();
        self.wait(|shared, patience| async move {
            patience
                .run(&target, || shared.try_read(&target, &name))
                .await
        })
    }

    /// The size of a file.
    pub(super) fn size(&self, path: &Path, name: &str) -> Result<u64> {
        let (target, name) = (Target::new(path, "size"), name.to_owned());
        self.wait(|shared, patience| async move {
            let size = || async {
                let options = GetOptions {
                    head: true,
                    ..GetOptions::default()
                };
                Ok(shared.get(&target, &name, options).await?.meta.size)
            };
            patience.run(&target, size).await
        })
    }

    /// Some ranges of a file, in the order asked for. Its size is checked when it is known.
    pub(super) fn fetch(
        &self,
        path: &Path,
        name: &str,
        ranges: &[Range<u64>],
        size: Option<u64>,
    ) -> Result<Vec<Bytes>> {
        let pieces = coalesce(ranges);
        let parts: Vec<Range<u64>> = pieces.iter().flat_map(cut).collect();
        let (path, name) = (path.to_owned(), name.to_owned());
        let fetched = self.wait(|shared, patience| async move {
            let fetches = parts.into_iter().map(|range| {
                let place = format!("bytes {} to {}", range.start, range.end);
                let target = Target::new(&path, place);
                let (shared, name, patience) = (shared.clone(), name.clone(), patience.clone());
                async move {
                    let part = || shared.try_fetch(&target, &name, range.clone(), size);
                    patience.run(&target, part).await
                }
            });
            futures::stream::iter(fetches)
                .buffered(PARALLEL)
                .try_collect::<Vec<Bytes>>()
                .await
        })?;
        let whole = join(&pieces, fetched);
        Ok(ranges
            .iter()
            .map(|range| match holding(&pieces, range) {
                None => Bytes::new(),
                Some(piece) => {
                    let from = (range.start - pieces[piece].start) as usize;
                    whole[piece].slice(from..from + (range.end - range.start) as usize)
                }
            })
            .collect())
    }

    /// All files below the folder.
    pub(super) fn list(&self, root: &Path) -> Result<Vec<Listed>> {
        if !self.lists {
            return Err(Error::options(
                format!("`{}`: a web server cannot list its files", root.display()),
                "copy the files to a folder or an object store, or use the s3:// address of the store",
            ));
        }
        let target = Target::new(root, "list of files");
        self.wait(|shared, patience| async move {
            patience.run(&target, || shared.try_list(&target)).await
        })
    }
}

impl Shared {
    fn location(&self, target: &Target, name: &str) -> Result<Location, Failure> {
        let below =
            Location::parse(name).map_err(|e| Failure::Final(target.error(e.to_string())))?;
        Ok(self.folder.parts().chain(below.parts()).collect())
    }

    async fn get(
        &self,
        target: &Target,
        name: &str,
        options: GetOptions,
    ) -> Result<object_store::GetResult, Failure> {
        let location = self.location(target, name)?;
        self.traffic.count_read(1, 0);
        self.store
            .get_opts(&location, options)
            .await
            .map_err(|e| judge(&e, target))
    }

    async fn try_read(&self, target: &Target, name: &str) -> Result<Option<Bytes>, Failure> {
        let location = self.location(target, name)?;
        self.traffic.count_read(1, 0);
        let answer = match self.store.get_opts(&location, GetOptions::default()).await {
            Err(object_store::Error::NotFound { source, .. })
                if !source.to_string().contains("NoSuchBucket") =>
            {
                return Ok(None);
            }
            answer => answer.map_err(|e| judge(&e, target))?,
        };
        let size = answer.meta.size;
        self.body(target, answer, size).await.map(Some)
    }

    async fn try_fetch(
        &self,
        target: &Target,
        name: &str,
        range: Range<u64>,
        size: Option<u64>,
    ) -> Result<Bytes, Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let answer = self.get(target, name, options).await?;
        if let Some(size) = size.filter(|&size| size != answer.meta.size) {
            return Err(Failure::Final(wrong_size(
                &target.path,
                answer.meta.size,
                size,
            )));
        }
        self.same_version(target, name, &answer.meta)?;
        if answer.range != range {
            return Err(Failure::Final(target.error(format!(
                "the store sent bytes {} to {}",
                answer.range.start, answer.range.end
            ))));
        }
        self.body(target, answer, range.end - range.start).await
    }

    /// The body of an answer, which must have so many bytes.
    async fn body(
        &self,
        target: &Target,
        answer: object_store::GetResult,
        size: u64,
    ) -> Result<Bytes, Failure> {
        let mut bytes = Vec::with_capacity(size.min(LONGEST) as usize);
        let mut stream = answer.into_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| judge(&e, target))?;
            self.traffic.count_read(0, chunk.len() as u64);
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() as u64 == size {
            return Ok(Bytes::from(bytes));
        }
        let found = bytes.len();
        Err(Failure::Passing(format!(
            "the body broke off after {found} of {size} bytes"
        )))
    }

    /// Refuses a file that became another one since it was first read.
    fn same_version(&self, target: &Target, name: &str, meta: &ObjectMeta) -> Result<(), Failure> {
        let Some(found) = &meta.e_tag else {
            return Ok(());
        };
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let first = versions
            .entry(name.to_owned())
            .or_insert_with(|| found.clone());
        if first == found {
            return Ok(());
        }
        Err(Failure::Final(target.error(format!(
            "changed while the corpus was open: its version was {first}, now it is {found}\nhelp: restore the file or make the corpus again, then start again"
        ))))
    }

    async fn try_list(&self, target: &Target) -> Result<Vec<Listed>, Failure> {
        self.traffic.count_read(1, 0);
        let found: Vec<ObjectMeta> = self
            .store
            .list(Some(&self.folder))
            .try_collect()
            .await
            .map_err(|e| judge(&e, target))?;
        let below = |meta: &ObjectMeta| {
            let parts = meta.location.prefix_match(&self.folder)?;
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            Some(Listed {
                name: parts.join("/"),
                bytes: meta.size,
            })
        };
        Ok(found.iter().filter_map(below).collect())
    }
}

/// The ranges to ask for: close ones together, ascending.
fn coalesce(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|r| r.start < r.end).cloned().collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut pieces: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match pieces.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            Some(last) if range.start - last.end <= GAP && range.end - last.start <= LONGEST => {
                last.end = range.end;
            }
            _ => pieces.push(range),
        }
    }
    pieces
}

/// Cuts a long range into parts.
fn cut(piece: &Range<u64>) -> Vec<Range<u64>> {
    (piece.start..piece.end)
        .step_by(LONGEST as usize)
        .map(|start| start..(start + LONGEST).min(piece.end))
        .collect()
}

/// Puts the parts of each piece together again.
fn join(pieces: &[Range<u64>], parts: Vec<Bytes>) -> Vec<Bytes> {
    let mut parts = parts.into_iter();
    pieces
        .iter()
        .map(|piece| {
            let n = (piece.end - piece.start).div_ceil(LONGEST) as usize;
            if n == 1 {
                return parts.next().unwrap_or_default();
            }
            let mut whole = Vec::with_capacity((piece.end - piece.start) as usize);
            for part in parts.by_ref().take(n) {
                whole.extend_from_slice(&part);
            }
            Bytes::from(whole)
        })
        .collect()
}

/// The piece that holds a range; none holds an empty one.
fn holding(pieces: &[Range<u64>], range: &Range<u64>) -> Option<usize> {
    if range.start >= range.end {
        return None;
    }
    pieces
        .partition_point(|piece| piece.start <= range.start)
        .checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_ranges_are_asked_for_together() {
        let far = 10 + GAP + 1;
        assert_eq!(
            coalesce(&[4..10, 0..2, far..far + 5, 7..7]),
            vec![0..10, far..far + 5]
        );
        let whole = coalesce(&[4..10, 10 + GAP..11 + GAP]);
        assert_eq!(whole, vec![4..11 + GAP]);
        // A piece grows by gaps only as long as one request can fetch it.
        let long = coalesce(&[0..LONGEST, LONGEST + 1..LONGEST + 2]);
        assert_eq!(long, vec![0..LONGEST, LONGEST + 1..LONGEST + 2]);
    }

    #[test]
    fn parts_of_a_long_range_are_joined() {
        let pieces = vec![5..9, 100..100 + 2 * LONGEST + 3];
        let parts: Vec<Range<u64>> = pieces.iter().flat_map(cut).collect();
        assert_eq!(parts.len(), 4);
        assert_eq!(parts[3], 100 + 2 * LONGEST..100 + 2 * LONGEST + 3);
        let bytes = parts
            .iter()
            .zip(1..)
            .map(|(part, fill)| Bytes::from(vec![fill; (part.end - part.start) as usize]));
        let whole = join(&pieces, bytes.collect());
        assert_eq!(whole[0].as_ref(), [1; 4]);
        assert_eq!(whole[1].len() as u64, 2 * LONGEST + 3);
        assert_eq!(whole[1][whole[1].len() - 4..], [3, 4, 4, 4]);
        assert_eq!(holding(&pieces, &(6..8)), Some(0));
        assert_eq!(holding(&pieces, &(200..201)), Some(1));
        assert_eq!(holding(&pieces, &(6..6)), None);
    }
}

//! Objects by name: put, get, list, delete, each tried again while patience lasts.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path as Location;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use scpeft_store::{Client, Misuse, Verdict, judge, pause};
use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};

/// One request is cut off after this: it carries a few megabytes.
const LONGEST_TRY: Duration = Duration::from_secs(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A folder of a store.
#[derive(Debug)]
pub(super) struct Remote {
    address: String,
    store: Box<dyn ObjectStore>,
    folder: Location,
    patience: Duration,
    runtime: Runtime,
}

impl Remote {
    pub(super) fn open(address: &str, patience: Duration) -> Result<Self> {
        let misuse = |problem: String| Misuse {
            problem,
            help:
                "use an address such as s3://bucket/path, gs://bucket/path or az://container/path"
                    .to_owned(),
        };
        let url = scpeft_store::parse(address)?
            .ok_or_else(|| misuse(format!("`{address}` is no address of an object store")))?;
        let client = scpeft_store::open(&url, &[])?;
        if !client.lists {
            return Err(misuse(format!("`{address}`: a web server keeps no checkpoints")).into());
        }
        Self::new(address, client, patience)
    }

    pub(super) fn new(address: &str, client: Client, patience: Duration) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start the transfers to", address.as_ref()))?;
        Ok(Self {
            address: address.trim_end_matches('/').to_owned(),
            store: client.store,
            folder: client.folder,
            patience,
            runtime,
        })
    }

    /// The address of an object.
    pub(super) fn address(&self, object: &str) -> String {
        format!("{}/{object}", self.address)
    }

    pub(super) fn error(&self, object: &str, problem: impl Into<String>) -> Error {
        Error::Store {
            address: self.address(object),
            problem: problem.into(),
            passing: true,
        }
    }

    fn location(&self, object: &str) -> Result<Location> {
        let below = Location::parse(object).map_err(|e| Error::Store {
            address: self.address(object),
            problem: e.to_string(),
            passing: false,
        })?;
        Ok(self.folder.parts().chain(below.parts()).collect())
    }

    /// Tries until it works, cannot work, or patience is at its end.
    fn run<T>(
        &self,
        object: &str,
        mut attempt: impl AsyncFnMut() -> object_store::Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let tried = async { tokio::time::timeout(LONGEST_TRY, attempt()).await };
            let problem = match self.runtime.block_on(tried) {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => match judge(&error) {
                    Verdict::Passing(problem) => problem,
                    Verdict::Final(problem) => {
                        return Err(Error::Store {
                            address: self.address(object),
                            problem,
                            passing: false,
                        });
                    }
                },
                Err(_) => format!("no answer within {} s", LONGEST_TRY.as_secs()),
            };
            let pause = pause(tries, LONGEST_PAUSE);
            if begun.elapsed() + pause >= self.patience {
                let spent = begun.elapsed().as_secs_f64();
                return Err(self.error(
                    object,
                    format!("{problem} (tried {tries} times in {spent:.1} s)"),
                ));
            }
            std::thread::sleep(pause);
        }
    }

    pub(super) fn put(&self, object: &str, bytes: &Bytes) -> Result<()> {
        let location = self.location(object)?;
        self.run(object, async || {
            let payload = PutPayload::from_bytes(bytes.clone());
            self.store.put(&location, payload).await.map(|_| ())
        })
    }

    /// The bytes of an object; `None` when there is none.
    pub(super) fn get(&self, object: &str) -> Result<Option<Bytes>> {
        let location = self.location(object)?;
        self.run(object, async || match self.store.get(&location).await {
            Ok(found) => found.bytes().await.map(Some),
            Err(object_store::Error::NotFound { source, .. })
                if !source.to_string().contains("NoSuchBucket") =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        })
    }

    /// Deletes an object; it need not be there.
    pub(super) fn delete(&self, object: &str) -> Result<()> {
        let location = self.location(object)?;
        self.run(object, async || match self.store.delete(&location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// Paths below a folder with their sizes, relative to it.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        let location = self.location(folder)?;
        let found: Vec<object_store::ObjectMeta> = self.run(folder, async || {
            self.store.list(Some(&location)).try_collect().await
        })?;
        let relative = |meta: &object_store::ObjectMeta| {
            let parts = meta.location.prefix_match(&location)?;
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            Some((parts.join("/"), meta.size))
        };
        Ok(found.iter().filter_map(relative).collect())
    }
}

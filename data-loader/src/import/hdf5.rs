//! Thin helpers over HDF5: typed reads of rows, of strings in all their forms, and of attributes, with
//! errors that name the file and the object.

use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};

use hdf5_metno::types::{
    CompoundField, CompoundType, FixedAscii, FixedUnicode, FloatSize, H5Type, IntSize,
    TypeDescriptor, VarLenAscii, VarLenUnicode,
};
use hdf5_metno::{Dataset, Dataspace, Datatype, File, Group, Location};
use hdf5_metno_sys::h5d::{H5Dread, H5Dvlen_reclaim};
use hdf5_metno_sys::h5p::H5P_DEFAULT;

use super::Numbers;
use crate::{Error, Result};

/// An open HDF5 file.
#[derive(Debug, Clone)]
pub(super) struct Hdf5 {
    path: PathBuf,
    file: File,
}

impl Hdf5 {
    pub(super) fn open(path: &Path) -> Result<Self> {
        check_signature(path)?;
        let file = File::open(path).map_err(|e| {
            let problem = e.to_string();
            let help = if problem.contains("truncated") {
                "the file is incomplete: copy or download it again"
            } else {
                "the file may be damaged or still open for writing"
            };
            import_error(
                path,
                "",
                format!("cannot be opened as HDF5: {problem}"),
                help,
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> &Group {
        &self.file
    }

    pub(super) fn error(
        &self,
        place: &str,
        problem: impl Into<String>,
        help: impl Into<String>,
    ) -> Error {
        import_error(&self.path, place, problem, help)
    }

    /// A dataset that must be there, with filters that can be read.
    pub(super) fn needed(&self, parent: &Group, name: &str) -> Result<Dataset> {
        let place = format!("{}/{name}", parent.name().trim_end_matches('/'));
        let dataset = dataset(parent, name)
            .ok_or_else(|| self.error(&place, "is missing", "the file is not complete"))?;
        self.check_filters(&dataset)?;
        Ok(dataset)
    }

    pub(super) fn check_filters(&self, dataset: &Dataset) -> Result<()> {
        match dataset.filters().iter().find(|f| !f.is_available()) {
            None => Ok(()),
            Some(filter) => Err(self.error(
                &dataset.name(),
                format!("is compressed with {}, which this build cannot read", filter_name(filter.id())),
                "write the file again with gzip: `anndata.read_h5ad(a).write_h5ad(b, compression=\"gzip\")` in Python",
            )),
        }
    }

    /// Rows of a 1-d dataset as numbers of type `T`, converted by HDF5.
    pub(super) fn rows<T: H5Type>(&self, source: &Source, rows: Range<usize>) -> Result<Vec<T>> {
        let mut out: Vec<T> = Vec::with_capacity(rows.len());
        let len = rows.len();
        // SAFETY: the buffer has room for `len` elements of `T`, and the memory type given to HDF5 is
        // the one of `T`; only a successful read makes the elements visible.
        unsafe {
            self.read_into(source, &T::type_descriptor(), rows, out.as_mut_ptr().cast())?;
            out.set_len(len);
        }
        Ok(out)
    }

    /// Rows of a 1-d dataset of numbers, in a type that loses nothing.
    pub(super) fn numbers(&self, source: &Source, rows: Range<usize>) -> Result<Numbers> {
        Ok(match source.descriptor(self)? {
            TypeDescriptor::Float(FloatSize::U4) => Numbers::F32(self.rows(source, rows)?),
            TypeDescriptor::Float(_) => Numbers::F64(self.rows(source, rows)?),
            TypeDescriptor::Unsigned(size) if size != IntSize::U8 => {
                Numbers::U32(self.rows(source, rows)?)
            }
            TypeDescriptor::Integer(size) if size != IntSize::U8 => {
                let read: Vec<i32> = self.rows(source, rows)?;
                if read.iter().all(|&v| v >= 0) {
                    Numbers::U32(read.into_iter().map(|v| v as u32).collect())
                } else {
                    Numbers::F64(read.into_iter().map(f64::from).collect())
                }
            }
            _ => Numbers::integers(&self.rows::<i64>(source, rows)?),
        })
    }

    /// Rows of a 1-d dataset of strings.
    pub(super) fn strings(&self, source: &Source, rows: Range<usize>) -> Result<Vec<String>> {
        match source.descriptor(self)? {
            ty @ (TypeDescriptor::FixedAscii(size) | TypeDescriptor::FixedUnicode(size)) => {
                let mut bytes = vec![0_u8; size * rows.len()];
                // SAFETY: the buffer has `size` bytes for each row.
                unsafe { self.read_into(source, &ty, rows, bytes.as_mut_ptr().cast())? };
                Ok(bytes.chunks(size.max(1)).map(fixed_text).collect())
            }
            ty @ (TypeDescriptor::VarLenAscii | TypeDescriptor::VarLenUnicode) => {
                self.variable_strings(source, &ty, rows)
            }
            other => Err(self.error(
                &source.name(),
                format!("holds {other}, expected strings"),
                "",
            )),
        }
    }

    fn variable_strings(
        &self,
        source: &Source,
        ty: &TypeDescriptor,
        rows: Range<usize>,
    ) -> Result<Vec<String>> {
        let mut pointers: Vec<*mut c_char> = vec![std::ptr::null_mut(); rows.len()];
        // SAFETY: HDF5 gives one pointer per row, null or to a nul-terminated string that it allocated.
        // The strings are copied and given back to HDF5 with the type they were read with.
        unsafe {
            self.read_into(source, ty, rows.clone(), pointers.as_mut_ptr().cast())?;
            let texts = pointers
                .iter()
                .map(|&p| {
                    if p.is_null() {
                        String::new()
                    } else {
                        CStr::from_ptr(p).to_string_lossy().into_owned()
                    }
                })
                .collect();
            let place = source.name();
            let datatype = memory_type(source, ty).map_err(|e| self.hdf5_error(&place, &e))?;
            let space =
                Dataspace::try_new([rows.len()]).map_err(|e| self.hdf5_error(&place, &e))?;
            hdf5_metno::sync::sync(|| {
                H5Dvlen_reclaim(
                    datatype.id(),
                    space.id(),
                    H5P_DEFAULT,
                    pointers.as_mut_ptr().cast(),
                )
            });
            Ok(texts)
        }
    }

    /// Reads rows into memory.
    ///
    /// # Safety
    /// `buffer` must have room for as many elements of type `ty` as there are rows.
    unsafe fn read_into(
        &self,
        source: &Source,
        ty: &TypeDescriptor,
        rows: Range<usize>,
        buffer: *mut c_void,
    ) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let place = source.name();
        let fail = |e: hdf5_metno::Error| self.hdf5_error(&place, &e);
        let shape = source.dataset.shape();
        if shape.len() != 1 || shape[0] < rows.end {
            let problem = format!(
                "has shape {shape:?}, but rows up to {} are needed",
                rows.end
            );
            return Err(self.error(&place, problem, "the file is not complete"));
        }
        let datatype = memory_type(source, ty).map_err(fail)?;
        let memory = Dataspace::try_new([rows.len()]).map_err(fail)?;
        let disk = source
            .dataset
            .space()
            .and_then(|s| s.select(rows))
            .map_err(fail)?;
        let status = hdf5_metno::sync::sync(|| {
            // SAFETY: all ids are alive; the buffer is as large as the memory space says (caller).
            unsafe {
                H5Dread(
                    source.dataset.id(),
                    datatype.id(),
                    memory.id(),
                    disk.id(),
                    H5P_DEFAULT,
                    buffer,
                )
            }
        });
        if status < 0 {
            return Err(self.error(
                &place,
                "cannot be read",
                "the file is damaged or truncated: copy or download it again",
            ));
        }
        Ok(())
    }

    pub(super) fn hdf5_error(&self, place: &str, error: &hdf5_metno::Error) -> Error {
        self.error(
            place,
            format!("cannot be read: {error}"),
            "the file may be damaged or truncated",
        )
    }
}

/// A 1-d dataset, or one field of a 1-d dataset of records.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) dataset: Dataset,
    pub(super) field: Option<String>,
}

impl Source {
    pub(super) fn whole(dataset: Dataset) -> Self {
        Self {
            dataset,
            field: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.dataset.size()
    }

    pub(super) fn name(&self) -> String {
        let name = self.dataset.name();
        self.field
            .as_ref()
            .map_or_else(|| name.clone(), |f| format!("{name}, field `{f}`"))
    }

    pub(super) fn descriptor(&self, file: &Hdf5) -> Result<TypeDescriptor> {
        let unknown = |e: hdf5_metno::Error| {
            file.error(
                &self.name(),
                format!("has a type that cannot be read: {e}"),
                "",
            )
        };
        let whole = self
            .dataset
            .dtype()
            .and_then(|t| t.to_descriptor())
            .map_err(unknown)?;
        match (&self.field, whole) {
            (None, ty) => Ok(ty),
            (Some(field), TypeDescriptor::Compound(record)) => record
                .fields
                .into_iter()
                .find(|f| f.name == *field)
                .map(|f| f.ty)
                .ok_or_else(|| file.error(&self.name(), "is missing", "")),
            (Some(_), ty) => {
                Err(file.error(&self.name(), format!("holds {ty}, expected records"), ""))
            }
        }
    }
}

fn memory_type(source: &Source, ty: &TypeDescriptor) -> hdf5_metno::Result<Datatype> {
    match &source.field {
        None => Datatype::from_descriptor(ty),
        // A record of the one field that is wanted: HDF5 leaves the others out.
        Some(field) => Datatype::from_descriptor(&TypeDescriptor::Compound(CompoundType {
            size: ty.size(),
            fields: vec![CompoundField::new(field, ty.clone(), 0, 0)],
        })),
    }
}

pub(crate) fn import_error(
    path: &Path,
    place: &str,
    problem: impl Into<String>,
    help: impl Into<String>,
) -> Error {
    let place = if place.is_empty() {
        String::new()
    } else {
        format!("`{}`", place.trim_start_matches('/'))
    };
    Error::Import {
        path: path.to_owned(),
        place,
        problem: problem.into(),
        help: help.into(),
    }
}

/// HDF5 files begin with a signature, at 0 or after a user block at 512, 1024, 2048 and so on.
fn check_signature(path: &Path) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";
    let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let bytes = file.metadata().map_err(Error::io("read", path))?.len();
    let mut at = 0;
    while at + 8 <= bytes {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(at))
            .and_then(|_| file.read_exact(&mut head))
            .map_err(Error::io("read", path))?;
        if head == SIGNATURE {
            return Ok(());
        }
        at = if at == 0 { 512 } else { at * 2 };
    }
    let help = "give an .h5ad file, as written by `anndata.AnnData.write_h5ad`";
    Err(import_error(path, "", "is not an HDF5 file", help))
}

fn fixed_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn filter_name(id: i32) -> String {
    let name = match id {
        1 => "gzip",
        4 => "szip",
        32_000 => "lzf",
        32_001 => "blosc",
        32_004 => "lz4",
        32_008 => "bitshuffle",
        32_015 => "zstd",
        32_026 => "blosc2",
        _ => return format!("HDF5 filter {id}"),
    };
    format!("{name} (HDF5 filter {id})")
}

/// The object of this name, when it is a group.
pub(super) fn group(parent: &Group, name: &str) -> Option<Group> {
    parent
        .link_exists(name)
        .then(|| parent.group(name).ok())
        .flatten()
}

/// The object of this name, when it is a dataset.
pub(super) fn dataset(parent: &Group, name: &str) -> Option<Dataset> {
    parent
        .link_exists(name)
        .then(|| parent.dataset(name).ok())
        .flatten()
}

/// A text attribute.
pub(super) fn text(object: &Location, name: &str) -> Option<String> {
    let attribute = object.attr(name).ok()?;
    match attribute.dtype().ok()?.to_descriptor().ok()? {
        TypeDescriptor::VarLenUnicode => attribute
            .read_scalar::<VarLenUnicode>()
            .ok()
            .map(|s| s.to_string()),
        TypeDescriptor::VarLenAscii => attribute
            .read_scalar::<VarLenAscii>()
            .ok()
            .map(|s| s.to_string()),
        TypeDescriptor::FixedAscii(_) => attribute
            .read_scalar::<FixedAscii<256>>()
            .ok()
            .map(|s| s.to_string()),
        TypeDescriptor::FixedUnicode(_) => attribute
            .read_scalar::<FixedUnicode<256>>()
            .ok()
            .map(|s| s.to_string()),
        _ => None,
    }
}

/// A list of texts in an attribute.
pub(super) fn texts(object: &Location, name: &str) -> Option<Vec<String>> {
    let attribute = object.attr(name).ok()?;
    match attribute.dtype().ok()?.to_descriptor().ok()? {
        TypeDescriptor::VarLenUnicode => {
            let read = attribute.read_raw::<VarLenUnicode>().ok()?;
            Some(read.iter().map(ToString::to_string).collect())
        }
        TypeDescriptor::VarLenAscii => {
            let read = attribute.read_raw::<VarLenAscii>().ok()?;
            Some(read.iter().map(ToString::to_string).collect())
        }
        _ => None,
    }
}

/// An attribute of integers.
pub(super) fn integers(object: &Location, name: &str) -> Option<Vec<i64>> {
    object.attr(name).ok()?.read_raw::<i64>().ok()
}

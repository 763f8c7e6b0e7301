//! `obs` and `var`: groups of columns in today's files, tables of records in old ones.

use std::ops::Range;

use hdf5_metno::types::TypeDescriptor;
use hdf5_metno::{Dataset, Group};

use crate::Result;
use crate::import::hdf5::{self, Hdf5, Source};

/// A table about the cells or the genes.
#[derive(Debug)]
pub(in crate::import) struct Frame {
    file: Hdf5,
    place: String,
    storage: Storage,
    index: Source,
    columns: Vec<String>,
}

#[derive(Debug)]
enum Storage {
    Group(Group),
    Records(Dataset),
}

/// A column, not yet read.
#[derive(Debug, Clone)]
pub(in crate::import) enum Column {
    Category {
        codes: Source,
        categories: Vec<String>,
    },
    Strings {
        values: Source,
        missing: Option<Source>,
    },
    Integers {
        values: Source,
        missing: Option<Source>,
    },
    Floats {
        values: Source,
        missing: Option<Source>,
        double: bool,
    },
    Booleans {
        values: Source,
        missing: Option<Source>,
    },
}

impl Frame {
    /// Opens `obs`, `var`, `raw/var` or `raw.var`; `None` when there is no such object.
    pub(in crate::import) fn open(file: &Hdf5, name: &str) -> Result<Option<Self>> {
        let root = file.root();
        if let Some(group) = hdf5::group(root, name) {
            let index = hdf5::text(&group, "_index").unwrap_or_else(|| "_index".to_owned());
            let index_source = Source::whole(file.needed(&group, &index)?);
            let columns = super::column_order(&group).map_err(|e| file.hdf5_error(name, &e))?;
            return Ok(Some(Self {
                file: file.clone(),
                place: name.to_owned(),
                storage: Storage::Group(group),
                index: index_source,
                columns,
            }));
        }
        let Some(dataset) = hdf5::dataset(root, name) else {
            return Ok(None);
        };
        file.check_filters(&dataset)?;
        let columns = record_fields(file, &dataset)?;
        let index = columns
            .iter()
            .find(|c| *c == "index" || *c == "_index")
            .or(columns.first());
        let index = index
            .cloned()
            .ok_or_else(|| file.error(name, "has no fields", ""))?;
        Ok(Some(Self {
            file: file.clone(),
            place: name.to_owned(),
            index: Source {
                dataset: dataset.clone(),
                field: Some(index.clone()),
            },
            columns: columns.into_iter().filter(|c| *c != index).collect(),
            storage: Storage::Records(dataset),
        }))
    }

    pub(in crate::import) fn rows(&self) -> usize {
        self.index.len()
    }

    pub(in crate::import) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Names of some rows. An index of integers is written out.
    pub(in crate::import) fn names(&self, rows: Range<usize>) -> Result<Vec<String>> {
        match self.index.descriptor(&self.file)? {
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) => {
                let read: Vec<i64> = self.file.rows(&self.index, rows)?;
                Ok(read.iter().map(ToString::to_string).collect())
            }
            _ => self.file.strings(&self.index, rows),
        }
    }

    /// A column; an error when its encoding is unknown.
    pub(in crate::import) fn column(&self, name: &str) -> Result<Column> {
        let column = match &self.storage {
            Storage::Records(dataset) => self.record_column(dataset, name)?,
            Storage::Group(group) => match hdf5::group(group, name) {
                Some(column) => self.encoded_column(&column)?,
                None => self.plain_column(group, name)?,
            },
        };
        let rows = column.source().len();
        if rows != self.rows() {
            let problem = format!("has {rows} rows, expected {}", self.rows());
            return Err(self
                .file
                .error(&format!("{}/{name}", self.place), problem, ""));
        }
        Ok(column)
    }

    /// Old files keep the categories of a column of integers in `uns/<column>_categories`.
    fn record_column(&self, dataset: &Dataset, name: &str) -> Result<Column> {
        let values = Source {
            dataset: dataset.clone(),
            field: Some(name.to_owned()),
        };
        let uns = hdf5::group(self.file.root(), "uns");
        let listed = uns.and_then(|u| hdf5::dataset(&u, &format!("{name}_categories")));
        let integer = matches!(
            values.descriptor(&self.file)?,
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_)
        );
        match listed {
            Some(categories) if integer => Ok(Column::Category {
                codes: values,
                categories: self.texts_of(&Source::whole(categories))?,
            }),
            _ => self.by_type(values, None),
        }
    }

    /// A plain array; in files of anndata 0.7 with its categories under `__categories`.
    fn plain_column(&self, group: &Group, name: &str) -> Result<Column> {
        let values = Source::whole(self.file.needed(group, name)?);
        let listed = hdf5::group(group, "__categories");
        match listed.and_then(|g| hdf5::dataset(&g, name)) {
            Some(categories) => Ok(Column::Category {
                codes: values,
                categories: self.texts_of(&Source::whole(categories))?,
            }),
            None => self.by_type(values, None),
        }
    }

    fn encoded_column(&self, column: &Group) -> Result<Column> {
        let encoding = hdf5::text(column, "encoding-type").unwrap_or_default();
        if encoding == "categorical" {
            let categories = match hdf5::group(column, "categories") {
                Some(nullable) => self.file.needed(&nullable, "values")?,
                None => self.file.needed(column, "categories")?,
            };
            return Ok(Column::Category {
                codes: Source::whole(self.file.needed(column, "codes")?),
                categories: self.texts_of(&Source::whole(categories))?,
            });
        }
        if encoding.starts_with("nullable-") {
            let mask = Source::whole(self.file.needed(column, "mask")?);
            return self.by_type(
                Source::whole(self.file.needed(column, "values")?),
                Some(mask),
            );
        }
        Err(self.file.error(
            &column.name(),
            format!("has encoding `{encoding}`, which is not known"),
            "",
        ))
    }

    fn by_type(&self, values: Source, missing: Option<Source>) -> Result<Column> {
        Ok(match values.descriptor(&self.file)? {
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) => {
                Column::Integers { values, missing }
            }
            TypeDescriptor::Float(size) => Column::Floats {
                values,
                missing,
                double: size as usize == 8,
            },
            TypeDescriptor::Boolean => Column::Booleans { values, missing },
            TypeDescriptor::FixedAscii(_)
            | TypeDescriptor::FixedUnicode(_)
            | TypeDescriptor::VarLenAscii
            | TypeDescriptor::VarLenUnicode => Column::Strings { values, missing },
            other => {
                return Err(self.file.error(
                    &values.name(),
                    format!("holds {other}, which is not known"),
                    "",
                ));
            }
        })
    }

    /// A whole array as texts: categories can be numbers or truth values too.
    fn texts_of(&self, source: &Source) -> Result<Vec<String>> {
        let rows = 0..source.len();
        let column = self.by_type(source.clone(), None)?;
        Ok(self
            .texts(&column, rows)?
            .into_iter()
            .map(Option::unwrap_or_default)
            .collect())
    }

    /// Some rows of a column as texts.
    pub(in crate::import) fn texts(
        &self,
        column: &Column,
        rows: Range<usize>,
    ) -> Result<Vec<Option<String>>> {
        let missing = self.missing(column, rows.clone())?;
        let texts: Vec<Option<String>> = match column {
            Column::Category { categories, .. } => {
                let codes = self.codes(column, rows)?;
                return Ok(codes
                    .iter()
                    .map(|&c| usize::try_from(c).ok().map(|c| categories[c].clone()))
                    .collect());
            }
            Column::Strings { values, .. } => self
                .file
                .strings(values, rows)?
                .into_iter()
                .map(Some)
                .collect(),
            Column::Integers { values, .. } => self
                .file
                .rows::<i64>(values, rows)?
                .iter()
                .map(|v| Some(v.to_string()))
                .collect(),
            Column::Floats { values, .. } => {
                let read = self.file.rows::<f64>(values, rows)?;
                read.iter()
                    .map(|v| (!v.is_nan()).then(|| format!("{v:?}")))
                    .collect()
            }
            Column::Booleans { values, .. } => self
                .file
                .rows::<bool>(values, rows)?
                .iter()
                .map(|v| Some(v.to_string()))
                .collect(),
        };
        Ok(texts
            .into_iter()
            .zip(missing)
            .map(|(text, gone)| text.filter(|_| !gone))
            .collect())
    }

    /// Some rows of a column as numbers.
    pub(in crate::import) fn numbers(
        &self,
        column: &Column,
        rows: Range<usize>,
    ) -> Result<Vec<Option<f64>>> {
        let missing = self.missing(column, rows.clone())?;
        let numbers = self.file.rows::<f64>(column.source(), rows)?;
        Ok(numbers
            .into_iter()
            .zip(missing)
            .map(|(v, gone)| (!gone && !v.is_nan()).then_some(v))
            .collect())
    }

    /// Some rows of a categorical column as codes, -1 where missing.
    pub(in crate::import) fn codes(&self, column: &Column, rows: Range<usize>) -> Result<Vec<i32>> {
        let Column::Category { codes, categories } = column else {
            return Err(self
                .file
                .error(&column.source().name(), "is not categorical", ""));
        };
        let read: Vec<i32> = self.file.rows(codes, rows)?;
        match read.iter().find(|&&c| c >= categories.len() as i32) {
            None => Ok(read.into_iter().map(|c| c.max(-1)).collect()),
            Some(code) => {
                let problem = format!(
                    "has code {code}, but there are {} categories",
                    categories.len()
                );
                Err(self
                    .file
                    .error(&codes.name(), problem, "the file is damaged"))
            }
        }
    }

    fn missing(&self, column: &Column, rows: Range<usize>) -> Result<Vec<bool>> {
        match column {
            Column::Strings {
                missing: Some(mask),
                ..
            }
            | Column::Integers {
                missing: Some(mask),
                ..
            }
            | Column::Floats {
                missing: Some(mask),
                ..
            }
            | Column::Booleans {
                missing: Some(mask),
                ..
            } => self.file.rows(mask, rows),
            _ => Ok(vec![false; rows.len()]),
        }
    }
}

impl Column {
    fn source(&self) -> &Source {
        match self {
            Self::Category { codes, .. } => codes,
            Self::Strings { values, .. }
            | Self::Integers { values, .. }
            | Self::Floats { values, .. }
            | Self::Booleans { values, .. } => values,
        }
    }
}

fn record_fields(file: &Hdf5, dataset: &Dataset) -> Result<Vec<String>> {
    let ty = dataset.dtype().and_then(|t| t.to_descriptor());
    match ty.map_err(|e| file.hdf5_error(&dataset.name(), &e))? {
        TypeDescriptor::Compound(record) => {
            let mut fields = record.fields;
            fields.sort_by_key(|f| f.index);
            Ok(fields.into_iter().map(|f| f.name).collect())
        }
        other => Err(file.error(
            &dataset.name(),
            format!("holds {other}, expected a table"),
            "",
        )),
    }
}

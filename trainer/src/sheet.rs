//! Small tables of results: written as Parquet and CSV, shown as HTML.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use scpeft_checkpoint::fsx;

use crate::failure::Result;
use crate::picture::charts::number;
use crate::picture::escape;
use crate::table::Table;

/// The values of a column.
#[derive(Debug, Clone, PartialEq)]
enum Values {
    Texts(Vec<String>),
    /// `None` where a number is not defined.
    Numbers(Vec<Option<f64>>),
    Counts(Vec<u64>),
}

/// Named columns of one length.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sheet {
    columns: Vec<(String, Values)>,
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Texts(v) => v.len(),
            Self::Numbers(v) => v.len(),
            Self::Counts(v) => v.len(),
        }
    }

    fn array(&self) -> ArrayRef {
        match self {
            Self::Texts(v) => Arc::new(StringArray::from_iter_values(v)),
            Self::Numbers(v) => Arc::new(v.iter().copied().collect::<Float64Array>()),
            Self::Counts(v) => Arc::new(UInt64Array::from(v.clone())),
        }
    }

    /// As CSV has it: every digit, quotes where they are needed, nothing for what is not defined.
    fn field(&self, row: usize) -> String {
        match self {
            Self::Texts(v) if v[row].contains(['"', ',', '\n', '\r']) => {
                format!("\"{}\"", v[row].replace('"', "\"\""))
            }
            Self::Texts(v) => v[row].clone(),
            Self::Numbers(v) => v[row].map_or(String::new(), |x| x.to_string()),
            Self::Counts(v) => v[row].to_string(),
        }
    }

    /// As a reader wants it.
    fn shown(&self, row: usize) -> String {
        match self {
            Self::Texts(v) => escape(&v[row]),
            Self::Numbers(v) => v[row].map_or("&ndash;".to_owned(), number),
            Self::Counts(v) => crate::assembly::grouped(v[row]),
        }
    }
}

impl Sheet {
    pub(crate) fn texts(&mut self, name: &str, values: Vec<String>) {
        self.columns.push((name.to_owned(), Values::Texts(values)));
    }

    pub(crate) fn numbers(&mut self, name: &str, values: Vec<Option<f64>>) {
        self.columns
            .push((name.to_owned(), Values::Numbers(values)));
    }

    pub(crate) fn counts(&mut self, name: &str, values: Vec<u64>) {
        self.columns.push((name.to_owned(), Values::Counts(values)));
    }

    pub(crate) fn rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, values)| values.len())
    }

    /// Writes `STEM.parquet` and `STEM.csv` into a directory.
    ///
    /// # Errors
    /// When columns differ in length, or a file cannot be written.
    pub(crate) fn write(&self, dir: &Path, stem: &str) -> Result<()> {
        let mut table = Table::new(dir.join(format!("{stem}.parquet")));
        let columns = self.columns.iter();
        table.append(
            columns
                .map(|(name, v)| (name.clone(), v.array(), true))
                .collect(),
        )?;
        table.close()?;
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        let mut text = names.join(",") + "\n";
        for row in 0..self.rows() {
            let fields: Vec<String> = self.columns.iter().map(|(_, v)| v.field(row)).collect();
            let _ = writeln!(text, "{}", fields.join(","));
        }
        fsx::write_atomic(&dir.join(format!("{stem}.csv")), text.as_bytes())?;
        Ok(())
    }

    /// The first rows as an HTML table.
    pub(crate) fn html(&self, most: usize) -> String {
        let mut out = String::from("<div class=\"wide\"><table><thead><tr>");
        for (name, values) in &self.columns {
            let class = if matches!(values, Values::Texts(_)) {
                " class=\"text\""
            } else {
                ""
            };
            let _ = write!(
                out,
                "<th{class} scope=\"col\">{}</th>",
                escape(&name.replace('_', " "))
            );
        }
        out.push_str("</tr></thead><tbody>");
        for row in 0..self.rows().min(most) {
            out.push_str("<tr>");
            for (_, values) in &self.columns {
                let class = if matches!(values, Values::Texts(_)) {
                    " class=\"text\""
                } else {
                    ""
                };
                let _ = write!(out, "<td{class}>{}</td>", values.shown(row));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
        if self.rows() > most {
            let _ = write!(
                out,
                "<p>{} more rows are in the file.</p>",
                self.rows() - most
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;

    #[test]
    fn a_sheet_is_the_same_in_every_form() {
        let mut sheet = Sheet::default();
        sheet.texts("name", vec!["a, \"b\"".into(), "<c>".into()]);
        sheet.numbers("score", vec![Some(0.25), None]);
        sheet.counts("cells", vec![12_345, 0]);
        let dir = tempfile::tempdir().unwrap();
        sheet.write(dir.path(), "t").unwrap();
        let csv = std::fs::read_to_string(dir.path().join("t.csv")).unwrap();
        assert_eq!(
            csv,
            "name,score,cells\n\"a, \"\"b\"\"\",0.25,12345\n<c>,,0\n"
        );
        let html = sheet.html(1);
        assert!(
            html.contains("a, &quot;b&quot;") && html.contains("12,345"),
            "{html}"
        );
        assert!(html.contains("1 more rows") && !html.contains("&lt;c&gt;"));
        let file = std::fs::File::open(dir.path().join("t.parquet")).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file);
        let batch = reader.unwrap().build().unwrap().next().unwrap().unwrap();
        assert_eq!((batch.num_rows(), batch.column(1).null_count()), (2, 1));
    }
}

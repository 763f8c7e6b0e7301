//! Tables of drugs: which molecule goes by which name. `.csv`, `.tsv`, `.txt` (tabs) or `.parquet`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::structure::Structure;
use crate::error::listed;
use crate::{Error, Result};

/// What columns go by, unless they are named: the first that is there counts.
const NAMES: [&str; 5] = ["name", "drug", "product_name", "perturbation", "condition"];
const SMILES: [&str; 3] = ["smiles", "SMILES", "canonical_smiles"];
const INCHIKEYS: [&str; 3] = ["inchikey", "InChIKey", "inchi_key"];

/// Where things are in a table.
#[derive(Debug, Clone, Default)]
pub struct DrugColumns {
    /// Column of names.
    pub name: Option<String>,
    /// Column of SMILES.
    pub smiles: Option<String>,
    /// Column of InChIKeys; a table need not have one.
    pub inchikey: Option<String>,
    /// Whether the first line is no header: columns are numbers then, from 1.
    pub no_header: bool,
}

/// A molecule and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Drug {
    /// Its name.
    pub name: String,
    /// Its structure.
    pub structure: Structure,
    /// Its InChIKey, when the table has it.
    pub inchikey: Option<String>,
}

impl Drug {
    /// What it is known by whatever its name: the first block of its InChIKey, or else its skeleton.
    pub fn identity(&self) -> String {
        let key = self.inchikey.as_deref();
        key.and_then(|key| key.split('-').next())
            .map_or_else(|| self.structure.skeleton.clone(), str::to_owned)
    }
}

/// A table of drugs, each name once, in the order of the names.
#[derive(Debug, Clone)]
pub struct Drugs {
    path: PathBuf,
    by_name: BTreeMap<String, Drug>,
    unnamed: usize,
}

/// A row before its SMILES is understood.
struct Row {
    place: usize,
    name: Option<String>,
    smiles: Option<String>,
    inchikey: Option<String>,
}

impl Drugs {
    /// Reads a table. Rows without a name are counted and left out; a row that says the same again, as
    /// in a table of wells, is no conflict.
    ///
    /// # Errors
    /// A file or column that is not there, names without a SMILES, SMILES that cannot be understood,
    /// names with two molecules: all of them are listed.
    pub fn read(path: &Path, columns: &DrugColumns) -> Result<Self> {
        let rows = match path.extension().and_then(|e| e.to_str()) {
            Some("csv") => texts(path, ',', columns)?,
            Some("tsv" | "txt") => texts(path, '\t', columns)?,
            Some("parquet") => parquet(path, columns)?,
            _ => {
                return Err(Error::corpus(
                    path,
                    "file name",
                    "must end in `.csv`, `.tsv`, `.txt` or `.parquet`, which says its form",
                ));
            }
        };
        let mut table = Self {
            path: path.to_owned(),
            by_name: BTreeMap::new(),
            unnamed: 0,
        };
        table.add(rows)?;
        if table.by_name.is_empty() {
            return Err(Error::corpus(path, "table", "has no drugs"));
        }
        Ok(table)
    }

    fn add(&mut self, rows: Vec<Row>) -> Result<()> {
        let (mut bare, mut wrong, mut two) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        let mut known: BTreeMap<String, Result<Structure, String>> = BTreeMap::new();
        for row in rows {
            let Some(name) = row.name else {
                self.unnamed += 1;
                continue;
            };
            let Some(smiles) = row.smiles else {
                bare.insert(name);
                continue;
            };
            let structure = known
                .entry(smiles.clone())
                .or_insert_with(|| Structure::of(&smiles));
            let structure = match structure {
                Ok(structure) => structure.clone(),
                Err(problem) => {
                    wrong.push(format!("{name} (row {}): {smiles}: {problem}", row.place));
                    continue;
                }
            };
            let drug = Drug {
                name: name.clone(),
                structure,
                inchikey: row.inchikey,
            };
            match self.by_name.get(&name) {
                None => {
                    self.by_name.insert(name, drug);
                }
                Some(other) if other.structure.smiles == drug.structure.smiles => {}
                Some(other) => {
                    let (a, b) = (&other.structure.smiles, &drug.structure.smiles);
                    two.insert(format!("{name}: {a} and {b}"));
                }
            }
        }
        self.refuse("names have no SMILES", &Vec::from_iter(bare))?;
        self.refuse("SMILES cannot be understood", &wrong)?;
        self.refuse("names have two molecules", &Vec::from_iter(two))
    }

    fn refuse(&self, what: &str, names: &[String]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "{} {what}: {}\nhelp: correct the table, or take these rows out",
            names.len(),
            listed(names)
        );
        Err(Error::corpus(&self.path, "table", problem))
    }

    /// The table's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows without a name.
    pub fn unnamed(&self) -> usize {
        self.unnamed
    }

    /// All drugs in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Drug> {
        self.by_name.values()
    }

    /// The drug of a name.
    pub fn get(&self, name: &str) -> Option<&Drug> {
        self.by_name.get(name)
    }

    /// The drugs of these names.
    ///
    /// # Errors
    /// Names that the table does not have, all of them.
    pub fn all<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<&Drug>> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match self.get(name) {
                Some(drug) => found.push(drug),
                None => missing.push(name.to_owned()),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let problem = format!(
            "has no row of {} drugs: {}\nhelp: add them under these names",
            missing.len(),
            listed(&missing)
        );
        Err(Error::corpus(&self.path, "table", problem))
    }

    /// Molecules that go by several names, with these names.
    pub fn aliases(&self) -> Vec<Vec<&str>> {
        let mut names: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for drug in self.iter() {
            names.entry(drug.identity()).or_default().push(&drug.name);
        }
        names.into_values().filter(|n| n.len() > 1).collect()
    }
}

/// A value, unless it stands for none.
fn present(text: &str) -> Option<String> {
    let text = text.trim();
    let missing = matches!(text, "" | "NA" | "nan" | "NaN" | "None" | "null");
    (!missing).then(|| text.to_owned())
}

/// Which of the columns of a table are meant.
struct Places {
    name: usize,
    smiles: usize,
    inchikey: Option<usize>,
}

impl Places {
    fn find(path: &Path, header: &[String], columns: &DrugColumns) -> Result<Self> {
        let place = |name: &str| header.iter().position(|h| h == name);
        let find = |asked: &Option<String>, known: &[&str]| match asked {
            Some(name) => place(name).map(Some).ok_or(name.clone()),
            None => Ok(known.iter().find_map(|name| place(name))),
        };
        let no_column = |what: &str| {
            let problem = format!(
                "has no column {what}; it has {}\nhelp: name the columns; with --no-header they are numbers",
                listed(header)
            );
            Error::corpus(path, "header", problem)
        };
        let needed = |what: &str, asked: &Option<String>, known: &[&str]| match find(asked, known) {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(no_column(what)),
            Err(name) => Err(no_column(&format!("`{name}`"))),
        };
        Ok(Self {
            name: needed("of names", &columns.name, &NAMES)?,
            smiles: needed("of SMILES", &columns.smiles, &SMILES)?,
            inchikey: find(&columns.inchikey, &INCHIKEYS)
                .map_err(|name| no_column(&format!("`{name}`")))?,
        })
    }
}

fn texts(path: &Path, separator: char, columns: &DrugColumns) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let split = |(number, line): (usize, &str)| {
        fields(line, separator)
            .map_err(|problem| Error::corpus(path, format!("line {number}"), problem))
    };
    let first = text.lines().next().unwrap_or_default();
    let header = split((1, first))?;
    let header = if columns.no_header {
        (1..=header.len()).map(|n| n.to_string()).collect()
    } else {
        lines.next();
        header
    };
    let places = Places::find(path, &header, columns)?;
    let mut rows = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let values = split((number, line))?;
        if values.len() != header.len() {
            let problem = format!("has {} values, expected {}", values.len(), header.len());
            return Err(Error::corpus(path, format!("line {number}"), problem));
        }
        rows.push(Row {
            place: number,
            name: present(&values[places.name]),
            smiles: present(&values[places.smiles]),
            inchikey: places.inchikey.and_then(|i| present(&values[i])),
        });
    }
    Ok(rows)
}

/// The values of a line; one that begins with a quote goes to the next single quote, two stand for one.
fn fields(line: &str, separator: char) -> Result<Vec<String>, String> {
    let mut values = Vec::new();
    let mut rest = Some(line.trim_end_matches('\r'));
    while let Some(text) = rest {
        let Some(quoted) = text.strip_prefix('"') else {
            let (value, after) = match text.split_once(separator) {
                Some((value, after)) => (value, Some(after)),
                None => (text, None),
            };
            values.push(value.to_owned());
            rest = after;
            continue;
        };
        let (mut value, mut left) = (String::new(), quoted);
        loop {
            let (part, after) = (left.split_once('"')).ok_or("a quote is not closed")?;
            value.push_str(part);
            match after.strip_prefix('"') {
                Some(after) => {
                    value.push('"');
                    left = after;
                }
                None => {
                    left = after;
                    break;
                }
            }
        }
        values.push(value);
        rest = match left.strip_prefix(separator) {
            None if !left.is_empty() => return Err("text follows a closed quote".into()),
            after => after,
        };
    }
    Ok(values)
}

fn parquet(path: &Path, columns: &DrugColumns) -> Result<Vec<Row>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let wrong = |e: &dyn std::fmt::Display| Error::corpus(path, "Parquet", e.to_string());
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
    let header: Vec<String> = (reader.schema().fields().iter())
        .map(|f| f.name().clone())
        .collect();
    let places = Places::find(path, &header, columns)?;
    let mut rows = Vec::new();
    for batch in reader.build().map_err(|e| wrong(&e))? {
        let batch = batch.map_err(|e| wrong(&e))?;
        let column = |at: usize| -> Result<ArrayRef> {
            cast(batch.column(at), &DataType::Utf8).map_err(|e| wrong(&e))
        };
        let (name, smiles) = (column(places.name)?, column(places.smiles)?);
        let inchikey = places.inchikey.map(column).transpose()?;
        let value = |column: &ArrayRef, row: usize| {
            let texts = column.as_string::<i32>();
            (texts.is_valid(row))
                .then(|| texts.value(row))
                .and_then(present)
        };
        for row in 0..batch.num_rows() {
            rows.push(Row {
                place: rows.len() + 1,
                name: value(&name, row),
                smiles: value(&smiles, row),
                inchikey: inchikey.as_ref().and_then(|column| value(column, row)),
            });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, columns: &DrugColumns) -> Result<Drugs> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Drugs::read(&path, columns)
    }

    fn refused(text: &str) -> String {
        read("d.csv", text, &DrugColumns::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_table_of_wells_gives_each_drug_once() {
        let text = "drug\tdose\tsmiles\nJQ1\t10\tCCO\nJQ1\t100\tOCC\nNA\t0\tNA\nDMSO\t0\tCS(C)=O\n";
        let drugs = read("wells.tsv", text, &DrugColumns::default()).unwrap();
        let names: Vec<&str> = drugs.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["DMSO", "JQ1"]);
        assert_eq!(drugs.get("JQ1").unwrap().structure.smiles, "CCO");
        assert_eq!(drugs.unnamed(), 1);
        let error = drugs.all(["DMSO", "water", "JQ2"]).unwrap_err().to_string();
        assert!(
            error.contains("no row of 2 drugs: `water`, `JQ2`"),
            "{error}"
        );
    }

    #[test]
    fn a_table_without_a_header_is_read_by_numbers() {
        let columns = DrugColumns {
            name: Some("1".into()),
            smiles: Some("2".into()),
            no_header: true,
            ..DrugColumns::default()
        };
        let text = "\"a, b\",CCO,x\n\"say \"\"c\"\"\",C,y\r\n";
        let drugs = read("d.csv", text, &columns).unwrap();
        assert_eq!(drugs.get("a, b").unwrap().structure.smiles, "CCO");
        assert_eq!(drugs.get("say \"c\"").unwrap().structure.smiles, "C");
    }

    #[test]
    fn what_is_wrong_is_listed_by_name() {
        let error = refused("name,smiles\na,CCO\nb,C1CC\na,CCN\nc,NA\nd,C(\n");
        assert!(error.contains("1 names have no SMILES: `c`"), "{error}");
        let error = refused("name,smiles\na,CCO\nb,C1CC\nd,C(\n");
        assert!(error.contains("2 SMILES cannot be understood"), "{error}");
        assert!(error.contains("b (row 3): C1CC"), "{error}");
        let error = refused("name,smiles\na,CCO\na,CCN\nb,C\nb,N\n");
        assert!(
            error.contains("2 names have two molecules: `a: CCO and CCN`, `b: C and N`"),
            "{error}"
        );
        assert!(refused("name,smiles\na,CCO,3\n").contains("line 2: has 3 values, expected 2"));
        assert!(refused("name,smiles\na,\"CCO\n").contains("line 2: a quote is not closed"));
        assert!(refused("name,formula\na,CCO\n").contains("no column of SMILES"));
        assert!(refused("name,smiles\n").contains("has no drugs"));
        assert!(read("d.xls", "", &DrugColumns::default()).is_err());
    }

    #[test]
    fn one_molecule_under_two_names_is_found() {
        let text = "name,smiles\nleft,C[C@H](N)C(=O)O\nright,C[C@@H](N)C(=O)O.Cl\nother,CCO\n";
        let drugs = read("d.csv", text, &DrugColumns::default()).unwrap();
        assert_eq!(drugs.aliases(), [vec!["left", "right"]]);
        // Two SMILES of one first block of the InChIKey.
        let text = "name,smiles,inchikey\nketo,CC(C)=O,AAAA-B-C\nenol,CC(O)=C,AAAA-D-C\n";
        let drugs = read("d.csv", text, &DrugColumns::default()).unwrap();
        assert_eq!(drugs.aliases(), [vec!["enol", "keto"]]);
    }
}

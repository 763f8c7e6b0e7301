//! Genes of one species as those of another, by a table of orthologues.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::listed;
use crate::genes::GeneTable;
use crate::storage::hash_file;
use crate::{Error, Result};

/// What happens to genes that have several orthologues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OneToMany {
    /// A gene gets the sum of all genes that it is an orthologue of; a gene with several orthologues
    /// counts once, for the best of them.
    #[default]
    Sum,
    /// A gene gets the best of the genes that it is an orthologue of, the others are left out. The best
    /// has the same name but for upper and lower case; where none has, it comes first in the table.
    Best,
    /// Only pairs of genes that have no other orthologue are kept.
    Drop,
}

impl OneToMany {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Best => "best",
            Self::Drop => "drop",
        }
    }
}

/// A table of orthologues and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrthologueOptions {
    /// The table.
    pub path: PathBuf,
    /// The species of the cells.
    pub from: String,
    /// The species whose genes they get.
    pub to: String,
    /// What happens to genes with several orthologues.
    pub one_to_many: OneToMany,
}

/// Species by the names that users give them, and their numbers in NCBI's taxonomy.
const SPECIES: [(&str, &str); 21] = [
    ("human", "9606"),
    ("mouse", "10090"),
    ("rat", "10116"),
    ("macaque", "9544"),
    ("chimpanzee", "9598"),
    ("dog", "9615"),
    ("cow", "9913"),
    ("chicken", "9031"),
    ("frog", "8364"),
    ("zebrafish", "7955"),
    ("fly", "7227"),
    ("mosquito", "7165"),
    ("worm", "6239"),
    ("yeast", "4932"),
    ("kluyveromyces", "28985"),
    ("eremothecium", "33169"),
    ("fission-yeast", "4896"),
    ("magnaporthe", "318829"),
    ("neurospora", "5141"),
    ("arabidopsis", "3702"),
    ("rice", "4530"),
];
/// A species whose names fit the cells so much worse than those of another is taken for a mistake.
const FAR_WORSE: f64 = 0.5;

/// Names of genes that belong together: of the one species, and of the other.
type Pair = (String, String);

/// A table of orthologues, read.
#[derive(Debug)]
pub(super) struct Orthologues {
    options: OrthologueOptions,
    pairs: Vec<Pair>,
    /// Whether the direction of the pairs is still to be found out from the genes.
    either_way: bool,
    /// Names of the genes of each species of the table, by number.
    species: BTreeMap<String, HashSet<String>>,
}

/// The genes of a source after the table.
#[derive(Debug)]
pub(super) struct Renamed {
    pub(super) genes: GeneTable,
    /// The gene of each gene of the source.
    pub(super) places: Vec<Option<u32>>,
    /// What the manifest says about it.
    pub(super) provenance: Value,
}

fn number_of(name: &str) -> &str {
    let found = SPECIES
        .iter()
        .find(|(own, _)| own.eq_ignore_ascii_case(name));
    found.map_or(name, |(_, number)| number)
}

fn name_of(number: &str) -> &str {
    let found = SPECIES.iter().find(|(_, own)| *own == number);
    found.map_or(number, |(name, _)| name)
}

impl Orthologues {
    /// Reads a table: homologene's, or two columns of names with or without a header that names the
    /// species; separated by tabs or commas.
    ///
    /// # Errors
    /// A file that cannot be read, has another form, or does not know a species.
    pub(super) fn read(options: &OrthologueOptions) -> Result<Self> {
        let path = &options.path;
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let first = text.lines().next().unwrap_or_default();
        let separator = if first.contains('\t') { '\t' } else { ',' };
        let fields = |line: &str| -> Vec<String> {
            line.split(separator)
                .map(|f| f.trim().trim_matches('"').to_owned())
                .collect()
        };
        let header: Vec<String> = fields(first).iter().map(|f| f.to_lowercase()).collect();
        let column = |name: &str| header.iter().position(|f| f == name);
        let (from, to) = (number_of(&options.from), number_of(&options.to));
        if from == to {
            return Err(Error::options(
                format!("--from and --to are both `{}`", options.from),
                "name the species of the cells and the one of the backbone",
            ));
        }
        let table = Self {
            options: options.clone(),
            pairs: Vec::new(),
            either_way: false,
            species: BTreeMap::new(),
        };
        let symbol = column("gene.symbol").or_else(|| column("symbol"));
        let rows = || text.lines().skip(1).map(fields);
        if let (Some(group), Some(symbol), Some(taxonomy)) =
            (column("hid"), symbol, column("taxonomy"))
        {
            return table.of_groups(rows(), [group, symbol, taxonomy], [from, to]);
        }
        let named = |species: &str| column(&species.to_lowercase());
        match (named(&options.from), named(&options.to)) {
            (Some(from), Some(to)) => table.of_columns(rows(), [from, to], false),
            _ => table.of_columns(text.lines().map(fields), [0, 1], true),
        }
    }

    fn wrong(&self, problem: impl Into<String>, help: &str) -> Error {
        super::import_error(&self.options.path, "", problem, help)
    }

    /// homologene: genes of one group are orthologues.
    fn of_groups(
        mut self,
        rows: impl Iterator<Item = Vec<String>>,
        [group, symbol, taxonomy]: [usize; 3],
        [from, to]: [&str; 2],
    ) -> Result<Self> {
        let mut groups: HashMap<String, [Vec<String>; 2]> = HashMap::new();
        let mut order: Vec<String> = Vec::new();
        for (line, row) in rows.enumerate() {
            let get = |at: usize| row.get(at).filter(|f| !f.is_empty()).cloned();
            let (Some(group), Some(symbol), Some(species)) =
                (get(group), get(symbol), get(taxonomy))
            else {
                if row.iter().all(String::is_empty) {
                    continue;
                }
                return Err(self.wrong(
                    format!(
                        "line {} has {} fields, and lacks a group, symbol or species",
                        line + 2,
                        row.len()
                    ),
                    "take the table as homologene or its update has it",
                ));
            };
            let side = [from, to].iter().position(|s| *s == species);
            self.species
                .entry(species)
                .or_default()
                .insert(symbol.clone());
            if let Some(side) = side {
                let entry = groups.entry(group.clone()).or_insert_with(|| {
                    order.push(group);
                    Default::default()
                });
                entry[side].push(symbol);
            }
        }
        for (species, given) in [(from, &self.options.from), (to, &self.options.to)] {
            if !self.species.contains_key(species) {
                let known: Vec<String> =
                    self.species.keys().map(|s| name_of(s).to_owned()).collect();
                return Err(self.wrong(
                    format!("has no genes of species `{given}`"),
                    &format!("its species are {}", listed(&known)),
                ));
            }
        }
        for group in order {
            let [own, other] = &groups[&group];
            let pairs = own.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
            self.pairs
                .extend(pairs.map(|(a, b)| (a.clone(), b.clone())));
        }
        Ok(self)
    }

    /// Two columns of names; rows without a second name say that there is none.
    fn of_columns(
        mut self,
        rows: impl Iterator<Item = Vec<String>>,
        [from, to]: [usize; 2],
        either_way: bool,
    ) -> Result<Self> {
        let least = from.max(to) + 1;
        for (line, row) in rows.enumerate() {
            if row.len() < least {
                if row.iter().all(String::is_empty) {
                    continue;
                }
                return Err(self.wrong(
                    format!("line {} has {} field(s), expected {least}", line + 1, row.len()),
                    "give homologene's table, or two columns of gene names separated by tabs or commas",
                ));
            }
            if !row[from].is_empty() && !row[to].is_empty() {
                self.pairs.push((row[from].clone(), row[to].clone()));
            }
        }
        self.either_way = either_way;
        Ok(self)
    }

    /// The genes of a source under the names of the other species.
    ///
    /// # Errors
    /// When the table is about other species than the cells.
    pub(super) fn apply(&self, genes: &GeneTable, input: &Path) -> Result<Renamed> {
        let backwards: Vec<Pair>;
        let mut pairs = &self.pairs;
        if self.either_way {
            backwards = pairs.iter().map(|(a, b)| (b.clone(), a.clone())).collect();
            let known =
                |pairs: &[Pair]| covered(genes, &pairs.iter().map(|p| p.0.as_str()).collect());
            if known(&backwards) > known(pairs) {
                pairs = &backwards;
            }
        }
        let own: HashSet<&str> = pairs.iter().map(|p| p.0.as_str()).collect();
        let matched = covered(genes, &own);
        self.require_species(genes, matched, input)?;
        let renamed = choose(genes, pairs, self.options.one_to_many);
        let kept = renamed.places.iter().flatten().count();
        let options = &self.options;
        if kept == 0 {
            return Err(super::import_error(
                input,
                "",
                format!(
                    "the rule `{}` leaves none of its {matched} genes with an orthologue",
                    options.one_to_many.name()
                ),
                "take another rule: `--one-to-many sum`",
            ));
        }
        let lost = matched - kept;
        tracing::info!(
            "`{}`: {matched} of {} genes ({:.1} %) have an orthologue in {}; by the rule `{}`, {kept} of them become {} genes{}",
            input.display(),
            genes.len(),
            100.0 * matched as f64 / genes.len().max(1) as f64,
            options.to,
            options.one_to_many.name(),
            renamed.table.len(),
            if lost > 0 {
                format!(" and {lost} are left out")
            } else {
                String::new()
            },
        );
        Ok(Renamed {
            provenance: json!({
                "file": options.path.file_name().unwrap_or_default().to_string_lossy(),
                "blake3": hash_file(&options.path)?,
                "from": options.from,
                "to": options.to,
                "one_to_many": options.one_to_many.name(),
                "genes": genes.len(),
                "with_orthologue": matched,
                "kept": kept,
                "orthologues": renamed.table.len(),
            }),
            genes: renamed.table,
            places: renamed.places,
        })
    }

    fn require_species(&self, genes: &GeneTable, matched: usize, input: &Path) -> Result<()> {
        let best = self
            .species
            .iter()
            .map(|(species, names)| {
                let names = names.iter().map(String::as_str).collect();
                (covered(genes, &names), name_of(species))
            })
            .max();
        let options = &self.options;
        let hint = match best {
            Some((n, species)) if matched == 0 || (matched as f64) < FAR_WORSE * n as f64 => {
                format!(
                    "of the species of the table, {species} fits best, with {n} genes: --from {species}?"
                )
            }
            _ if matched > 0 => {
                let own = self.species.get(number_of(&options.from));
                let own = own.map_or(0, |names| {
                    covered(genes, &names.iter().map(String::as_str).collect())
                });
                if let Some((n, species)) = best.filter(|(n, _)| *n > own) {
                    tracing::warn!(
                        "`{}`: {n} of its genes are genes of {species}, more than of {}; is `--from {}` right?",
                        input.display(),
                        options.from,
                        options.from
                    );
                }
                return Ok(());
            }
            _ => {
                "give the table of these two species, with the kind of gene names that the file has"
                    .to_owned()
            }
        };
        Err(super::import_error(
            input,
            "",
            format!(
                "{matched} of its {} genes are {} genes of `{}`; its genes: {}",
                genes.len(),
                options.from,
                options.path.display(),
                listed(&genes.symbols[..genes.len().min(4)])
            ),
            hint,
        ))
    }
}

/// How many genes have one of these names, as symbol or id.
fn covered(genes: &GeneTable, names: &HashSet<&str>) -> usize {
    let has = |gene: &usize| {
        names.contains(genes.symbols[*gene].as_str())
            || genes.ensembl[*gene]
                .as_deref()
                .is_some_and(|id| names.contains(id))
    };
    (0..genes.len()).filter(has).count()
}

/// Genes of the other species and where each own gene goes.
struct Chosen {
    table: GeneTable,
    places: Vec<Option<u32>>,
}

fn choose(genes: &GeneTable, pairs: &[Pair], rule: OneToMany) -> Chosen {
    let mut orthologues: HashMap<&str, Vec<&str>> = HashMap::new();
    for (own, other) in pairs {
        let known = orthologues.entry(own).or_default();
        if !known.contains(&other.as_str()) {
            known.push(other);
        }
    }
    // Candidates by own gene: its symbol is looked up first, then its id.
    let found: Vec<(usize, &str, &[&str])> = (0..genes.len())
        .filter_map(|gene| {
            let symbol = genes.symbols[gene].as_str();
            let names = [Some(symbol), genes.ensembl[gene].as_deref()];
            let others = names
                .into_iter()
                .flatten()
                .find_map(|n| orthologues.get(n))?;
            Some((gene, symbol, others.as_slice()))
        })
        .collect();
    let mut wanted_by: HashMap<&str, Vec<usize>> = HashMap::new();
    for (gene, _, others) in &found {
        for other in *others {
            wanted_by.entry(other).or_default().push(*gene);
        }
    }
    let alike = |own: &str, other: &str| own.eq_ignore_ascii_case(other);
    let mut taken: HashMap<&str, (usize, bool)> = HashMap::new();
    let mut target: Vec<Option<&str>> = vec![None; genes.len()];
    for (gene, symbol, others) in &found {
        let best = others.iter().find(|o| alike(symbol, o)).or(others.first());
        let Some(&best) = best else { continue };
        match rule {
            OneToMany::Sum => target[*gene] = Some(best),
            OneToMany::Drop if others.len() == 1 && wanted_by[best].len() == 1 => {
                target[*gene] = Some(best);
            }
            OneToMany::Drop => {}
            OneToMany::Best => {
                let same = alike(symbol, best);
                match taken.get(best) {
                    Some(&(_, before)) if before || !same => {}
                    earlier => {
                        if let Some(&(loser, _)) = earlier {
                            target[loser] = None;
                        }
                        taken.insert(best, (*gene, same));
                        target[*gene] = Some(best);
                    }
                }
            }
        }
    }
    let mut table = GeneTable::default();
    let mut place_of: HashMap<&str, u32> = HashMap::new();
    let places = target
        .iter()
        .map(|name| {
            name.map(|name| {
                *place_of.entry(name).or_insert_with(|| {
                    table.symbols.push(name.to_owned());
                    let is_id =
                        name.starts_with("ENS") && name.ends_with(|c: char| c.is_ascii_digit());
                    table.ensembl.push(is_id.then(|| name.to_owned()));
                    table.symbols.len() as u32 - 1
                })
            })
        })
        .collect();
    Chosen { table, places }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn genes(symbols: &[&str]) -> GeneTable {
        GeneTable {
            symbols: symbols.iter().map(|s| (*s).to_owned()).collect(),
            ensembl: vec![None; symbols.len()],
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<Pair> {
        list.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    /// One to one, two to one, one to two, and a gene that the table does not know.
    #[test]
    fn genes_with_several_orthologues_follow_the_rule() {
        let own = genes(&["Cd3e", "Klk1b1", "Klk1", "Nomatch", "Serpina3n", "Alone"]);
        let table = pairs(&[
            ("Cd3e", "CD3E"),
            ("Klk1b1", "KLK1"),
            ("Klk1", "KLK1"),
            ("Serpina3n", "SERPINA3"),
            ("Serpina3n", "SERPINA13"),
            ("Alone", "OTHER"),
            ("Alone", "OTHER"),
        ]);
        let by = |rule| {
            let chosen = choose(&own, &table, rule);
            let names = chosen.places.iter().map(|p| {
                p.map_or("-", |p| chosen.table.symbols[p as usize].as_str())
                    .to_owned()
            });
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(by(OneToMany::Sum), "CD3E KLK1 KLK1 - SERPINA3 OTHER");
        assert_eq!(by(OneToMany::Best), "CD3E - KLK1 - SERPINA3 OTHER");
        assert_eq!(by(OneToMany::Drop), "CD3E - - - - OTHER");
    }

    fn options(dir: &Path, text: &str, from: &str, to: &str) -> OrthologueOptions {
        let path = dir.join("table");
        std::fs::write(&path, text).unwrap();
        OrthologueOptions {
            path,
            from: from.into(),
            to: to.into(),
            one_to_many: OneToMany::Sum,
        }
    }

    #[test]
    fn both_forms_of_tables_are_read_in_either_direction() {
        let dir = std::env::temp_dir().join(format!("orthologues-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let groups = "HID\tGene.ID\tGene.Symbol\tTaxonomy\n3\t1\tACADM\t9606\n3\t2\tAcadm\t10090\n4\t3\tINS\t9606\n4\t4\tIns1\t10090\n4\t5\tIns2\t10090\n5\t6\tacad\t7955\n";
        let own = genes(&["Ins2", "Acadm", "Ins1"]);
        let names = |options: &OrthologueOptions| {
            let renamed = Orthologues::read(options)
                .unwrap()
                .apply(&own, Path::new("x"))
                .unwrap();
            (renamed.genes.symbols, renamed.places)
        };
        let expected = (
            vec!["INS".to_owned(), "ACADM".to_owned()],
            vec![Some(0), Some(1), Some(0)],
        );
        assert_eq!(names(&options(&dir, groups, "mouse", "human")), expected);
        assert_eq!(names(&options(&dir, groups, "10090", "9606")), expected);
        let columns = "ACADM,Acadm\nLOST,\nINS,Ins1\nINS,Ins2\n";
        assert_eq!(names(&options(&dir, columns, "mouse", "human")), expected);
        let headed = "mouse\thuman\nAcadm\tACADM\nIns1\tINS\nIns2\tINS\n";
        assert_eq!(names(&options(&dir, headed, "mouse", "human")), expected);

        let refused = |options: &OrthologueOptions| {
            let read = Orthologues::read(options);
            read.and_then(|t| t.apply(&own, Path::new("cells.h5ad")))
                .unwrap_err()
                .to_string()
        };
        let message = refused(&options(&dir, groups, "zebrafish", "human"));
        assert!(
            message.contains("--from mouse?") && message.contains("`Ins2`"),
            "{message}"
        );
        let message = refused(&options(&dir, groups, "rat", "human"));
        assert!(
            message.contains("no genes of species `rat`") && message.contains("zebrafish"),
            "{message}"
        );
        let message = refused(&options(&dir, "a,b\nc,d\n", "mouse", "human"));
        assert!(message.contains("0 of its 3 genes"), "{message}");
        let message = refused(&options(&dir, "a\nb\n", "mouse", "human"));
        assert!(message.contains("line 1 has 1 field(s)"), "{message}");
        assert!(refused(&options(&dir, groups, "mouse", "mouse")).contains("both"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! The scores of a batch correction together, as the benchmark of Luecken and others (2022) and its
//! program scib combine them.

use super::community::{Method, over_resolutions};
use super::graph::Graph;
use super::mixing::{clisi, ilisi, kbet, present};
use super::neighbors::Neighbors;
use super::pairs::groups_of;
use super::regression::{comparison, principal_component_regression};
use super::silhouette::mean_of_defined;
use super::{Labelled, Pairs, Silhouettes};
use crate::cells::Cells;
use crate::clustering::{adjusted_rand_index, calinski_harabasz, normalized_mutual_information};
use crate::stats::enough;
use crate::{Score, Undefined};

/// Weights of the two groups of scores in the overall one.
const BIOLOGY: f64 = 0.6;
const BATCHES: f64 = 0.4;

/// How scores are computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Cells of a neighbourhood in the graph, the cell itself counted (scanpy's `n_neighbors`).
    pub graph_neighbors: usize,
    /// Cells of a neighbourhood for LISI, the cell itself counted.
    pub lisi_neighbors: usize,
    /// How clusters are found.
    pub method: Method,
    /// Resolutions at which they are looked for.
    pub resolutions: Vec<f64>,
    /// Seed of the clustering.
    pub seed: u64,
}

impl Default for Settings {
    /// Those of scib: 15 and 90 neighbours, Leiden at 0.2, 0.4, ... 2.
    fn default() -> Self {
        Self {
            graph_neighbors: 15,
            lisi_neighbors: 90,
            method: Method::Leiden,
            resolutions: (1..=10).map(|step| f64::from(step) / 5.0).collect(),
            seed: 0,
        }
    }
}

/// Agreement of one clustering with the labels.
#[derive(Debug, Clone, PartialEq)]
pub struct AtResolution {
    /// Resolution.
    pub resolution: f64,
    /// Number of clusters.
    pub clusters: usize,
    /// Normalised mutual information.
    pub nmi: Score,
    /// Adjusted Rand index.
    pub ari: Score,
}

/// The clustering that agrees best with the labels by normalised mutual information, and all others'
/// agreement.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// Cluster of each cell at the best resolution, numbered from the largest.
    pub of: Vec<usize>,
    /// The best resolution.
    pub resolution: f64,
    /// All resolutions.
    pub all: Vec<AtResolution>,
    /// Of each label that occurs in the fewest batches, the best F1 of any cluster at any resolution.
    pub isolated_f1: Vec<(usize, f64)>,
}

/// All scores. Better is larger, and 1 is best, but for [`Scores::calinski_harabasz`] and
/// [`Scores::silhouette`].
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Mean silhouette of the labels, -1 to 1; in no mean.
    pub silhouette: Score,
    /// Calinski-Harabasz index of the labels; in no mean.
    pub calinski_harabasz: Score,
    /// Normalised mutual information of labels and the best clusters.
    pub nmi: Score,
    /// Adjusted Rand index of labels and the same clusters.
    pub ari: Score,
    /// Silhouette of the labels, 0 to 1.
    pub asw_label: Score,
    /// Best F1 of a cluster for labels in the fewest batches.
    pub isolated_f1: Score,
    /// Silhouette of these labels, 0 to 1.
    pub isolated_asw: Score,
    /// Neighbourhoods hold one label.
    pub clisi: Score,
    /// Batches explain less variance than before.
    pub pcr: Score,
    /// Silhouette of batches within labels.
    pub asw_batch: Score,
    /// Neighbourhoods hold all batches.
    pub ilisi: Score,
    /// Largest component of each label in the graph.
    pub graph_connectivity: Score,
    /// Share of neighbourhoods that hold batches as their label does.
    pub kbet: Score,
}

/// Scores with what they were made of.
#[derive(Debug, Clone)]
pub struct Integration {
    /// The scores.
    pub scores: Scores,
    /// Clusters.
    pub clusters: Result<Clusters, Undefined>,
    /// Neighbours, and the graph of them.
    pub neighbors: Result<(Neighbors, Graph), Undefined>,
    /// Silhouettes of cells, and of batches by label.
    pub silhouettes: Silhouettes,
    /// kBET by label.
    pub kbet: Vec<Score>,
    /// Share of the largest component by label.
    pub connectivity: Vec<Score>,
}

/// Means of the two groups of scores, and what they lack.
#[derive(Debug, Clone, PartialEq)]
pub struct Overall {
    /// Mean of the defined scores of biology.
    pub biology: Score,
    /// Mean of the defined scores of batch mixing.
    pub batches: Score,
    /// 0.6 times the first and 0.4 times the second.
    pub overall: Score,
    /// Scores that are not defined and therefore in no mean, with the reason.
    pub left_out: Vec<(&'static str, Undefined)>,
}

/// Scores an embedding. `uncorrected` are the same cells before the correction (expression, or its
/// principal components), which one score compares with. Neighbours are exact, since silhouettes
/// need all pairs anyway.
///
/// scib's conservation of the cell cycle is not among the scores: it needs phases of expression that
/// is no longer there. Nor are those of highly variable genes and trajectories, which embeddings do
/// not have.
///
/// # Panics
/// When `uncorrected` has another number of cells.
#[must_use]
pub fn integration(
    labelled: &Labelled<'_>,
    uncorrected: Option<Cells<'_>>,
    settings: &Settings,
) -> Integration {
    let (cells, labels, batches) = (labelled.cells(), labelled.labels(), labelled.batches());
    let most = settings.lisi_neighbors.max(settings.graph_neighbors) - 1;
    let Pairs {
        neighbors,
        silhouettes,
    } = labelled.pairs(most.min(cells.len().saturating_sub(1)));
    let of = |count: usize| neighbors.as_ref().map_err(Clone::clone)?.first(count - 1);
    let graph = of(settings.graph_neighbors).map(|near| (Graph::of_neighbors(&near), near));
    let lisi = of(settings.lisi_neighbors);
    let isolated = isolated_labels(labels, batches);
    let clusters = match &graph {
        Ok((graph, _)) => Ok(best_clusters(
            graph,
            labels,
            isolated.as_deref().unwrap_or(&[]),
            settings,
        )),
        Err(why) => Err(why.clone()),
    };
    let connectivity = match &graph {
        Ok((graph, _)) => connectivity(graph, labels),
        Err(why) => vec![Err(why.clone()); groups_of(labels)],
    };
    let kbet = kbet(cells, labels, batches);
    let best = |score: fn(&AtResolution) -> &Score| {
        let found = clusters.as_ref().map_err(Clone::clone)?;
        let at = found
            .all
            .iter()
            .find(|at| at.resolution == found.resolution);
        at.map_or(
            Err(Undefined::NotGiven {
                what: "a resolution",
            }),
            |at| score(at).clone(),
        )
    };
    let scores = Scores {
        silhouette: silhouettes.mean(),
        calinski_harabasz: calinski_harabasz(cells, labels),
        nmi: best(|at| &at.nmi),
        ari: best(|at| &at.ari),
        asw_label: silhouettes.asw_label(),
        isolated_f1: isolated_f1(isolated.as_deref(), &clusters),
        isolated_asw: isolated_asw(isolated.as_deref(), &silhouettes, labels),
        clisi: lisi
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|near| clisi(near, labels)),
        pcr: match uncorrected {
            Some(before) => comparison(
                &principal_component_regression(before, batches),
                &principal_component_regression(cells, batches),
            ),
            None => Err(Undefined::NotGiven {
                what: "an uncorrected embedding to compare with",
            }),
        },
        asw_batch: silhouettes.asw_batch(),
        ilisi: lisi
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|near| ilisi(near, batches)),
        graph_connectivity: mean_of_defined("labels in the graph", &connectivity),
        kbet: mean_of_defined("labels with 10 cells in two batches", &kbet),
    };
    Integration {
        scores,
        clusters,
        neighbors: graph.map(|(graph, near)| (near, graph)),
        silhouettes,
        kbet,
        connectivity,
    }
}

/// Labels that occur in the fewest batches.
///
/// # Errors
/// Every label occurs in every batch.
pub fn isolated_labels(labels: &[usize], batches: &[usize]) -> Result<Vec<usize>, Undefined> {
    let count = groups_of(labels);
    let mut of: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (&label, &batch) in labels.iter().zip(batches) {
        of[label].push(batch);
    }
    let found: Vec<usize> = of.iter().map(|batches| present(batches)).collect();
    let least = found.iter().filter(|n| **n > 0).min().copied().unwrap_or(0);
    if least == present(batches) {
        return Err(Undefined::TooFew {
            what: "labels that lack a batch",
            found: 0,
            needed: 1,
        });
    }
    Ok((0..count).filter(|&label| found[label] == least).collect())
}

/// Share of each label's cells in its largest component of the graph.
fn connectivity(graph: &Graph, labels: &[usize]) -> Vec<Score> {
    (0..groups_of(labels))
        .map(|label| {
            let cells: Vec<usize> = (0..labels.len()).filter(|&c| labels[c] == label).collect();
            enough("cells of the label", cells.len(), 1)?;
            Ok(graph.components(&cells)[0] as f64 / cells.len() as f64)
        })
        .collect()
}

fn best_clusters(
    graph: &Graph,
    labels: &[usize],
    isolated: &[usize],
    settings: &Settings,
) -> Clusters {
    let found = over_resolutions(graph, settings.method, &settings.resolutions, settings.seed);
    let all: Vec<AtResolution> = (found.iter().zip(&settings.resolutions))
        .map(|(groups, &resolution)| AtResolution {
            resolution,
            clusters: groups_of(groups),
            nmi: normalized_mutual_information(labels, groups),
            ari: adjusted_rand_index(labels, groups),
        })
        .collect();
    // The first of equals.
    let better = |best: usize, at: usize| {
        let value = |at: usize| all[at].nmi.clone().unwrap_or(0.0);
        if value(at) > value(best) { at } else { best }
    };
    let best = (0..all.len()).reduce(better).unwrap_or(0);
    let f1 = |label: usize| {
        let of = found.iter().map(|groups| best_f1(labels, groups, label));
        of.fold(0.0, f64::max)
    };
    Clusters {
        resolution: settings.resolutions.get(best).copied().unwrap_or(0.0),
        of: found.get(best).cloned().unwrap_or_default(),
        isolated_f1: isolated.iter().map(|&label| (label, f1(label))).collect(),
        all,
    }
}

/// The largest F1 of a cluster as a prediction of `label`.
fn best_f1(labels: &[usize], groups: &[usize], label: usize) -> f64 {
    let count = groups_of(groups);
    let (mut sizes, mut hits) = (vec![0.0; count], vec![0.0; count]);
    let mut wanted = 0.0;
    for (&own, &group) in labels.iter().zip(groups) {
        sizes[group] += 1.0;
        if own == label {
            hits[group] += 1.0;
            wanted += 1.0;
        }
    }
    let f1 = |(hit, size): (&f64, &f64)| 2.0 * hit / (wanted + size);
    hits.iter().zip(&sizes).map(f1).fold(0.0, f64::max)
}

fn isolated_f1(
    isolated: Result<&[usize], &Undefined>,
    clusters: &Result<Clusters, Undefined>,
) -> Score {
    isolated.map_err(Clone::clone)?;
    let found = &clusters.as_ref().map_err(Clone::clone)?.isolated_f1;
    let values: Vec<f64> = found.iter().map(|(_, f1)| *f1).collect();
    Ok(crate::stats::mean(&values))
}

fn isolated_asw(
    isolated: Result<&[usize], &Undefined>,
    silhouettes: &Silhouettes,
    labels: &[usize],
) -> Score {
    let isolated = isolated.map_err(Clone::clone)?;
    let of_cells = silhouettes.labels.as_ref().map_err(Clone::clone)?;
    let of_label = |&label: &usize| {
        let own = of_cells.iter().zip(labels).filter(|(_, l)| **l == label);
        let own: Vec<f64> = own.map(|(s, _)| *s).collect();
        f64::midpoint(crate::stats::mean(&own), 1.0)
    };
    let values: Vec<f64> = isolated.iter().map(of_label).collect();
    Ok(crate::stats::mean(&values))
}

impl Scores {
    /// Scores of biology by name, in the order of reports.
    pub fn biology(&self) -> [(&'static str, &Score); 6] {
        [
            ("nmi", &self.nmi),
            ("ari", &self.ari),
            ("asw_label", &self.asw_label),
            ("isolated_f1", &self.isolated_f1),
            ("isolated_asw", &self.isolated_asw),
            ("clisi", &self.clisi),
        ]
    }

    /// Scores of batch mixing by name.
    pub fn batches(&self) -> [(&'static str, &Score); 5] {
        [
            ("pcr", &self.pcr),
            ("asw_batch", &self.asw_batch),
            ("ilisi", &self.ilisi),
            ("graph_connectivity", &self.graph_connectivity),
            ("kbet", &self.kbet),
        ]
    }

    /// scib's overall score, of what is defined.
    #[must_use]
    pub fn overall(&self) -> Overall {
        let (biology, batches) = (self.biology(), self.batches());
        let mean = |what, scores: &[(&'static str, &Score)]| {
            let scores: Vec<Score> = scores.iter().map(|(_, s)| (*s).clone()).collect();
            mean_of_defined(what, &scores)
        };
        let biology_mean = mean("defined scores of biology", &biology);
        let batch_mean = mean("defined scores of batch mixing", &batches);
        let overall = match (&biology_mean, &batch_mean) {
            (Ok(biology), Ok(batches)) => Ok(BIOLOGY * biology + BATCHES * batches),
            (Err(why), _) | (_, Err(why)) => Err(why.clone()),
        };
        let left = |(name, score): &(&'static str, &Score)| {
            score.as_ref().err().map(|why| (*name, why.clone()))
        };
        Overall {
            left_out: biology.iter().chain(&batches).filter_map(left).collect(),
            biology: biology_mean,
            batches: batch_mean,
            overall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Clouds far apart, one for each label.
    fn clouds(labels: &[usize]) -> Vec<f32> {
        let mut rng = Rng::new(6, "clouds");
        let place = |label: usize, d: usize| if label == d { 30.0 } else { 0.0 };
        (labels.iter())
            .flat_map(|&label| (0..4).map(move |d| (label, d)))
            .map(|(label, d)| (place(label, d) + rng.normal()) as f32)
            .collect()
    }

    #[test]
    fn far_labels_with_mixed_batches_score_near_one() {
        let labels: Vec<usize> = (0..300).map(|i| i % 3).collect();
        let batches: Vec<usize> = (0..300).map(|i| i / 3 % 2).collect();
        let values = clouds(&labels);
        let cells = Cells::new("cells", &values, 4).unwrap();
        let labelled = Labelled::new(cells, &labels, &batches).unwrap();
        let found = integration(&labelled, None, &Settings::default());
        let scores = &found.scores;
        assert_eq!((&scores.nmi, &scores.ari), (&Ok(1.0), &Ok(1.0)));
        assert_eq!(scores.graph_connectivity, Ok(1.0));
        for score in [
            &scores.asw_label,
            &scores.asw_batch,
            &scores.clisi,
            &scores.kbet,
        ] {
            assert!(score.clone().unwrap() > 0.9, "{scores:?}");
        }
        assert!(scores.ilisi.clone().unwrap() > 0.8, "{scores:?}");
        let overall = scores.overall();
        let names: Vec<&str> = overall.left_out.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["isolated_f1", "isolated_asw", "pcr"]);
        let (biology, batches) = (overall.biology.unwrap(), overall.batches.unwrap());
        assert_eq!(overall.overall, Ok(0.6 * biology + 0.4 * batches));
    }

    #[test]
    fn a_label_in_one_batch_is_isolated_and_one_batch_leaves_no_mixing() {
        let labels: Vec<usize> = (0..90).map(|i| i % 3).collect();
        let batches: Vec<usize> = (0..90)
            .map(|i| usize::from(i % 3 != 2 && i % 2 == 0))
            .collect();
        assert_eq!(isolated_labels(&labels, &batches), Ok(vec![2]));
        let values = clouds(&labels);
        let cells = Cells::new("cells", &values, 4).unwrap();
        let labelled = Labelled::new(cells, &labels, &batches).unwrap();
        let settings = Settings {
            lisi_neighbors: 30,
            ..Settings::default()
        };
        let found = integration(&labelled, Some(cells), &settings);
        assert_eq!(found.scores.isolated_f1, Ok(1.0));
        assert!(found.scores.isolated_asw.clone().unwrap() > 0.9);
        assert_eq!(found.scores.pcr, Ok(0.0));
        assert!(found.silhouettes.batches[2].is_err() && found.kbet[2].is_err());
        let one = vec![0; 90];
        let labelled = Labelled::new(cells, &labels, &one).unwrap();
        let overall = integration(&labelled, Some(cells), &settings)
            .scores
            .overall();
        let names: Vec<&str> = overall.left_out.iter().map(|(name, _)| *name).collect();
        let expected = [
            "isolated_f1",
            "isolated_asw",
            "pcr",
            "asw_batch",
            "ilisi",
            "kbet",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn few_cells_and_one_place_say_why() {
        let labels = [0, 0, 1, 1, 1];
        let batches = [0, 1, 0, 1, 1];
        let flat = [1.0f32; 10];
        let cells = Cells::new("cells", &flat, 2).unwrap();
        let labelled = Labelled::new(cells, &labels, &batches).unwrap();
        let scores = integration(&labelled, Some(cells), &Settings::default()).scores;
        let why = |score: &Score| score.clone().unwrap_err().to_string();
        for score in [
            &scores.nmi,
            &scores.pcr,
            &scores.calinski_harabasz,
            &scores.silhouette,
        ] {
            assert_eq!(why(score), "the embedding does not vary");
        }
        let spread: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let cells = Cells::new("cells", &spread, 2).unwrap();
        let labelled = Labelled::new(cells, &labels, &batches).unwrap();
        let scores = integration(&labelled, None, &Settings::default()).scores;
        assert_eq!(
            why(&scores.nmi),
            "4 neighbours of a cell, at least 14 are needed"
        );
        assert_eq!(
            why(&scores.ilisi),
            "4 neighbours of a cell, at least 89 are needed"
        );
        assert!(scores.silhouette.is_ok());
        assert_eq!(
            why(&scores.kbet),
            "0 labels with 10 cells in two batches, at least 1 are needed"
        );
    }
}

//! Scores of predictions, in f64 on the host.

mod classification;
mod clustering;
mod response;

pub use classification::{ClassScores, Confusion, Scores};
pub use clustering::{
    adjusted_rand_index, batch_silhouette, calinski_harabasz, normalized_mutual_information,
    silhouette,
};
pub use response::{Condition, ResponseScores, response_scores};

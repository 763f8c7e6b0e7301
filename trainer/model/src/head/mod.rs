//! Task heads on the backbone's output.

mod classification;
mod expression;
mod mvc;

pub use classification::ClassificationHead;
pub use expression::{Expression, ExpressionDecoder};
pub use mvc::MvcDecoder;

//! Task heads on the backbone's output.

mod affine;
mod batch_label;
mod classification;
mod discriminator;
mod expression;
mod mvc;
mod stack;

pub use affine::{AffineActivation, AffineDecoder, AffineOptions};
pub use batch_label::BatchEncoder;
pub use classification::ClassificationHead;
pub use discriminator::BatchDiscriminator;
pub use expression::{Expression, ExpressionDecoder};
pub use mvc::{MvcDecoder, MvcOptions, MvcStyle};

//! Corpora in object stores: a server that speaks S3, and faults between it and the reader.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod cache;
#[path = "../../data-loader/tests/common/mod.rs"]
mod common;
mod http;
mod index;
mod proxy;
mod ranks;
mod s3;
mod server;
mod tahoe;

//! What every user of an object store needs and none should have to itself: what an address is, how a
//! client is made from the environment, which failures may pass, and how long to wait before the next
//! try. Whoever uses it counts its tries and words its errors.

mod client;
mod failure;

pub use client::{Client, Misuse, open, parse};
pub use failure::{Verdict, judge, pause};

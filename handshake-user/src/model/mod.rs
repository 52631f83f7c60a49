//! What the views of a connection mean, taken together. Pure: facts in, numbers and words out, nothing guessed.

pub mod advice;
pub mod failure;
pub mod setup;
pub mod tls;

//! What the views of a connection mean, taken together. Pure: facts in, numbers and words out, nothing guessed.

pub mod advice;
pub mod alert;
pub mod cipher;
pub mod merge;
pub mod setup;
pub mod tls;

//! TLS handshakes, as seen by probes in the libraries that perform them.
//!
//! - [`worker`]: the thread that does all of it, so that records and scrapes do not wait;
//! - [`libraries`]: the files in use, from found to inspected, probed and detached; it calls the others;
//! - [`queue`]: files that wait for inspection, in turns by their owners;
//! - [`inspect`]: which library a file holds, where to probe it, and where its objects keep what is recorded;
//! - [`attach`]: attaches the uprobes of a file, and detaches them;
//! - [`budget`]: how many probes the files of each user may have;
//! - [`handle`]: a probed file, kept open to notice when it is changed or deleted;
//! - [`skipped`]: why files are not probed, counted by reason.

pub mod attach;
pub mod budget;
pub mod handle;
pub mod inspect;
pub mod libraries;
pub mod queue;
pub mod skipped;
pub mod worker;

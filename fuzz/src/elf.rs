//! What must hold of the inspection of any file.

use handshake::{
    fuzzing::{inspect_bytes, inspect_in_pieces},
    tls::library::inspect::Inspection,
};

use crate::assert_harmless;

/// More places than any library has; each is a probe, and takes the kernel a tenth of a second to let go of.
const MAX_POINTS: usize = 200;

/// Inspects a file.
///
/// # Panics
/// When the result makes no sense.
pub fn inspect(file: &[u8]) -> Option<Inspection> {
    let inspection = inspect_bytes(file);
    // Wherever one piece of the file ends and the next begins.
    for entries in [1, 7] {
        assert_eq!(inspect_in_pieces(file, entries), inspection, "in pieces of {entries} entries");
    }
    let inspection = inspection?;
    assert!(inspection.points.len() <= MAX_POINTS, "{} probes", inspection.points.len());
    for point in &inspection.points {
        assert!(point.offset < file.len() as u64, "a probe behind the end of the file");
    }
    assert_harmless(inspection.description.as_deref().unwrap_or_default());
    for gap in &inspection.gaps {
        assert_harmless(&gap.missing);
    }
    // What a process has mapped comes in any order and of any kind.
    let mut completed = inspection.clone();
    completed.complete_with(&inspection);
    Some(inspection)
}

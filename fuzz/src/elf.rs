//! Checks that must hold for the inspection of any file.

use handshake::{
    fuzzing::{inspect_bytes, inspect_in_pieces},
    tls::library::inspect::Inspection,
};

use crate::assert_harmless;

/// More points than any library has. Each is a probe, which the kernel takes a tenth of a second to detach.
const MAX_POINTS: usize = 200;

/// Inspects a file, and checks the result.
///
/// # Panics
/// If the result makes no sense.
pub fn inspect(file: &[u8]) -> Option<Inspection> {
    let inspection = inspect_bytes(file);
    // The result does not depend on the boundaries between pieces.
    for entries in [1, 7] {
        assert_eq!(inspect_in_pieces(file, entries), inspection, "in pieces of {entries} entries");
    }
    let inspection = inspection?;
    assert!(inspection.points.len() <= MAX_POINTS, "{} probes", inspection.points.len());
    for point in &inspection.points {
        assert!(point.offset < file.len() as u64, "a probe beyond the end of the file");
    }
    assert_harmless(inspection.description.as_deref().unwrap_or_default());
    for gap in &inspection.gaps {
        assert_harmless(&gap.missing);
    }
    // A process may have mapped files of any kind in any order.
    let mut completed = inspection.clone();
    completed.complete_with(&inspection);
    Some(inspection)
}

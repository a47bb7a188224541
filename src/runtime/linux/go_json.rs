//! JSON as Go's encoder writes it, so that engines read rcm's statistics as they read runc's.

use serde::Serializer;

/// Returns whether Go's `omitempty` leaves out a number.
pub(crate) fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Writes a percentage; a whole number has no decimal point in Go's JSON.
pub(crate) fn float<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 {
        // A percentage fits.
        serializer.serialize_u64(*value as u64)
    } else {
        serializer.serialize_f64(*value)
    }
}

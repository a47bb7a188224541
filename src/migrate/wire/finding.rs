//! Findings: reasons that speak against a migration.

use serde::{Deserialize, Serialize};

use super::id::Side;

/// Weight of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The migration does not begin.
    Error,
    /// The migration begins, and the operator is warned.
    Warning,
}

/// A reason that speaks against a migration, with a remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Weight of the finding.
    pub severity: Severity,
    /// The host on which the remedy applies.
    pub side: Side,
    /// Description of the problem.
    pub what: String,
    /// Advice to the operator.
    pub remedy: String,
}

impl Finding {
    /// Returns a finding that prevents the migration.
    pub fn error(side: Side, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            side,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// Returns a finding that does not prevent the migration.
    pub fn warning(side: Side, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(side, what, remedy)
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.side, self.what, self.remedy)
    }
}

//! Findings: reasons that speak against a migration.

use serde::{Deserialize, Serialize};

use super::id::Side;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The migration does not begin.
    Error,
    /// It begins; the operator should know.
    Warning,
}

/// Something that speaks against a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// The host where something is to be done.
    pub side: Side,
    /// What is the case.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// One that prevents the migration.
    pub fn error(side: Side, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            side,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// One that does not.
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

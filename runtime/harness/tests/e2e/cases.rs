//! Cases that need more than a program and a scenario.
use crate::Case;

pub fn all() -> Vec<Case> {
    Vec::new()
}

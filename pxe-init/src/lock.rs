//! Locks whose poison is ignored: a panic ends this process, and the node with it, so no lock that was poisoned is ever
//! taken. In tests one that panics should not make others fail.

use std::sync::LockResult;

/// Of `lock`, and a condition's `wait`.
pub(crate) trait Unpoisoned<T> {
    fn unpoisoned(self) -> T;
}

impl<T> Unpoisoned<T> for LockResult<T> {
    fn unpoisoned(self) -> T {
        self.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

//! Locks whose poisoning is ignored: a panic ends the node's work, so a poisoned lock is never taken again. In tests, a
//! panic should not make other tests fail.

use std::sync::LockResult;

/// For the results of `lock`, and of a condition's `wait`.
pub(crate) trait Unpoisoned<T> {
    fn unpoisoned(self) -> T;
}

impl<T> Unpoisoned<T> for LockResult<T> {
    fn unpoisoned(self) -> T {
        self.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

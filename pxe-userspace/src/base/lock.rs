//! Locks whose poisoning is ignored.
//!
//! A lock is poisoned when a thread panics while holding it. Here that is a bug in one request or one task, which ends,
//! and the daemon continues for all others; a panic at the next `lock()` would stop all of them. The data stays usable,
//! because each change is one step: an entry is inserted, replaced or removed. Code that needs several steps to appear
//! as one must not panic between them.

use std::sync::LockResult;

/// For the results of `lock`, `read`, `write`, and a condition's `wait`.
pub(crate) trait Unpoisoned<T> {
    /// The guard, also if a thread panicked while holding it.
    fn unpoisoned(self) -> T;
}

impl<T> Unpoisoned<T> for LockResult<T> {
    fn unpoisoned(self) -> T {
        self.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn what_somebody_panicked_with_is_still_there() {
        let mutex = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let mut value = mutex.lock().unpoisoned();
                *value = 2;
                panic!("on purpose");
            });
            panicking.join().is_err()
        });
        assert!(panicked && mutex.is_poisoned());
        assert_eq!(*mutex.lock().unpoisoned(), 2);
    }
}

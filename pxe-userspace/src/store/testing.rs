//! An engine whose disk can be stopped.

use std::sync::{Arc, Condvar, Mutex};

use super::{BoxError, Change, Durability, Engine, Reader};

/// Stops an engine's writer, like a disk that does not answer.
#[derive(Clone, Default)]
pub struct Brake(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    held: bool,
    /// Transactions that the engine was given.
    begun: usize,
    fails: bool,
}

/// An engine with a brake.
pub struct Braked<E> {
    engine: E,
    brake: Brake,
}

impl Brake {
    pub fn on<E: Engine>(&self, engine: E) -> Braked<E> {
        Braked { engine, brake: self.clone() }
    }

    /// From now on, transactions block.
    pub fn hold(&self) {
        self.0.0.lock().unwrap().held = true;
    }

    pub fn release(&self) {
        self.0.0.lock().unwrap().held = false;
        self.0.1.notify_all();
    }

    /// Whether transactions fail from now on.
    pub fn fail(&self, fails: bool) {
        self.0.0.lock().unwrap().fails = fails;
    }

    /// Transactions that the engine was given.
    pub fn begun(&self) -> usize {
        self.0.0.lock().unwrap().begun
    }

    /// Waits until the engine was given `count` transactions.
    pub fn wait_begun(&self, count: usize) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |state| state.begun < count).unwrap());
    }
}

impl<E: Engine> Engine for Braked<E> {
    fn apply(&mut self, changes: &[&Change], durability: Durability) -> Result<(), BoxError> {
        let (state, changed) = &*self.brake.0;
        let mut state = state.lock().unwrap();
        state.begun += 1;
        changed.notify_all();
        let state = changed.wait_while(state, |state| state.held).unwrap();
        if state.fails {
            return Err("the disk is full".into());
        }
        drop(state);
        self.engine.apply(changes, durability)
    }

    fn reader(&self) -> Box<dyn Reader> {
        self.engine.reader()
    }
}

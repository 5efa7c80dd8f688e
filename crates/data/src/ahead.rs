//! Decoding ahead of the model, in the rayon pool the model computes in: one set of threads for both, so that neither
//! comes on top of the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::Result;

/// What is decoded: the image at a position of the pass. Must not panic, a job in the pool would take the
/// process with it.
pub(crate) type Decode = dyn Fn(usize) -> Result<Vec<f32>> + Send + Sync;

/// Jobs that work on the images after the one that is wanted next, within a window.
///
/// A job decodes one image and puts its successor into the pool, so that a thread which waits for a part of
/// the computation and takes up a job is back after one image.
pub(crate) struct Ahead {
    desk: Arc<Desk>,
}

struct Desk {
    decode: Box<Decode>,
    /// Images of the pass.
    total: usize,
    /// Images decoded at the same time at most.
    threads: usize,
    state: Mutex<State>,
    /// Rung when an image was put down.
    ready: Condvar,
}

struct State {
    /// The first position that nobody works on yet.
    next: usize,
    /// Positions from here on must wait.
    limit: usize,
    /// Images that are being decoded, by jobs or by the taker.
    decoding: usize,
    /// Jobs in the pool, waiting for a thread or decoding.
    jobs: usize,
    /// Images that were finished and not yet taken.
    done: BTreeMap<usize, Result<Vec<f32>>>,
    over: bool,
}

impl Ahead {
    /// Starts on the first `window` of `total` images, at most `threads` at a time.
    pub(crate) fn start(decode: Box<Decode>, total: usize, threads: usize, window: usize) -> Self {
        let desk = Arc::new(Desk {
            decode,
            total,
            threads,
            state: Mutex::new(State {
                next: 0,
                limit: window,
                decoding: 0,
                jobs: 0,
                done: BTreeMap::new(),
                over: false,
            }),
            ready: Condvar::new(),
        });
        desk.hire(&mut desk.state());
        Self { desk }
    }

    /// The image at `position`; moves the window by one. Positions must be taken in order.
    ///
    /// While it is not there, the caller decodes too: it may be the pool's only thread, or all others may be busy with
    /// something else. It waits only for images that another thread is at, and those need nothing of this one.
    pub(crate) fn take(&self, position: usize) -> Result<Vec<f32>> {
        let desk = &self.desk;
        let mut state = desk.state();
        loop {
            if let Some(image) = state.done.remove(&position) {
                state.limit += 1;
                desk.hire(&mut state);
                return image;
            }
            state = match desk.claim(&mut state) {
                Some(claimed) => {
                    drop(state);
                    desk.decode(claimed)
                }
                None => desk.wait(state),
            };
        }
    }
}

/// Images that a thread is at are finished, no others are begun.
impl Drop for Ahead {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        state.over = true;
        while state.decoding > 0 {
            state = self.desk.wait(state);
        }
    }
}

impl Desk {
    /// The lock, also if a thread died with it: what it guards is whole between any two statements.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.ready
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Positions that may be worked on now.
    fn open(&self, state: &State) -> usize {
        match state.over {
            true => 0,
            false => state.limit.min(self.total).saturating_sub(state.next),
        }
    }

    /// A position to decode, if there is one and not enough threads are decoding already.
    fn claim(&self, state: &mut State) -> Option<usize> {
        if state.decoding >= self.threads || self.open(state) == 0 {
            return None;
        }
        state.decoding += 1;
        state.next += 1;
        Some(state.next - 1)
    }

    /// Decodes a claimed position and puts the image down.
    fn decode(&self, position: usize) -> MutexGuard<'_, State> {
        let image = (self.decode)(position);
        let mut state = self.state();
        state.done.insert(position, image);
        state.decoding -= 1;
        self.ready.notify_one();
        state
    }

    /// As many jobs as there is work for.
    fn hire(self: &Arc<Self>, state: &mut State) {
        while state.jobs < self.threads.min(self.open(state)) {
            state.jobs += 1;
            // A job that is still in the queue when the pass is over must not keep its images alive.
            let desk = Arc::downgrade(self);
            rayon::spawn(move || Self::job(&desk));
        }
    }

    fn job(desk: &Weak<Self>) {
        let Some(desk) = desk.upgrade() else {
            return;
        };
        let mut state = desk.state();
        let Some(position) = desk.claim(&mut state) else {
            // The taker was faster; it hires anew when it takes.
            state.jobs -= 1;
            return;
        };
        drop(state);
        let mut state = desk.decode(position);
        state.jobs -= 1;
        desk.hire(&mut state);
    }
}

//! Periodic work during a phase.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::migrate::progress::{Event, Meter, bytes_per_second};

/// The current phase.
#[derive(Debug, Clone)]
pub struct Underway {
    pub container: String,
    pub phase: &'static str,
    pub meter: Meter,
    pub since: Instant,
}

impl Underway {
    /// Returns the average rate since the phase began; `None` if nothing has moved.
    pub fn bytes_per_second(&self, done_bytes: u64) -> Option<u64> {
        bytes_per_second(done_bytes, self.since.elapsed()).filter(|&rate| rate > 0)
    }
}

/// A thread that looks at the current phase. It ends when the ticker is dropped.
#[derive(Debug)]
pub struct Ticker {
    underway: Arc<Mutex<Option<Underway>>>,
    /// Dropped to end the thread.
    leash: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Calls `look` every `interval_dur` during a phase. If no thread can be started, it is never
    /// called.
    pub fn start(interval_dur: Duration, look: impl Fn(&Underway) + Send + 'static) -> Self {
        let underway: Arc<Mutex<Option<Underway>>> = Arc::default();
        let (leash, leashed) = channel::<()>();
        let seen = Arc::clone(&underway);
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(move || {
                while leashed.recv_timeout(interval_dur) == Err(RecvTimeoutError::Timeout) {
                    // Called under the lock, so that nothing of a phase is shown after its end.
                    if let Some(underway) = &*lock(&seen) {
                        look(underway);
                    }
                }
            });
        Self {
            underway,
            leash: Some(leash),
            thread: thread.ok(),
        }
    }

    /// Notes the begin and the end of phases.
    pub fn note(&self, container: &str, event: &Event) {
        match event {
            Event::Began { phase, meter } => {
                *lock(&self.underway) = Some(Underway {
                    container: container.to_owned(),
                    phase,
                    meter: meter.clone(),
                    since: Instant::now(),
                });
            }
            Event::Ended(_) | Event::Round(_) => *lock(&self.underway) = None,
            _ => {}
        }
    }
}

fn lock(underway: &Mutex<Option<Underway>>) -> MutexGuard<'_, Option<Underway>> {
    underway.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.leash = None;
        // Join: signal handlers that are installed later need to know every thread.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

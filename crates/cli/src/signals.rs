//! Signals: the first one asks what is under way to stop and tidy up, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::exit::STOPPED;

/// Set once somebody asked to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens from here on. Where the system refuses, signals do what they do by default.
    pub(crate) fn on_signals() -> Stop {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the second signal finds the flag set by the first.
            let _ = flag::register_conditional_shutdown(signal, i32::from(STOPPED), stop.0.clone());
            let _ = flag::register(signal, stop.0.clone());
        }
        stop
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A file that reaches the limit of sizes shall fail to grow, with an error that can be told; by default the program
/// would be killed and leave its partial target behind.
pub(crate) fn fail_at_the_file_size_limit() {
    let _ = flag::register(SIGXFSZ, Arc::default());
}

//! Signals: the first one asks what is under way to stop and tidy up, the second ends the program. `SIGUSR1` asks how far
//! it has come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGXCPU, SIGXFSZ};
use signal_hook::flag;

use crate::exit::STOPPED;

/// Those that end a program which does nothing about them: its partial target would be left behind.
const STOP: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU, SIGALRM];

/// Set once somebody asked to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens from here on. Where the system refuses, signals do what they do by default.
    pub(crate) fn on_signals() -> Stop {
        let stop = Stop::default();
        // The rest is ignored for what a shell starts in the background, and sent all the same where it is to stop.
        let nohup = is_ignored(SIGHUP);
        for signal in STOP.into_iter().filter(|signal| !(nohup && *signal == SIGHUP)) {
            // In this order: the second signal finds the flag set by the first.
            let _ = flag::register_conditional_shutdown(signal, i32::from(STOPPED), stop.0.clone());
            let _ = flag::register(signal, stop.0.clone());
        }
        stop
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Who started the program wants this signal ignored, as `nohup` does.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // A bit each, from signal 1 on.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// What would kill the program by default, and shall not. A file that reaches the limit of sizes shall fail to grow, with
/// an error that can be told; and `SIGUSR1` is a question.
pub(crate) fn outlive() {
    let _ = flag::register(SIGXFSZ, Arc::default());
    let _ = flag::register(SIGUSR1, ASKED.get_or_init(Arc::default).clone());
}

/// Somebody asked how far it has come since this was asked last.
pub(crate) fn is_asked_how_far() -> bool {
    ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed) && asked.swap(false, Ordering::Relaxed))
}

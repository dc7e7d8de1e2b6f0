//! What a person sees while a verb works: QEMU's percentage, or a bar.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cowhand::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::persona::complain;
use crate::signals::{Stop, is_asked_how_far};

/// Draws progress, and passes on the wish to stop.
pub(crate) struct Meter {
    shown: Shown,
    stop: Stop,
}

enum Shown {
    Nothing,
    /// `    (12.34/100%)` and a carriage return on standard output, in hundredths of a percent.
    Percent(AtomicU64),
    /// A bar on the terminal, from the second second on.
    Bar {
        since: Instant,
        bar: OnceLock<ProgressBar>,
    },
}

/// What takes less is over before a bar could be read.
const PATIENCE: Duration = Duration::from_secs(1);
const WHOLE: u64 = 10_000;
const NOTHING_YET: u64 = u64::MAX;
/// The percentage moves by at least so much.
const STEP: u64 = 100;

impl Meter {
    /// `percent`: QEMU's `-p`. `quiet`: no bar either.
    pub(crate) fn new(percent: bool, quiet: bool) -> Meter {
        let shown = if quiet {
            Shown::Nothing
        } else if percent {
            print_percent(0);
            Shown::Percent(AtomicU64::new(0))
        } else if std::io::stderr().is_terminal() {
            Shown::Bar { since: Instant::now(), bar: OnceLock::new() }
        } else {
            Shown::Nothing
        };
        Meter { shown, stop: Stop::on_signals() }
    }

    /// QEMU's percentage, if that is wanted, and never a bar. Nothing is printed before there is something to tell, or
    /// [`Meter::begin`].
    pub(crate) fn waiting(percent: bool) -> Meter {
        let shown = if percent { Shown::Percent(AtomicU64::new(NOTHING_YET)) } else { Shown::Nothing };
        Meter { shown, stop: Stop::on_signals() }
    }

    /// It begins.
    pub(crate) fn begin(&self) {
        if let Shown::Percent(last) = &self.shown
            && last.compare_exchange(NOTHING_YET, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            print_percent(0);
        }
    }

    /// The wish to stop, for who waits otherwise.
    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// All is done.
    pub(crate) fn finish(self) {
        self.begin();
        if let Shown::Percent(_) = self.shown {
            print_percent(WHOLE);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Percent(last) if last.load(Ordering::Relaxed) == NOTHING_YET => {}
            Shown::Percent(_) => to_stdout("\n"),
            Shown::Bar { bar, .. } => {
                if let Some(bar) = bar.get() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

impl Progress for Meter {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        if self.stop.is_set() {
            return ControlFlow::Break(());
        }
        self.begin();
        let now = || {
            let now = (u128::from(done) * u128::from(WHOLE)).checked_div(u128::from(total));
            now.map_or(WHOLE, |now| now.min(u128::from(WHOLE)) as u64)
        };
        if is_asked_how_far() && !matches!(self.shown, Shown::Percent(_)) {
            complain(&percent(now()));
        }
        match &self.shown {
            Shown::Nothing => {}
            Shown::Percent(last) => {
                let now = now();
                // Held until it is printed: several threads tell of what they did, and the last line is the last word.
                let _turn = std::io::stdout().lock();
                let moved = |last: u64| (now >= last + STEP || now == WHOLE && last < WHOLE).then_some(now);
                if last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved).is_ok() {
                    print_percent(now);
                }
            }
            Shown::Bar { since, bar } => {
                if since.elapsed() >= PATIENCE {
                    bar.get_or_init(|| new_bar(done, total, *since)).set_position(done);
                }
            }
        }
        ControlFlow::Continue(())
    }
}

fn new_bar(done: u64, total: u64, since: Instant) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{percent:>3}% {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar()); // never: the template is constant
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_elapsed(since.elapsed())
        .with_position(done);
    // What was done before the bar was there would be taken for one instant's work.
    bar.reset_eta();
    bar
}

fn percent(hundredths: u64) -> String {
    format!("    ({}.{:02}/100%)", hundredths / 100, hundredths % 100)
}

fn print_percent(hundredths: u64) {
    to_stdout(&format!("{}\r", percent(hundredths)));
}

/// Progress that cannot be shown is no reason to stop.
fn to_stdout(text: &str) {
    let mut to = std::io::stdout().lock();
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

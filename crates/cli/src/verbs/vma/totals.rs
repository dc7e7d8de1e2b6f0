//! `-v`: how far it has come and what there was, in the lines of Proxmox's tool.

use std::time::Instant;

use cowhand::Result;
use cowhand::archive::Tally;

use crate::output::Output;

/// One line, at once.
pub(crate) fn progress(out: &mut Output, tally: &Tally, since: Instant) -> Result<()> {
    let (percent, read, seconds) = (tally.percent(), tally.read, since.elapsed().as_secs());
    writeln!(out, "progress {percent}% (read {read} bytes, duration {seconds} sec)")?;
    out.flush()
}

/// The lines at the end.
pub(crate) fn print(out: &mut Output, tally: &Tally) -> Result<()> {
    if tally.read == 0 {
        return writeln!(out, "vma archive contains no image data");
    }
    let share = |part: u64, whole: u64| three(100.0 * part as f64 / whole as f64);
    let zero = share(tally.zero, tally.read);
    writeln!(out, "total bytes read {}, sparse bytes {} ({zero}%)", tally.read, tally.zero)?;
    match tally.read - tally.zero {
        0 => Ok(()),
        data => writeln!(out, "space reduction due to 4K zero blocks {}%", share(tally.partial, data)),
    }
}

/// Three digits that count, as C's `%.3g` writes them.
fn three(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{number:.2e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0")); // never without: that is the form
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if !(-4..3).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(digits), exponent.abs());
    }
    trim(&format!("{number:.0$}", (2 - exponent) as usize))
}

#[cfg(test)]
mod tests {
    use super::three;

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (number, text) in [
            (0.0, "0"),
            (98.5469, "98.5"),
            (5.08, "5.08"),
            (0.2071, "0.207"),
            (100.0, "100"),
            (99.96, "100"),
            (3.0, "3"),
            (0.0001234, "0.000123"),
            (0.00001234, "1.23e-05"),
            (0.00001, "1e-05"),
        ] {
            assert_eq!(three(number), text);
        }
    }
}

//! Sizes as people read them, in QEMU's way: three digits and a binary unit.

use std::fmt;

/// Bytes, printed with three significant digits as C's `%.3g` does: `196 KiB`, `1.21 MiB`, `0 B`.
///
/// A unit is left at 1000 of it, not at 1024, so that three digits are enough.
pub(crate) struct Size(pub(crate) u64);

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 0;
        while unit + 1 < UNITS.len() && u128::from(self.0) >= 1000_u128 << (10 * unit) {
            unit += 1;
        }
        let value = self.0 as f64 / (1_u64 << (10 * unit)) as f64;
        write!(f, "{} {}", three_digits(value), UNITS.get(unit).unwrap_or(&"B")) // never: the loop ends at the last
    }
}

/// `%.3g`, for values from 0 up to a little over 1000.
fn three_digits(value: f64) -> String {
    if value >= 999.5 {
        return "1e+03".to_owned();
    }
    // How many digits stand behind the point depends on the value after rounding: 99.96 is 100.
    let places = match value {
        v if v < 0.0005 => 0,
        v if v < 0.99995 => 3,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.places$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn as_qemu_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1023, "0.999 KiB"),
            (1024, "1 KiB"),
            (5632, "5.5 KiB"),
            (197120, "192 KiB"),
            (200704, "196 KiB"),
            (1_023_590, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_268_000, "1.21 MiB"),
            (12_345_856, "11.8 MiB"),
            (10_514_944, "10 MiB"),
            (1_610_735_616, "1.5 GiB"),
            (3 << 50, "3 PiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text, "{bytes}");
        }
    }
}

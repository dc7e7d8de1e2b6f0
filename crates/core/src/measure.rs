//! How large an image's file will be, before it is made.

use crate::{BitmapInfo, Result};

/// The content that is to be stored: which guest bytes will be written.
pub trait Content {
    /// Guest bytes of the disk.
    fn size(&self) -> u64;

    /// The first run at or after `at` that will be written as data, as `(start, length)`; `None`: nothing follows.
    /// Runs ascend and do not touch. Who asks goes on from where the last run ended: a content may be read only once.
    fn next(&self, at: u64) -> Result<Option<(u64, u64)>>;

    /// The source's dirty bitmaps; `None`: it is not of a kind that has any.
    fn bitmaps(&self) -> Option<&[BitmapInfo]> {
        None
    }
}

/// What an image will need, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The file's length with this content, rounded as `qemu-img measure` does.
    pub required: u64,
    /// The file's length once every guest byte was written.
    pub fully_allocated: u64,
    /// The file's length as `convert` makes it, to the byte.
    pub exact: u64,
    /// What the source's bitmaps would add to `required`; `None`: there can be none, in the source or in this format.
    pub bitmaps: Option<u64>,
}

/// How many units of each of these sizes (powers of two) the runs of `content` touch, found in one walk.
pub fn touched<const N: usize>(content: &dyn Content, units: [u64; N]) -> Result<[u64; N]> {
    let mut counts = [0; N];
    // Up to which unit each is counted.
    let mut known = [0; N];
    let mut at = 0;
    while let Some((start, len)) = content.next(at)? {
        at = start + len;
        for ((count, known), unit) in counts.iter_mut().zip(&mut known).zip(units) {
            let first = (start / unit).max(*known);
            *known = at.div_ceil(unit);
            *count += *known - first;
        }
    }
    Ok(counts)
}

/// The largest number up to `most` that `fits`, where all smaller ones fit too; `None`: not even 0 does.
pub fn largest(most: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    if !fits(0) {
        return None;
    }
    let (mut fit, mut rest) = (0, most);
    while rest > 0 {
        let step = rest.div_ceil(2);
        rest -= step;
        if fits(fit + step) {
            fit += step;
        } else {
            rest = step - 1;
        }
    }
    Some(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Runs(&'static [(u64, u64)]);

    impl Content for Runs {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn next(&self, at: u64) -> Result<Option<(u64, u64)>> {
            Ok(self.0.iter().copied().find(|(start, _)| *start >= at))
        }
    }

    #[test]
    fn a_unit_counts_once() {
        let runs = Runs(&[(0, 1), (10, 90), (511, 2), (1024, 512), (4095, 1), (10000, 1 << 17)]);
        assert_eq!(touched(&runs, [512, 4096, 65536, 1 << 19]).unwrap(), [4 + 257, 2 + 33 - 1, 3, 1]);
        assert_eq!(touched(&Runs(&[]), [512]).unwrap(), [0]);
    }

    #[test]
    fn the_largest_that_fits() {
        for most in 0..40 {
            assert_eq!(largest(most, |_| false), None);
            for last in 0..=most {
                assert_eq!(largest(most, |n| n <= last), Some(last), "{last} of {most}");
            }
        }
        assert_eq!(largest(u64::MAX, |_| true), Some(u64::MAX));
    }
}

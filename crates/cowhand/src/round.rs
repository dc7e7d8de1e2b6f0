//! Sizes of new disks: within limits, and a multiple of what everybody on the way can take.

use cowhand_core::{Error, Result};

/// Which sizes a disk may have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRule {
    /// A smaller size becomes this one.
    pub least: u64,
    /// A larger size is an error.
    pub most: u64,
    /// Sizes are multiples of this.
    pub unit: u64,
}

impl Default for SizeRule {
    /// XCP-ng's rule for qcow2: 64 KiB to 16 TiB, in steps of 64 KiB.
    fn default() -> Self {
        SizeRule { least: 64 << 10, most: 16 << 40, unit: 64 << 10 }
    }
}

/// `size`, rounded up to what `rule` allows. Errors: it is too large; the rule allows nothing.
pub fn round_size(size: u64, rule: &SizeRule) -> Result<u64> {
    let SizeRule { least, most, unit } = *rule;
    if unit == 0 || least > most {
        return Err(Error::invalid(format!("no size is a multiple of {unit} from {least} to {most}")));
    }
    if size > most {
        return Err(Error::invalid(format!(
            "a disk of {size} bytes is too large: at most {most} are allowed"
        )));
    }
    let rounded = size.max(least).checked_next_multiple_of(unit).filter(|rounded| *rounded <= most);
    rounded.ok_or_else(|| {
        Error::invalid(format!("{size} bytes, rounded up to a multiple of {unit}, are more than {most}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_the_next_unit_within_the_limits() {
        let rule = SizeRule::default();
        for (size, rounded) in
            [(0, 65536), (1, 65536), (65536, 65536), (65537, 131_072), (16 << 40, 16 << 40)]
        {
            assert_eq!(round_size(size, &rule).unwrap(), rounded);
        }
        assert!(round_size((16 << 40) + 1, &rule).is_err());
        assert!(round_size(u64::MAX, &rule).is_err());
        assert!(round_size(1, &SizeRule { unit: 0, ..rule }).is_err());
        assert!(round_size(1, &SizeRule { least: 7, most: 6, unit: 1 }).is_err());
        assert!(round_size(9, &SizeRule { least: 0, most: 9, unit: 4 }).is_err());
    }
}

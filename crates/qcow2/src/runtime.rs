//! What may be said when an image is opened. What is about caches, freed space and checks before writes is for programs
//! that know other qcow2 drivers: here it is looked at, and has no effect.

use cowhand_core::{Error, OptionKind, OptionSpec, Options, Result};

use crate::options::{ENCRYPT_FORMAT, KEY_SECRET, LEVEL};

const fn flag(name: &'static str) -> OptionSpec {
    OptionSpec::new(name, OptionKind::Flag, "Accepted, without effect")
}

const fn size(name: &'static str) -> OptionSpec {
    OptionSpec::new(name, OptionKind::Size, "Accepted, without effect")
}

const fn text(name: &'static str) -> OptionSpec {
    OptionSpec::new(name, OptionKind::Text, "Accepted, without effect")
}

const OVERLAP: &str = "overlap-check";
const TEMPLATE: &str = "overlap-check.template";

/// What can be set when an image is opened.
pub(crate) const OPEN_OPTIONS: &[OptionSpec] = &[
    LEVEL,
    ENCRYPT_FORMAT,
    KEY_SECRET,
    flag("lazy-refcounts"),
    flag("pass-discard-request"),
    flag("pass-discard-snapshot"),
    flag("pass-discard-other"),
    flag("discard-no-unref"),
    text(OVERLAP),
    text(TEMPLATE),
    flag("overlap-check.main-header"),
    flag("overlap-check.active-l1"),
    flag("overlap-check.active-l2"),
    flag("overlap-check.refcount-table"),
    flag("overlap-check.refcount-block"),
    flag("overlap-check.snapshot-table"),
    flag("overlap-check.inactive-l1"),
    flag("overlap-check.inactive-l2"),
    flag("overlap-check.bitmap-directory"),
    size("cache-size"),
    size("l2-cache-size"),
    size("l2-cache-entry-size"),
    size("refcount-cache-size"),
    OptionSpec::new("cache-clean-interval", OptionKind::Number, "Accepted, without effect"),
];

/// Whether they go together, of an image with clusters of so many bytes.
pub(crate) fn check(options: &Options, cluster_size: u64) -> Result<()> {
    let [all, l2, counts] =
        ["cache-size", "l2-cache-size", "refcount-cache-size"].map(|name| options.size(name));
    if let Some(all) = all {
        let wrong = match (l2, counts) {
            (Some(_), Some(_)) => {
                Some("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
            }
            (Some(l2), _) if l2 > all => Some("l2-cache-size may not exceed cache-size"),
            (_, Some(counts)) if counts > all => Some("refcount-cache-size may not exceed cache-size"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(Error::invalid(wrong));
        }
    }
    if let Some(entry) = options.size("l2-cache-entry-size")
        && !(entry.is_power_of_two() && (512..=cluster_size).contains(&entry))
    {
        return Err(Error::invalid(format!(
            "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster_size})"
        )));
    }
    let (check, template) = (options.text(OVERLAP), options.text(TEMPLATE));
    if let (Some(check), Some(template)) = (check, template)
        && check != template
    {
        return Err(Error::invalid(format!(
            "Conflicting values for qcow2 options '{OVERLAP}' ('{check}') and '{TEMPLATE}' ('{template}')"
        )));
    }
    match check.or(template) {
        Some(value) if !["none", "constant", "cached", "all"].contains(&value) => {
            Err(Error::invalid(format!(
                "Unsupported value '{value}' for qcow2 option '{OVERLAP}'. Allowed are any of the following: none, constant, \
             cached, all"
            )))
        }
        _ => Ok(()),
    }
}

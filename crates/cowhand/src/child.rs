//! `child`: a new, empty image over a parent.

use std::path::{Path, PathBuf};

use cowhand_core::{Error, ErrorKind, Image, Kind, Link, Progress, Quiet, Result};

use crate::create::{Create, create_with};
use crate::open::{Open, open};
use crate::parent::relative_name;
use crate::registry;
use crate::sectors::Sectors;

/// How a child is made.
#[derive(Clone, Debug, Default)]
pub struct Child {
    /// How the parent and its chain are opened.
    pub open: Open,
    /// The child's format; `None`: by its extension, else the parent's, else the first that there is.
    pub format: Option<String>,
    /// Options of that format. The cluster or block size is the parent's, where both have one format and none is given.
    pub options: Vec<(String, String)>,
    /// Guest bytes; `None`: the parent's.
    pub size: Option<u64>,
    /// For mirroring into: clusters of 16 KiB with extended L2 entries, so that little is copied for each write.
    pub mirror: bool,
    /// Take the parent though it holds nothing; otherwise an empty parent is passed over in favour of its own.
    pub keep_empty: bool,
    /// Most layers that the chain may have, a base alone counting 1. `None`: what can be opened.
    pub limit: Option<usize>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildMade {
    /// Guest bytes.
    pub size: u64,
    /// The child's format.
    pub format: &'static str,
    /// The parent's name as it stands in the child.
    pub parent: PathBuf,
    /// The parent's format.
    pub parent_format: &'static str,
    /// Layers of the child's chain, itself included.
    pub depth: usize,
    /// The child's sectors are not the parent's.
    pub sectors: Option<Sectors>,
}

/// How many layers a child of `parent` would have below it.
pub fn depth_over(parent: &Path, how: &Child) -> Result<usize> {
    let chain = open(parent, &how.open)?;
    let passed = if how.keep_empty { 0 } else { empty_above(chain.links())? };
    Ok(chain.links().len() - passed)
}

/// Makes `path` over `parent`. Errors: [`ErrorKind::ChainTooLong`] where the chain would have more layers than
/// allowed.
pub fn child(parent: &Path, path: &Path, how: &Child) -> Result<ChildMade> {
    child_with(parent, path, how, &Quiet)
}

/// As [`child`]. Where `progress` asks to stop, nothing is left.
pub fn child_with(parent: &Path, path: &Path, how: &Child, progress: &dyn Progress) -> Result<ChildMade> {
    let chain = open(parent, &how.open)?;
    chain.refuse_as_parent()?;
    let size = how.size.unwrap_or(chain.size());
    let passed = if how.keep_empty { 0 } else { empty_above(chain.links())? };
    let (below, layers) = match chain.links().get(passed..) {
        Some([below, ..]) => (below, chain.links().len() - passed + 1),
        _ => return Err(Error::invalid("a disk needs at least one layer")), // never: one that has no parent is not passed over
    };
    if let Some(limit) = how.limit.filter(|limit| layers > *limit) {
        return Err(Error::new(
            ErrorKind::ChainTooLong,
            format!("the chain would have {layers} layers, and may have {limit}"),
        )
        .image(path.display())
        .hint("merge some of them with 'cowhand commit'"));
    }
    let format = match &how.format {
        Some(name) => registry::format(name)?,
        None => format_of(path, below)?,
    };
    let mut options = how.options.clone();
    let mut default = |name: &str, value: String| {
        if !options.iter().any(|(given, _)| given == name) {
            options.push((name.to_owned(), value));
        }
    };
    let takes = |name: &str| format.options().iter().any(|spec| spec.name == name);
    let named = format.names()[0]; // never empty: every format has a name
    if how.mirror {
        if !takes("extended_l2") {
            return Err(Error::unsupported(format!("a {named} image has no extended L2 entries"))
                .image(path.display())
                .hint("choose qcow2 for the mirror kind"));
        }
        default("cluster_size", "16k".to_owned());
        default("extended_l2", "on".to_owned());
    } else if named == below.format {
        // Not all that can be read can be made: smaller blocks than those of the option are not taken over.
        let like = below.layer.made_with(false).into_iter();
        let same = like.filter(|(name, _)| format.child_options().contains(name));
        same.for_each(|(name, value)| default(name, value));
    }
    let backing = name_from(path, Path::new(&below.name));
    let made = create_with(
        path,
        &Create {
            format: named.to_owned(),
            size: Some(size),
            options,
            backing: Some(backing.clone()),
            backing_format: Some(below.format.to_owned()),
            unchecked: false,
            policy: how.open.policy.clone(),
            search: how.open.search.clone(),
            cache: how.open.cache,
            secrets: how.open.secrets.clone(),
            solid: how.open.solid,
            probing: how.open.probing,
            lenient: how.open.lenient,
            ..Create::default()
        },
        progress,
    )?;
    Ok(ChildMade {
        size: made.size,
        format: named,
        parent: backing,
        parent_format: below.format,
        depth: layers,
        sectors: made.sectors,
    })
}

/// How many layers at the top hold nothing and have a parent.
fn empty_above(links: &[Link]) -> Result<usize> {
    let mut passed = 0;
    while passed + 1 < links.len() {
        let Some(link) = links.get(passed) else { break };
        let alone = Image::new(vec![link.clone()])?;
        let mut at = 0;
        while at < alone.size() {
            let found = alone.extent(at, alone.size() - at)?;
            if found.kind != Kind::Hole {
                return Ok(passed);
            }
            at += found.len;
        }
        passed += 1;
    }
    Ok(passed)
}

/// What the name says; where it says nothing, what the parent is, unless that is raw; else the first of the list.
fn format_of(path: &Path, parent: &Link) -> Result<&'static dyn cowhand_core::Format> {
    let by_name = registry::format_for_target(path)?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if by_name.extensions().contains(&extension.to_ascii_lowercase().as_str()) {
        return Ok(by_name);
    }
    let parents = registry::format(parent.format)?;
    let first = registry::formats().first().copied().unwrap_or(parents);
    Ok(if parents.is_bare() { first } else { parents })
}

/// `parent`, a name from where the caller stands, as the image `child` has to name it: absolute as it is given.
fn name_from(child: &Path, parent: &Path) -> PathBuf {
    if parent.is_absolute() { parent.to_owned() } else { relative_name(child, parent) }
}

#[cfg(test)]
mod tests {
    use super::name_from;
    use std::path::{Path, PathBuf};

    #[test]
    fn a_parent_is_named_from_the_childs_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        for sub in ["a/b", "c"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        // Relative from here, whatever the current folder is.
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let relative = |path: &str| up.join(root.strip_prefix("/").unwrap()).join(path);
        for (child, parent, name) in
            [("a/x", "a/p", "p"), ("a/x", "a/b/p", "b/p"), ("a/b/x", "a/p", "../p"), ("a/x", "c/p", "../c/p")]
        {
            assert_eq!(name_from(&root.join(child), &relative(parent)), Path::new(name), "{child} {parent}");
        }
        assert_eq!(
            name_from(&root.join("a/x"), &root.join("a/p")),
            root.join("a/p"),
            "absolute as it is given"
        );
    }
}

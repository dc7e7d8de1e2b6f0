//! `chain`: what stands on what, as trees from the bases up, broken links shown where they break.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cowhand_core::{Error, Image, Result};
use serde_json::{Value, json};

use crate::info::{Info, of_link};
use crate::open::{Open, open_as_far};
use crate::resolve::{folder_of, in_folder};

/// One image file, and what stands on it.
#[derive(Debug)]
pub struct Tree {
    /// The file, as it was named or found.
    pub filename: String,
    /// What it is; or why it cannot be opened here: it is missing, the path policy refuses it, it is broken.
    pub image: Result<Layered>,
    /// The images that stand on it, in the order they were found.
    pub children: Vec<Tree>,
}

/// What is known of a file in a chain.
#[derive(Debug)]
pub struct Layered {
    /// What `info` says.
    pub info: Info,
    /// Bytes that this file alone keeps of the disk; an error where its tables are damaged.
    pub allocated: Result<u64>,
}

impl Tree {
    /// Everything was found and could be read.
    pub fn is_whole(&self) -> bool {
        self.image.as_ref().is_ok_and(|image| image.allocated.is_ok())
            && self.children.iter().all(Tree::is_whole)
    }

    /// As `cowhand chain --output=json` prints it.
    pub fn to_json(&self) -> Value {
        let mut value = json!({ "filename": self.filename });
        let Some(all) = value.as_object_mut() else { return value };
        match &self.image {
            Err(error) => {
                all.insert("error".to_owned(), error.to_string().into());
            }
            Ok(Layered { info, allocated }) => {
                all.insert("format".to_owned(), info.format.into());
                all.insert("virtual-size".to_owned(), info.virtual_size.into());
                all.insert("physical-size".to_owned(), info.physical_size.into());
                all.insert("actual-size".to_owned(), info.actual_size.into());
                match allocated {
                    Ok(bytes) => all.insert("allocated".to_owned(), (*bytes).into()),
                    Err(error) => all.insert("error".to_owned(), error.to_string().into()),
                };
                if let Some(hidden) = info.hidden {
                    all.insert("hidden".to_owned(), hidden.into());
                }
            }
        }
        all.insert("children".to_owned(), self.children.iter().map(Tree::to_json).collect());
        value
    }
}

/// What tells one file from another: device and inode, or the name of a file that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    File(u64, u64),
    Name(PathBuf),
}

struct Node {
    filename: String,
    image: Result<Layered>,
    parent: Option<usize>,
}

/// The trees that the images of `paths` belong to, each file once, in the order they were found.
pub fn chain(paths: &[PathBuf], how: &Open) -> Vec<Tree> {
    // What is encrypted needs no secret to say what it stands on.
    let how = &Open { metadata_only: true, ..how.clone() };
    let mut nodes: Vec<Node> = Vec::new();
    let mut known: HashMap<Key, usize> = HashMap::new();
    for path in paths {
        add(path, how, &mut nodes, &mut known);
    }
    let mut children: Vec<Vec<usize>> = nodes.iter().map(|_| Vec::new()).collect();
    let mut roots = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        match node.parent.and_then(|parent| children.get_mut(parent)) {
            Some(siblings) => siblings.push(number),
            None => roots.push(number),
        }
    }
    let mut nodes: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    roots.into_iter().filter_map(|root| grow(root, &mut nodes, &children)).collect()
}

/// Never deeper than a chain may be.
fn grow(number: usize, nodes: &mut [Option<Node>], children: &[Vec<usize>]) -> Option<Tree> {
    let Node { filename, image, .. } = nodes.get_mut(number)?.take()?;
    let on_it = children.get(number).into_iter().flatten();
    let children = on_it.filter_map(|child| grow(*child, nodes, children)).collect();
    Some(Tree { filename, image, children })
}

/// Adds the chain of `path`, as far as it is not known.
fn add(path: &Path, how: &Open, nodes: &mut Vec<Node>, known: &mut HashMap<Key, usize>) {
    let (opened, broken) = match open_as_far(path, how) {
        Ok(found) => found,
        Err(error) => {
            let _ = node(Key::Name(path.to_owned()), path.display().to_string(), || Err(error), nodes, known);
            return;
        }
    };
    let mut child: Option<usize> = None;
    let links = opened.links();
    for ((depth, link), (device, inode)) in links.iter().enumerate().zip(opened.layer_files()) {
        let look = || {
            let info = of_link(&opened, depth)?;
            let allocated = Image::new(vec![link.clone()]).and_then(|alone| crate::allocated(&alone));
            Ok(Layered { info, allocated })
        };
        let (number, was_known) = node(Key::File(device, inode), link.name.clone(), look, nodes, known);
        if let Some(child) = child.and_then(|child| nodes.get_mut(child)) {
            child.parent = Some(number);
        }
        child = Some(number);
        if was_known && nodes.get(number).is_some_and(|node| node.parent.is_some()) {
            return;
        }
    }
    let Some((error, last)) = broken.zip(links.last()) else { return };
    let wanted =
        last.layer.parent().and_then(|parent| parent.candidates.into_iter().next()).unwrap_or_default();
    let path = in_folder(&folder_of(Path::new(&last.name)), &wanted);
    // The child's own name stands before the error, which is about the parent here.
    let (number, _) = node(Key::Name(path.clone()), path.display().to_string(), || Err(error), nodes, known);
    if let Some(child) = child.and_then(|child| nodes.get_mut(child)) {
        child.parent = Some(number);
    }
}

/// The node of that key, made where there is none; and whether there was.
fn node(
    key: Key,
    filename: String,
    look: impl FnOnce() -> Result<Layered, Error>,
    nodes: &mut Vec<Node>,
    known: &mut HashMap<Key, usize>,
) -> (usize, bool) {
    if let Some(number) = known.get(&key) {
        return (*number, true);
    }
    nodes.push(Node { filename, image: look(), parent: None });
    known.insert(key, nodes.len() - 1);
    (nodes.len() - 1, false)
}

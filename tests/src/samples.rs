//! Real images of other makers, where they are at hand: `../shared/samples` beside the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{run, start_helpers};

/// One line of the manifest, and where its file was unpacked.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The file.
    pub file: PathBuf,
    /// Its path in the collection.
    pub path: String,
    /// `vhd`, `vhdx`, `qcow2` or another.
    pub format: String,
    /// Guest bytes; `None` where the manifest does not say.
    pub virtual_size: Option<u64>,
    /// The hash of the file.
    pub sha256_file: String,
    /// The hash of the guest's bytes; empty where there are none.
    pub sha256_guest: String,
    /// The parent's file name, beside it; empty: none.
    pub parent: String,
    /// What else there is to say: hashes of an archive's parts among it.
    pub notes: String,
}

/// All samples, unpacked once into `target`. Empty where they are not at hand, or cannot be unpacked: says so.
pub fn samples() -> Vec<Sample> {
    start_helpers();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace");
    let from = root.join("../shared/samples");
    let Ok(manifest) = std::fs::read_to_string(from.join("MANIFEST.tsv")) else {
        eprintln!("SKIPPED: there are no samples of other software at {}", from.display());
        return Vec::new();
    };
    let into = root.join("target/samples");
    if !into.is_dir() {
        // Unpacked beside and then renamed: another test may be about to do the same.
        let fresh = root.join(format!("target/samples.{}", std::process::id()));
        std::fs::create_dir_all(&fresh).unwrap();
        let archive = from.join("samples.tar.zst");
        let ran = match Command::new("zstd").arg("--version").output() {
            Ok(_) => run(Command::new("tar").arg("--zstd").arg("-xf").arg(archive).arg("-C").arg(&fresh)),
            Err(error) => {
                eprintln!("SKIPPED: the samples cannot be unpacked: zstd: {error}");
                return Vec::new();
            }
        };
        assert!(ran.ok(), "tar: {}", ran.err);
        if std::fs::rename(&fresh, &into).is_err() {
            std::fs::remove_dir_all(&fresh).unwrap();
        }
    }
    let lines = manifest.lines().skip(1).filter(|line| !line.is_empty());
    lines.map(|line| parse(line, &into)).collect()
}

fn parse(line: &str, into: &Path) -> Sample {
    let mut columns = line.split('\t').map(str::to_owned);
    let mut next = || columns.next().unwrap_or_default();
    let (path, format, _kind, size, _maker) = (next(), next(), next(), next(), next());
    let (sha256_file, sha256_guest, parent, notes) = (next(), next(), next(), next());
    Sample {
        file: into.join(&path),
        virtual_size: size.parse().ok(),
        path,
        format,
        sha256_file,
        sha256_guest,
        parent,
        notes,
    }
}

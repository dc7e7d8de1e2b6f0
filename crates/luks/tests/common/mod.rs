//! What the tests of this crate share: volumes in memory and in files, and QEMU's programs where they are.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // Each test file uses a part of it, and panics where it must.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, CreateOptions, FileStorage, Format, Image, Layer, Link, Lock, NoFiles, OpenOptions,
    Options, Result, Secrets, Storage,
};
use cowhand_luks::Luks;

pub(crate) const PASSPHRASE: &[u8] = b"correct horse";

pub(crate) fn secrets(all: &[&[u8]]) -> Secrets {
    let mut secrets = Secrets::default();
    for (index, secret) in all.iter().enumerate() {
        secrets.add(format!("s{index}"), secret.to_vec()).unwrap();
    }
    secrets
}

/// `a=1,b=2` for making a volume whose passphrase is [`PASSPHRASE`]; made in little time.
pub(crate) fn how(size: u64, text: &str) -> CreateOptions {
    let mut given = cowhand_core::parse_option_string(text);
    given.push(("iter-time".into(), "1".into()));
    CreateOptions {
        size,
        options: Options::check(Luks.options(), &given).unwrap(),
        secrets: secrets(&[PASSPHRASE]),
        ..CreateOptions::default()
    }
}

pub(crate) fn with(writable: bool, all: &[&[u8]]) -> OpenOptions {
    OpenOptions { writable, secrets: secrets(all), ..OpenOptions::default() }
}

pub(crate) fn create(storage: Arc<dyn Storage>, size: u64, text: &str) -> Arc<dyn Layer> {
    Luks.create(storage, &NoFiles, &how(size, text)).unwrap()
}

pub(crate) fn open(storage: Arc<dyn Storage>, writable: bool) -> Result<Arc<dyn Layer>> {
    Luks.open(storage, &NoFiles, &with(writable, &[PASSPHRASE]))
}

pub(crate) fn file(path: &Path, access: Access) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, access, Lock::None, Cache::Unsafe).unwrap())
}

pub(crate) fn amend(layer: &Arc<dyn Layer>, text: &str, all: &[&[u8]]) -> Result<()> {
    let options = Options::check(Luks.amend_options(), &cowhand_core::parse_option_string(text)).unwrap();
    layer.amend(&options, &secrets(all), &cowhand_core::Quiet)
}

/// All bytes of a disk.
pub(crate) fn bytes(layer: &Arc<dyn Layer>) -> Vec<u8> {
    let mut all = vec![0xee; layer.size() as usize];
    let link = Link { layer: layer.clone(), name: "test".into(), format: "luks" };
    Image::new(vec![link]).unwrap().read(0, &mut all).unwrap();
    all
}

/// Bytes that tell where they stand.
pub(crate) fn pattern(at: u64, len: usize, seed: u8) -> Vec<u8> {
    (at..at + len as u64).map(|i| ((i / 16) as u8).wrapping_mul(31) ^ (i % 16) as u8 ^ seed).collect()
}

/// QEMU is here. Says so where it is not, since a test is skipped then.
pub(crate) fn qemu() -> bool {
    let here = Command::new("qemu-img").arg("--version").output().is_ok_and(|out| out.status.success());
    if !here {
        println!("skipped: there is no qemu-img");
    }
    here
}

/// Runs a program in a folder; answers its output, and panics where it fails.
pub(crate) fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

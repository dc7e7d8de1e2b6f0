//! What the tests of this crate share: images on files and in memory, and QEMU's programs where they are.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // Each test file uses a part of it, and panics where it must.

pub(crate) mod crash;
pub(crate) mod cut;
pub(crate) mod stored;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, CreateOptions, FileStorage, Format, Image, Layer, Link, Lock, OpenOptions, Options,
    ParentRef, Resolver, Result, Secrets, Storage,
};
use cowhand_qcow2::Qcow2;

/// A folder whose files images may name.
#[derive(Debug)]
pub(crate) struct Here(pub(crate) PathBuf);

impl Resolver for Here {
    fn open(&self, name: &Path, writable: bool) -> Result<Arc<dyn Storage>> {
        Ok(file(&self.0.join(name), if writable { Access::Write } else { Access::Read }))
    }

    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>> {
        let _ = std::fs::remove_file(self.0.join(name));
        Ok(file(&self.0.join(name), Access::CreateNew))
    }
}

pub(crate) fn file(path: &Path, access: Access) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, access, Lock::None, Cache::Unsafe).unwrap())
}

/// `a=1,b=2` as checked options.
pub(crate) fn options(text: &str) -> Options {
    Options::check(Qcow2.options(), &cowhand_core::parse_option_string(text)).unwrap()
}

/// What encrypted images are made and opened with.
pub(crate) const SECRET: &str = "correct horse";

/// LUKS that is made and opened in little time.
pub(crate) const LUKS: &str = "encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,\
                               encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1";

pub(crate) fn secrets(all: &[&str]) -> Secrets {
    let mut secrets = Secrets::default();
    for (index, secret) in all.iter().enumerate() {
        secrets.add(format!("s{index}"), secret.as_bytes().to_vec()).unwrap();
    }
    secrets
}

pub(crate) fn how(size: u64, text: &str) -> CreateOptions {
    CreateOptions { size, options: options(text), secrets: secrets(&[SECRET]), ..CreateOptions::default() }
}

/// The way of opening that needs to know nothing of the image.
pub(crate) fn with(writable: bool) -> OpenOptions {
    OpenOptions { writable, secrets: secrets(&[SECRET]), ..OpenOptions::default() }
}

pub(crate) fn create(path: &Path, how: &CreateOptions) -> Arc<dyn Layer> {
    let _ = std::fs::remove_file(path);
    let folder = Here(path.parent().unwrap().to_owned());
    Qcow2.create(file(path, Access::CreateNew), &folder, how).unwrap()
}

pub(crate) fn open(path: &Path, writable: bool) -> Result<Arc<dyn Layer>> {
    let folder = Here(path.parent().unwrap().to_owned());
    let access = if writable { Access::Write } else { Access::Read };
    Qcow2.open(file(path, access), &folder, &with(writable))
}

pub(crate) fn named(name: &str, format: &str) -> Option<ParentRef> {
    Some(ParentRef { candidates: vec![name.into()], format: Some(format.into()), ..ParentRef::default() })
}

/// The layer as a disk of its own.
pub(crate) fn disk(layer: Arc<dyn Layer>) -> Image {
    Image::new(vec![Link { layer, name: "test".into(), format: "qcow2" }]).unwrap()
}

/// All bytes of a disk.
pub(crate) fn bytes(layer: &Arc<dyn Layer>) -> Vec<u8> {
    let mut all = vec![0xee; layer.size() as usize];
    disk(layer.clone()).read(0, &mut all).unwrap();
    all
}

/// Bytes that tell where they stand, and shrink.
pub(crate) fn pattern(at: u64, len: usize, seed: u8) -> Vec<u8> {
    (at..at + len as u64)
        .map(|i| ((i / 512) as u8).wrapping_mul(31) ^ ((i % 512) as u8 & 0x0f) ^ seed)
        .collect()
}

/// Bytes that do not shrink.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(len)
    .collect()
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

/// `qemu-img check` finds nothing at all.
pub(crate) fn check(path: &Path) {
    run(path.parent().unwrap(), "qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
}

/// What QEMU reads from an image.
pub(crate) fn qemu_bytes(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("qemu-raw");
    run(
        path.parent().unwrap(),
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()],
    );
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

//! `vhd-util key`: the hash of the key that an image's content is encrypted with. The key itself opens nothing here.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use cowhand::{Amend, Info, Open, Parent, Quiet, amend, info};
use sha2::{Digest, Sha256};

use super::names::{count, fact};
use super::{
    Call, Done, Failed, Flag, HELP, NAME, Verb, change, errno, file, look, name_of, needed, options, wrong,
};
use crate::persona::complain;

pub(super) const VERB: Verb = Verb {
    name: "key",
    about: "the hash of an encrypted image's key",
    flags: &[
        NAME,
        Flag::short('C', "compute", "Print the hash of the key in -k"),
        Flag::short('s', "set", "Write a hash into an image that holds nothing yet"),
        Flag::short('c', "check", "Is the key in -k the image's?"),
        Flag::short('p', "print", "Print the nonce and the hash, or none"),
        Flag::short('k', "key", "The key; for -s and -c its name is IMAGE,aes-xts-plain,BITS.key").of("FILE"),
        Flag::short('H', "hash", "The hash, for -s").of("HEX"),
        Flag::short('N', "nonce", "What is hashed in front of the key").of("HEX"),
        HELP,
    ],
    run,
};

/// Bytes of a nonce and of a hash.
const LEN: usize = 32;
/// Bits that a key may have.
const BITS: [usize; 2] = [256, 512];

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut key, mut hash, mut nonce): (_, _, Option<OsString>, Option<OsString>) =
        (None, None, None, None);
    let (mut compute, mut set, mut check, mut show) = (false, false, false, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "key" => key = Some(file(value)),
            "hash" => hash = Some(value),
            "nonce" => nonce = Some(value),
            "compute" => compute = true,
            "set" => set = true,
            "check" => check = true,
            _ => show = true,
        }
    }
    call.end()?;
    let given = nonce.is_some();
    let nonce = nonce.map_or(Ok([0; LEN]), |hex| digits(&hex))?;
    if compute {
        let hash = hash_of(&nonce, &read(&needed(key)?, None)?);
        return Ok(writeln!(call.out, "{}", shown(&hash))?);
    }
    let path = needed(name)?;
    let asked_right = match (set, check) {
        (true, true) => false,
        (true, false) => key.is_some() != hash.is_some(),
        (false, true) => key.is_some() && hash.is_none() && !given,
        (false, false) => show,
    };
    if !asked_right {
        return Err(wrong());
    }
    if set {
        let hash = match (&hash, &key) {
            (Some(hash), _) => digits(hash)?,
            (None, Some(key)) => hash_of(&nonce, &read(key, Some(&path))?),
            (None, None) => return Err(wrong()),
        };
        let found = look_at(&path)?;
        if count(&found, "table-entries").is_none() {
            return refuse("a fixed disk keeps no hash of a key");
        }
        if holds_something(&path)? {
            return refuse("the image holds data already, which is not encrypted with that key");
        }
        let pair = format!("{}:{}", shown(&nonce), shown(&hash));
        let open = Open { parent: Parent::Ignored, ..change() };
        let how = Amend { open, options: options(&[("key_hash", &pair)]), ..Amend::default() };
        amend(&path, &how, &Quiet).map_err(said("setting the key's hash failed"))?;
    } else if check {
        let found = look_at(&path)?;
        let Some((nonce, hash)) = pair(&found) else { return refuse("the image has no hash of a key") };
        let key = read(&needed(key)?, Some(&path))?;
        if shown(&hash_of(&digits(&nonce.into())?, &key)) != hash {
            return refuse("the key is not the image's");
        }
    }
    if show {
        match pair(&look_at(&path)?) {
            Some((nonce, hash)) => writeln!(call.out, "{nonce} {hash}")?,
            None => writeln!(call.out, "none")?,
        }
    }
    Ok(())
}

fn look_at(path: &Path) -> Result<Info, Failed> {
    let found = info(path, &look(), false).map_err(said(&format!("failed to open {}", name_of(path))))?;
    needed(found.into_iter().next())
}

fn holds_something(path: &Path) -> Result<bool, Failed> {
    let mut any = false;
    cowhand::open_alone(path, &look())?.top().layer.allocated(&mut |_, _| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}

/// An error of this verb goes to standard error.
fn said(what: &str) -> impl Fn(cowhand::Error) -> Failed {
    let what = what.to_owned();
    move |error| {
        let status = errno::of(&error);
        complain(&format!("{what}: -{status}"));
        Failed::Says { status, line: String::new(), error: Some(error) }
    }
}

fn refuse<T>(why: &str) -> Result<T, Failed> {
    complain(why);
    Err(Failed::says(errno::INVALID, ""))
}

fn pair(info: &Info) -> Option<(String, String)> {
    Some((fact(info, "batmap-key-nonce")?, fact(info, "batmap-key-hash")?))
}

/// The key in a file: of an image, one that is called after it and has the bits that its name says.
fn read(key: &Path, image: Option<&Path>) -> Result<Vec<u8>, Failed> {
    let bits = match image {
        None => BITS.into_iter().max(),
        Some(image) => {
            let image = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let stem = image.split(".vhd").next().unwrap_or_default();
            let own = key.file_name().unwrap_or_default().to_string_lossy().into_owned();
            BITS.into_iter().find(|bits| own.starts_with(&format!("{stem},aes-xts-plain,{bits}.key")))
        }
    };
    let Some(bits) = bits else {
        return refuse(&format!("{} is no name of a key of this image", name_of(key)));
    };
    let failed = |error: std::io::Error| {
        said(&format!("failed to read {}", name_of(key)))(cowhand::Error::io("reading", error))
    };
    let mut bytes = Vec::new();
    let most = (bits / 8) as u64;
    std::fs::File::open(key).map_err(failed)?.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bits / 8 || (image.is_some() && bytes.len() != bits / 8) {
        return refuse(&format!("{} does not hold {bits} bits", name_of(key)));
    }
    Ok(bytes)
}

fn hash_of(nonce: &[u8; LEN], key: &[u8]) -> [u8; LEN] {
    Sha256::new().chain_update(nonce).chain_update(key).finalize().into()
}

fn shown(bytes: &[u8; LEN]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digits(hex: &OsString) -> Result<[u8; LEN], Failed> {
    let text = hex.to_string_lossy();
    let mut bytes = [0; LEN];
    let pairs = text.as_bytes().chunks_exact(2);
    let whole = text.len() == 2 * LEN;
    for (byte, pair) in bytes.iter_mut().zip(pairs).filter(|_| whole) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(value) => *byte = value,
            None => return refuse("invalid hex digit"),
        }
    }
    if whole { Ok(bytes) } else { refuse("invalid size for hex string") }
}

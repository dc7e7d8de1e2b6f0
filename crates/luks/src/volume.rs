//! A volume: the header where it stands, and its key once a passphrase has unlocked it.

use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use cowhand_core::{Error, ErrorKind, Options, Result, Secrets};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::algorithms::Algorithms;
use crate::area::Area;
use crate::encrypted::Encrypted;
use crate::header::{Header, SLOTS};
use crate::keyslot::{self, Key, MAX_ITERATIONS};
use crate::random;
use crate::sectors::Sectors;

/// A LUKS header with its key slots, alone or within another format.
pub struct Volume {
    area: Area,
    header: Mutex<Header>,
    key: Option<Key>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("area", &self.area).finish_non_exhaustive()
    }
}

/// What shall be made, as options say whose names begin with a prefix.
#[derive(Clone, Debug)]
pub struct Choice {
    algorithms: Algorithms,
    iter_time: Duration,
}

impl Choice {
    /// Errors: a combination that cannot be.
    pub fn from(options: &Options, prefix: &str) -> Result<Choice> {
        Ok(Choice { algorithms: Algorithms::chosen(options, prefix)?, iter_time: iter_time(options, prefix) })
    }

    /// Bytes that the header and the key material take: the disk's own bytes may start behind them.
    pub fn header_len(&self) -> u64 {
        Header::new(self.algorithms, String::new()).payload
    }
}

fn iter_time(options: &Options, prefix: &str) -> Duration {
    Duration::from_millis(options.number(&format!("{prefix}iter-time")).unwrap_or(2000))
}

/// The passphrases to try: the one that the option `name` names, else all. Errors: there is none.
pub fn candidates<'a>(options: &Options, name: &str, secrets: &'a Secrets) -> Result<Vec<&'a [u8]>> {
    if let Some(id) = options.text(name) {
        return Ok(vec![secrets.get(id)?]);
    }
    if !secrets.may_be_tried() {
        return Err(required(name));
    }
    if secrets.is_empty() {
        return Err(Error::new(ErrorKind::Denied, "is encrypted, and no secret was given")
            .hint(GIVE_A_SECRET)
            .known_as(required(name).message()));
    }
    Ok(secrets.iter().map(|(_, secret)| secret).collect())
}

/// The one passphrase that a new key slot gets: the one that the option `name` names, else the only one there is.
pub fn chosen<'a>(options: &Options, name: &str, secrets: &'a Secrets) -> Result<&'a [u8]> {
    match candidates(options, name, secrets) {
        Ok(found) if found.len() == 1 => {
            found.first().copied().ok_or_else(|| Error::invalid("no secret was given"))
        }
        Err(error) if error.kind() != ErrorKind::Denied => Err(error),
        _ => Err(required(name)),
    }
}

fn required(name: &str) -> Error {
    let said = format!("Parameter '{name}' is required for cipher");
    Error::invalid(said.clone())
        .hint(format!("pass --object secret,id=ID,file=PATH and {name}=ID"))
        .known_as(said)
}

/// Other programs take passphrases as text, so that is what key slots are made for.
fn check_text(passphrase: &[u8]) -> Result<()> {
    if passphrase.contains(&0) || std::str::from_utf8(passphrase).is_err() {
        return Err(Error::invalid("the secret is not text in UTF-8, and QEMU could not use it")
            .hint("use text, such as the base64 of these bytes"));
    }
    Ok(())
}

impl Volume {
    /// Reads the header, and unlocks it where there are `passphrases`. Errors: none of them fits
    /// ([`ErrorKind::Denied`]).
    pub fn open(area: Area, passphrases: Option<&[&[u8]]>) -> Result<Volume> {
        let header = Header::read(&area)?;
        let key = match passphrases {
            Some(passphrases) => Some(unlock_any(&area, &header, passphrases)?),
            None => None,
        };
        Ok(Volume { area, header: Mutex::new(header), key })
    }

    /// Makes a header with a new key, and one key slot. The header is written last.
    pub fn create(area: Area, choice: &Choice, passphrase: &[u8]) -> Result<Volume> {
        check_text(passphrase)?;
        let how = choice.algorithms;
        let mut header = Header::new(how, uuid::Uuid::new_v4().to_string());
        let mut key = Zeroizing::new(vec![0; how.key_bytes()]);
        random(&mut key)?;
        random(&mut header.salt)?;
        // As QEMU and cryptsetup do: the key is as strong as its bytes, its digest need not be slow to make.
        header.iterations = keyslot::iterations(how.hash, header.digest.len(), choice.iter_time / 8);
        header.digest = keyslot::digest(&header, &key);
        let iterations = keyslot::iterations(how.hash, how.key_bytes(), choice.iter_time);
        let mut slot = keyslot::lock(&area, &header, 0, &key, passphrase, iterations)?;
        slot.active = true;
        header.slots[0] = slot; // never empty: eight slots
        header.write(&area)?;
        Ok(Volume { area, header: Mutex::new(header), key: Some(key) })
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The disk's bytes. `None`: it was opened without a passphrase.
    pub fn encrypted(&self) -> Result<Option<Encrypted>> {
        let sectors = self.key.as_ref().map(|key| Sectors::new(&self.header().algorithms, key));
        Ok(sectors.transpose()?.map(Encrypted::new))
    }

    /// Where the disk's bytes start, in bytes from the header's front; of no meaning within another format.
    pub fn payload(&self) -> u64 {
        self.header().payload
    }

    /// The facts for `info`; `format` is given where they stand within another format's.
    pub fn details(&self, format: Option<&str>) -> Map<String, Value> {
        self.header().details(format)
    }

    /// Adds or erases keys, as options say whose names begin with `prefix` (`state`, `new-secret`, `old-secret`,
    /// `keyslot`, `iter-time`), and `force`. At every moment some key slot opens the volume, unless the last one is
    /// erased by force.
    pub fn amend(&self, options: &Options, prefix: &str, secrets: &Secrets) -> Result<()> {
        let option = |name: &str| format!("{prefix}{name}");
        let named = |name: &str| options.text(&option(name)).map(|id| secrets.get(id)).transpose();
        let (new, old) = (named("new-secret")?, named("old-secret")?);
        let index = match options.number(&option("keyslot")) {
            Some(index) if index >= SLOTS as u64 => {
                let text = format!("Invalid keyslot {index} specified, must be between 0 and {}", SLOTS - 1);
                return Err(Error::invalid(text));
            }
            index => index.map(|index| index as usize),
        };
        let force = options.flag("force").unwrap_or(false);
        match options.text(&option("state")) {
            Some("active") => {
                let new =
                    new.ok_or_else(|| Error::invalid("'new-secret' is required to activate a keyslot"))?;
                if old.is_some() {
                    return Err(Error::invalid("'old-secret' must not be given when activating keyslots"));
                }
                self.add(new, index, iter_time(options, prefix), force)
            }
            Some("inactive") => {
                for name in ["new-secret", "iter-time"] {
                    if options.has(&option(name)) {
                        let text = format!("'{name}' must not be given when erasing keyslots");
                        return Err(Error::invalid(text));
                    }
                }
                self.erase(old, index, force)
            }
            _ => Err(Error::invalid(format!("Parameter '{}' is missing", option("state")))),
        }
    }

    fn add(&self, new: &[u8], index: Option<usize>, time: Duration, force: bool) -> Result<()> {
        check_text(new)?;
        let key = self.key.as_ref().ok_or_else(locked)?;
        let mut header = self.header();
        let free = header.slots.iter().position(|slot| !slot.active);
        let index = index.or(free).ok_or_else(|| {
            Error::invalid("Can't add a keyslot - all keyslots are in use")
                .hint("erase one first, or name the one to overwrite and pass --force")
        })?;
        let active = |header: &Header, index: usize| header.slots.get(index).is_some_and(|slot| slot.active);
        if active(&header, index) && !force {
            return Err(Error::invalid(format!(
                "Refusing to overwrite active keyslot {index} - please erase it first"
            ))
            .hint("or pass --force"));
        }
        let iterations = keyslot::iterations(header.algorithms.hash, header.algorithms.key_bytes(), time);
        if !active(&header, index) {
            return self.fill(&mut header, index, key, new, iterations);
        }
        // While the only key is overwritten, the new one stands in another slot too.
        let others = (0..SLOTS).any(|other| other != index && active(&header, other));
        let spare = free.filter(|_| !others);
        if let Some(spare) = spare {
            self.fill(&mut header, spare, key, new, iterations)?;
        }
        self.wipe(&mut header, index)?;
        self.fill(&mut header, index, key, new, iterations)?;
        spare.map_or(Ok(()), |spare| self.wipe(&mut header, spare))
    }

    fn erase(&self, old: Option<&[u8]>, index: Option<usize>, force: bool) -> Result<()> {
        let mut header = self.header();
        let active: Vec<usize> = (0..SLOTS).filter(|index| header.slots[*index].active).collect(); // in bounds: below SLOTS
        let opens = |header: &Header, index: usize, passphrase: &[u8]| {
            let slot = header.slots.get(index).filter(|slot| slot.iterations <= MAX_ITERATIONS);
            let key = slot.map(|slot| keyslot::unlock(&self.area, header, slot, passphrase));
            Ok::<_, Error>(key.transpose()?.flatten().is_some())
        };
        let irreversible = "erase all the data in the image irreversibly - refusing operation";
        let force_it = "add another key first, or pass --force";
        let chosen = match (index, old) {
            (Some(index), old) => {
                if !active.contains(&index) {
                    let text = format!("Given keyslot {index} is already erased (inactive)");
                    return Err(Error::invalid(text));
                }
                if let Some(old) = old
                    && !opens(&header, index, old)?
                {
                    return Err(Error::new(
                        ErrorKind::Denied,
                        format!(
                            "Given keyslot {index} doesn't contain the given old password for erase operation"
                        ),
                    ));
                }
                if active.len() == 1 && !force {
                    return Err(Error::invalid(format!(
                        "Attempt to erase the only active keyslot {index} which will {irreversible}"
                    ))
                    .hint(force_it));
                }
                vec![index]
            }
            (None, Some(old)) => {
                let mut fitting = Vec::new();
                for index in active.iter().copied() {
                    if opens(&header, index, old)? {
                        fitting.push(index);
                    }
                }
                if fitting.is_empty() {
                    let text = "No keyslots match given (old) password for erase operation";
                    return Err(Error::new(ErrorKind::Denied, text));
                }
                if fitting.len() == active.len() && !force {
                    return Err(Error::invalid(format!(
                        "All the active keyslots match the (old) password that was given and erasing them will {irreversible}"
                    ))
                    .hint(force_it));
                }
                fitting
            }
            (None, None) => {
                return Err(Error::invalid(
                    "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
                ));
            }
        };
        chosen.into_iter().try_for_each(|index| self.wipe(&mut header, index))
    }

    /// Puts the key into a slot that is not active: all but the one word that makes it active is durable before that.
    fn fill(
        &self,
        header: &mut Header,
        index: usize,
        key: &Key,
        passphrase: &[u8],
        iterations: u32,
    ) -> Result<()> {
        let mut slot = keyslot::lock(&self.area, header, index, key, passphrase, iterations)?;
        Header::write_slot(&self.area, index, &slot)?;
        self.area.sync()?;
        Header::write_active(&self.area, index, true)?;
        self.area.sync()?;
        slot.active = true;
        header.slots[index] = slot; // in bounds: the callers' index is
        Ok(())
    }

    /// Makes a slot inactive, durably, and then overwrites what was in it.
    fn wipe(&self, header: &mut Header, index: usize) -> Result<()> {
        Header::write_active(&self.area, index, false)?;
        self.area.sync()?;
        let slot = &mut header.slots[index]; // in bounds: the callers' index is
        (slot.active, slot.iterations, slot.salt) = (false, 0, [0; 32]);
        let material = slot.material;
        Header::write_slot(&self.area, index, slot)?;
        let mut noise = vec![0; header.material_len() as usize];
        random(&mut noise)?;
        self.area.write(material, &noise, "key material")?;
        self.area.sync()
    }
}

/// The error of who wants guest data, or the key, of what was opened for its metadata alone.
pub fn locked() -> Error {
    Error::new(ErrorKind::Denied, "is encrypted, and was opened without a secret").hint(GIVE_A_SECRET)
}

const GIVE_A_SECRET: &str = "pass --key-file PATH, or --object secret,id=ID,file=PATH";

/// Tries every passphrase with every active slot.
fn unlock_any(area: &Area, header: &Header, passphrases: &[&[u8]]) -> Result<Key> {
    let wrong = || {
        let text = "Invalid password, cannot unlock any keyslot";
        Error::new(ErrorKind::Denied, text)
    };
    if header.iterations > MAX_ITERATIONS {
        return Err(Error::unsupported(format!(
            "says {} iterations; more than {MAX_ITERATIONS} are not tried",
            header.iterations
        ))
        .field("mk-digest-iter")
        .at(area.base.saturating_add(164)));
    }
    let mut slow = None;
    for (index, slot) in header.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
        if slot.iterations > MAX_ITERATIONS {
            slow = Some((index, slot.iterations));
            continue;
        }
        for passphrase in passphrases {
            if let Some(key) = keyslot::unlock(area, header, slot, passphrase)? {
                return Ok(key);
            }
        }
    }
    Err(match slow {
        Some((index, iterations)) => wrong().hint(format!(
            "key slot {index} was not tried: it says {iterations} iterations, and at most {MAX_ITERATIONS} are"
        )),
        None => wrong(),
    })
}

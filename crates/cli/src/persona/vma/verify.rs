//! `vma verify`.

use std::time::Instant;

use cowhand::archive::{Onlooker, Tally, VerifyArchive, verify_archive};
use cowhand::{Manifest, Result};

use super::{Call, Ended, failed, unreadable};
use crate::exit::DONE;
use crate::output::Output;
use crate::progress::Meter;
use crate::verbs::vma::{FORMAT, from, front, totals};

pub(super) fn run(call: &mut Call<'_>) -> std::result::Result<u8, Ended> {
    let mut verbose = false;
    while call.next()?.is_some() {
        verbose = true;
    }
    let [file] = call.others()?;
    let how = VerifyArchive { archive: Some(FORMAT.to_owned()), strict: true, ..VerifyArchive::default() };
    let mut teller = Teller { out: call.out, verbose, began: false, since: Instant::now() };
    let found = verify_archive(from(&file), &how, &mut teller, &Meter::new(false, true));
    let began = teller.began;
    let found = found.map_err(|error| match began {
        true => failed("verify failed - ", &error),
        false => unreadable(&file, &error),
    })?;
    if verbose {
        totals::print(call.out, &found.tally)?;
    }
    Ok(DONE)
}

struct Teller<'a> {
    out: &'a mut Output,
    verbose: bool,
    /// The front was read.
    began: bool,
    since: Instant,
}

impl Onlooker for Teller<'_> {
    fn front(&mut self, what: &Manifest) -> Result<()> {
        self.began = true;
        if self.verbose {
            front::print(self.out, what)?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn passed(&mut self, tally: &Tally) -> Result<()> {
        if self.verbose { totals::progress(self.out, tally, self.since) } else { Ok(()) }
    }
}

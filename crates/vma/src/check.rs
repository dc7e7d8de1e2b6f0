//! The check of an archive: all rules, and every cluster of every disk; with no checksum over data there is no more to see.

use std::sync::Arc;

use cowhand_core::{
    Archives, CheckOptions, Checker, Error, ErrorKind, Fault, Progress, Reading, Repair, Report, Resolver,
    Result, Severity, Storage, Walk,
};

use crate::Vma;

impl Checker for Vma {
    fn check(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CheckOptions,
        progress: &dyn Progress,
    ) -> Result<Report> {
        if how.repair != Repair::Nothing {
            return Err(Error::unsupported("a backup archive is not repaired in place")
                .hint("cowhand vma extract --salvage takes out what is intact"));
        }
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let mut report = Report::default();
        let mut source = match self.read(Box::new(Walk::new(file)), Reading::Salvage) {
            Ok(source) => source,
            // There is no header that makes sense, and so nothing to go by.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                report.add(corruption(error.to_string()));
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        while source.next()?.is_some() {
            if progress.at(source.position(), len).is_break() {
                return Err(Error::new(ErrorKind::Cancelled, "stopped"));
            }
        }
        let faults = source.faults();
        faults.list.iter().cloned().for_each(|fault| report.add(fault));
        report.corruptions += faults.count.saturating_sub(faults.list.len() as u64);
        for (number, disk) in (0_u32..).zip(&source.manifest().disks) {
            source.missing(number, &mut |range| {
                let last = range.end.saturating_sub(1);
                report
                    .add(corruption(format!("bytes {} to {last} of {} are missing", range.start, disk.name)));
                Ok(())
            })?;
        }
        report.image_end = Some(source.position());
        Ok(report)
    }
}

fn corruption(message: String) -> Fault {
    Fault::new(Severity::Corruption, None, message)
}

//! Changing what an image was made with: its version, lazy refcounts, the refcounts' width, the data file's name, the keys. All is
//! checked before anything changes; then each change is durable before the next.

use std::sync::atomic::Ordering;

use cowhand_core::{Error, OptionKind, OptionSpec, Options, Progress, Result, Secrets, Snapshots};

use crate::compress::Codec;
use crate::crypt::is_about_keys;
use crate::entry::{Entry, Plain};
use crate::header::{AUTOCLEAR_DATA_FILE_RAW, Header};
use crate::layer::Qcow2Layer;
use crate::view::View;
use crate::writer::Writer;

/// Bytes of zeros written in one step.
const ZEROS: u64 = 1 << 20;

pub(crate) const AMEND_OPTIONS: &[OptionSpec] = &[
    OptionSpec::BACKING_FILE,
    OptionSpec::BACKING_FMT,
    OptionSpec::SIZE,
    OptionSpec::new("compat", OptionKind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    OptionSpec::new("data_file", OptionKind::Text, "File name of an external data file"),
    OptionSpec::new(
        "data_file_raw",
        OptionKind::Flag,
        "The external data file must stay valid as a raw image",
    ),
    OptionSpec::new("encrypt.iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds"),
    OptionSpec::new("encrypt.keyslot", OptionKind::Number, "Select a single keyslot to modify explicitly"),
    OptionSpec::new("encrypt.new-secret", OptionKind::Text, "New secret to set in the matching keyslots"),
    OptionSpec::new("encrypt.old-secret", OptionKind::Text, "Select all keyslots that match this password"),
    OptionSpec::new(
        "encrypt.state",
        OptionKind::Choice(&["active", "inactive"]),
        "Select new state of affected keyslots (active/inactive)",
    )
    .called("state"),
    OptionSpec::new("force", OptionKind::Flag, "Overwrite active keyslots, erase the last one").own(),
    OptionSpec::new("lazy_refcounts", OptionKind::Flag, "Postpone refcount updates"),
    OptionSpec::new("refcount_bits", OptionKind::Number, "Width of a reference count entry in bits"),
];

/// What the header is to say in the end.
#[derive(Debug)]
struct Wanted {
    version: u32,
    refcount_order: u32,
    lazy_refcounts: bool,
    data_file: Option<Vec<u8>>,
    data_file_raw: bool,
}

impl Wanted {
    fn from(options: &Options, header: &Header) -> Result<Wanted> {
        let version = match options.text("compat") {
            None => header.version,
            Some("0.10" | "v2") => 2,
            Some("1.1" | "v3") => 3,
            Some(other) => return Err(Error::invalid(format!("Unknown compatibility level {other}"))),
        };
        let lazy_refcounts = options.flag("lazy_refcounts");
        if lazy_refcounts == Some(true) && version < 3 {
            return Err(Error::invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        let old_bits = 1u64 << header.geometry.refcount_order();
        let bits = options.number("refcount_bits").unwrap_or(old_bits);
        if !bits.is_power_of_two() || bits > 64 {
            return Err(Error::invalid("Refcount width must be a power of two and may not exceed 64 bits"));
        }
        if version < 3 && bits != 16 && (options.has("refcount_bits") || header.version < 3) {
            return Err(Error::invalid(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        if version < 3 && bits != 16 {
            return Err(Error::invalid("compat=0.10 requires refcount_bits=16"));
        }
        let data_file = options.text("data_file").map(|name| name.as_bytes().to_vec());
        if let Some(name) = &data_file {
            if !header.has_data_file {
                return Err(Error::invalid(
                    "data-file can only be set for images that use an external data file",
                ));
            }
            if name.is_empty() || name.contains(&0) {
                return Err(Error::invalid("the data file's name must not be empty, and have no NUL"));
            }
        }
        let data_file_raw = options.flag("data_file_raw").unwrap_or(header.data_file_raw());
        if data_file_raw && !header.data_file_raw() {
            return Err(Error::invalid("data-file-raw cannot be set on existing images"));
        }
        Ok(Wanted {
            version,
            refcount_order: bits.trailing_zeros(),
            lazy_refcounts: lazy_refcounts.unwrap_or(header.lazy_refcounts) && version >= 3,
            data_file,
            data_file_raw,
        })
    }

    /// Changes what stands in the header alone, the version apart.
    fn put(&self, header: &mut Header) {
        header.lazy_refcounts = self.lazy_refcounts;
        if let Some(name) = &self.data_file {
            header.extensions.set_data_file(Some(name));
        }
        if !self.data_file_raw {
            header.autoclear &= !AUTOCLEAR_DATA_FILE_RAW;
        }
    }
}

/// Makes a header one of version 2, which can say less.
fn put_v2(header: &mut Header) {
    header.set_version(2);
    header.lazy_refcounts = false;
    header.codec = Codec::Zlib;
    header.autoclear = 0;
}

impl Qcow2Layer {
    /// See `Layer::amend`. The layer is closed behind it: what entries mean may be another now.
    pub(crate) fn amend_with(
        &self,
        options: &Options,
        secrets: &Secrets,
        progress: &dyn Progress,
    ) -> Result<()> {
        let header = self.view.shared.header().clone();
        let wanted = Wanted::from(options, &header)?;
        if is_about_keys(options) {
            let (_, _alone) = self.still()?;
            let crypt = self.view.shared.crypt.as_ref();
            crypt
                .ok_or_else(|| Error::invalid("Can't amend encryption options - encryption not present"))?
                .amend(options, secrets)?;
        }
        let mut last = header.clone();
        wanted.put(&mut last);
        if wanted.version > header.version {
            last.set_version(wanted.version);
        }
        // Whatever does not fit is found before anything changes.
        last.encode()?;
        let (writer, alone) = self.alone()?;
        if wanted.version < header.version {
            self.check_downgrade(&header)?;
        }
        if wanted.version > header.version {
            self.rewrite_header(writer, |header| {
                header.set_version(wanted.version);
                Ok(())
            })?;
        }
        if wanted.refcount_order != header.geometry.refcount_order() {
            self.change_width(writer, wanted.refcount_order)?;
        }
        self.rewrite_header(writer, |header| {
            wanted.put(header);
            Ok(())
        })?;
        if wanted.version < header.version {
            self.expand_zeros(writer, progress)?;
            self.rewrite_header(writer, |header| {
                put_v2(header);
                Ok(())
            })?;
        }
        drop(alone);
        self.close_all()
    }

    /// Refuses what version 2 cannot say, and cannot be made to.
    fn check_downgrade(&self, header: &Header) -> Result<()> {
        if header.has_data_file {
            return Err(Error::unsupported("Cannot downgrade an image with a data file"));
        }
        if header.geometry.extended() {
            let bits = header.incompatible();
            return Err(Error::unsupported(format!(
                "Cannot downgrade an image with incompatible features {bits:#x} set"
            )));
        }
        if header.extensions.bitmaps().is_some() {
            return Err(
                Error::unsupported("Cannot downgrade an image with bitmaps").hint("remove them first")
            );
        }
        let other_size = |size: u64, state: u64| size != header.size || state > u64::from(u32::MAX);
        let snapshots = self.snapshots().clone();
        let infos = Snapshots::list(self)?;
        if infos.iter().any(|info| other_size(info.disk_size, info.vm_state_size)) {
            return Err(Error::unsupported("Internal snapshots prevent downgrade of image"));
        }
        let shared = &self.view.shared;
        let packed = header.codec != Codec::Zlib;
        let judge = |entry: Entry, own: bool| match entry {
            Entry::Compressed(_) if packed => Err(Error::unsupported(format!(
                "Cannot downgrade an image with {} compression type and existing compressed clusters",
                header.codec.name()
            ))),
            Entry::Plain(Plain { zero: 1.., .. }) if !own => Err(Error::unsupported(
                "Cannot downgrade an image with internal snapshots that hold zero clusters",
            )
            .hint("delete the snapshots first")),
            _ => Ok(()),
        };
        let entries = |view: &View, own: bool| {
            let tables = view.l1().entries.len() as u64;
            (0..tables).try_for_each(|index| {
                view.table_entries(index)?.into_iter().try_for_each(|entry| judge(entry, own))
            })
        };
        entries(&self.view, true)?;
        snapshots.iter().try_for_each(|one| {
            let view = View::open(shared.clone(), header.size, one.l1_offset, one.l1_entries)?;
            entries(&view, false)
        })
    }

    /// Turns every zero flag of the image's own into nothing or, over a parent, into zeros.
    fn expand_zeros(&self, writer: &Writer, progress: &dyn Progress) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let (bits, per_table) = (geometry.cluster_bits(), geometry.l2_entries());
        let backed = shared.header().backing.is_some();
        let tables = self.view.l1().entries.len() as u64;
        let mut zeros = Vec::new();
        for index in 0..tables {
            if progress.at(index, tables).is_break() {
                return Err(Error::new(cowhand_core::ErrorKind::Cancelled, "was stopped"));
            }
            let old = self.view.table_entries(index)?;
            let is_zero = |entry: &Entry| matches!(entry, Entry::Plain(Plain { zero: 1.., .. }));
            let mut first = index * per_table;
            for run in old.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
                let count = run.len() as u64;
                let start = first;
                first += count;
                if !run.first().is_some_and(is_zero) {
                    continue;
                }
                self.own_tables(writer, start, start + count - 1)?;
                if !backed {
                    let freed = run.iter().filter_map(|old| self.freed_by(*old)).collect();
                    self.publish(writer, start, count, freed, |_, _| shared.rules.encode(Plain::default()))?;
                    continue;
                }
                let step = (ZEROS >> bits).max(1);
                zeros.resize((step << bits) as usize, 0);
                let mut at = start;
                while at < start + count {
                    let n = step.min(start + count - at);
                    self.write_claimed(
                        writer,
                        at << bits,
                        zeros.get(..(n << bits) as usize).unwrap_or_default(),
                    )?;
                    at += n;
                }
            }
            // Room for what comes, and what was freed.
            self.begin()?;
        }
        self.write_back(writer, true)
    }

    /// Puts a refcount structure of counters of `2^order` bits in place of the image's own.
    fn change_width(&self, writer: &Writer, order: u32) -> Result<()> {
        self.write_back(writer, true)?;
        let rebuilt = writer.alloc().rebuild(order)?;
        self.barrier(writer)?;
        let old = self.view.shared.header().refcount_table_offset;
        let switched = self.rewrite_header(writer, |header| {
            header.geometry = header.geometry.with_refcount_order(order);
            header.refcount_table_offset = rebuilt.table_at();
            let run = rebuilt.table_run();
            header.refcount_table_clusters = (run.end - run.start) as u32;
            Ok(())
        });
        if let Err(error) = switched {
            writer.failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
        self.view.shared.moved_from(old);
        *writer.alloc() = rebuilt;
        Ok(())
    }
}

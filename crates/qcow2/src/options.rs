//! `-o` of qcow2: names, checks, and what QEMU says when they do not fit together.

use cowhand_core::{CreateOptions, Error, OptionKind, OptionSpec, Options, Prealloc, Result};
use cowhand_luks::{CIPHERS, HASHES, IVGENS, MODES};

use crate::compress::Codec;
use crate::crypt::NewCrypt;
use crate::geometry::Geometry;
use crate::header::Header;

pub(crate) const LEVEL: OptionSpec = OptionSpec::new(
    "compression_level",
    OptionKind::Number,
    "Level of compression (zlib: 1 to 9, default 6; zstd: 1 to 22, default 3)",
)
.own();

pub(crate) const KEY_SECRET: OptionSpec = OptionSpec::new(
    "encrypt.key-secret",
    OptionKind::Text,
    "ID of secret providing qcow AES key or LUKS passphrase",
);

pub(crate) const ENCRYPT_FORMAT: OptionSpec = OptionSpec::new(
    "encrypt.format",
    OptionKind::Choice(&["aes", "luks"]),
    "Encrypt the image, format choices: 'aes', 'luks'",
)
.called("format");

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "encryption",
        OptionKind::Flag,
        "Encrypt the image with format 'aes'; encrypt.format=aes says the same",
    ),
    ENCRYPT_FORMAT,
    KEY_SECRET,
    OptionSpec::new("encrypt.cipher-alg", OptionKind::Choice(CIPHERS), "Name of encryption cipher algorithm")
        .called("cipher-alg"),
    OptionSpec::new("encrypt.cipher-mode", OptionKind::Choice(MODES), "Name of encryption cipher mode")
        .called("cipher-mode"),
    OptionSpec::new("encrypt.ivgen-alg", OptionKind::Choice(IVGENS), "Name of IV generator algorithm")
        .called("ivgen-alg"),
    OptionSpec::new(
        "encrypt.ivgen-hash-alg",
        OptionKind::Choice(HASHES),
        "Name of IV generator hash algorithm",
    )
    .called("ivgen-hash-alg"),
    OptionSpec::new("encrypt.hash-alg", OptionKind::Choice(HASHES), "Name of encryption hash algorithm")
        .called("hash-alg"),
    OptionSpec::new("encrypt.iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds")
        .called("iter-time"),
    OptionSpec::new("cluster_size", OptionKind::Size, "qcow2 cluster size").shown("65536"),
    OptionSpec::new("extended_l2", OptionKind::Flag, "Extended L2 tables").shown("off"),
    OptionSpec::new(
        "preallocation",
        OptionKind::Choice(&["off", "metadata", "falloc", "full"]),
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    OptionSpec::new(
        "compression_type",
        OptionKind::Choice(&["zlib", "zstd"]),
        "Compression method used for image cluster compression",
    )
    .shown("zlib")
    .called("compression-type"),
    OptionSpec::SIZE,
    OptionSpec::new(
        "compat",
        OptionKind::Choice(&["0.10", "v2", "1.1", "v3"]),
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    )
    .called("version"),
    OptionSpec::BACKING_FILE,
    OptionSpec::BACKING_FMT,
    OptionSpec::new("data_file", OptionKind::Text, "File name of an external data file"),
    OptionSpec::new(
        "data_file_raw",
        OptionKind::Flag,
        "The external data file must stay valid as a raw image",
    ),
    OptionSpec::new("lazy_refcounts", OptionKind::Flag, "Postpone refcount updates").shown("off"),
    OptionSpec::new("refcount_bits", OptionKind::Number, "Width of a reference count entry in bits")
        .shown("16"),
    LEVEL,
];

/// Options that fit together.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) version: u32,
    pub(crate) geometry: Geometry,
    pub(crate) codec: Codec,
    pub(crate) level: u32,
    pub(crate) lazy_refcounts: bool,
    pub(crate) data_file: Option<String>,
    pub(crate) data_file_raw: bool,
    pub(crate) prealloc: Prealloc,
    pub(crate) crypt: Option<NewCrypt>,
}

impl Chosen {
    /// Bytes of the full disk encryption header; 0 where there is none.
    pub(crate) fn crypto_len(&self) -> u64 {
        self.crypt.as_ref().and_then(NewCrypt::header_len).unwrap_or(0)
    }

    pub(crate) fn from(how: &CreateOptions) -> Result<Chosen> {
        let options = &how.options;
        let version = if matches!(options.text("compat"), Some("0.10" | "v2")) { 2 } else { 3 };
        let cluster = options.size("cluster_size").unwrap_or(65536);
        if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
            return Err(Error::invalid("Cluster size must be a power of two between 512 and 2048k"));
        }
        let newer = |what: &str, on: bool| {
            if on && version < 3 {
                let level = "compatibility level 1.1 and above (use version=v3 or greater)";
                return Err(Error::invalid(format!("{what} only supported with {level}")));
            }
            Ok(())
        };
        let extended = options.flag("extended_l2").unwrap_or(false);
        newer("Extended L2 entries are", extended)?;
        if extended && cluster < 16384 {
            return Err(Error::invalid(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        let refcount_bits = options.number("refcount_bits").unwrap_or(16);
        if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
            return Err(Error::invalid("Refcount width must be a power of two and may not exceed 64 bits"));
        }
        if version < 3 && refcount_bits != 16 {
            return Err(Error::invalid(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            ));
        }
        let lazy_refcounts = options.flag("lazy_refcounts").unwrap_or(false);
        newer("Lazy refcounts", lazy_refcounts)?;
        let codec = if options.text("compression_type") == Some("zstd") { Codec::Zstd } else { Codec::Zlib };
        newer("Non-zlib compression type is", codec != Codec::Zlib)?;
        let level = level(codec, options)?;
        let data_file = options.text("data_file").filter(|name| !name.is_empty()).map(str::to_owned);
        newer("External data files are", data_file.is_some())?;
        let data_file_raw = options.flag("data_file_raw").unwrap_or(false);
        if data_file_raw && data_file.is_none() {
            return Err(Error::invalid("data-file-raw requires data-file"));
        }
        let crypt = NewCrypt::from(options)?;
        if data_file_raw && crypt.is_some() {
            return Err(Error::invalid("an encrypted data file is no raw image")
                .hint("leave out data_file_raw, or the encryption"));
        }
        if data_file_raw && how.parent.is_some() {
            return Err(Error::invalid("Backing file and data-file-raw cannot be used at the same time"));
        }
        let prealloc = match how.prealloc() {
            // A raw data file is read by others, so every cluster is mapped from the start.
            Prealloc::Off if data_file_raw => Prealloc::Metadata,
            other => other,
        };
        if prealloc != Prealloc::Off && how.parent.is_some() && !extended {
            return Err(Error::invalid(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        let geometry = Geometry::new(cluster.trailing_zeros(), extended, refcount_bits.trailing_zeros());
        Ok(Chosen {
            version,
            geometry,
            codec,
            level,
            lazy_refcounts,
            data_file,
            data_file_raw,
            prealloc,
            crypt,
        })
    }
}

/// The options that make another image like the one with this header, encryption and data file left out.
pub(crate) fn like(header: &Header) -> Vec<(&'static str, String)> {
    let geometry = header.geometry;
    let on = |on: bool| if on { "on" } else { "off" }.to_owned();
    let mut options = vec![
        ("compat", if header.version == 2 { "0.10" } else { "1.1" }.to_owned()),
        ("cluster_size", geometry.cluster_size().to_string()),
    ];
    if header.version > 2 {
        options.push(("refcount_bits", (1u64 << geometry.refcount_order()).to_string()));
        options.push(("extended_l2", on(geometry.extended())));
        options.push(("lazy_refcounts", on(header.lazy_refcounts)));
        options.push(("compression_type", header.codec.name().to_owned()));
    }
    options
}

/// The level at which `codec` compresses.
pub(crate) fn level(codec: Codec, options: &Options) -> Result<u32> {
    let (levels, default) = codec.levels();
    let level = options.number(LEVEL.name).unwrap_or(default.into());
    u32::try_from(level).ok().filter(|level| levels.contains(level)).ok_or_else(|| {
        let (name, least, most) = (codec.name(), levels.start(), levels.end());
        Error::invalid(format!("compression_level of {name} is {least} to {most}"))
    })
}

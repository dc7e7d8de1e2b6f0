//! Which program a new image says it was made by, for those that treat images by their creator.

/// What a footer says of the program that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Creator {
    pub(crate) app: [u8; 4],
    /// Major and minor version, 16 bits each.
    pub(crate) version: u32,
    pub(crate) host_os: [u8; 4],
    /// It states every size exactly, beside the geometry that the specification's algorithm gives, and all readers take
    /// the size. Otherwise a reader may take the geometry: both must say the same.
    pub(crate) exact: bool,
}

impl Default for Creator {
    /// The images made here.
    ///
    /// QEMU takes the size of an image from its geometry unless it knows the creator as one that means the current
    /// size, or the geometry is the maximum. Instead of posing as one of the known programs, every image made here
    /// says one size whichever field is read: the geometry's product is the current size, or the geometry is the
    /// maximum (as Disk2vhd and QEMU's `force_size` have it). Hyper-V, Azure and XenServer read the current size only.
    fn default() -> Self {
        // Readers expect Windows or Macintosh as the host, nothing else.
        Creator { app: *b"cowh", version: 1, host_os: *b"Wi2k", exact: false }
    }
}

impl Creator {
    /// The words of the option `creator`.
    pub(crate) const NAMES: &'static [&'static str] = &["cowh", "win", "tap", "vbox", "vpc"];

    /// The creator that the option names, as it writes itself; an unknown one is our own.
    pub(crate) fn by_name(name: &str) -> Creator {
        let exact = |app: &[u8; 4], version, host_os: &[u8; 4]| Creator {
            app: *app,
            version,
            host_os: *host_os,
            exact: true,
        };
        match name {
            "win" => exact(b"win ", 0x000a_0000, b"Wi2k"),
            "tap" => exact(b"tap\0", 0x0001_0003, &[0; 4]),
            "vbox" => exact(b"vbox", 0x0007_0000, b"Wi2k"),
            "vpc" => Creator { app: *b"vpc ", version: 0x0005_0003, ..Creator::default() },
            _ => Creator::default(),
        }
    }
}

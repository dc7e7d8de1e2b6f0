//! GUIDs as VHDX files have them, and those of the format's own parts.

/// A GUID as it stands in a file: of `2DC27766-F623-4200-9D64-115E9BFD4A08`, with or without braces.
pub fn guid(text: &str) -> [u8; 16] {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("{text} is no GUID"));
    assert_eq!(digits.len(), 32, "{text} is no GUID");
    let mut raw = number.to_be_bytes();
    raw[..4].reverse();
    raw[4..6].reverse();
    raw[6..8].reverse();
    raw
}

/// The text of a GUID, without braces.
pub fn guid_text(raw: &[u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>, back: bool| {
        let mut bytes = raw[range].to_vec();
        if back {
            bytes.reverse();
        }
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    [hex(0..4, true), hex(4..6, true), hex(6..8, true), hex(8..10, false), hex(10..16, false)].join("-")
}

pub(crate) const BAT: &str = "2DC27766-F623-4200-9D64-115E9BFD4A08";
pub(crate) const METADATA: &str = "8B7CA206-4790-4B9A-B8FE-575F050F886E";
pub(crate) const FILE_PARAMETERS: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";
pub(crate) const DISK_SIZE: &str = "2FA54224-CD1B-4876-B211-5DBED83BF4B8";
pub(crate) const DISK_ID: &str = "BECA12AB-B2E6-4523-93EF-C309E000C746";
pub(crate) const LOGICAL: &str = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F";
pub(crate) const PHYSICAL: &str = "CDA348C7-445D-4471-9CC9-E9885251C556";
pub(crate) const LOCATOR: &str = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C";
pub(crate) const LOCATOR_TYPE: &str = "B04AEFB7-D19E-4A81-B789-25B8E9445913";

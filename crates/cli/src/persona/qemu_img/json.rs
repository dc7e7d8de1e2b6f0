//! JSON as QEMU prints it: keys in the order in which its tables keep them, everything that is not ASCII escaped.

use serde_json::Value;

use crate::output::Output;

/// `value`, indented, with a line's end.
pub(super) fn print(out: &mut Output, value: &Value) -> cowhand::Result<()> {
    let mut text = String::new();
    put(&mut text, value, 0);
    text.push('\n');
    out.write_all(text.as_bytes())
}

fn put(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::String(string) => put_string(text, string),
        Value::Array(items) => {
            list(text, depth, ['[', ']'], items, |text, item| put(text, item, depth + 1));
        }
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| bucket(key));
            list(text, depth, ['{', '}'], &fields, |text, (key, value)| {
                put_string(text, key);
                text.push_str(": ");
                put(text, value, depth + 1);
            });
        }
        other => text.push_str(&other.to_string()),
    }
}

/// Each item in a line of its own, also where there is none.
fn list<T>(
    text: &mut String,
    depth: usize,
    [open, close]: [char; 2],
    items: &[T],
    mut put: impl FnMut(&mut String, &T),
) {
    let line = |text: &mut String, depth: usize| {
        text.push('\n');
        text.extend(std::iter::repeat_n("    ", depth));
    };
    text.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        line(text, depth + 1);
        put(text, item);
    }
    line(text, depth);
    text.push(close);
}

fn put_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
    text.push('"');
}

/// Where a key stands in QEMU's hash table of 512 places, which is gone through from its front. The function is the one
/// of Samba's tdb.
fn bucket(key: &str) -> u32 {
    const PLACES: u32 = 512;
    let start = 0x238f_13af_u32.wrapping_mul(key.len() as u32);
    let mixed = key
        .bytes()
        .enumerate()
        .fold(start, |value, (index, byte)| value.wrapping_add(u32::from(byte) << (index * 5 % 24)));
    mixed.wrapping_mul(1_103_515_243).wrapping_add(12345) % PLACES
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_stand_where_qemu_has_them() {
        let mut keys =
            ["dirty-flag", "format", "virtual-size", "snapshots", "filename", "children", "encrypted"];
        keys.sort_by_key(|key| bucket(key));
        let order =
            ["children", "snapshots", "virtual-size", "filename", "format", "encrypted", "dirty-flag"];
        assert_eq!(keys, order);
    }

    #[test]
    fn empty_lists_take_two_lines() {
        let mut text = String::new();
        put(&mut text, &json!({ "a": [], "b": { "x": "é\u{1}😀\"" } }), 0);
        let b = "    \"b\": {\n        \"x\": \"\\u00E9\\u0001\\uD83D\\uDE00\\\"\"\n    }";
        assert!(
            text == format!("{{\n    \"a\": [\n    ],\n{b}\n}}")
                || text == format!("{{\n{b},\n    \"a\": [\n    ]\n}}"),
            "{text}"
        );
    }
}

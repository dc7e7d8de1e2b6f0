//! What is not as it should be of a disk: ranges of it.

use std::ops::Range;

use cowhand_core::{Fault, MAX_FAULTS};
use serde_json::{Value, json};

/// Guest ranges, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// How many there are.
    pub count: u64,
    /// Bytes in all of them.
    pub bytes: u64,
    /// The first [`MAX_FAULTS`] of them.
    pub list: Vec<Range<u64>>,
}

impl Ranges {
    pub(super) fn add(&mut self, range: Range<u64>) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(range.end - range.start);
        if self.list.len() < MAX_FAULTS {
            self.list.push(range);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let list: Vec<Value> = self.list.iter().map(range_json).collect();
        json!({ "count": self.count, "bytes": self.bytes, "ranges": list })
    }
}

/// For programs.
pub(super) fn range_json(range: &Range<u64>) -> Value {
    json!({ "start": range.start, "length": range.end - range.start })
}

/// For programs.
pub(super) fn fault_json(fault: &Fault) -> Value {
    json!({ "offset": fault.at, "message": fault.message })
}

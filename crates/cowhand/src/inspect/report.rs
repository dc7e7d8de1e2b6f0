//! What the gate says: which formats, which verdict, and why.

use std::fmt;

use cowhand_core::Printable;
use serde_json::{Value, json};

/// Whether to take an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Safe,
    /// It is one format, and a check failed.
    Unsafe,
    /// Programs could take it for different formats. No less unsafe.
    Ambiguous,
    /// It could not be judged.
    Unreadable,
}

impl Verdict {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Safe => "safe",
            Verdict::Unsafe => "unsafe",
            Verdict::Ambiguous => "ambiguous",
            Verdict::Unreadable => "unreadable",
        }
    }
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The format that was checked.
    pub format: String,
    /// The check's stable name; oslo.utils' where it has the same one.
    pub check: &'static str,
    /// What a person should know. It may hold text from the image; control characters in it are escaped.
    pub reason: String,
}

/// What the gate says of one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Every format that was recognised, containers first; `raw` where none was. `gpt` is a partition table of either
    /// kind, as in oslo.utils.
    pub formats: Vec<String>,
    /// Guest bytes, where they are known and there is one answer.
    pub virtual_size: Option<u64>,
    /// Bytes of the content itself.
    pub file_size: Option<u64>,
    /// Whether to take it.
    pub verdict: Verdict,
    /// Why not.
    pub failed: Vec<Failed>,
}

impl Report {
    /// The report on a content that could not be read.
    pub fn unreadable(reason: impl fmt::Display) -> Self {
        let failed = Failed { format: String::new(), check: "unreadable", reason: reason.to_string() };
        let verdict = Verdict::Unreadable;
        Report { formats: Vec::new(), virtual_size: None, file_size: None, verdict, failed: vec![failed] }
    }

    /// The program's exit status: 0 safe, 3 unsafe, 4 ambiguous or unreadable.
    pub fn exit_status(&self) -> u8 {
        match self.verdict {
            Verdict::Safe => 0,
            Verdict::Unsafe => 3,
            Verdict::Ambiguous | Verdict::Unreadable => 4,
        }
    }

    /// The names of the failed checks, each once.
    pub fn failed_checks(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for failed in &self.failed {
            if !names.contains(&failed.check) {
                names.push(failed.check);
            }
        }
        names
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let reasons: Vec<Value> = self
            .failed
            .iter()
            .map(|failed| json!({"format": failed.format, "check": failed.check, "reason": failed.reason}))
            .collect();
        json!({
            "formats": self.formats,
            "virtual_size": self.virtual_size,
            "file_size": self.file_size,
            "safe": self.verdict == Verdict::Safe,
            "verdict": self.verdict.as_str(),
            "failed": self.failed_checks(),
            "reasons": reasons,
        })
    }
}

/// For people: the verdict and the formats, then a line for every failed check.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ambiguous => "unsafe (ambiguous)",
            verdict => verdict.as_str(),
        };
        write!(f, "{verdict}")?;
        if !self.formats.is_empty() {
            write!(f, ": {}", self.formats.join(", "))?;
        }
        if let Some(size) = self.virtual_size {
            write!(f, ", {size} bytes")?;
        }
        for failed in &self.failed {
            let colon = if failed.format.is_empty() { "" } else { ": " };
            write!(f, "\n  {}{colon}{}: {}", failed.format, failed.check, Printable(&failed.reason))?;
        }
        Ok(())
    }
}

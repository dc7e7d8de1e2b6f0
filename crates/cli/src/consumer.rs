//! `--for`: images for some program or service, as the verbs have it in common.

use std::path::Path;

use clap::Args;
use cowhand::{Fitted, Printable, Result, fitted, format, format_for_target};

use crate::output::Output;

/// Whom an image is made for.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct For {
    /// Make it as this program or service wants it: azure, hyperv, virtualbox, virtualpc or xenserver
    #[arg(long = "for", value_name = "WHOM")]
    whom: Option<String>,
}

impl For {
    /// How the target is made for whom it is for, if for anybody.
    pub(crate) fn whom(
        &self,
        chosen: Option<&str>,
        target: &Path,
        options: &[(String, String)],
    ) -> Result<Option<Fitted>> {
        self.whom.as_ref().map(|whom| fitted(whom, chosen, target, options.to_vec())).transpose()
    }

    /// The target's format and options, given those on the command line.
    pub(crate) fn fit(
        &self,
        chosen: Option<&str>,
        target: &Path,
        options: Vec<(String, String)>,
    ) -> Result<Fitted> {
        match (self.whom(chosen, target, &options)?, chosen) {
            (Some(fitted), _) => Ok(fitted),
            (None, Some(name)) => Ok(Fitted { format: format(name)?, options, title: "" }),
            (None, None) => Ok(Fitted { format: format_for_target(target)?, options, title: "" }),
        }
    }

    /// Says what came of it: what was rounded, and how much there is to hand over.
    pub(crate) fn tell(
        &self,
        out: &mut Output,
        title: &str,
        target: &Path,
        asked: u64,
        size: u64,
        file_len: u64,
    ) -> Result<()> {
        if self.whom.is_none() {
            return Ok(());
        }
        let name = target.display().to_string();
        write!(out, "{} for {title}: ", Printable(&name))?;
        match size {
            _ if size > asked => write!(out, "{asked} bytes rounded up to {size}, ")?,
            _ => write!(out, "{size} bytes, not rounded, ")?,
        }
        writeln!(out, "{file_len} bytes to upload")
    }
}

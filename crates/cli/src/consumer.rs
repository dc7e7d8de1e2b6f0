//! `--for`: images for some program or service, as the verbs have it in common.

use std::path::Path;

use clap::Args;
use cowhand::{Fitted, Printable, Result, fitted, format, format_for_target};

use crate::output::Output;
use crate::sources::Holes;

/// Whom an image is made for.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct For {
    /// Make it as this program or service wants it: azure, hyperv, virtualbox, virtualpc or xenserver
    #[arg(long = "for", value_name = "WHOM")]
    whom: Option<String>,

    #[command(flatten)]
    holes: Holes,
}

impl For {
    /// How the target is made for whom it is for, if for anybody.
    pub(crate) fn whom(
        &self,
        chosen: Option<&str>,
        target: &Path,
        options: &[(String, String)],
    ) -> Result<Option<Fitted>> {
        let Some(whom) = &self.whom else { return Ok(None) };
        let fitted = fitted(whom, chosen, target, options.to_vec())?;
        Ok(Some(Fitted { solid: fitted.solid || self.holes.non_sparse, ..fitted }))
    }

    /// No holes are wanted, whoever it is for.
    pub(crate) fn non_sparse(&self) -> bool {
        self.holes.non_sparse
    }

    /// The target's format and options, given those on the command line.
    pub(crate) fn fit(
        &self,
        chosen: Option<&str>,
        target: &Path,
        options: Vec<(String, String)>,
    ) -> Result<Fitted> {
        let solid = self.holes.non_sparse;
        match (self.whom(chosen, target, &options)?, chosen) {
            (Some(fitted), _) => Ok(fitted),
            (None, Some(name)) => Ok(Fitted { format: format(name)?, options, solid, title: "" }),
            (None, None) => Ok(Fitted { format: format_for_target(target)?, options, solid, title: "" }),
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

//! The help page: every verb on one screen, by what it is for.

use std::fmt::Write;

/// Verbs that serve one purpose.
pub(crate) struct Group {
    /// The purpose, one word.
    pub(crate) title: &'static str,
    /// The verbs, each with a few words.
    pub(crate) verbs: &'static [(&'static str, &'static str)],
}

/// All verbs.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        title: "Look",
        verbs: &[
            ("doctor", "what is it, is it well"),
            ("info", "what it says of itself"),
            ("inspect", "may a stranger's be used"),
            ("check", "find faults, repair them"),
            ("compare", "are two disks equal"),
            ("map", "where data stands"),
            ("measure", "how long a file will be"),
            ("formats", "formats and options"),
        ],
    },
    Group {
        title: "Make",
        verbs: &[
            ("create", "a new image"),
            ("convert", "into another format"),
            ("child", "empty, over a parent"),
            ("dd", "blocks of a disk"),
            ("stream", "to pipes and servers"),
            ("vma", "Proxmox's backups"),
        ],
    },
    Group {
        title: "Chain",
        verbs: &[
            ("chain", "draw what stands on what"),
            ("flatten", "one image of a chain"),
            ("commit", "move data into parents"),
            ("merge", "commit, then take it away"),
            ("rebase", "another parent, or none"),
            ("reconnect-parent", "say where it is"),
        ],
    },
    Group {
        title: "Change",
        verbs: &[
            ("resize", "longer or shorter"),
            ("amend", "options of an image"),
            ("compact", "give space back"),
            ("snapshot", "internal snapshots"),
            ("bitmap", "dirty bitmaps"),
            ("hidden", "mark it as hidden"),
            ("kill-data", "empty it"),
        ],
    },
    Group {
        title: "Count",
        verbs: &[
            ("scan", "list a folder's images"),
            ("allocated", "bytes kept for data"),
            ("block-bitmap", "a bit per cluster"),
            ("round-size", "the next size up"),
            ("size-by-file", "largest disk that fits"),
        ],
    },
    Group {
        title: "Setup",
        verbs: &[
            ("help", "all of one verb"),
            ("install-links", "be qemu-img and so on"),
            ("completions", "bash, zsh, fish"),
            ("man", "the manual's pages"),
        ],
    },
];

/// Columns of a group's title, and of a verb with its words.
const TITLE: usize = 8;
const VERB: usize = 36;

/// The page.
pub(crate) fn page() -> String {
    let mut page = "\
Virtual disks: qcow2, VHD, VHDX, raw and LUKS images, VMA backup archives
Usage: cowhand VERB ...    cowhand help VERB (examples too)    cowhand --version
"
    .to_owned();
    for Group { title, verbs } in GROUPS {
        for (row, verbs) in verbs.chunks(2).enumerate() {
            let mut line = format!("{:TITLE$}", if row == 0 { title } else { "" });
            for (verb, words) in verbs {
                let verb = format!("{verb:12} {words}");
                let _ = write!(line, "{verb:VERB$}"); // never an error: a string takes it
            }
            page.push_str(line.trim_end());
            page.push('\n');
        }
    }
    page.push_str("Sizes: 512k, 20M, 1.5G, 2T. Exit statuses and environment: cowhand(1).\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_fits_a_screen() {
        let page = page();
        assert!(page.lines().count() <= 24, "{page}");
        for line in page.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn every_verb_is_there_once() {
        let mut listed: Vec<&str> = GROUPS.iter().flat_map(|group| group.verbs).map(|(verb, _)| *verb).collect();
        let mut command = crate::cli::command();
        command.build();
        let mut verbs: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        listed.sort_unstable();
        verbs.sort_unstable();
        assert_eq!(listed, verbs);
    }

    #[test]
    fn every_verb_has_examples() {
        fn examples(command: &clap::Command) {
            let path = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
            let verbs: Vec<_> = command.get_subcommands().filter(|verb| verb.get_name() != "help").collect();
            if !verbs.is_empty() {
                return verbs.into_iter().for_each(examples);
            }
            let text = command.clone().render_long_help().to_string();
            let (_, examples) = text.split_once("Examples:\n").unwrap_or_else(|| panic!("{path}: no examples"));
            assert!(examples.contains(&path), "{path}: {examples}");
        }
        let mut command = crate::cli::command();
        command.build();
        examples(&command);
    }
}

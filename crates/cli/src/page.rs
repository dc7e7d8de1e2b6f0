//! The help page: every verb on one screen, by what it is for.

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
            ("info", "facts of an image"),
            ("inspect", "is a stranger's safe"),
            ("check", "find faults, repair"),
            ("compare", "are two disks equal"),
            ("map", "where data stands"),
            ("measure", "a new file's length"),
            ("formats", "formats and options"),
            ("bench", "how fast it answers"),
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
            ("chain", "what stands on what"),
            ("flatten", "one image of a chain"),
            ("commit", "move data into parents"),
            ("merge", "join with its parent"),
            ("rebase", "other parent, or none"),
            ("reconnect-parent", "where it is now"),
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
            ("install-links", "answer as qemu-img"),
            ("completions", "bash, zsh, fish"),
            ("man", "the manual's pages"),
        ],
    },
];

/// Columns of a group's title, and of the two verbs in a row, each with its words.
const TITLE: usize = 7;
const LEFT: usize = 12;
const WORDS: usize = 22;
const RIGHT: usize = 16;

/// The page.
pub(crate) fn page() -> String {
    let mut page = "\
Virtual disks: qcow2, VHD, VHDX, raw and LUKS images, VMA backup archives
Usage: cowhand VERB ...    cowhand help VERB (examples too)    cowhand --version
"
    .to_owned();
    for Group { title, verbs } in GROUPS {
        for (row, verbs) in verbs.chunks(2).enumerate() {
            let title = if row == 0 { title } else { "" };
            let [left, right] = [verbs.first(), verbs.get(1)].map(|verb| verb.copied().unwrap_or_default());
            let line =
                format!("{title:TITLE$}{:LEFT$} {:WORDS$} {:RIGHT$} {}", left.0, left.1, right.0, right.1);
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
        for (number, verbs) in GROUPS.iter().flat_map(|group| group.verbs.chunks(2)).enumerate() {
            let [left, ..] = verbs else { panic!("row {number} has no verb") };
            assert!(left.0.len() <= LEFT && left.1.len() <= WORDS, "{left:?}");
            assert!(verbs.get(1).is_none_or(|right| right.0.len() <= RIGHT), "{verbs:?}");
        }
        for line in page.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn every_verb_is_there_once() {
        let mut listed: Vec<&str> =
            GROUPS.iter().flat_map(|group| group.verbs).map(|(verb, _)| *verb).collect();
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
            command.get_subcommands().filter(|verb| verb.get_name() != "help").for_each(examples);
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (_, examples) =
                text.split_once("Examples:\n").unwrap_or_else(|| panic!("{path}: no examples"));
            assert!(examples.contains(&path), "{path}: {examples}");
            // A line that is broken anywhere is no command any more.
            let shown = command.clone().term_width(80).render_long_help().to_string();
            for line in examples.lines() {
                assert!(shown.lines().any(|shown| shown == line), "{path}: {line}");
            }
        }
        let mut command = crate::cli::command();
        command.build();
        command.get_subcommands().filter(|verb| verb.get_name() != "help").for_each(examples);
    }
}

//! `bitmap`: changes of persistent dirty bitmaps, in the order they were given.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};
use cowhand::{BitmapAction, Cache, Error, MergeSource, bitmap, parse_size};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Add, remove, clear, enable, disable or merge persistent dirty bitmaps
///
/// Several actions are done in the order they are given; each is durable before the next begins.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cowhand bitmap (--add|--remove|--clear|--enable|--disable|--merge SOURCE)... \
                      [OPTIONS] IMAGE BITMAP",
    after_help = "\
Examples:
  cowhand bitmap --add -g 64k vm.qcow2 monday
  cowhand bitmap --merge monday -b vm.qcow2 -F qcow2 copy.qcow2 week
  cowhand bitmap --disable --clear vm.qcow2 monday"
)]
pub(crate) struct Args {
    #[command(flatten)]
    actions: Actions,

    /// Guest bytes that one bit of a new bitmap stands for; the format's choice if not given
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    granularity: Option<u64>,

    /// The image that holds the bitmaps to be merged; IMAGE itself if not given
    #[arg(short = 'b', long, value_name = "PATH")]
    source_file: Option<OsString>,

    /// The format of that image; by its content if not given
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "source_file")]
    source_format: Option<String>,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// The image
    image: OsString,

    /// The bitmap's name
    bitmap: String,

    #[command(flatten)]
    sharing: Sharing,
}

/// The actions, in the order they were given.
#[derive(Clone, Debug, Default)]
struct Actions(Vec<BitmapAction>);

type Flag = (&'static str, BitmapAction, &'static str);

const FLAGS: [Flag; 5] = [
    ("add", BitmapAction::Add(None), "Make the bitmap, empty and recording"),
    ("remove", BitmapAction::Remove, "Take the bitmap away"),
    ("clear", BitmapAction::Clear, "Forget what is dirty"),
    ("enable", BitmapAction::Enable, "Record writes from here on"),
    ("disable", BitmapAction::Disable, "Record no more"),
];

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found: Vec<(usize, BitmapAction)> = Vec::new();
        for (name, action, _) in FLAGS {
            if matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine) {
                let at = matches.indices_of(name).into_iter().flatten();
                found.extend(at.map(|at| (at, action.clone())));
            }
        }
        let merged = matches.get_many::<String>("merge").into_iter().flatten().cloned();
        let at = matches.indices_of("merge").into_iter().flatten();
        found.extend(at.zip(merged.map(BitmapAction::Merge)));
        found.sort_by_key(|(at, _)| *at);
        Ok(Actions(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Actions::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Actions {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = FLAGS.into_iter().fold(command, |command, (name, _, help)| {
            // A value of its own lets each occurrence have its place.
            let flag = Arg::new(name).long(name).help(help).action(ArgAction::Append).num_args(0);
            command.arg(flag.value_parser(clap::value_parser!(bool)).default_missing_value("true"))
        });
        let merge = Arg::new("merge").long("merge").value_name("SOURCE").action(ArgAction::Append);
        command.arg(merge.help("Make dirty what is dirty in the bitmap SOURCE"))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Actions::augment_args(command)
    }
}

pub(crate) fn run(args: &Args, _out: &mut Output) -> Outcome {
    let mut actions = args.actions.0.clone();
    if actions.is_empty() {
        return Err(Error::invalid(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        )
        .into());
    }
    let adds = |action: &BitmapAction| matches!(action, BitmapAction::Add(_));
    if args.granularity.is_some() && !actions.iter().any(adds) {
        return Err(Error::invalid("granularity only supported with --add").into());
    }
    let merges = |action: &BitmapAction| matches!(action, BitmapAction::Merge(_));
    if args.source_file.is_some() && !actions.iter().any(merges) {
        return Err(Error::invalid("Merge bitmap source file only supported with --merge").into());
    }
    for action in &mut actions {
        if let BitmapAction::Add(granularity) = action {
            *granularity = args.granularity;
        }
    }
    let none = Parents::default();
    let image = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.writing(&image, &none, Cache::default())?;
    let source = match &args.source_file {
        Some(word) => {
            let source = args.sharing.source(word, args.source_format.as_deref())?;
            let open = args.sharing.open(&source, &none, Cache::default())?;
            Some(MergeSource { path: source.path, open })
        }
        None => None,
    };
    bitmap(&image.path, &how, &args.bitmap, &actions, source.as_ref())?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn actions_keep_their_order_and_may_come_twice() {
        let words = [
            "bitmap",
            "--add",
            "--merge",
            "a",
            "i",
            "--disable",
            "--merge=c",
            "--clear",
            "b",
            "--merge",
            "d",
        ];
        let args = Line::parse_from(words).args;
        let merge = |name: &str| BitmapAction::Merge(name.to_owned());
        use BitmapAction::{Add, Clear, Disable};
        assert_eq!(args.actions.0, [Add(None), merge("a"), Disable, merge("c"), Clear, merge("d")]);
        assert_eq!((args.image, args.bitmap.as_str()), ("i".into(), "b"));
        assert_eq!(
            Line::parse_from(["bitmap", "--clear", "--clear", "i", "b"]).args.actions.0,
            [Clear, Clear]
        );
        assert_eq!(Line::parse_from(["bitmap", "i", "b"]).args.actions.0, []);
    }
}

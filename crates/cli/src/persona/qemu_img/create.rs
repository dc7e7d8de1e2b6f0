//! `qemu-img create`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cowhand::{Create, Error, ErrorKind, Format, Name, Policy, Probing, new_image};

use super::errors::{is_too_long, said, why};
use super::parameters::{self, Lists, Parameters};
use super::source::Opening;
use super::{Call, Failure, Flag, Outcome, Verb, says, text, utf8, values};
use crate::exit::DONE;
use crate::output::Output;
use crate::persona::compat::{as_qemu, replace};
use crate::progress::Meter;

pub(super) const VERB: Verb = Verb {
    name: "create",
    about: "Make a new image",
    operands: "FILENAME [SIZE]",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('f', "format", "The new image's format; raw if not given").of("FMT"),
        Flag::both('b', "backing", "What the new image stands on").of("BACKING_FILENAME"),
        Flag::both('F', "backing-format", "The backing file's format").of("BACKING_FMT"),
        Flag::both('u', "backing-unsafe", "Do not look at the backing file"),
        Flag::both('o', "options", "Options of the format; help lists them").of("FMT_OPTS"),
    ],
    run,
};

/// What the flags say.
#[derive(Default)]
struct Asked {
    opening: Opening,
    format: Option<String>,
    options: Lists,
    backing: Option<String>,
    backing_format: Option<String>,
    unchecked: bool,
    quiet: bool,
}

fn run(call: &mut Call<'_>) -> Outcome {
    let mut asked = Asked::default();
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "format" => asked.format = Some(text(&value)),
            "options" => asked.options.add(&value)?,
            "backing" => asked.backing = Some(utf8(&value)?),
            "backing-format" => asked.backing_format = Some(text(&value)),
            "backing-unsafe" => asked.unchecked = true,
            "quiet" => asked.quiet = true,
            _ => {
                asked.opening.take(flag, &value)?;
            }
        }
    }
    let mut others = call.others().into_iter();
    let image = others.next();
    if asked.options.ask_for_help() {
        return help(call.out, asked.format(), image.as_ref());
    }
    let Some(image) = image else { return Err(call.usage("Expecting image file name")) };
    let size =
        others.next().map(|word| values::size("image size", &word, 0..=i64::MAX as u64)).transpose()?;
    if let Some(more) = others.next() {
        return Err(call.usage(&format!("Unexpected argument: {}", text(&more))));
    }
    let name = text(&image);
    create(call.out, &name, &image, size, &asked).map_err(|failed| match failed {
        Failed::Says(what) => says(format!("{name}: {what}")),
        Failed::Own(failure) => failure,
    })?;
    Ok(DONE)
}

impl Asked {
    fn format(&self) -> &str {
        self.format.as_deref().unwrap_or("raw")
    }
}

/// What `-o help` prints; with a file's name, what files can be told too.
pub(super) fn help(out: &mut Output, name: &str, image: Option<&OsString>) -> Outcome {
    let format = parameters::format(name).ok_or_else(|| says(unknown(name)))?;
    if image.is_some() {
        writeln!(out, "Supported options:")?;
        parameters::list(out, parameters::of_new(format))?;
        return Ok(DONE);
    }
    writeln!(out, "Supported {name} options:")?;
    parameters::list(out, parameters::of_driver(format.options()))?;
    writeln!(
        out,
        "\nThe protocol level may support further options.\nSpecify the target filename to include those options."
    )?;
    Ok(DONE)
}

fn unknown(format: &str) -> String {
    format!("Unknown file format '{format}'")
}

/// Why nothing was made.
enum Failed {
    /// To be said of the image.
    Says(String),
    Own(Failure),
}

impl From<String> for Failed {
    fn from(what: String) -> Failed {
        Failed::Says(what)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Own(error.into())
    }
}

fn create(
    out: &mut Output,
    name: &str,
    image: &OsString,
    size: Option<u64>,
    asked: &Asked,
) -> Result<(), Failed> {
    let format = parameters::format(asked.format()).ok_or_else(|| unknown(asked.format()))?;
    let path = Name::of_target(Path::new(image)).map_err(|error| error.message().to_owned())?;
    let mut options = asked.options.read(parameters::of_new(format))?;
    if options.get("size").is_some() && size.is_some() {
        return Err("The image size must be specified only once".to_owned().into());
    }
    let backing = backing(asked, name, &mut options)?;
    let told_size = match options.get("size") {
        Some(size) => size.parse().ok(),
        None => size,
    };
    let alone = backing.is_none();
    let backing_format = options.get("backing_fmt").map(str::to_owned);
    let how = Create {
        format: asked.format().to_owned(),
        size: told_size,
        options: options.given_but(&["size", "backing_file", "backing_fmt"]),
        backing,
        backing_format: backing_format.clone().filter(|_| !alone),
        unchecked: asked.unchecked,
        policy: if as_qemu() { Policy::Any } else { Policy::Local },
        probing: if as_qemu() { Probing::Trusting } else { Probing::Front },
        lenient: as_qemu(),
        replace: replace(),
        secrets: asked.opening.secrets.clone().by_name(),
        qemu_choices: true,
        ..Create::default()
    };
    let new = new_image(&path, &how).map_err(|error| match &how.backing {
        Some(backing) => {
            let backing = path.parent().map_or_else(|| backing.clone(), |folder| folder.join(backing));
            format!("{}\nCould not open backing image.", why(&backing, &error))
        }
        None => error.message().to_owned(),
    })?;
    if let Some(detected) = new.undeclared() {
        return Err(
            format!("Backing file specified without backing format\nDetected format of {detected}.").into()
        );
    }
    let size = new.size().ok_or_else(|| "Image creation needs a size parameter".to_owned())?;
    options.set("size", &size.to_string())?;
    if !asked.quiet {
        writeln!(out, "Formatting '{name}', fmt={}{}", asked.format(), options.shown())?;
        out.flush()?;
    }
    options.check_choices()?;
    if let Some(format) = backing_format.as_deref().filter(|format| parameters::format(format).is_none()) {
        return Err(format!("Parameter 'backing-fmt' does not accept value '{format}'").into());
    }
    if alone && backing_format.is_some() {
        return Err("Backing format cannot be used without backing file".to_owned().into());
    }
    if i64::try_from(size).is_err() {
        return Err("Could not resize image: Image size cannot be negative".to_owned().into());
    }
    let meter = Meter::new(false, true);
    let made = new.make(&meter);
    meter.finish();
    made.map(drop).map_err(|error| match (error.kind(), error.os_error()) {
        (ErrorKind::Cancelled, _) => Failed::Own(error.into()),
        _ if path.as_os_str().is_empty() => {
            "Could not create '': No such file or directory".to_owned().into()
        }
        (ErrorKind::Locked, _) => {
            format!("Failed to get \"write\" lock\nIs another process using the image [{}]?", path.display())
                .into()
        }
        _ if is_too_long(&error) => too_large(format).into(),
        (ErrorKind::NoSpace, Some(system)) => match error.sentence() {
            Some(sentence) if format.is_bare() => sentence.to_owned().into(),
            sentence => format!("Could not resize image: {}", sentence.unwrap_or(&system)).into(),
        },
        (_, Some(system)) => {
            let file = error.image_name().map_or_else(|| name.to_owned(), str::to_owned);
            format!("Could not create '{file}': {system}").into()
        }
        (_, None) => said(&error).to_owned().into(),
    })
}

fn too_large(format: &dyn Format) -> String {
    let name = format.names()[0]; // never empty: every format has a name
    let has_clusters = format.options().iter().any(|option| option.name == "cluster_size");
    let advice = if has_clusters { " (try using a larger cluster size)" } else { "" };
    format!("The image size is too large for file format '{name}'{advice}")
}

/// The backing file that the flags or the options name, which goes among the options. Errors: it makes no sense.
fn backing(asked: &Asked, name: &str, options: &mut Parameters) -> Result<Option<PathBuf>, Failed> {
    let not_supported =
        |what: &str| format!("Backing {what} not supported for file format '{}'", asked.format());
    if let Some(backing) = &asked.backing {
        options.set("backing_file", backing).map_err(|_| not_supported("file"))?;
    }
    if let Some(format) = &asked.backing_format {
        options.set("backing_fmt", format).map_err(|_| not_supported("file format"))?;
    }
    let backing = options.get("backing_file").map(PathBuf::from);
    match options.get("backing_file") {
        Some("") => return Err("Expected backing file name, got empty string".to_owned().into()),
        Some(same) if same == name => {
            let what = "Error: Trying to create an image with the same filename as the backing file";
            return Err(what.to_owned().into());
        }
        _ => {}
    }
    match (options.get("backing_fmt"), asked.unchecked) {
        (Some(format), false) if backing.is_some() && parameters::format(format).is_none() => {
            Err(format!("Unknown driver '{format}'\nCould not open backing image.").into())
        }
        (None, true) if backing.is_some() => {
            Err("Backing file specified without backing format".to_owned().into())
        }
        _ => Ok(backing),
    }
}

//! What an archive's front says: its disks and configurations.

use cowhand_core::{ConfigFile, Error, ErrorKind, Manifest, Printable, Progress, Reading, Result};
use serde_json::{Value, json};

use super::input;
use crate::registry;
use crate::stream::From;

/// The configuration that is meant where none is named.
const USUAL: &str = "qemu-server.conf";

/// The front of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Front {
    /// What people call the file.
    pub name: String,
    /// The archive's format.
    pub format: &'static str,
    /// How the file is packed, where it is.
    pub packing: Option<&'static str>,
    /// The archive's [`Manifest::id`], as its format spells it.
    pub uuid: String,
    /// What the archive holds.
    pub manifest: Manifest,
}

/// Reads an archive's front, and no more of it. `format`: its format's name; `None`: by its content.
pub fn front(from: From<'_>, format: Option<&str>, progress: &dyn Progress) -> Result<Front> {
    let input = input::open(from, format, Reading::Strict, progress)?;
    let manifest = input.source.manifest().clone();
    Ok(Front {
        uuid: registry::format(input.format)?.spell(manifest.id),
        name: input.name,
        format: input.format,
        packing: input.packing,
        manifest,
    })
}

impl Front {
    /// The configuration of that name. `None`: the machine's own, or the only one there is. Errors: there is none; the
    /// names of those that are there are in it.
    pub fn config(&self, name: Option<&str>) -> Result<&ConfigFile> {
        let all = &self.manifest.configs;
        let wanted = name.unwrap_or(USUAL);
        let found = all.iter().find(|config| config.name == wanted);
        let only = all.first().filter(|_| name.is_none() && all.len() == 1);
        found.or(only).ok_or_else(|| {
            let names: Vec<String> = all.iter().map(|config| Printable(&config.name).to_string()).collect();
            let hint = if names.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", names.join(", "))
            };
            Error::new(ErrorKind::NotFound, format!("the archive has no configuration '{wanted}'"))
                .hint(hint)
                .image(&self.name)
        })
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let what = &self.manifest;
        let config = |config: &ConfigFile| json!({ "name": config.name, "size": config.data.len() });
        let disk = |disk: &cowhand_core::ArchivedDisk| json!({ "dev-id": disk.number, "name": disk.name, "size": disk.size, "memory": disk.memory });
        json!({
            "filename": self.name,
            "format": self.format,
            "packing": self.packing,
            "uuid": self.uuid,
            "ctime": what.made,
            "configs": what.configs.iter().map(config).collect::<Vec<_>>(),
            "disks": what.disks.iter().map(disk).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_configuration_is_taken_or_the_only_one() {
        let config = |name: &str| ConfigFile { name: name.to_owned(), data: Vec::new() };
        let front = |names: &[&str]| {
            let configs = names.iter().map(|name| config(name)).collect();
            let manifest = Manifest { configs, ..Manifest::default() };
            Front { name: "a.vma".to_owned(), manifest, ..Front::default() }
        };
        let two = front(&["qemu-server.fw", "qemu-server.conf"]);
        assert_eq!(two.config(None).unwrap().name, "qemu-server.conf");
        assert_eq!(two.config(Some("qemu-server.fw")).unwrap().name, "qemu-server.fw");
        assert_eq!(
            two.config(Some("x")).unwrap_err().to_string(),
            "a.vma: the archive has no configuration 'x'; it has qemu-server.fw, qemu-server.conf"
        );
        assert_eq!(front(&["100.conf"]).config(None).unwrap().name, "100.conf");
        assert!(front(&["a", "b"]).config(None).is_err());
        assert!(front(&["100.conf"]).config(Some("qemu-server.conf")).is_err());
        assert!(front(&[]).config(None).unwrap_err().to_string().ends_with("it has none"));
    }
}

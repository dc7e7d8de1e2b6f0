//! Was a file of this folder opened? inotify tells.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;

/// Watches the files of a folder, or one file.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Begins.
    pub fn on(path: &Path) -> Watch {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&fd, path, inotify::WatchFlags::OPEN).unwrap();
        Watch(fd)
    }

    /// Something was opened since the last time.
    pub fn opened(&self) -> bool {
        let mut buf = [0; 4096];
        let mut any = false;
        while rustix::io::read(&self.0, &mut buf).is_ok_and(|n| n > 0) {
            any = true;
        }
        any
    }
}

//! Opens exactly the file that a process has mapped, even if it is deleted or in a container. Processes are
//! not trusted: only regular files are opened, whatever their paths lead to.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{file::Mapped, maps};

/// The path of a mapped file as its process sees it.
///
/// # Errors
/// If the mapping is gone (`NotFound`), or a capability is missing: `CAP_SYS_PTRACE` and
/// `CAP_DAC_READ_SEARCH`.
pub(super) fn path_of(mapped: &Mapped) -> io::Result<PathBuf> {
    target(&link(mapped))
}

/// The path of an open file, with symbolic links resolved.
///
/// # Errors
/// If `/proc` is not mounted.
pub(super) fn path_of_open(file: &File) -> io::Result<PathBuf> {
    target(&again(file))
}

fn target(link: &Path) -> io::Result<PathBuf> {
    fs::read_link(link).map(|path| maps::shown(&path.into_os_string().into_vec()))
}

/// Opens a mapped file: through the mapping itself, or, where that is not permitted (it requires
/// `CAP_CHECKPOINT_RESTORE`), by its path in the root directory of the process. Returns its owner, too.
///
/// # Errors
/// If both fail.
pub(super) fn mapped(mapped: &Mapped, shown: &Path) -> io::Result<(File, u32)> {
    regular(&link(mapped)).or_else(|error| {
        let inside = shown.strip_prefix("/").map_err(|_| error)?;
        regular(&PathBuf::from(format!("/proc/{}/root", mapped.pid)).join(inside))
    })
}

/// Opens a regular file for reading. Returns its owner, too.
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub(super) fn regular(path: &Path) -> io::Result<(File, u32)> {
    for_reading(&File::from(rustix::fs::open(path, HANDLE, Mode::empty())?))
}

/// The same for the path of a mapped file below the root directory of its process. The kernel has resolved
/// that path already, so a symbolic link in it is somebody else's.
///
/// # Errors
/// As above, and if the path is not absolute.
pub(super) fn below(root: &Path, path: &Path) -> io::Result<(File, u32)> {
    let inside = path.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?;
    let root = rustix::fs::open(root, HANDLE | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for_reading(&File::from(rustix::fs::openat2(root, inside, HANDLE, Mode::empty(), resolve)?))
}

/// Opening a device or a FIFO itself could have effects, or never return.
const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

fn for_reading(handle: &File) -> io::Result<(File, u32)> {
    let metadata = handle.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((File::open(again(handle))?, metadata.uid()))
}

/// A path that opens the same file again.
#[must_use]
pub(super) fn again(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn link(mapped: &Mapped) -> PathBuf {
    let Mapped { pid, range, .. } = mapped;
    PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (file, fifo) = (folder.path().join("file"), folder.path().join("fifo"));
        fs::write(&file, "text").unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (open, owner) = regular(&file).unwrap();
        assert_eq!(owner, rustix::process::getuid().as_raw());
        assert_eq!(fs::read(again(&open)).unwrap(), b"text");
        for other in [&fifo, folder.path(), Path::new("/dev/null")] {
            assert!(regular(other).is_err(), "{}", other.display());
        }
    }
}

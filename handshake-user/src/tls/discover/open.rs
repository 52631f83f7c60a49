//! Opens exactly the file that a process has mapped, even if it is deleted or in a container. Processes are
//! not trusted: only regular files are opened, whatever their paths lead to.
//!
//! Opening may take for ever, where a server has to answer: [`crate::tls::reader`].

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FsWord, Mode, OFlags, ResolveFlags};

use super::{file::Mapped, maps};

/// A regular file, open for reading.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    /// The user who owns it.
    pub(super) owner: u32,
    pub(super) stat: Stat,
}

/// What `stat` and `statfs` tell of an open file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    /// `st_dev`.
    pub(super) device: u64,
    /// `st_ino`.
    pub(super) number: u64,
    /// It must not be mapped: on some file systems the kernel asks a server then, with this process's own
    /// mappings locked (`fuse_file_mmap`, `nfs_file_mmap`), and all its threads would wait for the answer.
    pub(super) is_served: bool,
}

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
/// `CAP_CHECKPOINT_RESTORE`), by its path in the root directory of the process.
///
/// # Errors
/// If both fail.
pub(super) fn mapped(mapped: &Mapped, shown: &Path) -> io::Result<Opened> {
    regular(&link(mapped)).or_else(|error| {
        let inside = shown.strip_prefix("/").map_err(|_| error)?;
        regular(&PathBuf::from(format!("/proc/{}/root", mapped.pid)).join(inside))
    })
}

/// Opens a regular file for reading.
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub(super) fn regular(path: &Path) -> io::Result<Opened> {
    for_reading(&File::from(rustix::fs::open(path, HANDLE, Mode::empty())?))
}

/// The same for the path of a mapped file below the root directory of its process. The kernel has resolved
/// that path already, so a symbolic link in it is somebody else's.
///
/// # Errors
/// As above, and if the path is not absolute.
pub(super) fn below(root: &Path, path: &Path) -> io::Result<Opened> {
    let inside = path.strip_prefix("/").map_err(|_| io::ErrorKind::InvalidInput)?;
    let root = rustix::fs::open(root, HANDLE | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for_reading(&File::from(rustix::fs::openat2(root, inside, HANDLE, Mode::empty(), resolve)?))
}

/// Opening a device or a FIFO itself could have effects, or never return.
const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

fn for_reading(handle: &File) -> io::Result<Opened> {
    let metadata = handle.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let kind = rustix::fs::fstatfs(handle).map(|file_system| file_system.f_type);
    let stat = Stat {
        device: metadata.dev(),
        number: metadata.ino(),
        is_served: kind.map_or(true, |kind| SERVED.contains(&kind)),
    };
    Ok(Opened { owner: metadata.uid(), stat, file: File::open(again(handle))? })
}

/// File systems that another host or a program serves: `include/uapi/linux/magic.h`, and the sources of those
/// that are not there.
const SERVED: [FsWord; 15] = [
    0x6573_5546, // FUSE
    0x6969,      // NFS
    0x517b,      // SMB 1
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB 2
    0x00c3_6400, // Ceph
    0x5346_414f, // OpenAFS
    0x6b41_4653, // AFS
    0x0102_1997, // 9P
    0x7375_7245, // Coda
    0x0bd0_0bd0, // Lustre
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x2003_0528, // OrangeFS
    0x786f_4256, // VirtualBox
];

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
        let open = regular(&file).unwrap();
        assert_eq!(open.owner, rustix::process::getuid().as_raw());
        assert_eq!(open.stat.number, fs::metadata(&file).unwrap().ino());
        assert!(!open.stat.is_served);
        assert_eq!(fs::read(again(&open.file)).unwrap(), b"text");
        for other in [&fifo, folder.path(), Path::new("/dev/null")] {
            assert!(regular(other).is_err(), "{}", other.display());
        }
    }
}

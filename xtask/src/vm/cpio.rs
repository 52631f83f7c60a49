//! Writes the archive that a kernel unpacks as its first root: cpio in the format "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Several of them may follow one another.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, BufWriter, Write},
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _, fs::PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that is being written. Everything in it belongs to root.
pub(super) struct Cpio<W> {
    out: W,
    /// Distinguishes the files: those with the same number would be one.
    inode: u32,
    directories: BTreeSet<Vec<u8>>,
}

impl Cpio<BufWriter<File>> {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot create {}: is the disk full?", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Cpio<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0, directories: BTreeSet::new() }
    }

    /// A directory and those above it; one that is there already is left as it is.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        let Ok(relative) = path.strip_prefix("/") else { return self.directory(&Path::new("/").join(path)) };
        for above in relative.ancestors().collect::<Vec<_>>().into_iter().rev() {
            let name = above.as_os_str().as_bytes();
            if !name.is_empty() && self.directories.insert(name.to_vec()) {
                self.entry(name, DIRECTORY | 0o755, 0)?;
            }
        }
        Ok(())
    }

    /// A file with this content.
    pub(super) fn file(&mut self, path: &Path, executable: bool, content: &[u8]) -> Result<()> {
        let mode = if executable { 0o755 } else { 0o644 };
        self.copy(path, mode, u64::try_from(content.len())?, content)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &OsStr) -> Result<()> {
        let to = to.as_bytes();
        self.begin(path, LINK | 0o777, u64::try_from(to.len())?)?;
        self.out.write_all(to)?;
        self.pad(to.len())
    }

    /// Everything below a directory, under `at`, except what `without` names.
    pub(super) fn tree(&mut self, from: &Path, at: &Path, without: &dyn Fn(&Path) -> bool) -> Result<()> {
        self.directory(at)?;
        let what = || format!("cannot read {}", from.display());
        let mut entries = fs::read_dir(from).with_context(what)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, at) = (entry.path(), at.join(entry.file_name()));
            if !without(&at) {
                self.host_entry(&path, &at, &entry.metadata().with_context(what)?, without)?;
            }
        }
        Ok(())
    }

    /// A file of the host.
    pub(super) fn host_file(&mut self, from: &Path, at: &Path) -> Result<()> {
        let meta = fs::metadata(from).with_context(|| format!("there is no {}", from.display()))?;
        self.host_entry(from, at, &meta, &|_| false)
    }

    fn host_entry(
        &mut self,
        from: &Path,
        at: &Path,
        meta: &Metadata,
        without: &dyn Fn(&Path) -> bool,
    ) -> Result<()> {
        let kind = meta.file_type();
        let what = || format!("cannot read {}", from.display());
        if kind.is_symlink() {
            self.link(at, fs::read_link(from).with_context(what)?.as_os_str())
        } else if kind.is_dir() {
            self.tree(from, at, without)
        } else if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
            Ok(())
        } else {
            let file = File::open(from).with_context(what)?;
            self.copy(at, meta.permissions().mode() & 0o7777, meta.len(), file)
        }
    }

    fn copy(&mut self, path: &Path, mode: u32, length: u64, from: impl io::Read) -> Result<()> {
        self.begin(path, REGULAR | mode, length)?;
        let copied = io::copy(&mut from.take(length), &mut self.out)?;
        ensure!(copied == length, "{} has changed while it was read", path.display());
        self.pad(usize::try_from(length)?)
    }

    /// The entry of anything but a directory, behind those above it.
    fn begin(&mut self, path: &Path, mode: u32, length: u64) -> Result<()> {
        if let Some(folder) = path.parent() {
            self.directory(folder)?;
        }
        self.entry(path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes(), mode, length)
    }

    fn entry(&mut self, name: &[u8], mode: u32, length: u64) -> Result<()> {
        self.inode += 1;
        let length = u32::try_from(length).context("a file of 4 GiB does not fit into an initramfs")?;
        let links = 1 + u32::from(mode & DIRECTORY != 0);
        // Inode, mode, uid, gid, links, mtime, length, the device and that of a device file, the length of
        // the name with its zero, and a checksum that this format does not use.
        let fields =
            [self.inode, mode, 0, 0, links, 0, length, 0, 0, 0, 0, u32::try_from(name.len() + 1)?, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name)?;
        self.out.write_all(b"\0")?;
        // The header has 110 bytes.
        self.pad(110 + name.len() + 1)
    }

    /// Names and contents end at a multiple of four bytes.
    fn pad(&mut self, length: usize) -> Result<()> {
        let zeros = [0; 4];
        Ok(self.out.write_all(&zeros[..length.next_multiple_of(4) - length])?)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<W> {
        self.inode = 0;
        self.entry(b"TRAILER!!!", 0, 0)?;
        self.out.flush().context("cannot write the archive: is the disk full?")?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn entries_are_as_the_format_wants_them() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.file(Path::new("/a/b"), true, b"hello").unwrap();
        let bytes = cpio.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let folder = "07070100000001000041ed000000000000000000000002000000000000000000000000\
                      00000000000000000000000000000002000000\
                      00a\0";
        assert!(text.starts_with(folder), "{text:?}");
        let file = "07070100000002000081ed000000000000000000000001000000000000000500000000\
                    00000000000000000000000000000004000000\
                    00a/b\0\0\0hello\0\0\x00070701";
        assert_eq!(&text[folder.len()..folder.len() + file.len()], file);
        assert_eq!(bytes.len() % 4, 0);
    }

    /// A second opinion, where there is one: the tool that made the format.
    #[test]
    fn other_readers_unpack_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("sub/deeper")).unwrap();
        fs::write(from.join("sub/deeper/one"), vec![b'x'; 10_001]).unwrap();
        fs::write(from.join("left-out"), "").unwrap();
        std::os::unix::fs::symlink("sub/deeper/one", from.join("link")).unwrap();
        let archive = folder.path().join("archive");
        let mut cpio = Cpio::create(&archive).unwrap();
        cpio.tree(&from, Path::new("/to"), &|path| path == Path::new("/to/left-out")).unwrap();
        cpio.finish().unwrap();
        let Ok(mut child) = Command::new("cpio")
            .args(["--extract", "--quiet"])
            .current_dir(folder.path())
            .stdin(Stdio::from(File::open(&archive).unwrap()))
            .spawn()
        else {
            return;
        };
        assert!(child.wait().unwrap().success());
        let to = folder.path().join("to");
        assert_eq!(fs::read(to.join("sub/deeper/one")).unwrap(), vec![b'x'; 10_001]);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("sub/deeper/one"));
        assert!(!to.join("left-out").exists());
    }
}

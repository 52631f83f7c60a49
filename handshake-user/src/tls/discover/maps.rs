//! `/proc/PID/maps`, where the kernel has no iterator. Below an overlay it shows the underlying inode up to
//! Linux 6.7, and the inode of the overlay later (`file_user_inode`, 6.8).

use std::{ffi::OsString, fs, ops::Range, os::unix::ffi::OsStringExt as _, path::PathBuf};

use super::file::{FileId, Mapped};
use crate::bounded;

/// More bytes than 65530 mappings take with usual paths, which is as many as a process may have.
const MAX_BYTES: u64 = 16 << 20;

/// An executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its addresses.
    pub range: Range<u64>,
    /// The file, as the kernel shows it.
    pub id: FileId,
    /// Its path as the process sees it, without the suffix of a deleted file.
    pub path: PathBuf,
}

/// Parses a line: `start-end perms offset major:minor inode path`. Returns `None` if it is not an executable
/// mapping of a file.
#[must_use]
pub(crate) fn parse(line: &[u8]) -> Option<Line> {
    let mut rest = line;
    let mut field = || {
        let length = rest.iter().position(|byte| *byte == b' ')?;
        let field = &rest[..length];
        rest = rest[length..].trim_ascii_start();
        str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let range = hex(start)?..hex(end)?;
    if field()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let _offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let dev = rustix::fs::makedev(u32::try_from(hex(major)?).ok()?, u32::try_from(hex(minor)?).ok()?);
    let ino = field()?.parse().ok()?;
    // Anonymous memory has the inode 0, and no name or one in brackets.
    if ino == 0 || rest.first() != Some(&b'/') {
        return None;
    }
    Some(Line { range, id: FileId { dev, ino, generation: 0 }, path: shown(rest) })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

/// A path as the kernel writes it (`d_path`), without the suffix of a deleted file.
#[must_use]
pub(crate) fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.strip_suffix(b" (deleted)").unwrap_or(path).to_vec()))
}

/// The executable mappings of a process; none if it has ended or may not be inspected.
#[must_use]
pub(crate) fn of(pid: u32) -> Vec<Mapped> {
    // A longer file is ignored: it would end in the middle of a line.
    let Ok(text) = bounded::read(format!("/proc/{pid}/maps"), MAX_BYTES) else { return Vec::new() };
    let program = fs::read_link(format!("/proc/{pid}/exe"))
        .map_or_else(|_| PathBuf::new(), |path| shown(&path.into_os_string().into_vec()));
    text.split(|byte| *byte == b'\n')
        .filter_map(parse)
        .map(|line| Mapped { pid, range: line.range, id: line.id, main: line.path == program })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn line_of_a_library_is_parsed() {
        let line = b"7f10-7f20 r-xp 00026000 08:1f 131                        /a b/libssl.so.3 (deleted)";
        let dev = rustix::fs::makedev(8, 0x1f);
        assert_eq!(
            parse(line),
            Some(Line {
                range: 0x7f10..0x7f20,
                id: FileId { dev, ino: 131, generation: 0 },
                path: "/a b/libssl.so.3".into()
            })
        );
    }

    #[test]
    fn line_without_code_of_a_file_yields_none() {
        for line in [
            "7f10-7f20 r--p 00000000 08:01 131 /lib/libssl.so.3",
            "7f10-7f20 r-xp 00000000 00:00 0                  [vdso]",
            "7f10-7f20 r-xp 00000000 00:00 0 ",
            "7f10-7f20 r-xp 00000000 08:01 131",
            "7f10 r-xp 00000000 08:01 131 /x",
            "7f10-7f20 r-xp 00000000 0801 131 /x",
            "zz-7f20 r-xp 00000000 08:01 131 /x",
            "",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn test_program_is_its_own_main_program() {
        let mapped = of(std::process::id());
        assert_eq!(mapped.iter().filter(|mapped| mapped.main).count(), 1, "{mapped:?}");
        assert!(of(u32::MAX).is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_without_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn written_line_is_parsed(start: u64, end: u64, major in 0_u32..4096, minor in 0_u32..1 << 20, ino in 1_u64.., name in "/[^\n]{0,40}x") {
            let line = format!("{start:08x}-{end:08x} r-xs 0000 {major:02x}:{minor:02x} {ino} {name}");
            let line = parse(line.as_bytes()).unwrap();
            prop_assert_eq!(line.range, start..end);
            prop_assert_eq!(line.id, FileId { dev: rustix::fs::makedev(major, minor), ino, generation: 0 });
            prop_assert_eq!(line.path, PathBuf::from(name));
        }
    }
}

//! `/etc/ld.so.cache`: where the dynamic loader finds its libraries (`sysdeps/generic/dl-cache.h` of glibc).

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_ENTRY: usize = 12;
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// More libraries than any cache has: reading a damaged one stops here.
const MAX_ENTRIES: usize = 100_000;

/// The paths of the libraries: as many as can be read if the data is damaged, none if it is something else.
#[must_use]
pub(crate) fn paths(cache: &[u8]) -> Vec<PathBuf> {
    libraries(cache).unwrap_or_default()
}

fn libraries(cache: &[u8]) -> Option<Vec<PathBuf>> {
    let cache = if cache.starts_with(OLD_MAGIC) {
        // The format of libc5, followed by the new one.
        let count = usize::try_from(word(cache, OLD_MAGIC.len())?).ok()?;
        let end = count.checked_mul(OLD_ENTRY)?.checked_add(OLD_MAGIC.len() + 4)?;
        cache.get(end.checked_next_multiple_of(8)?..)?
    } else {
        cache
    };
    if !cache.starts_with(MAGIC) {
        return None;
    }
    let count = usize::try_from(word(cache, MAGIC.len())?).ok()?.min(MAX_ENTRIES);
    let entries = cache.get(HEADER..)?.chunks_exact(ENTRY).take(count);
    // flags, key, value, osversion, hwcap: the value is the path, counted from the start.
    Some(entries.filter_map(|entry| text(cache, usize::try_from(word(entry, 8)?).ok()?)).collect())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// An absolute path that ends in a zero byte.
fn text(bytes: &[u8], at: usize) -> Option<PathBuf> {
    let longest = bytes.get(at..)?.iter().take(libc::PATH_MAX as usize);
    let length = longest.copied().position(|byte| byte == 0)?;
    let path = &bytes[at..at + length];
    path.starts_with(b"/").then(|| PathBuf::from(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cache(paths: &[&str]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut entries = Vec::new();
        for path in paths {
            let at = HEADER + ENTRY * paths.len() + strings.len();
            entries.extend([0; 8]);
            entries.extend(u32::try_from(at).unwrap().to_ne_bytes());
            entries.extend([0; 12]);
            strings.extend(path.bytes().chain([0]));
        }
        let mut cache = MAGIC.to_vec();
        cache.extend(u32::try_from(paths.len()).unwrap().to_ne_bytes());
        cache.resize(HEADER, 0);
        [cache, entries, strings].concat()
    }

    #[test]
    fn both_formats_are_parsed() {
        let new = cache(&["/lib/libssl.so.3", "relative", "/lib/libcrypto.so.3"]);
        let expected = [PathBuf::from("/lib/libssl.so.3"), PathBuf::from("/lib/libcrypto.so.3")];
        assert_eq!(paths(&new), expected);
        let mut old = OLD_MAGIC.to_vec();
        old.extend(1_u32.to_ne_bytes());
        old.extend([7; OLD_ENTRY]);
        old.resize(old.len().next_multiple_of(8), 0);
        old.extend(new);
        assert_eq!(paths(&old), expected);
        assert!(paths(b"something else").is_empty() && paths(b"").is_empty());
    }

    #[test]
    #[cfg_attr(target_env = "musl", ignore = "musl has no cache")]
    fn cache_of_this_host_has_its_c_library() {
        let cache = std::fs::read("/etc/ld.so.cache").expect("glibc's cache: `ldconfig` makes it");
        let paths = paths(&cache);
        assert!(paths.iter().any(|path| path.ends_with("libc.so.6")), "{} paths", paths.len());
    }

    proptest! {
        #[test]
        fn damaged_cache_is_parsed_without_panic(changes in prop::collection::vec((0_usize..200, any::<u8>()), 0..8), cut in 0_usize..200) {
            let mut bytes = cache(&["/lib/libssl.so.3", "/lib/libcrypto.so.3"]);
            for (at, byte) in changes {
                if let Some(old) = bytes.get_mut(at) {
                    *old = byte;
                }
            }
            bytes.truncate(cut.max(MAGIC.len()));
            let _ = paths(&bytes);
        }

        #[test]
        fn any_cache_is_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = paths(&[OLD_MAGIC, &bytes].concat());
            let _ = paths(&[MAGIC, &bytes].concat());
        }
    }
}

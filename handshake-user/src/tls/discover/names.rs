//! Which mapped files are worth opening: libraries by their names, and every main program, since a TLS
//! library may be linked into it.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

/// Prefixes of the file names of shared objects that are or contain a TLS library. The names of bundled
/// copies often have a suffix (`libssl-5d7f3a92.so.3`).
const LIBRARIES: &[&str] = &[
    "libssl",
    "libcrypto",
    "libgnutls",
    "libwolfssl",
    "libmbedtls",
    "libs2n",
    // Shared objects that BoringSSL or OpenSSL is linked into: of Node.js, Netty, Conscrypt, Python, gRPC,
    // Chromium.
    "libnode",
    "libnetty_tcnative",
    "libconscrypt",
    "libpython",
    "_ssl.",
    "cygrpc.",
    "libcef",
    "libQt5WebEngineCore",
    "libQt6WebEngineCore",
];

/// Programs that a TLS library is linked into, and that are probed at the standard paths before they run.
pub(super) const PROGRAMS: &[&str] = &["node", "bun", "deno"];

/// Whether a shared object of this name may be or contain a TLS library.
#[must_use]
pub(super) fn is_library(path: &Path) -> bool {
    let name = path.file_name().map_or(&[][..], OsStr::as_bytes);
    is_shared_object(name) && LIBRARIES.iter().any(|start| name.starts_with(start.as_bytes()))
}

/// Whether a file of this name may be a main program, as it is not a shared object.
#[must_use]
pub(super) fn is_program(path: &Path) -> bool {
    path.file_name().is_some_and(|name| !is_shared_object(name.as_bytes()))
}

/// `libx.so`, `libx.so.1.2`.
fn is_shared_object(name: &[u8]) -> bool {
    name.windows(3)
        .enumerate()
        .any(|(at, part)| part == b".so" && matches!(name.get(at + 3), None | Some(b'.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_recognised_by_name() {
        for path in [
            "/usr/lib/x86_64-linux-gnu/libssl.so.3",
            "/usr/lib/libssl3.so",
            "/opt/venv/psycopg2_binary.libs/libssl-5d7f3a92.so.1.1",
            "libgnutls.so.30.34.3",
            "/usr/lib/python3/lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so",
            "/tmp/libnetty_tcnative_linux_x86_64123.so",
        ] {
            assert!(is_library(Path::new(path)), "{path}");
        }
        for path in ["/usr/lib/libc.so.6", "/usr/lib/libssl.conf", "/usr/bin/curl", "libssl.some", "", "/"] {
            assert!(!is_library(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn file_that_is_not_a_shared_object_may_be_a_program() {
        assert!(is_program(Path::new("/usr/bin/curl")) && is_program(Path::new("/opt/a.sox")));
        assert!(!is_program(Path::new("/lib/ld-linux.so.2")) && !is_program(Path::new("/")));
    }
}

//! Inspects the TLS libraries of this system, intact and damaged.

#[path = "../src/skip_test.rs"]
mod skip_test;

use std::{fs, path::PathBuf};

use handshake::tls::library::inspect::{Inspection, ProbeKind, inspect};
use handshake_common::{
    tls::library::target::{Path, Statem},
    vocabulary::Library,
};
use proptest::prelude::*;

use self::skip_test::skip_test;

/// The file with this name in the library directories of Debian, Fedora and Arch.
fn library(name: &str) -> Option<Vec<u8>> {
    let folder = |machine: &str| format!("/usr/lib/{machine}-linux-gnu");
    let folders = [folder(std::env::consts::ARCH), "/usr/lib64".to_owned(), "/usr/lib".to_owned()];
    let file = folders.iter().map(|folder| PathBuf::from(folder).join(name)).find(|file| file.exists());
    if file.is_none() {
        skip_test(&format!("there is no {name} on this system"));
    }
    Some(fs::read(file?).unwrap())
}

fn has(inspection: &Inspection, hook: ProbeKind) -> bool {
    inspection.points.iter().any(|point| point.hook == hook)
}

#[test]
fn openssl_is_found_in_two_files() {
    let (Some(ssl), Some(crypto)) = (library("libssl.so.3"), library("libcrypto.so.3")) else { return };
    let companion = inspect(&crypto).unwrap();
    assert_eq!(companion.library, Library::OpenSsl);
    assert!(companion.is_companion && !companion.covered);

    let mut inspection = inspect(&ssl).unwrap();
    inspection.complete_with(&companion);
    let in_libssl = cfg!(target_arch = "x86_64");
    assert_eq!(
        (has(&inspection, ProbeKind::Error), has(&companion, ProbeKind::Error)),
        (in_libssl, !in_libssl)
    );
    assert_eq!(inspection.library, Library::OpenSsl);
    assert!(inspection.covered && !inspection.is_companion);
    assert!([ProbeKind::Enter, ProbeKind::Leave, ProbeKind::Free].iter().all(|&hook| has(&inspection, hook)));
    if cfg!(target_arch = "x86_64") {
        // Distributions build it with the stack protector, whose checks are cheaper to probe than the return.
        let exits = inspection.points.iter().filter(|point| point.hook == ProbeKind::Leave);
        assert!(exits.clone().all(|point| point.exit.is_some_and(|(base, _)| base.depth > 0)), "{exits:?}");
    }
    assert_eq!(inspection.gaps, [], "the state machine and every field are found");
    let target = inspection.target;
    assert_eq!(target.random.width, 32);
    assert!(target.cipher.is_known() && target.fd.is_known());
    assert_eq!(target.fd_guard_value, 0x0505);

    // According to the headers of OpenSSL 3.0 for 8-byte pointers.
    if inspection.description.is_some_and(|text| text.starts_with("OpenSSL 3.0.")) {
        assert_eq!(target.version, Path::direct(0, 4));
        assert_eq!(target.server, Path::direct(0x38, 4));
        let states = [0x48, 0x5c, 0x64].map(|offset| Path::direct(offset, 4));
        assert_eq!(Some(target.statem), Statem::at(states[0], states[1], states[2]));
        assert_eq!(target.resumed, Path::direct(0x4d0, 4));
        assert_eq!(target.early_data, Path::direct(0xb30, 4));
        assert_eq!(target.fd.steps[0], 0x10);
        assert_eq!(target.alpn, Path { steps: [0x488, 0, 0], hops: 1, width: 1 });
        assert_eq!(target.alpn_length, Path::direct(0x490, 4));
    }
}

#[test]
fn gnutls_is_found() {
    let Some(file) = library("libgnutls.so.30") else { return };
    let inspection = inspect(&file).unwrap();
    assert_eq!(inspection.library, Library::GnuTls);
    assert!(inspection.covered && has(&inspection, ProbeKind::Leave) && has(&inspection, ProbeKind::Free));
    let target = inspection.target;
    let fields = [target.version, target.server, target.resumed, target.complete, target.random, target.fd];
    assert!(fields.iter().all(Path::is_known), "{:?}", inspection.gaps);
    if cfg!(target_arch = "x86_64") {
        assert!(target.alpn.is_known() && target.alpn_length.is_known(), "{:?}", inspection.gaps);
    }
}

#[test]
fn other_files_hold_no_library() {
    assert_eq!(inspect(&fs::read("/proc/self/exe").unwrap()), None);
    assert_eq!(inspect(b"#!/bin/sh\n"), None);
    assert_eq!(inspect(&[]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damaged_library_does_not_panic(
        cut in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..64),
        headers in prop::collection::vec((0_usize..1024, any::<u8>()), 0..4),
    ) {
        if let Some(mut file) = library("libssl.so.3") {
            file.truncate(cut.index(file.len() + 1).max(file.len() / 2));
            for (at, byte) in damage {
                let at = at.index(file.len());
                file[at] = byte;
            }
            for (at, byte) in headers {
                file[at] = byte;
            }
            let _ = inspect(&file);
        }
    }
}

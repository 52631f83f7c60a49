//! Files crafted to make inspection take forever: each is inspected within seconds, which a fuzzer with its
//! small files cannot show.

#[expect(dead_code, reason = "the fuzz targets use all of it")]
#[expect(unreachable_pub, reason = "public for the fuzz targets, which share the file")]
#[path = "../../fuzz/src/image.rs"]
mod image;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use handshake::{fuzzing::inspect_bytes, tls::library::inspect::Inspection};

use self::image::{BASE, Image, PROGBITS, Relocation, Symbol, X86_64};

/// Sufficient without optimization and next to other tests; a successful attack would take minutes to days.
const TIMEOUT: Duration = Duration::from_secs(20);
const CODE: u64 = BASE + 0x1000;

fn inspected_in_time(file: Vec<u8>) -> Option<Inspection> {
    let (say, said) = mpsc::channel();
    let began = Instant::now();
    thread::spawn(move || drop(say.send(inspect_bytes(&file))));
    let inspection = said.recv_timeout(TIMEOUT).expect("it is inspected in time");
    eprintln!("took {:?}", began.elapsed());
    inspection
}

fn entry(content: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(content.len().next_multiple_of(4)).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A function's entry, to be placed at `place` in an unwind table that starts with the common information
/// entry.
fn function(place: usize, address: u64, size: usize, rest: &[u8]) -> Vec<u8> {
    let to_common = u32::try_from(place + 4).unwrap().to_le_bytes();
    entry(&[to_common.as_slice(), &address.to_le_bytes(), &(size as u64).to_le_bytes(), rest].concat())
}

/// A library with one handshake function and this unwind table.
fn library(code: &[u8], frames: &[u8], names: &[&str]) -> Vec<u8> {
    let mut image = Image::new(X86_64, true);
    image.put_at(CODE, code);
    let address = image.put(frames);
    image.section(".eh_frame", PROGBITS, address, frames.len());
    let size = code.len() as u64;
    let symbols: Vec<_> = names.iter().map(|name| Symbol { name, address: Some(CODE), size }).collect();
    image.symbols(&symbols);
    image.finish()
}

/// `DW_CFA_def_cfa`: the stack pointer and 8.
const COMMON: [u8; 12] = [0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8];

#[test]
fn long_common_entry_is_not_read_again_for_each_function() {
    let mut common = vec![0, 0, 0, 0, 1, b'z'];
    common.resize(8 << 20, b'S');
    common.extend([0, 1, 0x78, 16, 0, 0x0c, 7, 8]);
    let mut frames = entry(&common);
    for index in 0..200_000 {
        frames.extend(function(frames.len(), CODE + 0x100 + index, 1, &[0]));
    }
    let inspection = inspected_in_time(library(&[0xc3], &frames, &["s2n_negotiate"])).unwrap();
    assert!(!inspection.covered);
}

#[test]
fn long_frames_are_not_read_again_for_each_instruction() {
    // notrack jmp *%rax, and at last: ret
    let mut code = [0x3e, 0xff, 0xe0].repeat(40_000);
    code.push(0xc3);
    let mut frames = entry(&COMMON);
    frames.extend(function(frames.len(), CODE, code.len(), &vec![0; 8 << 20]));
    let inspection = inspected_in_time(library(&code, &frames, &["s2n_negotiate"])).unwrap();
    assert!(inspection.covered, "it is an ordinary function");
}

#[test]
fn unterminated_names_are_not_read_for_each_relocation() {
    let mut image = Image::new(X86_64, true);
    image.put_at(CODE, &[0xc3]);
    let endless = "A".repeat(8 << 20);
    let symbol = |name, address| Symbol { name, address, size: 1 };
    let symbols = image.symbols(&[symbol("SSL_do_handshake", Some(CODE)), symbol(&endless, None)]);
    // JUMP_SLOT
    let relocations: Vec<_> =
        (0..300_000).map(|_| Relocation { at: CODE, kind: 7, symbol: 2, addend: 0 }).collect();
    image.relocations(&relocations, symbols);
    assert!(inspected_in_time(image.finish()).is_some());
}

#[test]
fn unterminated_names_are_not_read_for_each_section() {
    let mut image = Image::new(X86_64, true);
    image.put_at(CODE, &[0xc3]);
    image.section(&"A".repeat(8 << 20), PROGBITS, CODE, 1);
    for _ in 0..60_000 {
        image.section("", PROGBITS, CODE, 1);
    }
    image.symbols(&[Symbol { name: "s2n_negotiate", address: Some(CODE), size: 1 }]);
    let mut file = image.finish();
    // All sections have the same name.
    let table = usize::try_from(u64::from_le_bytes(file[40..48].try_into().unwrap())).unwrap();
    for header in file[table..].chunks_exact_mut(64).skip(1) {
        header[..4].copy_from_slice(&1_u32.to_le_bytes());
    }
    let _ = inspected_in_time(file);
}

#[test]
fn nothing_beyond_the_end_of_the_file_is_probed() {
    let file = |free| {
        let mut image = Image::new(X86_64, true);
        image.put_at(CODE, &[0xc3]);
        let symbol = |name, address| Symbol { name, address: Some(address), size: 1 };
        image.symbols(&[symbol("s2n_negotiate", CODE), symbol("s2n_connection_free", free)]);
        let mut file = image.finish();
        // The segment continues beyond the end of the file.
        let size = file.len() as u64 + 64;
        file[64 + 32..64 + 40].copy_from_slice(&size.to_le_bytes());
        file
    };
    let size = file(CODE).len() as u64;
    for (free, probes) in [(BASE + size - 1, 1), (BASE + size, 0), (BASE + size + 1, 0)] {
        assert_eq!(inspect_bytes(&file(free)).unwrap().points.len(), probes, "{free:x}");
    }
}

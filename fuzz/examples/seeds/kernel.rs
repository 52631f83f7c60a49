//! Data written by the kernel and the C library.

use std::collections::BTreeMap;

use handshake::kernel::probe::hook::HOOKS;
use handshake_common::layout::{Bit, Layout};

use crate::Seed;

pub fn all() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = vec![
        ("btf", "all".to_owned(), types()),
        ("ld_cache", "new".to_owned(), cache()),
        ("ld_cache", "old".to_owned(), old_cache()),
    ];
    let texts = [
        "7f10-7f20 r-xp 00026000 08:1f 131                        /a b/libssl.so.3 (deleted)\n\
         7f20-7f30 r--p 00036000 08:1f 131                        /a b/libssl.so.3\n\
         7ffc-7ffd r-xp 00000000 00:00 0                          [vdso]\n"
            .to_owned(),
        "22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n\
         30 22 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup rw\n\
         31 22 0:27 / /sys/kernel/tracing rw - tracefs nodev rw\n"
            .to_owned(),
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
         0: 0100007F:0016 0100007F:C350 01 00000000:00000000 02:00000000 00000000     0        0 1 1\n   \
         1: 0100007F:0016 0100007F:C351 05 00000000:00000000 03:00000000 00000000     0        0 1 1\n"
            .to_owned(),
        "0-3,8\n".to_owned(),
        format(),
        "\u{1}".repeat(80),
    ];
    for (which, text) in texts.iter().enumerate() {
        let bytes = [&[u8::try_from(which).unwrap()], text.as_bytes()].concat();
        seeds.push(("proc", which.to_string(), bytes));
    }
    seeds
}

/// The description of a tracepoint that has all fields.
fn format() -> String {
    let mut text = "name: any\nID: 1\nformat:\n".to_owned();
    for (at, field) in HOOKS.iter().flat_map(|hook| hook.perf_fields).enumerate() {
        text +=
            &format!("\tfield:const void * {};\toffset:{};\tsize:8;\tsigned:0;\n", field.field, 8 + 8 * at);
    }
    text
}

/// An `ld.so.cache` with two libraries.
fn cache() -> Vec<u8> {
    let paths = ["/lib/libssl.so.3", "/lib/libcrypto.so.3"];
    let (mut entries, mut strings) = (Vec::new(), Vec::new());
    for path in paths {
        let at = 48 + 24 * paths.len() + strings.len();
        entries.extend([0; 8]);
        entries.extend(u32::try_from(at).unwrap().to_ne_bytes());
        entries.extend([0; 12]);
        strings.extend(path.bytes().chain([0]));
    }
    let mut cache = b"glibc-ld.so.cache1.1".to_vec();
    cache.extend(u32::try_from(paths.len()).unwrap().to_ne_bytes());
    cache.resize(48, 0);
    [cache, entries, strings].concat()
}

fn old_cache() -> Vec<u8> {
    let mut old = b"ld.so-1.7.0\0".to_vec();
    old.extend(1_u32.to_ne_bytes());
    old.extend([7; 12]);
    old.resize(old.len().next_multiple_of(8), 0);
    old.extend(cache());
    old
}

/// BTF types with every wanted member.
fn types() -> Vec<u8> {
    let mut paths: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let paths_of = std::cell::RefCell::new(&mut paths);
    let note = |structure, path| paths_of.borrow_mut().entry(structure).or_default().push(path);
    let layout = Layout::resolve_with::<()>(
        |_, structure, path| {
            note(structure, path);
            Ok(0)
        },
        |_, structure, path| {
            note(structure, path);
            Ok(Bit::ABSENT)
        },
    );
    assert!(layout.is_ok());
    let mut types = Types { types: Vec::new(), strings: vec![0], count: 0 };
    let int = types.add("int", 1 << 24, 4, &[32]);
    for (name, paths) in paths {
        types.structure(name, &paths, int);
    }
    types.add("btf_trace_tcp_destroy_sock", 8 << 24, int, &[]);
    types.finish()
}

struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Types {
    fn string(&mut self, text: &str) -> u32 {
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, info: u32, refers_to: u32, rest: &[u32]) -> u32 {
        let name = if name.is_empty() { 0 } else { self.string(name) };
        for word in [name, info, refers_to].iter().chain(rest) {
            self.types.extend(word.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    fn structure(&mut self, name: &str, paths: &[&str], int: u32) -> u32 {
        let mut inner: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for path in paths {
            match path.split_once('.') {
                Some((outer, rest)) => inner.entry(outer).or_default().push(rest),
                None => {
                    inner.entry(path).or_default();
                }
            }
        }
        let mut members = Vec::new();
        for (index, (member, rest)) in inner.iter().enumerate() {
            let kind = if rest.is_empty() { int } else { self.structure("", rest, int) };
            // One bit wide, like a flag.
            members.extend([self.string(member), kind, (1 << 24) | (32 * u32::try_from(index).unwrap())]);
        }
        let length = u32::try_from(inner.len()).unwrap();
        self.add(name, 1 << 31 | 4 << 24 | length, 4 * length, &members)
    }

    fn finish(self) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut blob = 0xeb9f_u16.to_ne_bytes().to_vec();
        blob.extend([1, 0]);
        for word in [24, 0, length(&self.types), length(&self.types), length(&self.strings)] {
            blob.extend(word.to_ne_bytes());
        }
        [blob, self.types, self.strings].concat()
    }
}

//! Small ELF files for the tests: one loaded segment at [`BASE`], symbols, and an unwind table that says that
//! no function has a frame.

/// Address of the first byte of the file.
pub(crate) const BASE: u64 = 0x40_0000;
/// The address of the first function.
pub(crate) const CODE: u64 = BASE + HEADERS as u64;

const HEADERS: usize = 64 + 56;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
const SECTION_NAMES: &[u8] = b"\0.eh_frame\0";
/// The alignment of functions.
const ALIGNMENT: usize = 64;

pub(crate) const X86_64: u16 = 62;
pub(crate) const AARCH64: u16 = 183;

/// The address of the function with this index, if all before it are shorter than 64 bytes.
pub(crate) const fn address(index: usize) -> u64 {
    CODE.next_multiple_of(ALIGNMENT as u64) + (index * ALIGNMENT) as u64
}

/// A fixed-address program with these functions (or tables), each in its own 64 bytes.
pub(crate) fn file(machine: u16, functions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = vec![0; HEADERS];
    let mut symbols = vec![0; SYMBOL];
    let mut names = vec![0];
    let mut frames = common_frame(machine);
    for (index, (name, code)) in functions.iter().enumerate() {
        assert!(code.len() <= ALIGNMENT, "{name} is too long");
        let at = address(index);
        body.resize(usize::try_from(at - BASE).unwrap(), 0xcc);
        body.extend_from_slice(code);
        symbols.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend(at.to_le_bytes());
        symbols.extend((code.len() as u64).to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        frames.extend(frame(frames.len(), at, code.len() as u64, signing(machine, code)));
    }
    frames.extend([0; 4]);
    body.resize(body.len().next_multiple_of(8), 0xcc);
    let loaded = body.len();
    let symbols_at = body.len();
    body.extend_from_slice(&symbols);
    let names_at = body.len();
    body.extend_from_slice(&names);
    body.resize(body.len().next_multiple_of(8), 0);
    let frames_at = body.len();
    body.extend_from_slice(&frames);
    let section_names_at = body.len();
    body.extend_from_slice(SECTION_NAMES);
    body.resize(body.len().next_multiple_of(8), 0);
    let sections_at = body.len();
    body.extend([0; SECTION]);
    section(&mut body, [0, 11], symbols_at, symbols.len(), 2, SYMBOL);
    section(&mut body, [0, 3], names_at, names.len(), 0, 0);
    section(&mut body, [1, 1], frames_at, frames.len(), 0, 0);
    section(&mut body, [0, 3], section_names_at, SECTION_NAMES.len(), 0, 0);

    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2, machine, 1, 0] {
        header.extend(half.to_le_bytes());
    }
    for word in [CODE, 64, sections_at as u64] {
        header.extend(word.to_le_bytes());
    }
    header.extend([0; 4]);
    for half in [64_u16, 56, 1, 64, 5, 4] {
        header.extend(half.to_le_bytes());
    }
    header.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    for word in [0, BASE, BASE, loaded as u64, loaded as u64, 0x1000] {
        header.extend(word.to_le_bytes());
    }
    body[..HEADERS].copy_from_slice(&header);
    body
}

/// The common information entry of `.eh_frame`: the frame begins at the stack pointer of the entry.
fn common_frame(machine: u16) -> Vec<u8> {
    // DW_CFA_def_cfa: a register, and the bytes that a call pushes.
    let (return_address, cfa) = if machine == X86_64 { (16, [0x0c, 7, 8]) } else { (30, [0x0c, 31, 0]) };
    let mut entry = vec![0, 0, 0, 0, 1, 0, 1, 0x78, return_address];
    entry.extend(cfa);
    sized(&entry)
}

/// A function's entry, to be placed at `place`.
fn frame(place: usize, address: u64, size: u64, changes: &[u8]) -> Vec<u8> {
    let to_common = u32::try_from(place + 4).unwrap().to_le_bytes();
    sized(&[to_common.as_slice(), &address.to_le_bytes(), &size.to_le_bytes(), changes].concat())
}

/// How the frame changes where the return address is signed by the first instruction (`paciasp`).
fn signing(machine: u16, code: &[u8]) -> &'static [u8] {
    const SIGN: [u8; 4] = 0xd503_233f_u32.to_le_bytes();
    // DW_CFA_advance_loc 4 · DW_CFA_AARCH64_negate_ra_state
    if machine == AARCH64 && code.starts_with(&SIGN) { &[0x44, 0x2d] } else { &[] }
}

fn sized(entry: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(entry.len().next_multiple_of(4)).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(entry);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn section(file: &mut Vec<u8>, name_and_kind: [u32; 2], at: usize, size: usize, link: u32, entry: usize) {
    file.extend(name_and_kind.map(u32::to_le_bytes).concat());
    file.extend([0, 0, at as u64, size as u64].map(u64::to_le_bytes).concat());
    file.extend([link, 0].map(u32::to_le_bytes).concat());
    file.extend([8, entry as u64].map(u64::to_le_bytes).concat());
}

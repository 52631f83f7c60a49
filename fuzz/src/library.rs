//! Libraries with the wanted symbols and otherwise arbitrary content: a fuzzer that had to find matching
//! symbol tables, unwind tables and relocations by itself would never reach an instruction.

use handshake::fuzzing::symbols;

use crate::{
    Input,
    image::{AARCH64, BASE, Image, PROGBITS, Relocation, Symbol, X86_64},
};

/// The space reserved for each function.
pub const SLOT: u64 = 0x80;
/// The address of the first function.
pub const CODE: u64 = BASE + 0x100;
const MAX_FUNCTIONS: usize = 60;

/// The first byte of an entry, if not the number of a function's symbol.
pub const NAMELESS: u8 = 0xff;
pub const RELOCATION: u8 = 0xfe;
pub const TEXT: u8 = 0xfd;
pub const IMPORT: u8 = 0xfc;

/// How a function's frame is described.
pub const NO_FRAME: u8 = 0;
pub const NO_CHANGE: u8 = 1;

/// Imported functions.
pub const IMPORTS: [&str; 3] = ["ERR_vset_error", "ERR_put_error", "gnutls_session_key_update"];

/// The symbols by number.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let mut names = symbols();
    names.sort_unstable();
    names.dedup();
    names
}

/// Builds a file from a description: a byte of flags (1: aarch64, 2: fixed), then entries.
///
/// - a function: the number of its symbol, its frame ([`NO_FRAME`], [`NO_CHANGE`], or a number of bytes of
///   call frame instructions, and these), its length (two bytes), its bytes;
/// - [`RELOCATION`]: place (from [`CODE`] on), kind, target (another place, or a symbol);
/// - [`TEXT`]: length, text;
/// - [`IMPORT`]: an index into [`IMPORTS`].
#[must_use]
pub fn file(description: &[u8]) -> Vec<u8> {
    let mut input = Input(description);
    let flags = input.byte().unwrap_or(0);
    let machine = if flags & 1 == 0 { X86_64 } else { AARCH64 };
    let names = names();
    let mut image = Image::new(machine, flags & 2 != 0);
    let mut table = Vec::new();
    let mut relocations = Vec::new();
    let mut frames = common_frame(machine);
    let mut texts = Vec::new();
    let mut next = CODE;
    while let Some(kind) = input.byte() {
        match kind {
            RELOCATION => {
                let (Some(at), Some(kind), Some(what)) = (input.word(), input.byte(), input.word()) else {
                    break;
                };
                let [relative, slot, global] = if machine == X86_64 { [8, 7, 6] } else { [1027, 1026, 1025] };
                let (kind, symbol, addend) = match kind % 3 {
                    0 => (relative, 0, i64::try_from(CODE).expect("small") + i64::from(what)),
                    1 => (slot, what.into(), 0),
                    _ => (global, what.into(), 0),
                };
                relocations.push(Relocation { at: CODE + u64::from(at), kind, symbol, addend });
            }
            TEXT => {
                let length = input.byte().unwrap_or(0);
                texts.extend_from_slice(input.bytes(length.into()));
                texts.push(0);
            }
            IMPORT => {
                let name = IMPORTS[usize::from(input.byte().unwrap_or(0)) % IMPORTS.len()];
                table.push(Symbol { name, address: None, size: 0 });
            }
            symbol => {
                let frame = input.byte().unwrap_or(NO_CHANGE);
                let instructions = if frame > NO_CHANGE { input.bytes(frame.into()) } else { &[] };
                let code = input.block().unwrap_or_default();
                let size = code.len() as u64;
                image.put_at(next, code);
                if symbol != NAMELESS {
                    let name = names[usize::from(symbol) % names.len()];
                    table.push(Symbol { name, address: Some(next), size });
                }
                if frame != NO_FRAME {
                    frames.extend(function_frame(frames.len(), next, size, instructions));
                }
                next += size.next_multiple_of(SLOT).max(SLOT);
            }
        }
        if table.len() > MAX_FUNCTIONS || next > CODE + SLOT * MAX_FUNCTIONS as u64 {
            break;
        }
    }
    frames.extend([0; 4]);
    // Relocations may lie beyond the functions.
    image.put_at(next, &[0xcc; 16]);
    image.put(&texts);
    let address = image.put(&frames);
    image.section(".eh_frame", PROGBITS, address, frames.len());
    let symbols = image.symbols(&table);
    image.relocations(&relocations, symbols);
    image.finish()
}

/// A library with two functions and an arbitrary unwind table.
#[must_use]
pub fn with_frames(frames: &[u8]) -> Vec<u8> {
    // push %rbx; test %edi,%edi; je 1f; pop %rbx; ret; 1: notrack jmp *%rax; jmp to the second function
    const FIRST: [u8; 16] =
        [0x53, 0x85, 0xff, 0x74, 0x02, 0x5b, 0xc3, 0x3e, 0xff, 0xe0, 0xe9, 0x71, 0, 0, 0, 0xcc];
    let mut image = Image::new(X86_64, true);
    image.put_at(CODE, &FIRST);
    image.put_at(CODE + SLOT, &[0x55, 0x5d, 0xc3]);
    let address = image.put(frames);
    image.section(".eh_frame", PROGBITS, address, frames.len());
    let names = ["SSL_do_handshake", "wolfSSL_accept", "s2n_negotiate"];
    let symbols = names.map(|name| Symbol { name, address: Some(CODE), size: FIRST.len() as u64 });
    image.symbols(&symbols);
    image.finish()
}

/// The common information entry: the frame begins at the stack pointer of the entry.
#[must_use]
pub fn common_frame(machine: u16) -> Vec<u8> {
    // DW_CFA_def_cfa: a register, and the bytes that a call pushes.
    let (return_address, cfa) = if machine == X86_64 { (16, [0x0c, 7, 8]) } else { (30, [0x0c, 31, 0]) };
    let mut entry = vec![0, 0, 0, 0, 1, 0, 1, 0x78, return_address];
    entry.extend(cfa);
    sized(&entry)
}

/// A function's entry, to be placed at `place`.
#[must_use]
pub fn function_frame(place: usize, address: u64, size: u64, instructions: &[u8]) -> Vec<u8> {
    let to_common = u32::try_from(place + 4).expect("short").to_le_bytes();
    sized(&[to_common.as_slice(), &address.to_le_bytes(), &size.to_le_bytes(), instructions].concat())
}

fn sized(entry: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(entry.len().next_multiple_of(4)).expect("short").to_le_bytes().to_vec();
    bytes.extend_from_slice(entry);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

//! Follows the paths through one function and tracks the values derived from its first argument.

use std::collections::VecDeque;

use handshake_common::tls::library::target::Path;

use super::{
    aarch64,
    operation::{Operation, REGISTERS, Register},
    x86,
};
use crate::tls::library::inspect::elf::{Elf, Machine, Symbol};

/// The maximum number of instructions that are followed in one function, over all its paths.
const MAX_INSTRUCTIONS: usize = 4_000;
/// The maximum along one path.
const MAX_PATH: usize = 200;
/// The maximum number of pending paths.
const MAX_PATHS: usize = 64;
/// The maximum size of a structure.
const MAX_OFFSET: i64 = 0x4000;
/// The length of the longest instruction (Intel SDM, volume 2, §2.3.11).
const MAX_INSTRUCTION: usize = 15;

/// A path from the first argument to an address: after each step but the last, a pointer is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PointerPath {
    steps: [i64; 3],
    hops: u8,
}

impl PointerPath {
    const START: Self = Self { steps: [0; 3], hops: 0 };

    fn plus(mut self, by: i64) -> Option<Self> {
        let last = &mut self.steps[usize::from(self.hops)];
        *last = last.checked_add(by)?;
        Some(self)
    }

    fn follow(mut self) -> Option<Self> {
        self.hops += 1;
        (self.hops <= 2).then_some(self)
    }

    /// The form that the kernel side expects, for a field of this width.
    #[must_use]
    pub(super) fn path(self, width: u8) -> Option<Path> {
        let mut steps = [0; 3];
        for (step, &from) in steps.iter_mut().zip(&self.steps[..=usize::from(self.hops)]) {
            *step = u16::try_from(from).ok().filter(|&step| i64::from(step) < MAX_OFFSET)?;
        }
        Some(Path { steps, hops: self.hops, width })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Unknown,
    Constant(u64),
    /// An address that is derived from the first argument.
    Address(PointerPath),
    /// The value at such an address, of this width in bytes.
    Field(PointerPath, u8),
}

impl Value {
    /// The value as an address to load from or to add to.
    fn address(self) -> Option<PointerPath> {
        match self {
            Self::Address(way) => Some(way),
            Self::Field(way, 8) => way.follow(),
            _ => None,
        }
    }

    fn narrow(self, to: u8) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(value & (u64::MAX >> (64 - 8 * u32::from(to)))),
            Self::Field(way, width) => Self::Field(way, width.min(to)),
            Self::Address(_) | Self::Unknown => Self::Unknown,
        }
    }
}

/// What a function does with its first argument, on any of its paths, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    /// Fields that are returned.
    pub returned: Vec<Path>,
    /// Constants, and addresses within the file, that are returned.
    pub constants: Vec<u64>,
    /// Fields that are read.
    pub loads: Vec<Path>,
    /// Addresses inside an object that are computed, other than its beginning.
    pub addresses: Vec<Path>,
    /// Fields that are passed as the first argument of a call.
    pub handed_on: Vec<Path>,
    /// Functions of the same file that are called with the first argument, and a constant as the second.
    pub calls: Vec<(u64, u64)>,
}

fn once<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// The only element of a list, if there is exactly one.
pub(crate) fn only<T: Copy>(list: &[T]) -> Option<T> {
    match list {
        [one] => Some(*one),
        _ => None,
    }
}

/// The calling convention of an architecture.
struct Convention {
    argument: Register,
    second: Register,
    result: Register,
    /// Registers clobbered by a call, one bit each.
    volatile: u32,
}

const X86: Convention = Convention { argument: 7, second: 6, result: 0, volatile: 0x0fc7 };
const AARCH64: Convention = Convention { argument: 0, second: 1, result: 0, volatile: 0x4007_ffff };

#[derive(Clone)]
struct Walker {
    registers: [Value; REGISTERS],
    at: u64,
    /// The remaining number of instructions that may be followed.
    left: usize,
}

/// One instruction, and the address of the next.
pub(crate) fn decode(elf: &Elf<'_>, at: u64) -> Option<(Operation, u64)> {
    let code = elf.code(at, MAX_INSTRUCTION)?;
    match elf.machine {
        Machine::X86_64 => x86::decode(code, at),
        Machine::Aarch64 => aarch64::decode(code, at),
    }
}

/// The other functions to which a small one tail-calls, on any of its paths.
#[must_use]
pub(crate) fn tails(elf: &Elf<'_>, entry: u64) -> Vec<u64> {
    /// Code farther from the entry belongs to another function.
    const FAR: u64 = 256;
    let mut found = Vec::new();
    let mut seen = Vec::new();
    let mut waiting = vec![entry];
    while let Some(mut at) = waiting.pop() {
        while at.abs_diff(entry) < FAR
            && !seen.contains(&at)
            && let Some((operation, next)) = decode(elf, at)
        {
            seen.push(at);
            at = next;
            match operation {
                Operation::Jump { target } if target.abs_diff(entry) < FAR => at = target,
                Operation::Jump { target } => {
                    if elf.is_code(target) {
                        once(&mut found, target);
                    }
                    break;
                }
                Operation::Branch { target } => waiting.push(target),
                Operation::Return | Operation::Leap { .. } | Operation::Stop => break,
                _ => {}
            }
        }
    }
    found
}

/// Where a function, from its first instruction to its last, reads a pointer, and a number of 32 bits right
/// behind it from the same object, whatever that is: the offset of the pointer.
#[must_use]
pub(crate) fn texts(elf: &Elf<'_>, function: Symbol) -> Vec<u16> {
    let end = function.address.saturating_add(function.size);
    let (mut at, mut loads) = (function.address, Vec::new());
    while at < end
        && loads.len() < MAX_PATH
        && let Some((operation, next)) = decode(elf, at)
    {
        if let Operation::Load { base, by, width, .. } = operation {
            once(&mut loads, (base, by, width));
        }
        at = next;
    }
    let is_pair =
        |&&(base, by, width): &&(Register, i64, u8)| width == 8 && loads.contains(&(base, by + 8, 4));
    loads.iter().filter(is_pair).filter_map(|(_, by, _)| u16::try_from(*by).ok()).collect()
}

/// Follows a function; at most to its end, if its size is known.
#[must_use]
pub(crate) fn trace(elf: &Elf<'_>, function: Symbol) -> Trace {
    trace_with(elf, function, None)
}

/// The same with a constant as the second argument.
#[must_use]
pub(crate) fn trace_with(elf: &Elf<'_>, function: Symbol, second: Option<u64>) -> Trace {
    let convention = match elf.machine {
        Machine::X86_64 => X86,
        Machine::Aarch64 => AARCH64,
    };
    let mut registers = [Value::Unknown; REGISTERS];
    registers[usize::from(convention.argument)] = Value::Address(PointerPath::START);
    registers[usize::from(convention.second)] = second.map_or(Value::Unknown, Value::Constant);
    let end = if function.size == 0 { u64::MAX } else { function.address.saturating_add(function.size) };
    let mut waiting = VecDeque::from([Walker { registers, at: function.address, left: MAX_PATH }]);
    let mut branched = Vec::new();
    let mut trace = Trace::default();
    let mut left = MAX_INSTRUCTIONS;
    // The shortest paths first: an accessor's main path is among them.
    while let Some(mut walker) = waiting.pop_front() {
        while walker.left > 0
            && left > 0
            && let Some((operation, next)) = decode(elf, walker.at)
        {
            left -= 1;
            walker.left -= 1;
            let is_last = next == end;
            walker.at = next;
            match operation {
                Operation::Jump { target } => walker.at = target,
                // Each branch is followed in both directions once per state, so that loops end.
                Operation::Branch { target } => {
                    let mut other = walker.clone();
                    other.at = target;
                    let state = (next, other.registers);
                    if waiting.len() < MAX_PATHS && !branched.contains(&state) {
                        branched.push(state);
                        waiting.push_back(other);
                    }
                }
                Operation::Return => {
                    trace.leave(walker.registers[usize::from(convention.result)]);
                    break;
                }
                Operation::Leap { .. } | Operation::Stop => break,
                // A call that does not return, such as `__stack_chk_fail`.
                _ if is_last => break,
                operation => walker.run(operation, &convention, &mut trace),
            }
        }
    }
    trace
}

impl Trace {
    fn leave(&mut self, result: Value) {
        match result {
            Value::Field(way, width) => {
                if let Some(path) = way.path(width) {
                    once(&mut self.returned, path);
                }
            }
            Value::Constant(value) => once(&mut self.constants, value),
            Value::Address(_) | Value::Unknown => {}
        }
    }
}

impl Walker {
    fn forget(&mut self, registers: u32) {
        for (number, register) in self.registers.iter_mut().enumerate() {
            if registers & 1 << number != 0 {
                *register = Value::Unknown;
            }
        }
    }

    fn run(&mut self, operation: Operation, convention: &Convention, trace: &mut Trace) {
        let of = |register: Register| self.registers[usize::from(register)];
        let (to, value) = match operation {
            Operation::Add { to, from, by: 0 } => (to, of(from)),
            Operation::Add { to, from, by } => {
                if let Value::Constant(value) = of(from) {
                    self.registers[usize::from(to)] = Value::Constant(value.wrapping_add_signed(by));
                    return;
                }
                let address = of(from).address().and_then(|way| way.plus(by));
                if let Some(path) = address.and_then(|way| way.path(0)) {
                    once(&mut trace.addresses, path);
                }
                (to, address.map_or(Value::Unknown, Value::Address))
            }
            Operation::Constant { to, value } => (to, Value::Constant(value)),
            Operation::Load { to, base, by, width } => {
                let way = of(base).address().and_then(|way| way.plus(by));
                if let Some(path) = way.and_then(|way| way.path(width)) {
                    once(&mut trace.loads, path);
                }
                let Some(to) = to else { return };
                (to, way.map_or(Value::Unknown, |way| Value::Field(way, width)))
            }
            Operation::Narrow { to, from, width } => (to, of(from).narrow(width)),
            Operation::Forget { registers } => return self.forget(registers),
            Operation::Index { to, base, index, scale, by } => {
                let Value::Constant(index) = of(index) else { return self.forget(1 << to) };
                let by = index.wrapping_mul(scale.into()).cast_signed().wrapping_add(by);
                return self.run(Operation::Add { to, from: base, by }, convention, trace);
            }
            Operation::Call { target } => {
                let is_object = of(convention.argument) == Value::Address(PointerPath::START);
                if let (true, Some(target), Value::Constant(second)) =
                    (is_object, target, of(convention.second))
                {
                    once(&mut trace.calls, (target, second));
                }
                if let Value::Field(way, width) = of(convention.argument)
                    && let Some(path) = way.path(width)
                {
                    once(&mut trace.handed_on, path);
                }
                return self.forget(convention.volatile);
            }
            _ => return,
        };
        self.registers[usize::from(to)] = value;
    }
}

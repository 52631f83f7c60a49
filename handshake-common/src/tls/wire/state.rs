//! What the kernel side keeps of one connection while its TLS handshake is in progress. The same bytes are
//! sent to user space when the handshake is over.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    burst::{Burst, MAX_BURSTS},
    record::{HEAD, Record, RecordFlags, content::APPLICATION_DATA},
};
use crate::{integer::low_32, vocabulary::Role};

/// How many noteworthy records are kept.
pub const MAX_RECORDS: usize = 16;

/// Yes-or-no facts about one direction, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct StreamFlags(u8);

bitflags! {
    impl StreamFlags: u8 {
        /// [`Stream::next`] is valid.
        const SYNCED = 1;
        /// Bytes passed by before those that the tracker waits for: lost or reordered ones, or more records
        /// in a packet than are looked at.
        const AHEAD = 1 << 1;
        /// ChangeCipherSpec.
        const CHANGE_CIPHER_SPEC = 1 << 2;
        /// The Finished message of TLS 1.2 or before: the first handshake record behind ChangeCipherSpec.
        const FINISHED = 1 << 3;
        /// A plaintext handshake record that is no hello. From a client: its certificate or key exchange,
        /// which only a full handshake of TLS 1.2 or before has (RFC 5246 §7.3). From a server also a message
        /// behind the ServerHello in the same record.
        const EXCHANGED = 1 << 4;
        /// Client: application data behind its own Finished. Server: an encrypted record of the length of an
        /// alert.
        const SPOKE = 1 << 5;
    }
}

/// One direction. Positions are TCP sequence numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Stream {
    /// The next byte that the tracker needs: of a record header, or of what it must know behind one.
    pub next: u32,
    /// End of the furthest packet that passed by too early ([`StreamFlags::AHEAD`]).
    pub ahead: u32,
    /// The newest hello, from its record header …
    pub hello_from: u32,
    /// … to its end, as far as it is known; empty while both are equal.
    pub hello_to: u32,
    /// Bytes of the newest hello that are still to come, in further records.
    pub hello_left: u32,
    /// Where the record headers of the first and the second hello are.
    pub hellos: [u32; 2],
    /// The number of hellos.
    pub hello_count: u8,
    /// See [`StreamFlags`].
    pub seen: StreamFlags,
    /// The number of valid bytes in `head`: a record header that straddles packets.
    pub have: u8,
    /// See `have`.
    pub head: [u8; HEAD],
}

impl Stream {
    /// Whether bytes that the tracker needs have passed by, so that nothing behind them can be known unless
    /// they come again.
    #[must_use]
    #[inline(always)]
    pub const fn is_stalled(&self) -> bool {
        self.seen.contains(StreamFlags::AHEAD) && is_before(self.next, self.ahead)
    }
}

/// Why the tracker has finished with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// It has not.
    Going = 0,
    /// The handshake is complete, or an alert ended it.
    Over = 1,
    /// The bytes are not TLS, or violate its rules.
    Malformed = 2,
    /// There were too many packets or records, or a decisive one was missed.
    Exhausted = 3,
    /// The connection ended first.
    Closed = 4,
}

/// One connection's handshake. All zero: no ClientHello was seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Wire {
    /// The first byte of the ClientHello passed by: CLOCK_MONOTONIC, ns.
    pub hello_ns: u64,
    /// From the TLS client.
    pub client: Stream,
    /// From the TLS server.
    pub server: Stream,
    /// The last byte of the first ClientHello passed by: units of 1024 ns since `hello_ns`, plus 1; 0 = not
    /// seen.
    pub whole_at: u32,
    /// The last retransmission of the beginning of the ClientHello: as `whole_at`.
    pub again_at: u32,
    /// The client acknowledged the server's Finished (TLS 1.2 and before, full): as `whole_at`.
    pub acked_at: u32,
    /// Where the server's Finished ends.
    pub finished_to: u32,
    /// Behind the furthest byte that has passed by, of the client and of the server; 0 = none has.
    pub ends: [u32; 2],
    /// Packets looked at.
    pub packets: u16,
    /// [`Role`] code of the local end in TLS.
    pub role: u8,
    /// [`Ending`].
    pub ending: u8,
    /// Records of the client's second flight (TLS 1.3).
    pub flight: u8,
    /// The number of entries in `log`.
    pub logged: u8,
    /// 1: the server answered the client's Finished (TLS 1.3) with a record of the length of an alert.
    pub doubted: u8,
    /// The number of entries in `bursts`.
    pub burst_count: u8,
    /// The noteworthy records in the order in which they passed by: the first and the last of each run of
    /// equal ones.
    pub log: [Record; MAX_RECORDS],
    /// When packets passed by, in their order.
    pub bursts: [Burst; MAX_BURSTS],
    /// 1: there were more bursts than there is room for.
    pub bursts_lost: u16,
    /// The named curve of a ServerKeyExchange that begins a record (RFC 8422 §5.4); 0: not seen. Only the
    /// cipher suite tells whether its bytes mean that.
    pub curve: u16,
    /// The two bytes behind the public key of that ServerKeyExchange: in TLS 1.2 what it is signed with (RFC
    /// 5246 §7.4.3); 0: not seen.
    pub signature: u16,
    /// Keeps the size a multiple of 8.
    pub reserved: u16,
}

/// Size of a [`Wire`], bytes.
pub const SIZE: usize = size_of::<Wire>();

const _: () = assert!(SIZE == 512, "no padding, and both sides know the size");
const _: () = assert!(size_of::<Stream>() == 40 && size_of::<Record>() == 8);

impl Wire {
    /// Reads what the kernel side sent. Returns `None` if the length is wrong or no handshake had begun.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok().filter(|wire| wire.role().is_some())
    }

    /// Which end of the TLS handshake the local one is; `None` before the ClientHello.
    #[must_use]
    #[inline(always)]
    pub const fn role(&self) -> Option<Role> {
        Role::from_code(self.role)
    }

    /// The records in the order in which they passed by.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.log.get(..usize::from(self.logged)).unwrap_or(&self.log)
    }

    /// When packets passed by, in their order; `None` if there were too many to keep.
    #[must_use]
    pub fn bursts(&self) -> Option<&[Burst]> {
        let bursts = self.bursts.get(..usize::from(self.burst_count))?;
        (self.bursts_lost == 0).then_some(bursts)
    }

    /// CLOCK_MONOTONIC of a record, ns, with a resolution of 1024 ns.
    #[must_use]
    pub const fn time_of(&self, record: &Record) -> u64 {
        self.hello_ns.saturating_add((record.at as u64) << 10)
    }

    /// CLOCK_MONOTONIC, ns, of a moment such as [`Wire::whole_at`]; `None` if it was not seen.
    #[must_use]
    pub const fn moment(&self, at: u32) -> Option<u64> {
        if at == 0 { None } else { Some(self.hello_ns.saturating_add(((at - 1) as u64) << 10)) }
    }

    /// Why the tracker has finished.
    #[must_use]
    #[inline(always)]
    pub const fn is(&self, ending: Ending) -> bool {
        self.ending == ending as u8
    }

    #[inline(always)]
    pub(super) const fn stream(&mut self, side: Role) -> &mut Stream {
        match side {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    /// Units of 1024 ns since the ClientHello: a shift, whereas microseconds would need a division.
    #[inline(always)]
    pub(super) const fn ticks(&self, now_ns: u64) -> u32 {
        let ticks = now_ns.saturating_sub(self.hello_ns) >> 10;
        // More than an hour for a handshake: the exact number is of no interest.
        if ticks >= u32::MAX as u64 { u32::MAX - 1 } else { low_32(ticks) }
    }

    /// Adds to the log. In a run of equal kinds the last entry is replaced, except in the client's second
    /// flight, which is short and in which every record counts.
    #[inline(always)]
    pub(super) const fn note(&mut self, at: u32, length: u16, content: u8, mark: RecordFlags, detail: u8) {
        let record = Record { at, length, kind: Record::kind_of(content, mark), detail };
        let count = self.logged as usize;
        let run = count >= 2
            && record.kind != Record::kind_of(APPLICATION_DATA, RecordFlags::empty())
            && self.log[(count - 1) & (MAX_RECORDS - 1)].kind == record.kind
            && self.log[(count - 2) & (MAX_RECORDS - 1)].kind == record.kind;
        if run {
            self.log[(count - 1) & (MAX_RECORDS - 1)] = record;
        } else if count < MAX_RECORDS {
            self.log[count & (MAX_RECORDS - 1)] = record;
            self.logged += 1;
        } else {
            self.ending = Ending::Exhausted as u8;
        }
    }
}

/// Whether a position lies before another (RFC 9293 §3.4).
#[must_use]
#[inline(always)]
pub const fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > i32::MAX as u32
}

// SAFETY: integers only, repr(C), and no padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Wire {}

//! TCP: the state machine that both sides share, and what its facts mean.

pub mod close;
pub mod errno;
pub mod listener;
pub mod minisocket;
pub mod open;
pub mod setup;
pub mod state;

/// `enum` of `include/net/tcp_states.h`, as far as connections go through it.
pub mod states {
    #![expect(missing_docs, reason = "the names are the kernel's")]
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
    pub const LISTEN: u32 = 10;
    pub const CLOSING: u32 = 11;
}

/// What the state machine asks of the kernel's `struct tcp_sock`; every call is one load there, so ask late.
pub trait Sock {
    /// `sk_err`: errno of the failure.
    fn err(&self) -> u32;
    /// `sk_err_soft`: what ICMP reported of a connection that goes on; 0 after the next ACK.
    fn soft_err(&self) -> u32;
    /// SOCK_DONE: the peer's FIN was handled by the full socket (`tcp_fin`).
    fn done(&self) -> bool;
    /// RCV_SHUTDOWN: our program reads no more, so data that comes is answered with a RST.
    fn receive_shutdown(&self) -> bool;
    /// The kernel's own condition for holding the final ACK back (`tcp_rcv_synsent_state_process`).
    fn holds_final_ack(&self) -> bool;
    /// `srtt_us`, as the kernel keeps it (microseconds times 8).
    fn srtt_us(&self) -> u32;
    /// `total_retrans`.
    fn total_retrans(&self) -> u32;
    /// `data_segs_in`.
    fn data_segs_in(&self) -> u32;
    /// `bytes_acked`: counts our SYN as one byte.
    fn bytes_acked(&self) -> u64;
    /// `packets_out != 0`: something was sent, a SYN too, that is not acknowledged.
    fn has_in_flight(&self) -> bool;
    /// `inet_hash_connect` has failed: there is no local port, or one that the program had bound before, and
    /// no sequence number was chosen yet.
    fn lacks_ends(&self) -> bool;
    /// `write_seq != snd_nxt`: something is queued that never left.
    fn has_unsent(&self) -> bool;
    /// `snd_una == write_seq`: everything, our FIN too, is acknowledged.
    fn all_acked(&self) -> bool;
    /// `rcv_nxt != rcv_wup`: something was received that no segment of ours has acknowledged yet.
    fn owes_ack(&self) -> bool;
    /// `tcp_wstamp_ns`: when the last segment left, nanoseconds of CLOCK_MONOTONIC.
    fn last_sent_ns(&self) -> u64;
    /// `tcp_clock_cache`: the clock as read for the segment in hand, nanoseconds.
    fn segment_clock_ns(&self) -> u64;
    /// `rack.mstamp`: when the newest acknowledged segment had left, microseconds.
    fn newest_acked_sent_us(&self) -> u64;
    /// The bits that tell the Fast Open story, as [`crate::ConnectionFlags`] (`SYN_FASTOPEN`, `SYN_DATA`,
    /// `DEFERRED_SYN`).
    fn syn_facts(&self) -> crate::ConnectionFlags;
    /// `syn_data_acked`.
    fn syn_data_acked(&self) -> bool;
    /// When a Fast Open child was made, just before its SYN-ACK left: nanoseconds of CLOCK_MONOTONIC; 0 =
    /// unknown.
    fn child_made_ns(&self) -> u64;
    /// `tcp_usec_ts`.
    fn usec_timestamps(&self) -> bool;
}

//! A socket whose every field the test sets.

use handshake_common::{ConnectionFlags, tcp::Sock};

#[expect(clippy::struct_excessive_bools, reason = "they are the kernel's")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Socket {
    pub err: u32,
    pub soft_err: u32,
    pub done: bool,
    pub receive_shutdown: bool,
    pub holds_final_ack: bool,
    pub srtt_us: u32,
    pub total_retrans: u32,
    pub data_segs_in: u32,
    pub bytes_acked: u64,
    pub idle: bool,
    pub lacks_ends: bool,
    pub unsent: bool,
    pub all_acked: bool,
    pub owes_ack: bool,
    pub last_sent_ns: u64,
    pub segment_clock_ns: u64,
    pub newest_acked_sent_us: u64,
    pub syn_facts: u32,
    pub syn_data_acked: bool,
    pub usec_timestamps: bool,
    pub child_made_ns: u64,
}

impl Sock for Socket {
    fn err(&self) -> u32 {
        self.err
    }
    fn soft_err(&self) -> u32 {
        self.soft_err
    }
    fn done(&self) -> bool {
        self.done
    }
    fn receive_shutdown(&self) -> bool {
        self.receive_shutdown
    }
    fn holds_final_ack(&self) -> bool {
        self.holds_final_ack
    }
    fn srtt_us(&self) -> u32 {
        self.srtt_us
    }
    fn total_retrans(&self) -> u32 {
        self.total_retrans
    }
    fn data_segs_in(&self) -> u32 {
        self.data_segs_in
    }
    fn bytes_acked(&self) -> u64 {
        self.bytes_acked
    }
    fn has_in_flight(&self) -> bool {
        !self.idle
    }
    fn lacks_ends(&self) -> bool {
        self.lacks_ends
    }
    fn has_unsent(&self) -> bool {
        self.unsent
    }
    fn all_acked(&self) -> bool {
        self.all_acked
    }
    fn owes_ack(&self) -> bool {
        self.owes_ack
    }
    fn last_sent_ns(&self) -> u64 {
        self.last_sent_ns
    }
    fn segment_clock_ns(&self) -> u64 {
        self.segment_clock_ns
    }
    fn newest_acked_sent_us(&self) -> u64 {
        self.newest_acked_sent_us
    }
    fn syn_facts(&self) -> ConnectionFlags {
        let ours = ConnectionFlags::SYN_FASTOPEN | ConnectionFlags::SYN_DATA | ConnectionFlags::DEFERRED_SYN;
        ConnectionFlags::from_bits_retain(self.syn_facts) & ours
    }
    fn syn_data_acked(&self) -> bool {
        self.syn_data_acked
    }
    fn child_made_ns(&self) -> u64 {
        self.child_made_ns
    }
    fn usec_timestamps(&self) -> bool {
        self.usec_timestamps
    }
}

//! Labels whose values are closed lists. A class is one code per label, so its metric is found by index.

use handshake_common::{
    CloseStyle, Family, FastOpen, FinalAck, Initiator, Library, Outcome, Role, TlsClass, TlsVersion,
};

/// A label of a closed list; code 0 is `unknown`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) name: &'static str,
    slots: usize,
    word: fn(u8) -> &'static str,
}

macro_rules! axis {
    ($name:literal, $words:ty) => {
        Axis {
            name: $name,
            slots: <$words>::SLOTS,
            word: |code| <$words>::from_code(code).map_or("unknown", |word| word.as_str()),
        }
    };
}

pub(super) const ROLE: Axis = axis!("role", Role);
pub(super) const FAMILY: Axis = axis!("family", Family);
pub(super) const OUTCOME: Axis = axis!("outcome", Outcome);
pub(super) const FAST_OPEN: Axis = axis!("fast_open", FastOpen);
pub(super) const FAST_OPEN_RESULT: Axis = axis!("result", FastOpen);
pub(super) const FINAL_ACK: Axis = axis!("final_ack", FinalAck);
pub(super) const INITIATOR: Axis = axis!("initiator", Initiator);
pub(super) const STYLE: Axis = axis!("style", CloseStyle);
pub(super) const TLS_VERSION: Axis = axis!("version", TlsVersion);
pub(super) const TLS_CLASS: Axis = axis!("class", TlsClass);
pub(super) const LIBRARY: Axis = axis!("library", Library);
/// The versions, and behind them one more code for a setup without TLS.
pub(super) const SETUP_VERSION: Axis = Axis {
    name: "version",
    slots: TlsVersion::SLOTS + 1,
    word: |code| {
        if usize::from(code) == TlsVersion::SLOTS {
            "none"
        } else {
            TlsVersion::from_code(code).map_or("unknown", TlsVersion::as_str)
        }
    },
};
/// Round trips of a setup: no handshake of today takes more.
pub(super) const ROUND_TRIPS: [&str; 5] = ["0", "1", "2", "3", "4"];

/// The codes of one class, in the order of the axes.
pub(super) type Codes<const N: usize> = [u8; N];

/// How many classes the axes have.
pub(super) fn size(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.slots).product()
}

/// The index of a class. An unlisted code counts as unknown, so the index is always valid.
pub(super) fn index<const N: usize>(axes: &[Axis; N], codes: Codes<N>) -> usize {
    axes.iter().zip(codes).fold(0, |index, (axis, code)| {
        let code = usize::from(code);
        index * axis.slots + if code < axis.slots { code } else { 0 }
    })
}

/// The label values of a class.
pub(super) fn words<const N: usize>(axes: &[Axis; N], codes: Codes<N>) -> [&'static str; N] {
    std::array::from_fn(|i| (axes[i].word)(codes[i]))
}

/// Every class, in the order of its index.
pub(super) fn all<const N: usize>(axes: &[Axis; N]) -> impl Iterator<Item = Codes<N>> {
    (0..size(axes)).map(move |mut index| {
        let mut codes = [0; N];
        for (code, axis) in codes.iter_mut().zip(axes).rev() {
            *code = u8::try_from(index % axis.slots).unwrap_or(0);
            index /= axis.slots;
        }
        codes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_own_index() {
        let axes = [ROLE, INITIATOR, STYLE];
        for (i, codes) in all(&axes).enumerate() {
            assert_eq!(index(&axes, codes), i);
        }
        assert_eq!(all(&axes).count(), 3 * 4 * 7);
    }

    #[test]
    fn strangers_are_unknown() {
        assert_eq!(index(&[ROLE, FAMILY], [200, 0]), 0);
        assert_eq!(words(&[ROLE, FAMILY], [200, Family::Ipv6.code()]), ["unknown", "ipv6"]);
    }
}

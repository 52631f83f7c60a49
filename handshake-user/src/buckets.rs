//! The upper bounds of the buckets of histograms: a setting, and by default what each histogram is of.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use thiserror::Error;

/// Why a text or a list is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BucketsError {
    /// Not a list of numbers.
    #[error("buckets are \"default\", or seconds with commas between them")]
    NoList,
    /// Numbers that do not bound buckets.
    #[error("buckets are seconds above 0, in ascending order")]
    NotAscending,
}

/// Upper bounds of histogram buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Buckets {
    /// Those of each histogram's purpose.
    #[default]
    ByPurpose,
    /// These for every histogram, seconds: positive, finite, ascending, at least one.
    All(Vec<f64>),
}

/// What a histogram is of, which says where its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Round trips: from 10 µs, which loopback needs, to 2 s.
    RoundTrip,
    /// Openings and setups: from 10 µs to 100 s, by when the SYN has been retransmitted for the last time.
    Opening,
    /// TLS handshakes: none computes for less than 100 µs.
    Handshake,
    /// Waiting for programs: twice a decade is enough, up to minutes.
    Wait,
    /// `TIME_WAIT`: 60 s (`TCP_TIMEWAIT_LEN`), or less where its ends are used again. No bound is near that:
    /// a time that is known to some milliseconds would not be certain to be on one side of it.
    TimeWait,
}

impl Buckets {
    /// The word for [`Buckets::ByPurpose`].
    const BY_PURPOSE: &str = "default";

    /// The bounds of a histogram, seconds.
    #[must_use]
    pub fn bounds(&self, purpose: Purpose) -> Vec<f64> {
        match self {
            Self::All(bounds) => bounds.clone(),
            Self::ByPurpose => purpose.bounds(),
        }
    }

    /// The bounds that the kernel side counts by: all of the histograms that it fills.
    #[must_use]
    pub fn kernel_bounds(&self) -> Vec<f64> {
        let filled = [Purpose::RoundTrip, Purpose::Opening, Purpose::Wait];
        let mut all: Vec<f64> = filled.into_iter().flat_map(|purpose| self.bounds(purpose)).collect();
        all.sort_unstable_by(f64::total_cmp);
        all.dedup();
        all
    }
}

impl Purpose {
    fn bounds(self) -> Vec<f64> {
        // Parsed from decimal text, so that the bounds read as such in the label `le`.
        let steps = |tens: std::ops::RangeInclusive<i32>, steps: &[&str]| -> Vec<f64> {
            tens.flat_map(|ten| steps.iter().filter_map(move |step| format!("{step}e{ten}").parse().ok()))
                .collect()
        };
        let until = |mut bounds: Vec<f64>, last: f64| {
            bounds.retain(|bound| *bound <= last);
            bounds
        };
        match self {
            Self::RoundTrip => until(steps(-5..=0, &["1", "2", "5"]), 2.0),
            Self::Opening => until(steps(-5..=2, &["1", "2", "5"]), 100.0),
            Self::Handshake => until(steps(-4..=2, &["1", "2", "5"]), 100.0),
            Self::Wait => steps(-4..=2, &["1", "5"]),
            Self::TimeWait => vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0],
        }
    }
}

impl TryFrom<Vec<f64>> for Buckets {
    type Error = BucketsError;

    fn try_from(bounds: Vec<f64>) -> Result<Self, BucketsError> {
        let is_valid = !bounds.is_empty()
            && bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0)
            && bounds.is_sorted_by(|a, b| a < b);
        if is_valid { Ok(Self::All(bounds)) } else { Err(BucketsError::NotAscending) }
    }
}

impl FromStr for Buckets {
    type Err = BucketsError;

    fn from_str(text: &str) -> Result<Self, BucketsError> {
        if text == Self::BY_PURPOSE {
            return Ok(Self::ByPurpose);
        }
        let bounds: Result<Vec<f64>, _> = text.split(',').map(|bound| bound.trim().parse()).collect();
        bounds.map_err(|_| BucketsError::NoList)?.try_into()
    }
}

/// The word, or a list of numbers.
impl<'de> Deserialize<'de> for Buckets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;

        impl<'de> Visitor<'de> for Value {
            type Value = Buckets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of seconds, or \"default\"")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Buckets, E> {
                word.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Buckets, A::Error> {
                let bounds = Vec::<f64>::deserialize(SeqAccessDeserializer::new(list))?;
                bounds.try_into().map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Value)
    }
}

impl Serialize for Buckets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ByPurpose => serializer.serialize_str(Self::BY_PURPOSE),
            Self::All(bounds) => bounds.serialize(serializer),
        }
    }
}

/// How many there are and what they span: for the help text, a list of all is too long.
impl Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPurpose => f.write_str("by what is measured"),
            Self::All(bounds) => match bounds.as_slice() {
                [first, .., last] => write!(f, "{} bounds from {first} to {last}", bounds.len()),
                _ => write!(f, "{bounds:?}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_buckets_are_decimal_and_the_kernel_side_has_room_for_all_of_them() {
        let of = |purpose| Buckets::default().bounds(purpose);
        let opening = of(Purpose::Opening);
        assert_eq!((opening.len(), opening[0], opening[1], opening[21]), (22, 0.00001, 0.00002, 100.0));
        let round_trip = of(Purpose::RoundTrip);
        assert_eq!((round_trip.len(), round_trip[16]), (17, 2.0));
        let wait = of(Purpose::Wait);
        assert_eq!((wait.len(), wait[0], wait[1], wait[13]), (14, 0.0001, 0.0005, 500.0));
        let all = Buckets::default().kernel_bounds();
        assert!(all.len() <= handshake_common::histograms::MAX_BOUNDS, "{all:?}");
        for purpose in
            [Purpose::RoundTrip, Purpose::Opening, Purpose::Handshake, Purpose::Wait, Purpose::TimeWait]
        {
            assert!(Buckets::try_from(of(purpose)).is_ok(), "{purpose:?}");
            assert!(
                purpose == Purpose::TimeWait || of(purpose).iter().all(|bound| all.contains(bound)),
                "{purpose:?}"
            );
        }
        let own = Buckets::All(vec![0.5, 1.0]);
        assert_eq!((own.bounds(Purpose::TimeWait), own.kernel_bounds()), (vec![0.5, 1.0], vec![0.5, 1.0]));
    }

    #[test]
    fn text_is_a_list_of_seconds() {
        assert_eq!("0.1, 1,10".parse(), Ok(Buckets::All(vec![0.1, 1.0, 10.0])));
        assert!("1,a".parse::<Buckets>().is_err());
    }
}

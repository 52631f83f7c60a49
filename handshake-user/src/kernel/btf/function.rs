//! Whether a function of the running kernel is the one that a program was written for.

use thiserror::Error;

use super::types::{Btf, Proto};

/// What a program relies on. Further parameters may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prototype {
    /// The function.
    pub function: &'static str,
    /// Its first parameters: pointers to these structures.
    pub parameters: &'static [&'static str],
    /// The structure to which it returns a pointer, if that is read.
    pub returns: Option<&'static str>,
}

/// How a function differs from what a program relies on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrototypeError {
    /// There is none, or it is inlined everywhere.
    #[error("this kernel has no function {function}, or none that is called")]
    Missing {
        /// Its name.
        function: &'static str,
    },
    /// Several have the name, and differ.
    #[error("this kernel has several functions {function}")]
    Ambiguous {
        /// Its name.
        function: &'static str,
    },
    /// A parameter is another one.
    #[error("parameter {number} of {function} is no pointer to a {structure} on this kernel")]
    Parameter {
        /// The function.
        function: &'static str,
        /// Which one, from 1.
        number: usize,
        /// What was expected.
        structure: &'static str,
    },
    /// It returns something else.
    #[error("{function} returns no pointer to a {structure} on this kernel")]
    Returns {
        /// The function.
        function: &'static str,
        /// What was expected.
        structure: &'static str,
    },
}

/// The number of the function's parameters, if it is the one that is expected.
///
/// # Errors
/// How it differs.
pub fn arity_of(btf: &Btf, prototype: &Prototype) -> Result<u32, PrototypeError> {
    let Prototype { function, parameters, returns } = *prototype;
    let found = btf.functions(function);
    let Some(first) = found.first() else { return Err(PrototypeError::Missing { function }) };
    let same = |other: &Proto| (&other.parameters, other.returns) == (&first.parameters, first.returns);
    if !found.iter().all(same) {
        return Err(PrototypeError::Ambiguous { function });
    }
    for (index, structure) in parameters.iter().enumerate() {
        let parameter = first.parameters.get(index).and_then(|id| btf.pointee(*id));
        if parameter != Some(structure.as_bytes()) {
            return Err(PrototypeError::Parameter { function, number: index + 1, structure });
        }
    }
    if let Some(structure) = returns
        && btf.pointee(first.returns) != Some(structure.as_bytes())
    {
        return Err(PrototypeError::Returns { function, structure });
    }
    u32::try_from(first.parameters.len()).map_err(|_| PrototypeError::Ambiguous { function })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s; struct s *f(struct s *, int)`, and `void g(void)` twice, once with a parameter.
    fn btf() -> Btf {
        const STRINGS: &[u8] = b"\0s\0f\0g\0";
        let types: Vec<u32> = [
            vec![1, 4 << 24, 0],
            vec![0, 2 << 24, 1],
            vec![0, 1 << 24, 4, 32],
            vec![0, 13 << 24 | 2, 2, 0, 2, 0, 3],
            vec![3, 12 << 24, 4],
            vec![0, 13 << 24, 0],
            vec![5, 12 << 24, 6],
            vec![5, 12 << 24, 4],
        ]
        .concat();
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let types = words(&types);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let header = [24, 0, length(&types), length(&types), length(STRINGS)];
        let bytes = [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0], &words(&header), &types, STRINGS].concat();
        Btf::from_bytes(bytes).unwrap()
    }

    fn look(
        function: &'static str,
        parameters: &'static [&'static str],
        returns: Option<&'static str>,
    ) -> Result<u32, PrototypeError> {
        arity_of(&btf(), &Prototype { function, parameters, returns })
    }

    #[test]
    fn function_is_compared_with_what_is_relied_on() {
        assert_eq!(look("f", &["s"], Some("s")), Ok(2));
        assert_eq!(look("f", &[], None), Ok(2));
        assert_eq!(look("h", &[], None), Err(PrototypeError::Missing { function: "h" }));
        assert_eq!(look("g", &[], None), Err(PrototypeError::Ambiguous { function: "g" }));
        let second = PrototypeError::Parameter { function: "f", number: 2, structure: "s" };
        assert_eq!(look("f", &["s", "s"], None), Err(second));
        assert!(matches!(look("f", &["s", "t"], None), Err(PrototypeError::Parameter { number: 2, .. })));
        assert!(matches!(look("f", &["s"], Some("t")), Err(PrototypeError::Returns { structure: "t", .. })));
    }
}

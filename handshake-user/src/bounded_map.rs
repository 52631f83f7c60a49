//! A map of bounded size: a new entry evicts the one that was inserted first.
//!
//! [`hashlink`] keeps the order; what is added here is the bound, and that an entry keeps its place when its
//! value is replaced.

use std::hash::Hash;

use hashlink::LinkedHashMap;

/// Entries in the order of their insertion, at most `capacity` of them.
///
/// A limit in other units, such as bytes, is the caller's: it counts them, and calls
/// [`BoundedMap::pop_oldest`] until they are few enough.
#[derive(Debug)]
pub struct BoundedMap<K, V> {
    entries: LinkedHashMap<K, V>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Clone for BoundedMap<K, V> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), capacity: self.capacity }
    }
}

impl<K: Eq + Hash, V> BoundedMap<K, V> {
    /// An empty map. It allocates as it grows.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { entries: LinkedHashMap::new(), capacity }
    }

    /// Adds an entry at the end, or replaces the value of the entry with this key, which keeps its place.
    /// Returns the entry that was evicted, if any.
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        self.entries.replace(key, value);
        if self.entries.len() > self.capacity { self.entries.pop_front() } else { None }
    }

    /// The value of this key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// The value of this key, to be changed in its place.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    /// Whether there is an entry with this key.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Removes the entry with this key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key)
    }

    /// Removes the entry that was inserted first.
    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        self.entries.pop_front()
    }

    /// Keeps only the entries for which `keep` holds, in their order.
    pub fn retain(&mut self, keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain(keep);
    }

    /// The entries, the oldest first.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.entries.iter()
    }

    /// The entries with their values to be changed, the oldest first.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (&K, &mut V)> {
        self.entries.iter_mut()
    }

    /// Takes all entries out, the oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = (K, V)> + use<K, V> {
        std::mem::take(&mut self.entries).into_iter()
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn insert_evicts_the_oldest() {
        let mut map = BoundedMap::new(2);
        assert_eq!(map.insert('a', 1), None);
        assert_eq!(map.insert('b', 2), None);
        assert_eq!(map.insert('a', 3), None, "replaced in its place");
        assert_eq!(map.insert('c', 4), Some(('a', 3)));
        assert_eq!(map.drain().collect::<Vec<_>>(), [('b', 2), ('c', 4)]);
        assert!(map.is_empty());
    }

    #[test]
    fn map_without_capacity_keeps_nothing() {
        let mut map = BoundedMap::new(0);
        assert_eq!(map.insert('a', 1), Some(('a', 1)));
        assert!(map.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Insert(u8, u32),
        Change(u8, u32),
        Remove(u8),
        PopOldest,
        RetainEven,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let key = 0_u8..12;
        prop_oneof![
            4 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Operation::Insert(key, value)),
            1 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Operation::Change(key, value)),
            1 => key.prop_map(Operation::Remove),
            1 => Just(Operation::PopOldest),
            1 => Just(Operation::RetainEven),
        ]
    }

    /// A list with the same rules, searched from front to back.
    #[derive(Default)]
    struct Model(Vec<(u8, u32)>);

    impl Model {
        fn get_mut(&mut self, key: u8) -> Option<&mut u32> {
            self.0.iter_mut().find(|(known, _)| *known == key).map(|(_, value)| value)
        }

        fn pop_oldest(&mut self) -> Option<(u8, u32)> {
            (!self.0.is_empty()).then(|| self.0.remove(0))
        }

        fn insert(&mut self, key: u8, value: u32, capacity: usize) -> Option<(u8, u32)> {
            match self.get_mut(key) {
                Some(known) => *known = value,
                None => self.0.push((key, value)),
            }
            if self.0.len() > capacity { self.pop_oldest() } else { None }
        }

        fn remove(&mut self, key: u8) -> Option<u32> {
            let at = self.0.iter().position(|(known, _)| *known == key)?;
            Some(self.0.remove(at).1)
        }
    }

    proptest! {
        #[test]
        fn map_behaves_as_its_model(capacity in 0_usize..8, operations in prop::collection::vec(operation(), 0..60)) {
            let (mut map, mut model) = (BoundedMap::new(capacity), Model::default());
            for operation in operations {
                match operation {
                    Operation::Insert(key, value) => {
                        prop_assert_eq!(map.insert(key, value), model.insert(key, value, capacity));
                    }
                    Operation::Change(key, value) => {
                        let changed = map.get_mut(&key).map(|known| std::mem::replace(known, value));
                        prop_assert_eq!(changed, model.get_mut(key).map(|known| std::mem::replace(known, value)));
                    }
                    Operation::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(key)),
                    Operation::PopOldest => prop_assert_eq!(map.pop_oldest(), model.pop_oldest()),
                    Operation::RetainEven => {
                        map.retain(|_, value| *value % 2 == 0);
                        model.0.retain(|(_, value)| *value % 2 == 0);
                    }
                }
                prop_assert!(map.len() <= capacity && map.len() == model.0.len());
                let entries: Vec<_> = map.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(&entries, &model.0);
                for key in 0..12 {
                    prop_assert_eq!(map.get(&key).copied(), model.get_mut(key).copied());
                    prop_assert_eq!(map.contains(&key), map.get(&key).is_some());
                }
            }
        }
    }
}

//! Random numbers that need not be secret for long: seeds and salts.

use std::hash::{BuildHasher, RandomState};

/// Returns a random number. The randomness comes from the operating system through the hash keys of the standard
/// library, which differ for every `RandomState`. In a simulation the number is always the same.
pub(crate) fn random() -> u64 {
    #[cfg(test)]
    if super::simulated::is_active() {
        return 0;
    }
    RandomState::new().hash_one(super::now())
}

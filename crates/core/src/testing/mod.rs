//! The benches of truth: what proves any layer right.

//! Checking and repairing an image, starting from its file: nothing in it is believed before it was looked at.

pub(crate) mod bits;
pub(crate) mod places;
pub(crate) mod table;

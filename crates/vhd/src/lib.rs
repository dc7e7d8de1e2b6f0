//! The vhd format.

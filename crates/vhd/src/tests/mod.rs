//! Whole images: written, read back, held against a flat vector and against other programs.

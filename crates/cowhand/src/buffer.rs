//! Memory that guest data passes through, begun at a page: the kernel copies into that a third faster.

const PAGE: usize = 4096;

/// Bytes that begin at a multiple of the page size.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// `len` bytes of whatever was there before.
    pub(crate) fn get(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + PAGE {
            // What is dropped here was begun elsewhere; its content is not wanted.
            self.0 = vec![0; len + PAGE];
        }
        let start = self.0.as_ptr().align_offset(PAGE).min(PAGE);
        &mut self.0[start..start + len] // never out of bounds: there is a page more than asked for
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_page_however_it_grows() {
        let mut buffer = Buffer::default();
        for len in [1, 4096, 100, 1 << 20, 5 << 20] {
            let bytes = buffer.get(len);
            assert_eq!((bytes.len(), bytes.as_ptr() as usize % PAGE), (len, 0));
        }
    }
}

//! A storage in memory, sparse by page: for tests, and for what never touches a disk.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Identity, Storage};

const PAGE: u64 = 4096;

/// Sparse bytes in memory.
#[derive(Debug)]
pub struct MemoryStorage {
    pages: RwLock<Pages>,
    id: u64,
}

#[derive(Debug, Default, Clone)]
struct Pages {
    len: u64,
    changes: u64,
    /// Shared with snapshots until one of them is written.
    map: BTreeMap<u64, Arc<Page>>,
}

type Page = [u8; PAGE as usize];

impl Default for MemoryStorage {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        MemoryStorage { pages: RwLock::default(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// A storage with this content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let storage = Self::new();
        let mut pages = storage.pages_mut();
        pages.write(0, bytes);
        drop(pages);
        storage
    }

    /// All bytes. For small storages: tests.
    pub fn to_vec(&self) -> Vec<u8> {
        let pages = self.pages();
        let mut bytes = vec![0; usize::try_from(pages.len).unwrap_or(0)];
        pages.read(0, &mut bytes);
        bytes
    }

    /// A storage of its own with the same content now. Pages are shared until one side writes them.
    pub fn snapshot(&self) -> Self {
        MemoryStorage { pages: RwLock::new(self.pages().clone()), ..Self::default() }
    }

    /// True where both have the same length and bytes. Shared pages are not looked at.
    pub fn same_bytes(&self, other: &MemoryStorage) -> bool {
        // Copies (cheap: shared pages), so that two comparisons the other way round cannot wait for each other.
        let (one, two) = (self.pages().clone(), other.pages().clone());
        let blank: Arc<Page> = Arc::new([0; PAGE as usize]);
        let covers = |a: &Pages, b: &Pages| {
            a.map.iter().all(|(at, page)| {
                let twin = b.map.get(at).unwrap_or(&blank);
                Arc::ptr_eq(page, twin) || page == twin
            })
        };
        one.len == two.len && covers(&one, &two) && covers(&two, &one)
    }

    // A panic of another thread cannot leave a page half-made: every change is one copy.
    fn pages(&self) -> RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn pages_mut(&self) -> RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Splits a range at page borders: (page, offset in it, range of the buffer).
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let here = at + done as u64;
        let offset = (here % PAGE) as usize;
        let n = (PAGE as usize - offset).min(len - done);
        let piece = (here / PAGE, offset, done..done + n);
        done += n;
        Some(piece)
    })
}

impl Pages {
    fn read(&self, at: u64, buf: &mut [u8]) {
        for (page, offset, range) in pieces(at, buf.len()) {
            let target = &mut buf[range];
            match self.map.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[offset..offset + target.len()]),
                None => target.fill(0),
            }
        }
    }

    fn write(&mut self, at: u64, buf: &[u8]) {
        self.changes += 1;
        for (page, offset, range) in pieces(at, buf.len()) {
            let source = &buf[range];
            let bytes = Arc::make_mut(self.map.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize])));
            bytes[offset..offset + source.len()].copy_from_slice(source);
        }
        if !buf.is_empty() {
            self.len = self.len.max(at + buf.len() as u64);
        }
    }

    fn clear(&mut self, at: u64, end: u64) {
        self.changes += 1;
        let first_whole = at.div_ceil(PAGE);
        let last_whole = end / PAGE;
        if first_whole < last_whole {
            let gone: Vec<u64> = self.map.range(first_whole..last_whole).map(|(page, _)| *page).collect();
            for page in gone {
                self.map.remove(&page);
            }
        }
        for (page, from, to) in [
            (at / PAGE, at % PAGE, if at / PAGE == end / PAGE { end % PAGE } else { PAGE }),
            (end / PAGE, if at / PAGE == end / PAGE { at % PAGE } else { 0 }, end % PAGE),
        ] {
            if let Some(bytes) = self.map.get_mut(&page).filter(|_| from < to) {
                Arc::make_mut(bytes)[from as usize..to as usize].fill(0);
            }
        }
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pages().len)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let pages = self.pages();
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > pages.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pages.read(at, buf);
        Ok(())
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        at.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.pages_mut().write(at, buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut pages = self.pages_mut();
        if len < pages.len {
            let end = pages.len;
            pages.clear(len, end);
        }
        pages.changes += 1;
        pages.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        let mut pages = self.pages_mut();
        let end = at.saturating_add(len).min(pages.len);
        if at < end {
            pages.clear(at, end);
        }
        Ok(true)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        let end = at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut pages = self.pages_mut();
        pages.clear(at, end);
        pages.len = pages.len.max(end);
        Ok(true)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        let pages = self.pages();
        let mut found = pages.map.range(at / PAGE..).map(|(page, _)| *page);
        let Some(first) = found.next() else { return Ok(None) };
        let mut end = first + 1;
        for page in found {
            if page != end {
                break;
            }
            end += 1;
        }
        let range = (first * PAGE).max(at)..(end * PAGE).min(pages.len);
        Ok((range.start < range.end).then_some(range))
    }

    fn physical_size(&self) -> io::Result<u64> {
        Ok(self.pages().map.len() as u64 * PAGE)
    }

    fn identity(&self) -> io::Result<Identity> {
        let pages = self.pages();
        Ok(Identity { device: 0, inode: self.id, len: pages.len, mtime_ns: i128::from(pages.changes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punching_and_cutting_leave_zeros() {
        let storage = MemoryStorage::from_bytes(&[7; 10000]);
        storage.punch(100, 9000).unwrap();
        let bytes = storage.to_vec();
        assert!(bytes[..100].iter().all(|b| *b == 7) && bytes[9100..].iter().all(|b| *b == 7));
        assert!(bytes[100..9100].iter().all(|b| *b == 0));
        storage.punch(10, 5).unwrap();
        assert_eq!(storage.to_vec()[9..16], [7, 0, 0, 0, 0, 0, 7]);
        storage.set_len(50).unwrap();
        storage.set_len(200).unwrap();
        assert_eq!(storage.to_vec()[49..52], [7, 0, 0]);
    }

    #[test]
    fn a_snapshot_keeps_its_bytes() {
        let storage = MemoryStorage::from_bytes(&[7; 10000]);
        let before = storage.snapshot();
        assert!(before.same_bytes(&storage));
        storage.write_at(5000, &[8]).unwrap();
        assert!(!before.same_bytes(&storage) && !storage.same_bytes(&before));
        assert_eq!(before.to_vec(), [7; 10000]);
        storage.write_at(5000, &[7]).unwrap();
        assert!(before.same_bytes(&storage));
        // A page of zeros and no page are the same bytes.
        storage.write_at(20000, &[0]).unwrap();
        before.set_len(20001).unwrap();
        assert!(before.same_bytes(&storage) && storage.same_bytes(&before));
    }

    #[test]
    fn finds_data() {
        let storage = MemoryStorage::new();
        storage.set_len(1 << 40).unwrap();
        storage.write_at(1 << 30, &[1]).unwrap();
        assert_eq!(storage.data_at(0).unwrap(), Some(1 << 30..(1 << 30) + 4096));
        assert_eq!(storage.data_at((1 << 30) + 4096).unwrap(), None);
        assert!(storage.read_at((1 << 40) - 1, &mut [0; 2]).is_err());
    }
}

//! The clusters inflated last, so that small reads do not inflate one cluster many times.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::entry::Packed;
use crate::geometry::Geometry;

/// All of them together, in bytes.
const BYTES: u64 = 4 << 20;

/// A small cache by place in the file. It is emptied before such a place can be used again.
#[derive(Debug)]
pub(crate) struct Unpacked {
    room: usize,
    list: Mutex<Vec<(Packed, Arc<[u8]>)>>,
}

impl Unpacked {
    pub(crate) fn new(geometry: Geometry) -> Unpacked {
        Unpacked { room: (BYTES / geometry.cluster_size()).clamp(2, 32) as usize, list: Mutex::default() }
    }

    fn list(&self) -> MutexGuard<'_, Vec<(Packed, Arc<[u8]>)>> {
        self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn get(&self, packed: Packed) -> Option<Arc<[u8]>> {
        let mut list = self.list();
        let index = list.iter().position(|(key, _)| *key == packed)?;
        let found = list.remove(index);
        let cluster = found.1.clone();
        list.push(found);
        Some(cluster)
    }

    pub(crate) fn put(&self, packed: Packed, cluster: Arc<[u8]>) {
        let mut list = self.list();
        list.retain(|(key, _)| *key != packed);
        if list.len() >= self.room {
            list.remove(0);
        }
        list.push((packed, cluster));
    }

    pub(crate) fn clear(&self) {
        self.list().clear();
    }
}
